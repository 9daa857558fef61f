"""fsync, so that files survive a power cut. Knows nothing of what is in them."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Returns when the content of a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
