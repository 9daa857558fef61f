"""Who waits for which job, and what becomes of a job when its last waiting client hangs up: it is
canceled, unless the same request comes again in time. Knows no HTTP and no queue.
"""

import asyncio
import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict

from app.background import Background
from app.caller import Caller
from app.jobs.dispatcher import Dispatcher
from app.jobs.job import JobState
from app.jobs.live_job import LiveJob, now
from app.request import ImageRequest


class Waiters:
    """`window` is how many seconds a request has to come again (RETRY_WINDOW). Without `cancels`
    (CANCEL_ON_DISCONNECT=false) jobs go on when their clients hang up."""

    def __init__(self, dispatcher: Dispatcher, *, cancels: bool, window: float) -> None:
        self._dispatcher = dispatcher
        self._cancels = cancels
        self._window = window
        self._deserted: dict[str, tuple[LiveJob, float]] = {}  # by repeat digest: since when
        self._background = Background()
        self._closed = False

    async def close(self) -> None:
        """The service ends: clients are let go, and their jobs go on after the restart."""
        self._closed = True
        await self._background.cancel()

    @contextmanager
    def waiting(self, live: LiveJob) -> Generator[None]:
        """While a client waits for the job."""
        live.waiters += 1
        try:
            yield
        finally:
            live.waiters -= 1
            if not (live.waiters or live.job.state.ended or self._closed):
                self._desert(live)

    def repeated(self, repeat: str) -> LiveJob | None:
        """The job of the same request whose client hung up, if that was not long ago."""
        live, since = self._deserted.pop(repeat, (None, 0.0))
        if live is None or live.job.state in (JobState.FAILED, JobState.CANCELED):
            return None
        recent = now() - since < self._window
        return live if recent or not live.job.state.ended else None

    def _desert(self, live: LiveJob) -> None:
        self._forget_old()
        if live.repeat:
            self._deserted[live.repeat] = (live, now())
        if self._cancels:
            self._background.spawn(self._cancel_if_deserted(live))

    async def _cancel_if_deserted(self, live: LiveJob) -> None:
        if live.repeat:
            deserted = self._deserted[live.repeat]
            await asyncio.sleep(self._window)
            if self._deserted.get(live.repeat) is not deserted:
                return  # the request has come again
            del self._deserted[live.repeat]
        if not live.waiters:
            await self._dispatcher.cancel(live)

    def _forget_old(self) -> None:
        for repeat, (live, since) in list(self._deserted.items()):
            if live.job.state.ended and now() - since > self._window:
                del self._deserted[repeat]


def repeat_of(request: ImageRequest, caller: Caller) -> str:
    """A digest by which a request is known when it comes again: who asked, in which dialect, and
    all that was asked."""
    digest = hashlib.sha256(f"{caller.face}\n{caller.owner}\n".encode())
    for name, value in asdict(request).items():
        digest.update(name.encode())
        digest.update(value if isinstance(value, bytes) else repr(value).encode())
    return digest.hexdigest()
