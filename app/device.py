"""Which devices this machine has. The child process `python -m app.runtime.device_probe` asks the
drivers and prints JSON, so that the API process never loads a runtime. Knows no model.
"""

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

FRESH = 60.0  # seconds for which an answer is kept
PATIENCE = 60.0  # seconds the child process gets to answer


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device of this machine; where it is not available, `reason` says why."""

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
        """Why a device cannot be used, or None if it can. The CPU is always there, so that no child
        process is started for it."""
        if name == "CPU":
            return None
        devices = await self.list()
        first = name.removesuffix(".0")  # GPU and GPU.0 are the same device
        names = {first, f"{first}.0"} if first.isalpha() else {name}
        for device in devices:
            if device.name in names:
                return device.reason if not device.available else None
        return (
            f"this machine has {', '.join(device.name for device in devices if device.available)}"
        )


async def _ask() -> list[Device]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "app.runtime.device_probe",
        cwd=Path(__file__).resolve().parent.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
        last_line = output.strip().rpartition(b"\n")[2]  # imported runtimes print lines before it
        return [Device(**record) for record in json.loads(last_line)]
    except (TimeoutError, ValueError) as error:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        why = (
            "a driver did not answer" if isinstance(error, TimeoutError) else "asking for it failed"
        )
        return [Device(name="CPU", full_name="CPU", kind="CPU", available=True, reason=why)]
