"""From a job's acceptance to its end: what a device is given to do, one attempt at it, how it ends.

Knows the pool and the ledger; knows no request, no face and no readiness.
"""

import asyncio
import logging
import time
from asyncio import FIRST_COMPLETED
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from app.errors import EaselError, WorkerDied
from app.jobs.job import Job, JobError, JobState
from app.jobs.ledger import Ledger
from app.jobs.live import LiveJob
from app.jobs.queue import Queue
from app.jobs.result import files_of, record_of
from app.logs import request_id
from app.workers.message import Counted, Drawn, Stepped
from app.workers.pool import Pool
from app.workers.worker import Task, Worker

log = logging.getLogger(__name__)

ATTEMPTS = 2  # a job whose worker died is run once more


class Dispatcher:
    """The queue, and what runs. `place` names the device a job runs on, `load` gives its worker;
    after `starvation` seconds no job is passed over."""

    def __init__(
        self,
        pool: Pool,
        ledger: Ledger,
        *,
        starvation: float,
        place: Callable[[Job], str],
        load: Callable[[Job, str], Coroutine[Any, Any, Worker]],
    ) -> None:
        self._pool = pool
        self._ledger = ledger
        self._place = place
        self._load = load
        self.live: dict[str, LiveJob] = {}
        self.queue = Queue(lambda name: pool.warm(name) is not None, starvation=starvation)
        self.running: dict[str, LiveJob] = {}  # by device
        self.seconds_per_job = 1.0  # a running mean
        self.stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._runs: set[asyncio.Task[Any]] = set()

    async def admit(
        self, live: LiveJob, pictures: Mapping[str, bytes], *, key: str | None, digest: str | None
    ) -> None:
        """Takes a job in: when this returns, it is durable. It may be drawn meanwhile.

        Raises KeyError for a used idempotency key, StorageFailed when there is no room.
        """
        self._enqueue(live)
        try:
            await asyncio.sleep(0)  # what can begin at once is recorded as running, in one record
            noted = live.job
            await self._ledger.add(noted, pictures, key, digest)
        except BaseException:
            self._forget(live)
            raise
        finally:
            live.recorded.set()
        if live.job.attempts != noted.attempts:
            self._spawn(self._record(live))
        self.pump()

    def _enqueue(self, live: LiveJob) -> None:
        self.live[live.job.id] = live
        self.queue.add(live)
        live.publish("state")
        self.pump()

    def _forget(self, live: LiveJob) -> None:
        """Leaves off a job that could not be recorded, as if it had not been handed in."""
        self._leave_off(live)
        live.ending = True
        live.change(state=JobState.CANCELED, finished=time.time())
        live.publish("done")
        del self.live[live.job.id]

    async def recover(self, job: Job) -> None:
        """Takes up a job of an earlier process: queued again, or failed if it was tried often
        enough."""
        live = LiveJob(job)
        live.recorded.set()
        if job.attempts < ATTEMPTS:
            live.restart()
            await self._ledger.save(live.job)
            self._enqueue(live)
            return
        self.live[job.id] = live
        detail = "The service ended twice while this job was running; it is not tried again."
        await self._end(live, JobState.FAILED, error=WorkerDied(detail))

    async def cancel(self, live: LiveJob) -> None:
        """Ends a job at once; its worker stops within a step, or is killed and replaced."""
        self._leave_off(live)
        await self._end(live, JobState.CANCELED)

    def _leave_off(self, live: LiveJob) -> None:
        live.wanted = False
        self.queue.remove(live)
        self._take_back(live)

    def _take_back(self, live: LiveJob) -> None:
        if live.handed:
            live.handed[0].cancel(live.job.id)
            live.handed = None

    def _start_no_more(self) -> None:
        self.stopping = True
        for live in self.queue:
            self._take_back(live)

    async def drain(self, seconds: float) -> None:
        """Starts no more jobs and waits for the running ones to be kept, so long at most."""
        self._start_no_more()
        if self._runs:
            log.info("draining", extra={"jobs": len(self._runs), "seconds": seconds})
            await asyncio.wait(self._runs, timeout=seconds)

    async def stop(self) -> None:
        """Leaves off; what has not ended is recorded as queued for the next start."""
        self._start_no_more()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for live in list(self.live.values()):
            if live.job.state is JobState.RUNNING and not live.ending:
                attempts = live.job.attempts - 1  # it was not its fault
                live.change(state=JobState.QUEUED, started=None, attempts=attempts)
                await self._ledger.save(live.job)

    def pump(self) -> None:
        """Gives every free device its next job, and the worker of a busy one the job after that,
        so that it need not ask. A load that waits for room goes before whatever no worker has yet:
        it would wait for ever behind a worker that is never idle."""
        if self.stopping:
            return
        served: set[str] = set()
        for live in self.queue.heads():
            ahead = live.next_on
            device = ahead or self._place(live.job)
            if device in served or (self._pool.crowded and not ahead):
                continue
            served.add(device)
            if device not in self.running:
                self.queue.remove(live)
                self.running[device] = live
                run = self._spawn(self._run(live, device))
                self._runs.add(run)
                run.add_done_callback(self._runs.discard)
            elif not ahead and live.recorded.is_set():
                handed = self.running[device].handed
                if handed and handed[0] is self._pool.ready(live.job.model, device):
                    self._hand_over(live, handed[0])

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Starts work that ends with the dispatcher at the latest."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, live: LiveJob, device: str) -> None:
        """One attempt. The device is given on as soon as the pictures are drawn: encoding and
        keeping them goes on beside the next job."""
        request_id.set(live.request_id)
        began = time.monotonic()
        drawing, error = None, None
        try:
            drawing = await self._draw(live, device)
        except Exception as broken:  # noqa: BLE001 - whatever it is, the job ends and the queue goes on
            error = self._verdict(live, broken)
        finally:
            del self.running[device]
            self.pump()
        if drawing is not None:
            self.seconds_per_job += 0.2 * (time.monotonic() - began - self.seconds_per_job)
            task, drawn, load_ms = drawing
            try:
                encoded = await task.encoded
                files = files_of(live.job, encoded)
                record = record_of(live.job, drawn, encoded, files, load_ms=load_ms)
                await self._end(live, JobState.SUCCEEDED, files=files, **record)
            except Exception as broken:  # noqa: BLE001 - as above
                error = self._verdict(live, broken)
        if error is not None:
            await self._end(live, JobState.FAILED, error=error)

    async def _draw(self, live: LiveJob, device: str) -> tuple[Task, Drawn, float] | None:
        """None when the job was canceled meanwhile."""
        warm = self._pool.ready(live.job.model, device) is not None
        if live.job.recipe.init_image is not None or not warm:
            # The picture lies where the worker will look for it; what is refused loads nothing.
            await live.recorded.wait()
        if not live.wanted:
            return None
        told = live.job.state is JobState.RUNNING  # its first step was heard already
        self._begin(live, device)
        began = time.monotonic()
        if live.handed and (told or live.next_on):
            _, task = live.handed
        else:
            live.handed = None
            worker = await self._worker_for(live, device)
            if worker is None:
                return None
            task = self._hand_over(live, worker)
        load_ms = (time.monotonic() - began) * 1000
        self.pump()  # it can have the next one, too
        try:
            drawn = await task.drawn
        finally:
            live.handed = None
        return (task, drawn, load_ms) if isinstance(drawn, Drawn) and live.wanted else None

    def _begin(self, live: LiveJob, device: str) -> None:
        if live.job.state is JobState.RUNNING:
            return
        live.change(
            state=JobState.RUNNING,
            device=device,
            started=time.time(),
            attempts=live.job.attempts + 1,
        )
        # Recorded while it runs already: the ledger keeps the order, and a job that takes the
        # service down twice is not run for ever.
        self._spawn(self._record(live))
        live.publish("state")

    async def _worker_for(self, live: LiveJob, device: str) -> Worker | None:
        """The loaded worker for a job, or None when the job was canceled meanwhile: it lets go of
        the device, and the load goes on for the next job of the model."""
        # Again where the worker has died between its load and now.
        while (worker := self._pool.ready(live.job.model, device)) is None:
            loading = self._spawn(self._load(live.job, device))
            loading.add_done_callback(_heard)
            ended = self._spawn(live.ended.wait())
            await asyncio.wait([loading, ended], return_when=FIRST_COMPLETED)
            if not live.wanted:
                loading.add_done_callback(self._not_needed)
                return None
            await loading
        return worker

    def _hand_over(self, live: LiveJob, worker: Worker) -> Task:
        def on_step(told: Stepped | Counted) -> None:
            if not live.handed or live.handed[0] is not worker:
                return  # it was taken back, or is tried again
            self._begin(live, worker.device)  # the step may be heard before the last job's end
            if isinstance(told, Stepped):
                live.step(told.step, told.steps, told.preview)
            else:
                live.count(told.step, told.steps)

        job = live.job
        folder = self._ledger.folder(job.id)
        task = worker.run(job.id, job.recipe, folder, on_step, watched=live.watched)
        live.handed = worker, task
        return task

    def _not_needed(self, loading: asyncio.Task[Worker]) -> None:
        if not loading.cancelled() and loading.exception() is None:
            self._pool.give_up(loading.result())

    async def _record(self, live: LiveJob) -> None:
        # Not before the first record, which knows it then; not after the last one.
        if live.recorded.is_set() and not live.ending:
            await self._ledger.save(live.job)

    def _verdict(self, live: LiveJob, error: Exception) -> EaselError | None:
        """What ends the job after a failed attempt, if anything does: a worker's death costs one
        retry."""
        if not isinstance(error, EaselError):
            log.error("job broke", extra={"job": live.job.id}, exc_info=error)
            error = EaselError("Something inside Easel broke; the log says more.")
        died = isinstance(error, WorkerDied)
        if not live.wanted or (died and self.stopping):  # stop() puts it back into the queue
            return None
        if not died or live.job.attempts >= ATTEMPTS:
            return error
        log.warning("trying again", extra={"job": live.job.id, "detail": error.detail})
        live.restart()
        self._spawn(self._record(live))
        self.queue.add(live, first=True)
        live.publish("state")
        self.pump()
        return None

    async def _end(
        self,
        live: LiveJob,
        state: JobState,
        *,
        files: dict[str, bytes] | None = None,
        error: EaselError | None = None,
        **values: Any,
    ) -> None:
        """The one way a job ends: recorded first, then told."""
        await live.recorded.wait()
        if live.ending or (state is not JobState.CANCELED and not live.wanted):
            await live.ended.wait()  # the first end counts; it may be on its way to the disk
            return
        live.ending = True
        told = JobError(code=error.code, message=error.detail) if error else None
        ended = replace(live.job, state=state, error=told, finished=time.time(), **values)
        # Also when the service stops just now: what is done must not be done again.
        live.job = await asyncio.shield(self._ledger.finish(ended, files or {}))
        live.pictures = list((files or {}).values()) if live.job.images else []
        live.publish("done")
        self.live.pop(live.job.id, None)
        self._log_end(live.job, live.request_id)

    def _log_end(self, job: Job, request_id: str | None) -> None:
        log.info(
            "job ended",
            extra={
                "job": job.id,
                "state": job.state.value,
                "model": job.model,
                "device": job.device,
                "ms": round(((job.finished or job.created) - job.created) * 1000),
                "error": job.error.code if job.error else None,
                "request_id": request_id,
            },
        )


def _heard(task: asyncio.Task[Any]) -> None:
    """So that a failure nobody waits for any more is no complaint in the log."""
    if not task.cancelled():
        task.exception()
