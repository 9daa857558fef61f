"""The queue and the only door to the workers: jobs go in, pictures come out, whatever dies in between.

Runs on the event loop of the API process. Knows no HTTP and no pixels.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from app import image
from app.catalog import Catalog
from app.device import Devices
from app.errors import (
    Busy,
    EaselError,
    InvalidRequest,
    LoadFailed,
    NotEnded,
    NotInstalled,
    QueueFull,
    StorageFailed,
    Unavailable,
    UnknownDevice,
    UnknownImage,
    WorkerDied,
)
from app.inputs import fit_inputs, open_inputs
from app.job import ImageFile, Job, JobError, JobEvent, JobState, Progress
from app.live import LiveJob
from app.message import Drawn, Encoded, Stopped
from app.model import Model
from app.pool import Pool
from app.request import ImageRequest
from app.settings import Settings
from app.store import Store
from app.worker import Task, Worker, WorkerOptions

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 2  # a job whose worker died is run once more
RETRY_LOAD = 30.0  # seconds after which a model that failed to load may be tried again by a job
HOUSEKEEPING = 1.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """installing, loading, ready or failed; detail says why, for the person who waits."""

    status: str
    detail: str
    model: str
    device: str
    progress: dict[str, Any] | None = None


class Engine:
    def __init__(
        self, settings: Settings, catalog: Catalog, store: Store, *, memory_budget: int
    ) -> None:
        self.settings = settings
        self.devices = Devices()
        self.catalog = catalog
        self._store = store
        self._disk = ThreadPoolExecutor(1, "store")
        self._pool = Pool(
            WorkerOptions(
                cache_dir=settings.data_dir.resolve() / "cache",
                threads=settings.threads,
                load_timeout=settings.load_timeout,
                stall_timeout=settings.stall_timeout,
                extra={},
            ),
            budget=memory_budget,
        )
        model = catalog.get(settings.model)
        self.serving: tuple[Model, str] = (model, self._default_device(model))
        self._readiness = Readiness(
            status="loading", detail="starting", model=model.name, device=self.serving[1]
        )
        self._live: dict[str, LiveJob] = {}
        self._queue: list[LiveJob] = []
        self._running: dict[str, LiveJob] = {}  # by device
        self._unsaved: dict[str, Job] = {}  # ended, but the disk would not take it yet
        self._failed_loads: dict[str, tuple[float, str]] = {}
        self._admitting: list[str] = []  # the faces of jobs on their way to the disk
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()  # no new jobs
        self.closing = asyncio.Event()  # whoever waits is let go
        self._seconds_per_job = 1.0

    # Life

    async def start(self) -> None:
        """Takes up what an earlier process left unfinished, and loads the serving model."""
        for job in await self._on_disk(self._store.unfinished):
            live = self._live[job.id] = LiveJob(job)
            if job.attempts >= ATTEMPTS:
                detail = (
                    "The service ended twice while this job was running; it is not tried again."
                )
                await self._end(live, JobState.FAILED, error=WorkerDied(detail))
                continue
            live.change(state=JobState.QUEUED, progress=Progress())
            live.publish("state")
            self._queue.append(live)
        if self._queue:
            log.info("resuming", extra={"jobs": len(self._queue)})
        self._spawn(self._load_serving())
        self._spawn(self._keep_house())

    async def drain(self, grace: float) -> None:
        """No new jobs; the running ones get `grace` seconds, then they go back to the queue."""
        self._stopping.set()
        running = [live.ended.wait() for live in self._running.values()]
        if running:
            log.info("draining", extra={"jobs": len(running), "grace": grace})
            await asyncio.wait([asyncio.ensure_future(wait) for wait in running], timeout=grace)
        self.closing.set()

    async def stop(self) -> None:
        """Ends all workers. A job that still runs is queued again for the next start."""
        self._stopping.set()
        self.closing.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for live in self._live.values():
            if live.job.state is JobState.RUNNING:
                attempts = live.job.attempts - 1
                live.change(
                    state=JobState.QUEUED, started=None, attempts=attempts, progress=Progress()
                )
                await self._save(live.job)
        await self._pool.close()
        self._disk.shutdown()
        self._store.close()

    # Jobs

    async def submit(
        self,
        request: ImageRequest,
        *,
        lenient: bool = False,
        face: str = "native",
        owner: str = "",
        idempotency_key: str | None = None,
        digest: str | None = None,
        alone: bool = False,
    ) -> Job:
        """Accepts a job: when this returns, it is durable and will end. With an idempotency key that was
        used before, the job of that time; `digest` tells whether the body is the same. `alone` is for
        dialects of one run at a time: Busy while a job of the same face is active."""
        if idempotency_key is not None:
            known = await self._known(owner, idempotency_key, digest)
            if known is not None:
                return known
        model = self._servable(request.model)
        # On a thread: a large picture takes a while to decode.
        pictures = await asyncio.to_thread(open_inputs, request) if request.init_image else {}
        init = pictures.get("init_image")
        recipe, warnings = model.complete(
            request, lenient=lenient, init_size=init.size if init else None
        )
        files = (
            await asyncio.to_thread(fit_inputs, pictures, recipe, request.resize)
            if pictures
            else {}
        )
        if len(self._queue) + len(self._admitting) >= self.settings.queue_limit:
            raise QueueFull(
                f"{len(self._queue)} jobs are waiting, which is the limit (QUEUE_LIMIT).",
                retry_after=max(1, round(self._seconds_per_job * len(self._queue) / 2)),
            )
        if alone and (
            face in self._admitting or any(live.job.face == face for live in self._live.values())
        ):
            raise Busy("One run at a time: the last one has not ended.")
        total = recipe.steps * recipe.images
        job = Job(
            id=str(uuid.uuid4()),
            recipe=recipe,
            created=time.time(),
            face=face,
            owner=owner,
            progress=Progress(steps=total),
            warnings=tuple(warnings),
        )
        self._admitting.append(face)
        try:
            await self._on_disk(self._store.add, job, files, key=idempotency_key, digest=digest)
        except KeyError:
            known = await self._known(owner, idempotency_key or "", digest)
            if known is None:
                raise StorageFailed("The job could not be recorded.") from None
            return known
        finally:
            self._admitting.remove(face)
        live = self._live[job.id] = LiveJob(job)
        live.publish("state")
        self._queue.append(live)
        self._pump()
        return job

    async def job(self, job_id: str) -> Job:
        if live := self._live.get(job_id):
            return live.job
        return self._unsaved.get(job_id) or await self._on_disk(self._store.get, job_id)

    async def jobs(
        self,
        *,
        state: JobState | None = None,
        limit: int = 50,
        before: str | None = None,
        face: str | None = None,
    ) -> list[Job]:
        """Newest first, with what is known of the live ones."""
        page = await self._on_disk(
            self._store.page, state=state, limit=limit, before=before, face=face
        )
        return [live.job if (live := self._live.get(job.id)) else job for job in page]

    def queue_position(self, job_id: str) -> int | None:
        """0 for the job that is next, None for one that does not wait."""
        return next((n for n, live in enumerate(self._queue) if live.job.id == job_id), None)

    def queue_length(self) -> int:
        return len(self._queue)

    def live(self, job_id: str) -> LiveJob | None:
        return self._live.get(job_id)

    async def wait(self, job_id: str, seconds: float) -> Job:
        """The job, when it has ended, the seconds are over or the service stops."""
        live = self._live.get(job_id)
        if live is not None:
            waits = [asyncio.ensure_future(event.wait()) for event in (live.ended, self.closing)]
            try:
                await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            return live.job
        return await self.job(job_id)

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """What happens to a job, from the event after this id on; an ended job tells its end only."""
        live = self._live.get(job_id)
        if live is None:
            live = LiveJob(await self.job(job_id))
            live.publish("state")
            live.publish("done")
            after = 0
        async for event in live.follow(after):
            yield event

    async def cancel(self, job_id: str) -> Job:
        """Ends an active job at once; its worker stops within a step, or is killed and replaced."""
        live = self._live.get(job_id)
        if live is None or live.job.state.ended:
            return await self.job(job_id)
        live.wanted = False
        if live in self._queue:
            self._queue.remove(live)
        if live.worker is not None:
            live.worker.cancel(job_id)
        await self._end(live, JobState.CANCELED)
        return live.job

    async def delete(self, job_id: str) -> None:
        """Removes an ended job and its files."""
        job = await self.job(job_id)
        if not job.state.ended:
            raise NotEnded("The job has not ended; cancel it first.")
        self._unsaved.pop(job_id, None)
        await self._on_disk(self._store.delete, job_id)

    async def image(self, job_id: str, n: int) -> tuple[ImageFile, bytes]:
        """The n-th picture of a job as a file."""
        job = await self.job(job_id)
        if not job.state.ended:
            raise NotEnded(f"The job is {job.state}; its pictures are there when it has succeeded.")
        if not 0 <= n < len(job.images):
            raise UnknownImage(f"The job has {len(job.images)} pictures; there is no number {n}.")
        return job.images[n], await self._file(job_id, job.images[n].name)

    async def input_image(self, job_id: str, field: str) -> bytes:
        """The init_image or mask of a job as the PNG that the pipeline was given."""
        job = await self.job(job_id)
        name = {"init_image": job.recipe.init_image, "mask": job.recipe.mask}.get(field)
        if name is None:
            raise UnknownImage(f"The job has no {field}.")
        return await self._file(job_id, name)

    async def _file(self, job_id: str, name: str) -> bytes:
        try:
            return await self._on_disk(self._store.read, job_id, name)
        except StorageFailed:
            raise UnknownImage("The file is no longer there.") from None

    # Pipelines

    @property
    def readiness(self) -> Readiness:
        return self._readiness

    def loaded_on(self, name: str) -> str | None:
        """The device on which a model is warm."""
        worker = self._pool.warm(name)
        return worker.device if worker else None

    def is_running(self) -> bool:
        return bool(self._running)

    async def load(self, name: str, device: str | None = None) -> tuple[Model, str]:
        """Makes a model the serving pipeline when it is ready; until then, and if it fails, the old one is."""
        model = self._installed(self.catalog.get(name))
        device = device or (
            self.serving[1] if model.supports(self.serving[1]) else self._default_device(model)
        )
        if not model.supports(device):
            allowed = ", ".join(model.devices)
            raise UnknownDevice(
                f"{model.name} does not run on {device[:32]!r}; it runs on: {allowed}.",
                field="device",
            )
        absent = await self.devices.why_absent(device)
        if absent is not None:
            raise UnknownDevice(f"{device} is not available here: {absent}", field="device")
        await self._pool.get(model, device)
        self._failed_loads.pop(model.name, None)
        self.serving = (model, device)
        self._readiness = Readiness(
            status="ready", detail="The pipeline is ready.", model=model.name, device=device
        )
        self._pump()
        return self.serving

    async def unload(self, name: str) -> None:
        """Frees a model's memory; the next job for it loads it again."""
        await self._pool.unload(self.catalog.get(name).name)

    async def _load_serving(self) -> None:
        model, device = self.serving
        self._readiness = replace(self._readiness, detail=f"Loading {model.name} on {device}.")
        try:
            await self.load(model.name, device)
        except Exception as broken:  # noqa: BLE001 - whatever it is, the service stays up and tells it
            error = (
                broken
                if isinstance(broken, EaselError)
                else LoadFailed(f"{type(broken).__name__}: {broken}")
            )
            if self._readiness.status != "ready":  # another model may have been loaded by now
                self._readiness = replace(self._readiness, status="failed", detail=error.detail)
            self._failed_loads[model.name] = (time.monotonic(), error.detail)
            log.error(
                "load failed", extra={"model": model.name, "device": device, "detail": error.detail}
            )
        self._pump()

    def _default_device(self, model: Model) -> str:
        return self.settings.device if model.supports(self.settings.device) else model.devices[0]

    def _servable(self, name: str | None) -> Model:
        if self._stopping.is_set():
            raise Unavailable("The service is shutting down; try again in a moment.", retry_after=5)
        model = self._installed(self.catalog.get(name) if name is not None else self.serving[0])
        when, why = self._failed_loads.get(model.name, (0.0, ""))
        if why and time.monotonic() - when < RETRY_LOAD:
            raise Unavailable(f"{model.name} cannot serve: {why}", retry_after=round(RETRY_LOAD))
        return model

    def _installed(self, model: Model) -> Model:
        if not model.installed:
            raise NotInstalled(
                f"{model.name} is not installed; `python -m app install {model.name}` installs it.",
                field="model",
            )
        return model

    # From the queue to the pictures

    def _pump(self) -> None:
        """Gives every free device its next job."""
        if self._stopping.is_set():
            return
        for live in self._order():
            device = self._device_for(live)
            if device not in self._running:
                self._queue.remove(live)
                self._running[device] = live
                self._spawn(self._run(live, device))

    def _order(self) -> list[LiveJob]:
        """The queue as it should be served: jobs of a loaded model first, as long as nobody starves."""
        if self._queue and time.time() - self._queue[0].job.created > self.settings.starvation:
            return list(self._queue)
        return sorted(self._queue, key=lambda live: self._pool.warm(live.job.model) is None)

    def _device_for(self, live: LiveJob) -> str:
        model, device = self.serving
        if live.job.model == model.name:
            return device
        if worker := self._pool.warm(live.job.model):
            return worker.device
        with contextlib.suppress(EaselError):
            return self._default_device(self.catalog.get(live.job.model))
        return device

    async def _run(self, live: LiveJob, device: str) -> None:
        """One attempt at a job. The device is given on as soon as the pictures are drawn: encoding and
        keeping them goes on beside the next job."""
        began = time.monotonic()
        task: Task | None = None
        try:
            task, drawn, load_ms = await self._draw(live, device)
        except EaselError as error:
            await self._failed(live, error)
            return
        except Exception:
            log.exception("job broke", extra={"job": live.job.id})
            await self._failed(live, EaselError("Something inside Easel broke; the log says more."))
            return
        finally:
            live.worker = None
            self._running.pop(device, None)
            self._pump()
            await self._pool.freed()
        if isinstance(drawn, Stopped):
            return
        self._seconds_per_job += 0.2 * (time.monotonic() - began - self._seconds_per_job)
        try:
            await self._keep(live, drawn, await task.encoded, load_ms)
        except EaselError as error:
            await self._failed(live, error)

    async def _draw(self, live: LiveJob, device: str) -> tuple[Task, Drawn | Stopped, float]:
        job = live.change(
            state=JobState.RUNNING,
            device=device,
            started=time.time(),
            attempts=live.job.attempts + 1,
        )
        # Recorded before it runs, so that a job that takes the whole service down is not run for ever.
        await self._save(job)
        live.publish("state")
        began = time.monotonic()
        model = self._installed(self.catalog.get(job.model))
        try:
            worker = await self._pool.get(model, device)
        except LoadFailed as error:
            self._failed_loads[model.name] = (time.monotonic(), error.detail)
            raise
        load_ms = (time.monotonic() - began) * 1000
        if not live.wanted:
            return Task(lambda _: None), Stopped(job=job.id), load_ms
        task = worker.run(
            job.id,
            job.recipe,
            self._store.folder(job.id),
            lambda stepped: (
                live.step(stepped.step, stepped.steps, stepped.preview) if live.wanted else None
            ),
        )
        live.worker = worker
        drawn = await self._until_free(live, worker, task)
        return task, drawn, load_ms

    async def _until_free(self, live: LiveJob, worker: Worker, task: Task) -> Drawn | Stopped:
        """Waits for the pipeline; a canceled job that does not stop in time costs its worker."""
        while True:
            done, _ = await asyncio.wait([task.drawn], timeout=HOUSEKEEPING)
            if done:
                drawn = await task.drawn
                return drawn if live.wanted else Stopped(job=live.job.id)
            if not live.wanted and live.job.finished is not None:
                late = time.time() - live.job.finished
                if late > self.settings.cancel_timeout:
                    log.error("worker did not stop", extra={"job": live.job.id, "pid": worker.pid})
                    worker.kill()

    async def _keep(self, live: LiveJob, drawn: Drawn, encoded: Encoded, load_ms: float) -> None:
        recipe = live.job.recipe
        files: dict[str, bytes] = {
            f"{n}.{recipe.format}": data for n, data in enumerate(encoded.pictures)
        }
        images = tuple(
            ImageFile(
                name=name,
                width=recipe.width,
                height=recipe.height,
                bytes=len(data),
                media_type=image.MEDIA_TYPES[recipe.format],
                seed=recipe.image_seed(n),
                etag=hashlib.sha256(data).hexdigest()[:32],
            )
            for n, (name, data) in enumerate(files.items())
        )
        job = live.job
        started = job.started or job.created
        timings = {"queue": (started - job.created) * 1000, "load": load_ms, **drawn.timings_ms}
        timings |= {"encode": encoded.milliseconds, "total": (time.time() - job.created) * 1000}
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

    async def _failed(self, live: LiveJob, error: EaselError) -> None:
        """A worker's death costs one retry; anything else is the job's end."""
        if not live.wanted:
            return
        if (
            isinstance(error, WorkerDied)
            and live.job.attempts < ATTEMPTS
            and not self._stopping.is_set()
        ):
            log.warning(
                "worker died, trying again", extra={"job": live.job.id, "detail": error.detail}
            )
            live.change(state=JobState.QUEUED)
            live.restart()
            live.publish("state")
            self._queue.insert(0, live)
            self._pump()
            return
        if self._stopping.is_set() and isinstance(error, WorkerDied):
            return  # stop() puts it back into the queue
        await self._end(live, JobState.FAILED, error=error)

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
        if live.job.state.ended or (state is not JobState.CANCELED and not live.wanted):
            return
        told = JobError(code=error.code, message=error.detail) if error else None
        ended = replace(live.job, state=state, error=told, finished=time.time(), **values)
        try:
            await self._on_disk(self._store.finish, ended, files or {})
        except StorageFailed as failure:
            if state is JobState.SUCCEEDED:
                told = JobError(code=failure.code, message=failure.detail)
                ended = replace(ended, state=JobState.FAILED, error=told, images=())
            self._unsaved[ended.id] = ended
            log.error("job not recorded", extra={"job": ended.id, "detail": failure.detail})
        if live.job.state.ended:  # it was canceled meanwhile
            return
        live.job = ended
        live.publish("done")
        self._live.pop(ended.id, None)
        milliseconds = round((ended.finished or ended.created) * 1000 - ended.created * 1000)
        log.info(
            "job ended",
            extra={
                "job": ended.id,
                "state": ended.state.value,
                "model": ended.model,
                "device": ended.device,
                "ms": milliseconds,
                "error": told.code if told else None,
            },
        )

    # Beside the jobs

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING)
            self._pool.kill_stalled()
            for job in list(self._unsaved.values()):
                if await self._save(job):
                    self._unsaved.pop(job.id, None)
            self._pump()  # a job may have waited long enough to go first

    async def _known(self, owner: str, key: str, digest: str | None) -> Job | None:
        found = await self._on_disk(self._store.find_key, owner, key)
        if found is None:
            return None
        job, known_digest = found
        if known_digest != digest:
            raise InvalidRequest(
                "This Idempotency-Key was used with another body; use a new key for a new job.",
                field="Idempotency-Key",
            )
        return await self.job(job.id)

    async def _save(self, job: Job) -> bool:
        try:
            await self._on_disk(self._store.update, job)
        except StorageFailed as error:
            log.error("job not recorded", extra={"job": job.id, "detail": error.detail})
            return False
        return True

    async def _on_disk(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._disk, lambda: work(*args, **kwargs))

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
