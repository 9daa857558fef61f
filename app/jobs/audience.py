"""Who waits for which job, and what becomes of a job that nobody waits for any more: it is
canceled, unless the same request comes again in time. Knows no HTTP and no queue."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict

from app.jobs.live import LiveJob
from app.request import ImageRequest


class Audience:
    """`window` is how many seconds a request has to come again; without `cancel` jobs go on."""

    def __init__(
        self, cancel: Callable[[LiveJob], Awaitable[None]] | None, *, window: float
    ) -> None:
        self._cancel = cancel
        self._window = window
        self._left: dict[str, tuple[LiveJob, float]] = {}  # by what was asked
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False

    def close(self) -> None:
        """From now on nobody's going means anything: the jobs go on after the restart."""
        self.closed = True
        for task in self._tasks:
            task.cancel()

    @contextmanager
    def attend(self, live: LiveJob) -> Generator[None]:
        """While a caller waits for the job."""
        live.audience += 1
        try:
            yield
        finally:
            live.audience -= 1
            if not (live.audience or live.job.state.ended or self.closed):
                self._deserted(live)

    def take_up(self, ask: str) -> LiveJob | None:
        """The job whose callers asked for the same and went away, if it was not long ago."""
        live, left = self._left.pop(ask, (None, 0.0))
        if live is None or live.job.state in ("failed", "canceled"):
            return None
        recent = time.monotonic() - left < self._window
        return live if recent or not live.job.state.ended else None

    def _deserted(self, live: LiveJob) -> None:
        now = time.monotonic()
        old = [
            ask
            for ask, (other, left) in self._left.items()
            if other.job.state.ended and now - left > self._window
        ]
        for ask in old:
            del self._left[ask]
        if live.ask:
            self._left[live.ask] = (live, now)
        if self._cancel is not None:
            task = asyncio.create_task(self._give_up(live, now, self._cancel))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _give_up(
        self, live: LiveJob, left: float, cancel: Callable[[LiveJob], Awaitable[None]]
    ) -> None:
        if live.ask:
            await asyncio.sleep(self._window)
            if self._left.get(live.ask) != (live, left):
                return  # somebody has taken it up
            del self._left[live.ask]
        if not live.audience:
            await cancel(live)


def ask_of(request: ImageRequest, *, face: str, owner: str) -> str:
    """What tells a repeated request from another one: the caller, the dialect and all that was
    asked."""
    digest = hashlib.sha256(f"{face}\n{owner}\n".encode())
    for name, value in asdict(request).items():
        digest.update(name.encode())
        digest.update(value if isinstance(value, bytes) else repr(value).encode())
    return digest.hexdigest()
