"""What the service and a worker process say to each other, and how it travels: pickled, behind its
length.

Both ends are this program; nothing of a caller's is ever unpickled.
"""

import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.models.model import Model
from app.request import Recipe

LENGTH = struct.Struct("!I")


def pack(message: Any) -> bytes:
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(body)) + body


# To the worker


@dataclass(frozen=True, kw_only=True)
class Load:
    model: Model
    device: str
    cache_dir: Path | None
    threads: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """`folder` holds the recipe's input pictures; `watched` says that somebody looks already."""

    job: str
    recipe: Recipe
    folder: Path | None
    watched: bool


@dataclass(frozen=True, kw_only=True)
class Cancel:
    job: str


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Somebody looks at the job: every step is told, with a preview, the earlier ones at once."""

    job: str


# From the worker


@dataclass(frozen=True, kw_only=True)
class Loaded:
    milliseconds: float


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """For whoever looks: steps are counted over all pictures of the job, preview is a small
    JPEG."""

    job: str
    step: int
    steps: int
    preview: bytes | None


@dataclass(frozen=True, kw_only=True)
class Counted:
    """How far a job is that nobody looks at, now and then."""

    job: str
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """All pictures are made and being encoded: the pipeline is free for the next job."""

    job: str
    timings_ms: dict[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    job: str
    pictures: tuple[bytes, ...]
    size: tuple[int, int]  # width, height of each
    milliseconds: float


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """The job was canceled and the pipeline is free."""

    job: str


@dataclass(frozen=True, kw_only=True)
class Failed:
    """`job` is None when the load failed."""

    job: str | None
    code: str
    detail: str
