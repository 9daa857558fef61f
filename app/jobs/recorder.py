"""What becomes durable of the jobs that are alive: their acceptance, their beginning, their end.

Knows the ledger; knows no queue, no device and no worker.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from app.background import Background
from app.caller import Idempotency
from app.errors import EaselError
from app.jobs.job import Job, JobError, JobState
from app.jobs.ledger import Ledger
from app.jobs.live_job import LiveJob
from app.jobs.phase import Phase

log = logging.getLogger(__name__)

_BEGUN = (Phase.DRAWING, Phase.ENCODING, Phase.ENDING)


class Recorder:
    """`live` holds the jobs that have not ended, by id. The ledger writes in the order of calls."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._writing = Background()  # never canceled: what has happened is recorded
        self._ends: dict[str, asyncio.Task[None]] = {}  # by job: what records its end
        self._idle = asyncio.Event()
        self.live: dict[str, LiveJob] = {}

    def accept(
        self, live: LiveJob, inputs: Mapping[str, bytes], idempotency: Idempotency | None
    ) -> asyncio.Task[None]:
        """Records a new job. The task raises KeyError for a used idempotency key, StorageFailed
        when there is no room; then the job has never been."""
        self.live[live.job.id] = live
        return self._writing.spawn(self._accept(live, inputs, idempotency), awaited=True)

    async def _accept(
        self, live: LiveJob, inputs: Mapping[str, bytes], idempotency: Idempotency | None
    ) -> None:
        try:
            await self._ledger.add(live.job, inputs, idempotency)
        except BaseException:
            self.live.pop(live.job.id, None)
            raise

    def note(self, live: LiveJob) -> None:
        """Records a job as it is now, without anybody waiting for it."""
        self._ledger.note(live.job)

    def end(
        self,
        live: LiveJob,
        state: JobState,
        *,
        files: dict[str, bytes] | None = None,
        error: EaselError | None = None,
        **values: Any,
    ) -> asyncio.Task[None]:
        """Every job ends here: recorded first, then published. The first end counts: for a job
        that is ending already, this returns the task that records that end."""
        if live.job.id in self._ends:
            return self._ends[live.job.id]
        live.ending()
        cause = JobError(code=error.code, message=error.detail) if error else None
        ended = replace(live.job, state=state, error=cause, finished=time.time(), **values)
        task = self._ends[ended.id] = self._writing.spawn(self._end(live, ended, files or {}))
        return task

    async def _end(self, live: LiveJob, ended: Job, files: dict[str, bytes]) -> None:
        live.end(await self._ledger.finish(ended, files))
        self.live.pop(ended.id, None)
        self._ends.pop(ended.id, None)
        self.note_idle()
        _log_end(live)

    def note_idle(self) -> None:
        """To be called when a job has left its device: whoever waits for that looks again."""
        if not any(live.phase in _BEGUN for live in self.live.values()):
            self._idle.set()

    async def until_idle(self, seconds: float) -> None:
        """Waits until nothing has begun that is not kept, so long at most."""
        self._idle.clear()
        self.note_idle()
        if not self._idle.is_set():
            log.info("draining", extra={"seconds": seconds})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)

    async def close(self) -> None:
        """Records what is on its way, then what has begun as interrupted: the next start repeats
        it, and the attempt does not count."""
        await self._writing.join()
        await self._ledger.flush()
        await self._ledger.save_late()
        for live in list(self.live.values()):
            if live.phase in (Phase.DRAWING, Phase.ENCODING):
                live.requeue(counts=False)
                await self._ledger.save(live.job)


def _log_end(live: LiveJob) -> None:
    job = live.job
    log.info(
        "job ended",
        extra={
            "job": job.id,
            "state": job.state.value,
            "model": job.model,
            "device": job.device,
            "ms": round(((job.finished or job.created) - job.created) * 1000),
            "error": job.error.code if job.error else None,
            "request_id": live.request_id,
        },
    )
