"""Whether there is room for an installation, asked before it starts: disk, and memory for a
conversion."""

import shutil
from pathlib import Path

import psutil

from app.errors import InstallFailed

_SPARE = 500_000_000  # bytes of disk that stay free
# What a conversion writes for each byte of weights it reads: the 16-bit export, and for a smaller
# format the compressed one beside it.
_WRITTEN = {"fp16": 1.0, "int8": 1.6, "int4": 1.4}
_MEMORY = 2.2  # and what it holds in memory at its fullest


def written(read: int, weight_format: str) -> int:
    """Bytes that converting so many bytes of weights puts on the disk."""
    return int(read * _WRITTEN[weight_format])


def check_disk(folder: Path, needed: int, name: str) -> None:
    """Raises InstallFailed when the disk under `folder` cannot take so many bytes more."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise InstallFailed(
            f"Installing {name} takes {_gb(needed + _SPARE)} of disk in {folder}, and {_gb(free)} "
            "are free. Make room, or set DATA_DIR to a folder on a larger disk."
        )


def check_memory(read: int, name: str) -> None:
    """Raises InstallFailed when memory cannot take the conversion of so many bytes of weights."""
    needed, free = int(read * _MEMORY), psutil.virtual_memory().available
    if needed > free:
        raise InstallFailed(
            f"Converting {name} takes about {_gb(needed)} of memory, and {_gb(free)} are free. "
            "Stop other programs, take a weight format that is there ready-made, or convert it "
            "on a larger machine and copy the model's folder."
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
