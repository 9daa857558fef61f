"""Which devices this machine has. Asked in a child process: the API process never loads a runtime.

    python -m app.device       prints them as JSON
"""

import asyncio
import contextlib
import importlib
import importlib.util
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FRESH = 60.0  # seconds an answer is used for
PATIENCE = 60.0  # seconds a driver gets to answer


@dataclass(frozen=True, kw_only=True)
class Device:
    """`reason` says why a device that one might expect is not available."""

    name: str
    full_name: str
    kind: str
    available: bool
    reason: str | None = None


class Devices:
    """The devices of this machine, asked for at most once a minute."""

    def __init__(self) -> None:
        self._known: list[Device] = []
        self._asked = 0.0
        self._asking = asyncio.Lock()

    async def list(self) -> list[Device]:
        async with self._asking:
            if not self._known or time.monotonic() - self._asked > FRESH:
                self._known = await _ask()
                self._asked = time.monotonic()
            return self._known

    async def why_absent(self, name: str) -> str | None:
        """Why a device cannot be used, or None if it can. The CPU is always there and not asked for."""
        if name == "CPU":
            return None
        devices = await self.list()
        named = name if any(device.name == name for device in devices) else name.removesuffix(".0")
        for device in devices:
            if device.name == named:
                return device.reason if not device.available else None
        return f"this machine has {', '.join(device.name for device in devices if device.available)}"


async def _ask() -> list[Device]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "app.device",
        cwd=Path(__file__).resolve().parent.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
        return [Device(**record) for record in json.loads(output)]
    except (TimeoutError, ValueError) as error:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        why = "a driver did not answer" if isinstance(error, TimeoutError) else "asking for it failed"
        return [Device(name="CPU", full_name="CPU", kind="CPU", available=True, reason=why)]


def probe() -> list[Device]:
    """What OpenVINO and axengine find here, with the reasons for what they do not."""
    import openvino

    core: Any = openvino.Core()
    found: list[str] = list(core.available_devices)
    devices = [
        Device(
            name=name,
            full_name=str(core.get_property(name, "FULL_DEVICE_NAME")),
            kind=name.partition(".")[0],
            available=True,
        )
        for name in found
    ]
    for kind in ("GPU", "NPU"):
        if not any(device.kind == kind for device in devices):
            reason = _openvino_reason(core, kind)
            full = f"Intel {kind}"
            devices.append(Device(name=kind, full_name=full, kind=kind, available=False, reason=reason))
    automatic = "the best of the devices above, chosen by OpenVINO"
    devices.append(Device(name="AUTO", full_name=automatic, kind="AUTO", available=bool(found)))
    return [*devices, _axera()]


def _openvino_reason(core: Any, kind: str) -> str:
    try:
        core.get_property(kind, "FULL_DEVICE_NAME")
    except RuntimeError as error:
        if "libOpenCL" in str(error):
            return "its driver is not installed (libOpenCL.so.1 is missing)"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[-1][:200] if lines else "OpenVINO does not find it"
    return "OpenVINO does not find it"


def _axera() -> Device:
    reason = None
    if importlib.util.find_spec("axengine") is None:
        reason = "axengine is not installed; axera/setup.sh installs it"
    else:
        try:
            importlib.import_module("axengine")
        except ImportError as error:
            reason = f"axengine cannot be used: {error}"
    return Device(
        name="AXERA", full_name="Axera NPU", kind="AXERA", available=reason is None, reason=reason
    )


if __name__ == "__main__":
    print(json.dumps([asdict(device) for device in probe()]))
