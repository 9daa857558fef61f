"""Bringing files to the disk, so that they survive a power cut."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Returns when what was written to a file, or entered into a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
