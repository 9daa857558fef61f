"""Whether disk and memory suffice for an installation, checked before it starts. Only estimates:
whether writing succeeds is the installer's concern."""

import shutil
from pathlib import Path

import psutil

from app.errors import InstallFailed

_SPARE = 500_000_000  # bytes of disk that stay free
# What a conversion writes for each byte of weights it reads, and what it holds in memory. Measured
# with Stable Diffusion 1.5 (16 bits, 2.13 GB) to int8: 4.3 GB of disk, 5.8 GB of memory. On the
# disk are the 16-bit export, the compressed one, and a part of it twice; in memory torch's weights
# and OpenVINO's beside each other, and 0.7 GB of libraries.
_WRITTEN = {"fp16": 1.1, "int8": 2.1, "int4": 1.7}
_MEMORY = 2.4
_LIBRARIES = 800_000_000


def written(read: int, weight_format: str, *, unpacked: bool = False) -> int:
    """Bytes of disk that converting `read` bytes of weights takes; `unpacked` for a single file,
    which is first written out as a diffusers folder."""
    return int(read * (_WRITTEN[weight_format] + (2 if unpacked else 0)))


def check_disk(folder: Path, needed: int, name: str) -> None:
    """Raises InstallFailed when the disk of `folder` has no room for `needed` bytes."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise InstallFailed(
            f"Installing {name} takes {_gb(needed + _SPARE)} of disk in {folder}, and {_gb(free)} "
            "are free. Make room, or set DATA_DIR to a folder on a larger disk."
        )


def check_memory(read: int, name: str) -> None:
    """Raises InstallFailed when memory and swap cannot take a conversion of `read` bytes."""
    needed = int(read * _MEMORY) + _LIBRARIES
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    if needed > free:
        raise InstallFailed(
            f"Converting {name} takes about {_gb(needed)} of memory, and {_gb(free)} are free. "
            "Stop other programs, take a weight format that is there ready-made, or convert it "
            "on a larger machine and copy the model's folder."
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
