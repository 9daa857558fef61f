"""How much of this machine Easel may take: from its memory follow the memory for loaded pipelines,
how many of them stay loaded, and the weight format that is installed. Loads and installs nothing.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.settings import Settings

GIB = 2**30
# Files with a container's memory limit, of control groups version 2 and 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """`budget` are the bytes for all loaded pipelines together, `max_loaded` is the number of
    pipelines that stay loaded without a job."""

    size: str
    budget: int
    max_loaded: int
    weight_format: str

    @classmethod
    def of(cls, settings: Settings) -> "Machine":
        """The values from the settings; those that are not set follow from the memory."""
        total = memory()
        size = settings.machine_size or next(
            name for name, (least, *_) in _SIZES.items() if total >= least * GIB
        )
        _, share, max_loaded, weight_format = _SIZES[size]
        return cls(
            size=size,
            budget=settings.memory_budget * 2**20 or int(total * share),
            max_loaded=max_loaded,
            weight_format=weight_format,
        )


# Least memory in GiB, share of it for pipelines, how many pipelines stay loaded, weight format.
# fp16 weights take twice the memory of int8 and four times that of int4; small machines trade
# quality for it.
_SIZES: dict[str, tuple[int, float, int, str]] = {
    "big": (60, 0.8, 4, "fp16"),
    "medium": (28, 0.75, 2, "int8"),
    "little": (14, 0.7, 2, "int8"),
    "tiny": (0, 0.6, 1, "int4"),
}


def memory() -> int:
    """Bytes of memory: the machine's or, in a container with a limit, that limit."""
    found = [psutil.virtual_memory().total]
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(path).read_text()))
    return min(found)
