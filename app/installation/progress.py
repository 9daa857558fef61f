"""How far an installation is: Progress for the terminal, JSON lines and the service alike, and
Meter, which counts bytes. Does not know what is installed."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["checking", "downloading", "preparing", "converting", "verifying", "installed"]

_REPORT_EVERY = 0.25  # seconds
_SPEED_OVER = 10.0  # seconds: the reported speed is the mean over this time


@dataclass(frozen=True, kw_only=True)
class Progress:
    """`bytes` of `total` are there (0 of 0 where nothing is counted); `speed` is in bytes a
    second."""

    state: State
    detail: str  # for a person: what is being done
    bytes: int = 0
    total: int = 0
    speed: float = 0.0
    eta_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


OnProgress = Callable[[Progress], None]


class Meter:
    """Counts bytes from several threads and calls `on_progress` a few times a second."""

    def __init__(self, state: State, detail: str, total: int, on_progress: OnProgress) -> None:
        self._state: State = state
        self._detail = detail
        self._total = total
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._bytes = 0
        self._moved = 0  # bytes counted by add(): they make the speed
        self._past = deque([(time.monotonic(), 0)])
        self._reported = 0.0

    def found(self, count: int) -> None:
        """Counts bytes that were on the disk already, without effect on the speed; negative takes
        back bytes that were discarded."""
        with self._lock:
            self._bytes += count
            self._report()

    def add(self, count: int) -> None:
        with self._lock:
            self._bytes += count
            self._moved += count
            self._report()

    def end(self) -> None:
        with self._lock:
            self._report(now=True)

    def _report(self, *, now: bool = False) -> None:
        moment = time.monotonic()
        if not now and moment - self._reported < _REPORT_EVERY:
            return
        self._reported = moment
        self._past.append((moment, self._moved))
        while len(self._past) > 2 and moment - self._past[0][0] > _SPEED_OVER:
            self._past.popleft()
        began, moved = self._past[0]
        speed = max(0.0, (self._moved - moved) / (moment - began)) if moment > began else 0.0
        left = max(0, self._total - self._bytes)
        self._on_progress(
            Progress(
                state=self._state,
                detail=self._detail,
                bytes=self._bytes,
                total=self._total,
                speed=round(speed),
                eta_seconds=round(left / speed, 1) if speed > 0 else None,
            )
        )
