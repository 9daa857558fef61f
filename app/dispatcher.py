"""From the queue to the pictures: which job is next on which device, one attempt at it, how it
ends.

Knows the pool and the ledger; knows no request, no face and no readiness.
"""

import asyncio
import hashlib
import logging
import time
from asyncio import FIRST_COMPLETED
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from app import image
from app.errors import EaselError, WorkerDied
from app.job import ImageFile, Job, JobError, JobState, Progress
from app.ledger import Ledger
from app.live import LiveJob
from app.logs import request_id
from app.message import Counted, Drawn, Encoded, Stepped, Stopped
from app.pool import Pool
from app.worker import Task, Worker

log = logging.getLogger(__name__)

ATTEMPTS = 2  # a job whose worker died is run once more
PATIENCE = 1.0  # seconds between looks at a canceled job that should stop


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Both in seconds: how long a job may be passed over, and how long a canceled one may take."""

    starvation: float
    cancel_timeout: float


class Dispatcher:
    """The queue, and what runs. `place` names the device a job runs on, `load` gives its worker."""

    def __init__(
        self,
        pool: Pool,
        ledger: Ledger,
        rules: Rules,
        *,
        place: Callable[[Job], str],
        load: Callable[[Job, str], Coroutine[Any, Any, Worker]],
    ) -> None:
        self._pool = pool
        self._ledger = ledger
        self._rules = rules
        self._place = place
        self._load = load
        self.live: dict[str, LiveJob] = {}
        self.queue: list[LiveJob] = []
        self.running: dict[str, LiveJob] = {}  # by device
        self.seconds_per_job = 1.0  # a running mean
        self.stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._runs: set[asyncio.Task[Any]] = set()

    def enqueue(self, job: Job, ask: str = "", *, watched: bool = False) -> None:
        live = self.live[job.id] = LiveJob(job)
        live.ask = ask
        live.watched = watched
        self.queue.append(live)
        live.publish("state")
        self.pump()

    async def recover(self, job: Job) -> None:
        """Takes up a job of an earlier process: queued again, or failed if it was tried often
        enough."""
        if job.attempts < ATTEMPTS:
            job = replace(job, state=JobState.QUEUED, progress=Progress(steps=job.progress.steps))
            await self._ledger.save(job)
            self.enqueue(job)
            return
        live = self.live[job.id] = LiveJob(job)
        detail = "The service ended twice while this job was running; it is not tried again."
        await self._end(live, JobState.FAILED, error=WorkerDied(detail))

    async def cancel(self, live: LiveJob) -> None:
        """Ends a job at once; its worker stops within a step, or is killed and replaced."""
        live.wanted = False
        if live in self.queue:
            self.queue.remove(live)
        if live.worker is not None:
            live.worker.cancel(live.job.id)
        await self._end(live, JobState.CANCELED)

    async def drain(self, seconds: float) -> None:
        """Starts no more jobs and waits for the running ones to be kept, so long at most."""
        self.stopping = True
        if self._runs:
            log.info("draining", extra={"jobs": len(self._runs), "seconds": seconds})
            await asyncio.wait(self._runs, timeout=seconds)

    async def stop(self) -> None:
        """Leaves off; what has not ended is recorded as queued for the next start."""
        self.stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for live in list(self.live.values()):
            if live.job.state is JobState.RUNNING and not live.ending:
                attempts = live.job.attempts - 1  # it was not its fault
                live.change(state=JobState.QUEUED, started=None, attempts=attempts)
                await self._ledger.save(live.job)

    def pump(self) -> None:
        """Gives every free device its next job. A load that waits for room goes first: it would
        wait for ever behind a worker that is never idle."""
        if self.stopping or self._pool.crowded:
            return
        for live in self.order():
            device = self._place(live.job)
            if device not in self.running:
                self.queue.remove(live)
                self.running[device] = live
                run = self._spawn(self._run(live, device))
                self._runs.add(run)
                run.add_done_callback(self._runs.discard)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Starts work that ends with the dispatcher at the latest."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def order(self) -> list[LiveJob]:
        """Jobs of a loaded model first, as long as nobody starves."""
        if self.queue and time.time() - self.queue[0].job.created > self._rules.starvation:
            return list(self.queue)
        return sorted(self.queue, key=lambda live: self._pool.warm(live.job.model) is None)

    async def _run(self, live: LiveJob, device: str) -> None:
        """One attempt. The device is given on as soon as the pictures are drawn: encoding and
        keeping them goes on beside the next job."""
        request_id.set(live.request_id)
        began = time.monotonic()
        try:
            task, drawn, load_ms = await self._draw(live, device)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job ends and the queue goes on
            await self._failed(live, error)
            return
        finally:
            live.worker = None
            del self.running[device]
            self.pump()
        if isinstance(drawn, Stopped):
            return
        self.seconds_per_job += 0.2 * (time.monotonic() - began - self.seconds_per_job)
        try:
            await self._keep(live, drawn, await task.encoded, load_ms)
        except Exception as error:  # noqa: BLE001 - as above
            await self._failed(live, error)

    async def _draw(self, live: LiveJob, device: str) -> tuple[Task, Drawn | Stopped, float]:
        def on_step(told: Stepped | Counted) -> None:
            if live.wanted and isinstance(told, Stepped):
                live.step(told.step, told.steps, told.preview)
            elif live.wanted:
                live.count(told.step, told.steps)

        canceled = Task(on_step), Stopped(job=live.job.id), 0.0
        if not live.wanted:
            return canceled
        job = live.change(
            state=JobState.RUNNING,
            device=device,
            started=time.time(),
            attempts=live.job.attempts + 1,
        )
        # Recorded while it runs already: the ledger keeps the order, and a job that takes the
        # service down twice is not run for ever.
        self._spawn(self._record(live))
        live.publish("state")
        began = time.monotonic()
        # Again where the worker has died between its load and now.
        while (worker := self._pool.ready(job.model, device)) is None:
            # A canceled job lets go of the device; the load goes on for the next job of the model.
            loading = self._spawn(self._load(job, device))
            loading.add_done_callback(_heard)
            ended = self._spawn(live.ended.wait())
            await asyncio.wait([loading, ended], return_when=FIRST_COMPLETED)
            if not live.wanted:
                loading.add_done_callback(self._not_needed)
                return canceled
            await loading
        load_ms = (time.monotonic() - began) * 1000
        folder = self._ledger.folder(job.id)
        task = worker.run(job.id, job.recipe, folder, on_step, watched=live.watched)
        live.worker = worker
        return task, await self._until_free(live, worker, task), load_ms

    def _not_needed(self, loading: asyncio.Task[Worker]) -> None:
        if not loading.cancelled() and loading.exception() is None:
            self._pool.give_up(loading.result())

    async def _record(self, live: LiveJob) -> None:
        if not live.ending:  # else this record would come after the last one
            await self._ledger.save(live.job)

    async def _until_free(self, live: LiveJob, worker: Worker, task: Task) -> Drawn | Stopped:
        """Waits for the pipeline; a canceled job that does not stop in time costs its worker."""
        while not (await asyncio.wait([task.drawn], timeout=PATIENCE))[0]:
            finished = live.job.finished
            if finished is not None and time.time() - finished > self._rules.cancel_timeout:
                log.error("worker did not stop", extra={"job": live.job.id, "pid": worker.pid})
                worker.kill()
        drawn = await task.drawn
        return drawn if live.wanted else Stopped(job=live.job.id)

    async def _keep(self, live: LiveJob, drawn: Drawn, encoded: Encoded, load_ms: float) -> None:
        job, recipe = live.job, live.job.recipe
        files = {f"{n}.{recipe.format}": data for n, data in enumerate(encoded.pictures)}
        images = tuple(
            ImageFile(
                name=name,
                width=encoded.size[0],
                height=encoded.size[1],
                bytes=len(data),
                media_type=image.MEDIA_TYPES[recipe.format],
                seed=recipe.image_seed(n),
                etag=hashlib.sha256(data).hexdigest()[:32],
            )
            for n, (name, data) in enumerate(files.items())
        )
        timings = {
            "queue": ((job.started or job.created) - job.created) * 1000,
            "load": load_ms,
            **drawn.timings_ms,
            "encode": encoded.milliseconds,
            "total": (time.time() - job.created) * 1000,
        }
        steps = job.progress.steps
        await self._end(
            live,
            JobState.SUCCEEDED,
            files=files,
            images=images,
            timings_ms={name: round(value, 2) for name, value in timings.items()},
            warnings=(*job.warnings, *drawn.warnings),
            progress=Progress(step=steps, steps=steps, eta_seconds=0.0),
        )

    async def _failed(self, live: LiveJob, error: Exception) -> None:
        """A worker's death costs one retry; anything else is the job's end."""
        if not isinstance(error, EaselError):
            log.error("job broke", extra={"job": live.job.id}, exc_info=error)
            error = EaselError("Something inside Easel broke; the log says more.")
        if not live.wanted:
            return
        if not isinstance(error, WorkerDied):
            await self._end(live, JobState.FAILED, error=error)
        elif self.stopping:
            return  # stop() puts it back into the queue
        elif live.job.attempts >= ATTEMPTS:
            await self._end(live, JobState.FAILED, error=error)
        else:
            log.warning("trying again", extra={"job": live.job.id, "detail": error.detail})
            live.restart()
            self._spawn(self._record(live))
            self.queue.insert(0, live)
            live.publish("state")
            self.pump()

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
