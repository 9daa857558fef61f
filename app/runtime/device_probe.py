"""Asks OpenVINO and axengine for their devices. app/device.py runs it as a child process of the
service, because a driver may crash or hang.

    python -m app.runtime.device_probe       prints them as JSON
"""

import json
from dataclasses import asdict
from typing import Any

import openvino

from app.device import Device
from app.runtime import axera


def probe() -> list[Device]:
    """All devices found, and the kinds that were not found, as unavailable, with the reason."""
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
            devices.append(
                Device(name=kind, full_name=full, kind=kind, available=False, reason=reason)
            )
    automatic = "the best of the devices above, chosen by OpenVINO"
    devices.append(Device(name="AUTO", full_name=automatic, kind="AUTO", available=bool(found)))
    return [*devices, *axera.devices()]


def _openvino_reason(core: Any, kind: str) -> str:
    try:
        core.get_property(kind, "FULL_DEVICE_NAME")
    except RuntimeError as error:
        if "libOpenCL" in str(error):
            return "its driver is not installed (libOpenCL.so.1 is missing)"
    return "OpenVINO finds none, or its driver is not installed"


if __name__ == "__main__":
    print(json.dumps([asdict(device) for device in probe()]))
