"""The only door to jobs and models. Runs on the event loop of the API process.

Knows no HTTP, no process and no pixels: the dispatcher runs the jobs, the pool holds the workers.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext, suppress

from app.background import Background
from app.caller import USUAL_TERMS, Caller, Idempotency, Terms
from app.device import Device, Devices
from app.errors import (
    Busy,
    InvalidRequest,
    NotEnded,
    QueueFull,
    StorageFailed,
    Unavailable,
    UnknownImage,
)
from app.jobs.dispatcher import Dispatcher
from app.jobs.job import ImageFile, Job, JobEvent, JobQuery, JobState, new_job
from app.jobs.ledger import Ledger
from app.jobs.live_job import LiveJob, ended_events
from app.jobs.store import Store
from app.jobs.waiters import Waiters, repeat_of
from app.machine import Machine
from app.models.catalog import Catalog
from app.models.model import Model
from app.preparation import prepare
from app.request import ImageRequest
from app.serving import Readiness, Serving
from app.settings import Settings
from app.workers.placement import Placement
from app.workers.pool import Pool
from app.workers.worker import WorkerOptions

log = logging.getLogger(__name__)

HOUSEKEEPING = 1.0  # seconds


class Engine:
    def __init__(
        self, settings: Settings, catalog: Catalog, store: Store, *, machine: Machine
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._devices = Devices()
        self._ledger = Ledger(store)
        self._pool = Pool(WorkerOptions.of(settings), machine)
        placement = Placement(self._pool, catalog, preferred=settings.device)
        self._jobs = Dispatcher(self._pool, self._ledger, placement, starvation=settings.starvation)
        self._serving = Serving(settings, catalog, self._pool, placement, self._jobs, self._devices)
        self._waiters = Waiters(
            self._jobs, cancels=settings.cancel_on_disconnect, window=settings.retry_window
        )
        self._background = Background()

    # Life

    async def start(self) -> None:
        """Takes up what an earlier process left unfinished, and loads the serving model."""
        unfinished = await self._ledger.unfinished()
        if unfinished:
            log.info("resuming", extra={"jobs": len(unfinished)})
        for job in unfinished:
            await self._jobs.recover(job)
        self._background.spawn(self._serving.bring_up())
        self._background.spawn(self._keep_house())

    async def drain(self, grace: float) -> None:
        """No new jobs; the running ones get `grace` seconds, then they go back to the queue."""
        await self._jobs.drain(grace)
        await self._release()

    async def stop(self) -> None:
        """Ends all workers. A job that still runs is queued again for the next start."""
        await self._release()
        await self._background.cancel()
        await self._jobs.stop()
        await self._pool.close()
        self._ledger.close()

    async def _release(self) -> None:
        """Lets go of everybody who waits for a job or follows one."""
        await self._waiters.close()
        for live in self._jobs.live.values():
            live.release()

    # Jobs

    async def submit(
        self, request: ImageRequest, caller: Caller, terms: Terms = USUAL_TERMS
    ) -> Job:
        """Accepts a job: when this returns, it is durable and will end.

        With an idempotency key that was used before (ask `known` first), it is the job of that
        time. Raises InvalidRequest, UnknownModel, NotInstalled, QueueFull, Busy, Unavailable,
        StorageFailed.
        """
        repeat = repeat_of(request, caller) if terms.repeatable else ""
        if repeat and (deserted := self._waiters.repeated(repeat)):
            return deserted.job
        if self._jobs.stopping:
            raise Unavailable("The service is shutting down; try again soon.", retry_after=5)
        model = self._serving.servable(request.model)
        self._check_room(caller, terms)  # before the pictures are decoded, which is work
        prepared = await prepare(request, model, lenient=terms.lenient)
        self._check_room(caller, terms)  # others may have come meanwhile
        job = new_job(prepared.recipe, caller, tag=terms.tag, warnings=prepared.warnings)
        live = LiveJob(job, repeat=repeat, watched=terms.watched, request_id=caller.request_id)
        try:
            await self._jobs.admit(live, prepared.inputs, terms.idempotency)
        except KeyError:
            # Two requests with one key at once: the other one was first.
            known = await self.known(caller, terms.idempotency) if terms.idempotency else None
            if known is None:
                raise StorageFailed("The job could not be recorded.") from None
            return known
        return live.job

    def _check_room(self, caller: Caller, terms: Terms) -> None:
        waiting = self._jobs.count_waiting()
        if waiting >= self._settings.queue_limit:
            raise QueueFull(
                f"{waiting} jobs are waiting, which is the limit (QUEUE_LIMIT); try again later.",
                retry_after=max(1, round(self._jobs.seconds_per_job * waiting / 2)),
            )
        same_face = (live for live in self._jobs.live.values() if live.job.face == caller.face)
        if terms.one_at_a_time and any(same_face):
            raise Busy("One run at a time: the last one has not ended.")

    async def known(self, caller: Caller, idempotency: Idempotency) -> Job | None:
        """The job that an idempotency key has given already; raises InvalidRequest when it was for
        another body."""
        found = await self._ledger.find_key(caller.owner, idempotency.key)
        if found is None:
            return None
        job, digest = found
        if digest != idempotency.digest:
            raise InvalidRequest(
                "This Idempotency-Key was used with another body; use a new key for a new job.",
                field="Idempotency-Key",
            )
        return await self.job(job.id)

    async def job(self, job_id: str) -> Job:
        """Raises UnknownJob."""
        live = self._jobs.live.get(job_id)
        return live.job if live else await self._ledger.get(job_id)

    async def jobs(self, query: JobQuery) -> list[Job]:
        """Newest first, with what is known of those that have not ended."""
        page = await self._ledger.page(query)
        return [live.job if (live := self._jobs.live.get(job.id)) else job for job in page]

    def active(self, caller: Caller) -> list[Job]:
        """A caller's jobs of one face that have not ended: the running ones, then the queued ones
        in the order of their acceptance."""
        jobs = [live.job for live in self._jobs.live.values()]
        own = [job for job in jobs if (job.face, job.owner) == (caller.face, caller.owner)]
        return sorted(own, key=lambda job: job.state is not JobState.RUNNING)

    def queue_position(self, job_id: str) -> int | None:
        """0 for the job that is next, None for one that does not wait."""
        waiting = (n for n, live in enumerate(self._jobs.waiting()) if live.job.id == job_id)
        return next(waiting, None)

    def waiting(self, job_id: str) -> AbstractContextManager[None]:
        """While a client waits for a job. When the last one hangs up before it has ended, the job
        is canceled (CANCEL_ON_DISCONNECT); a repeatable one only after RETRY_WINDOW."""
        live = self._jobs.live.get(job_id)
        return self._waiters.waiting(live) if live else nullcontext()

    async def wait(self, job_id: str, seconds: float | None = None) -> Job:
        """The job, when it has ended, the seconds are over or the service closes."""
        live = self._jobs.live.get(job_id)
        if live is None:
            return await self.job(job_id)
        with suppress(TimeoutError):
            await asyncio.wait_for(live.over.wait(), seconds)
        return live.job

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """What happens to a job after the event with this id, until it ends or the service closes;
        an ended job tells its end only."""
        live = self._jobs.live.get(job_id)
        if live is None:
            for event in ended_events(await self.job(job_id)):
                yield event
            return
        self._jobs.watch(live)
        async for event in live.follow(after):
            yield event

    def preview(self, job_id: str) -> bytes | None:
        """The latest preview of a running job, if there is one yet; who asks once asks again, so
        that from now on previews are made."""
        live = self._jobs.live.get(job_id)
        if live is not None:
            self._jobs.watch(live)
        return live.preview() if live else None

    async def cancel(self, job_id: str) -> Job:
        """Ends an active job at once; its worker stops within a step, or is killed and replaced."""
        live = self._jobs.live.get(job_id)
        if live is None:
            return await self.job(job_id)
        await self._jobs.cancel(live)
        return live.job

    async def delete(self, job_id: str) -> None:
        """Removes an ended job and its files; raises NotEnded."""
        job = await self.job(job_id)
        if not job.state.ended:
            raise NotEnded("The job has not ended; cancel it first.")
        await self._ledger.delete(job_id)

    async def image(self, job_id: str, n: int) -> tuple[ImageFile, bytes]:
        """The n-th picture of a job as a file; raises NotEnded, UnknownImage."""
        job = await self.job(job_id)
        if not job.state.ended:
            raise NotEnded(f"The job is {job.state}; its pictures are there when it has succeeded.")
        if not 0 <= n < len(job.images):
            raise UnknownImage(f"The job has {len(job.images)} pictures; there is no number {n}.")
        return job.images[n], await self._ledger.read(job_id, job.images[n].name)

    async def pictures(self, job: Job) -> list[bytes]:
        """The files of all pictures of an ended job."""
        return await self._ledger.read_all(job.id, [file.name for file in job.images])

    async def input_image(self, job_id: str, field: str) -> bytes:
        """The init_image or mask of a job as the PNG that the pipeline was given."""
        job = await self.job(job_id)
        name = {"init_image": job.recipe.init_image, "mask": job.recipe.mask}.get(field)
        if name is None:
            raise UnknownImage(f"The job has no {field[:32]}.")
        return await self._ledger.read(job_id, name)

    # Models and devices

    @property
    def readiness(self) -> Readiness:
        """Whether a job handed in now would be worked on, and why not."""
        return self._serving.readiness

    @property
    def serving_model(self) -> Model:
        """The model that is used where none is named."""
        return self._serving.current[0]

    def models(self) -> list[Model]:
        return list(self._catalog)

    def model(self, name: str) -> Model:
        """By its name or one of its aliases; raises UnknownModel."""
        return self._catalog.get(name)

    def model_names(self) -> list[str]:
        """The names of all models, and those of MODEL_ALIASES."""
        return [*self._catalog.models, *self._catalog.outside]

    async def model_size(self, model: Model) -> int:
        """Bytes on the disk; 0 where it is not installed."""
        return await self._serving.size(model)

    def model_state(self, model: Model) -> tuple[str | None, dict[str, object] | None]:
        """The device on which a model is loaded, and how far its installation is; None: not."""
        return self._serving.loaded_on(model.name), self._serving.installing.get(model.name)

    async def load(self, name: str | None, device: str | None = None) -> tuple[Model, str]:
        """Makes a model (None: the serving one) the serving one on a device when it is loaded."""
        return await self._serving.load(name or self.serving_model.name, device)

    async def unload(self, name: str) -> None:
        """Frees a model's memory; the next job for it loads it again. Raises Busy."""
        await self._serving.unload(name)

    async def devices(self) -> list[Device]:
        return await self._devices.list()

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING)
            try:
                self._pool.kill_unresponsive()
                if self._settings.idle_unload:
                    await self._pool.end_idle(self._settings.idle_unload)
                await self._ledger.save_late()
                await self._serving.adopt()
                self._jobs.pump()  # a job may have waited long enough to go first
            except Exception:
                log.exception("housekeeping broke")
