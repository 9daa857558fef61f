"""What the service and a worker say to each other, as plain data that a process on any machine can
read: MessagePack, each message behind its length.

A message carries facts and bytes, no objects of the sender: input pictures and results travel as
the bytes of their files. Both ends decode only into the types below.
"""

import struct
from pathlib import Path
from typing import Any

import msgspec

from app.models.model import Model
from app.request import Recipe

LENGTH = struct.Struct("!I")  # before each message: the bytes of its body


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The class's name travels with the fields, so that the receiver knows which message it is."""


# To the worker


class Load(_Message, frozen=True):
    """The first message: what to load. Paths are those of the worker's own machine."""

    model: Model
    device: str
    cache_dir: Path | None
    threads: int


class Run(_Message, frozen=True):
    """Draw a job. `inputs` are the PNG files that the recipe names; `watched` says that somebody
    follows the job already."""

    job: str
    recipe: Recipe
    inputs: dict[str, bytes] = {}
    watched: bool = False


class Cancel(_Message, frozen=True):
    """Nobody wants the job any more: stop it at its next step, or leave it off if it waits."""

    job: str


class Watch(_Message, frozen=True):
    """Somebody follows the job from now on: report every step with a preview, the earlier ones at
    once."""

    job: str


# From the worker


class Loaded(_Message, frozen=True):
    milliseconds: float


class LoadFailed(_Message, frozen=True):
    code: str
    detail: str


class Stepped(_Message, frozen=True):
    """A step of a watched job. Steps are counted over all its pictures; preview is a small JPEG."""

    job: str
    step: int
    steps: int
    preview: bytes | None


class Counted(_Message, frozen=True):
    """How far a job is that nobody watches, a few times a second."""

    job: str
    step: int
    steps: int


class Drawn(_Message, frozen=True):
    """All pictures are made and being encoded: the pipeline is free for the next job."""

    job: str
    timings_ms: dict[str, float]
    warnings: tuple[str, ...]


class Encoded(_Message, frozen=True):
    """The finished files. `size` is width and height of each picture."""

    job: str
    pictures: tuple[bytes, ...]
    size: tuple[int, int]
    milliseconds: float


class Stopped(_Message, frozen=True):
    """The job was canceled and the pipeline is free."""

    job: str


class Failed(_Message, frozen=True):
    """The job has no result, and why: an error's code and words (app/errors.py)."""

    job: str
    code: str
    detail: str


Order = Load | Run | Cancel | Watch
Report = Stepped | Counted | Drawn | Encoded | Stopped | Failed


def _encode_other(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} is no plain data")


def _decode_other(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} is no plain data")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_other)
_orders = msgspec.msgpack.Decoder(Order, dec_hook=_decode_other)
_answers = msgspec.msgpack.Decoder(Loaded | LoadFailed | Report, dec_hook=_decode_other)


def pack(message: Any) -> bytes:
    """A message as it travels, its length before it."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def read_order(body: bytes) -> Order:
    """What the service tells a worker; raises msgspec.DecodeError for anything else."""
    return _orders.decode(body)


def read_answer(body: bytes) -> Loaded | LoadFailed | Report:
    """What a worker tells the service; raises msgspec.DecodeError for anything else."""
    return _answers.decode(body)
