"""The only door to the jobs and the pipelines. Runs on the event loop of the API process.

Knows no HTTP, no process and no pixels: the dispatcher runs the jobs, the pool holds the pipelines.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext

from app.device import Devices
from app.errors import (
    Busy,
    InvalidRequest,
    NotEnded,
    QueueFull,
    StorageFailed,
    Unavailable,
    UnknownImage,
)
from app.jobs.audience import Audience, ask_of
from app.jobs.dispatcher import Dispatcher
from app.jobs.job import ImageFile, Job, JobEvent, JobState, Progress
from app.jobs.ledger import Ledger
from app.jobs.live import LiveJob
from app.jobs.store import Store
from app.machine import Machine
from app.models.catalog import Catalog
from app.pictures.inputs import fit_inputs, open_inputs
from app.request import ImageRequest
from app.serving import Serving
from app.settings import Settings
from app.workers.pool import Pool
from app.workers.worker import WorkerOptions

log = logging.getLogger(__name__)

HOUSEKEEPING = 1.0  # seconds


class Engine:
    def __init__(
        self, settings: Settings, catalog: Catalog, store: Store, *, machine: Machine
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.devices = Devices()
        self.closing = asyncio.Event()  # whoever waits is let go
        self._ledger = Ledger(store)
        self._pool = Pool(WorkerOptions.of(settings), machine)
        self.serving = Serving(settings, catalog, self._pool, self.devices, self._pump)
        self._jobs = Dispatcher(
            self._pool,
            self._ledger,
            starvation=settings.starvation,
            place=self.serving.place,
            load=self.serving.worker_for,
        )
        self._audience = Audience(
            self._jobs.cancel if settings.cancel_on_disconnect else None,
            window=settings.retry_window,
        )
        self._chores: list[asyncio.Task[None]] = []

    # Life

    async def start(self) -> None:
        """Takes up what an earlier process left unfinished, and loads the serving model."""
        unfinished = await self._ledger.unfinished()
        if unfinished:
            log.info("resuming", extra={"jobs": len(unfinished)})
        for job in unfinished:
            await self._jobs.recover(job)
        self._chores = [
            asyncio.create_task(self.serving.bring_up()),
            asyncio.create_task(self._keep_house()),
        ]

    async def drain(self, grace: float) -> None:
        """No new jobs; the running ones get `grace` seconds, then they go back to the queue."""
        await self._jobs.drain(grace)
        self._audience.close()
        self.closing.set()

    async def stop(self) -> None:
        """Ends all workers. A job that still runs is queued again for the next start."""
        self._audience.close()
        self.closing.set()
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        await self._jobs.stop()
        await self._pool.close()
        self._ledger.close()

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
        repeatable: bool = False,
        watched: bool = False,
        tag: str = "",
    ) -> Job:
        """Accepts a job: when this returns, it is durable and will end.

        With an idempotency key that was used before (ask `known` first), it is the job of that
        time; `digest` tells whether the body is the same. `alone` is for dialects of one run at a
        time: Busy while a job of the same face is active. `repeatable` is for callers that send a
        request again when it took too long: they get the job that nobody waits for any more.
        `watched` is for callers that want the previews of all steps. `tag` is the caller's own
        name for the job.
        """
        ask = ask_of(request, face=face, owner=owner) if repeatable else ""
        if ask and (deserted := self._audience.take_up(ask)):
            return deserted.job
        if self._jobs.stopping:
            raise Unavailable("The service is shutting down; try again soon.", retry_after=5)
        model = self.serving.servable(request.model)
        # On a thread: a large picture takes a while to decode.
        has_picture = request.init_image is not None
        pictures = await asyncio.to_thread(open_inputs, request) if has_picture else {}
        init = pictures.get("init_image")
        size = init.size if init else None
        recipe, warnings = model.complete(request, lenient=lenient, init_size=size)
        files = await asyncio.to_thread(fit_inputs, pictures, recipe, request) if pictures else {}
        job = Job(
            id=str(uuid.uuid4()),
            recipe=recipe,
            created=time.time(),
            face=face,
            owner=owner,
            tag=tag,
            progress=Progress(steps=recipe.steps * recipe.images),
            warnings=tuple(warnings),
        )
        self._check_room(face, alone)
        live = LiveJob(job, ask=ask, watched=watched)
        try:
            await self._jobs.admit(live, files, key=idempotency_key, digest=digest)
        except KeyError:
            # Two requests with one key at once: the other one was first.
            known = await self.known(owner, idempotency_key or "", digest)
            if known is None:
                raise StorageFailed("The job could not be recorded.") from None
            return known
        return live.job

    def _check_room(self, face: str, alone: bool) -> None:
        waiting = len(self._jobs.queue)
        if waiting >= self.settings.queue_limit:
            raise QueueFull(
                f"{waiting} jobs are waiting, which is the limit (QUEUE_LIMIT); try again later.",
                retry_after=max(1, round(self._jobs.seconds_per_job * waiting / 2)),
            )
        if alone and any(live.job.face == face for live in self._jobs.live.values()):
            raise Busy("One run at a time: the last one has not ended.")

    async def job(self, job_id: str) -> Job:
        live = self._jobs.live.get(job_id)
        return live.job if live else await self._ledger.get(job_id)

    async def jobs(
        self,
        *,
        state: JobState | None = None,
        limit: int = 50,
        before: str | None = None,
        face: str | None = None,
    ) -> list[Job]:
        """Newest first, with what is known of the live ones."""
        page = await self._ledger.page(state=state, limit=limit, before=before, face=face)
        return [live.job if (live := self.live(job.id)) else job for job in page]

    def queue_position(self, job_id: str) -> int | None:
        """0 for the job that is next, None for one that does not wait."""
        waiting = (n for n, live in enumerate(self._jobs.queue.order()) if live.job.id == job_id)
        return next(waiting, None)

    def live(self, job_id: str) -> LiveJob | None:
        """A job that has not ended, with its events and its latest preview."""
        return self._jobs.live.get(job_id)

    def active(self, *, face: str, owner: str) -> list[LiveJob]:
        """A caller's jobs of one face that have not ended: the running ones, then the queued ones
        in the order of their acceptance."""
        own = [
            live
            for live in self._jobs.live.values()
            if live.job.face == face and live.job.owner == owner
        ]
        return sorted(own, key=lambda live: live.job.state is not JobState.RUNNING)

    def attend(self, job_id: str) -> AbstractContextManager[None]:
        """While a caller waits for a job. When the last one goes before it has ended, the job is
        canceled (CANCEL_ON_DISCONNECT); a repeatable one only after RETRY_WINDOW."""
        live = self.live(job_id)
        return self._audience.attend(live) if live else nullcontext()

    async def wait(self, job_id: str, seconds: float | None = None) -> Job:
        """The job, when it has ended, the seconds are over or the service closes."""
        live = self.live(job_id)
        if live is None:
            return await self.job(job_id)
        waits = [asyncio.ensure_future(event.wait()) for event in (live.ended, self.closing)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return live.job

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """What happens to a job after the event with this id; an ended job tells its end only."""
        live = self.live(job_id)
        if live is None:
            live = LiveJob(await self.job(job_id))
            live.publish("state")
            live.publish("done")
            after = 0
        async for event in live.follow(after):
            yield event

    async def cancel(self, job_id: str) -> Job:
        """Ends an active job at once; its worker stops within a step, or is killed and replaced."""
        live = self.live(job_id)
        if live is not None:
            await self._jobs.cancel(live)
        return live.job if live else await self.job(job_id)

    async def delete(self, job_id: str) -> None:
        """Removes an ended job and its files."""
        job = await self.job(job_id)
        if not job.state.ended:
            raise NotEnded("The job has not ended; cancel it first.")
        await self._ledger.delete(job_id)

    async def image(self, job_id: str, n: int) -> tuple[ImageFile, bytes]:
        """The n-th picture of a job as a file."""
        job = await self.job(job_id)
        if not job.state.ended:
            raise NotEnded(f"The job is {job.state}; its pictures are there when it has succeeded.")
        if not 0 <= n < len(job.images):
            raise UnknownImage(f"The job has {len(job.images)} pictures; there is no number {n}.")
        return job.images[n], await self._ledger.read(job_id, job.images[n].name)

    async def pictures(self, job: Job) -> list[bytes]:
        """The files of all pictures of an ended job, in one visit to the disk."""
        return await self._ledger.read_all(job.id, [file.name for file in job.images])

    async def input_image(self, job_id: str, field: str) -> bytes:
        """The init_image or mask of a job as the PNG that the pipeline was given."""
        job = await self.job(job_id)
        name = {"init_image": job.recipe.init_image, "mask": job.recipe.mask}.get(field)
        if name is None:
            raise UnknownImage(f"The job has no {field[:32]}.")
        return await self._ledger.read(job_id, name)

    async def known(self, owner: str, key: str, digest: str | None) -> Job | None:
        """The job that an idempotency key has given already; raises InvalidRequest when it was for
        another body."""
        found = await self._ledger.find_key(owner, key)
        if found is None:
            return None
        job, known_digest = found
        if known_digest != digest:
            raise InvalidRequest(
                "This Idempotency-Key was used with another body; use a new key for a new job.",
                field="Idempotency-Key",
            )
        return await self.job(job.id)

    def _pump(self) -> None:
        self._jobs.pump()

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING)
            try:
                self._pool.kill_stuck()
                if self.settings.idle_unload:
                    await self._pool.end_idle(self.settings.idle_unload)
                await self._ledger.save_late()
                self.serving.adopt()
                self._jobs.pump()  # a job may have waited long enough to go first
            except Exception:
                log.exception("housekeeping broke")
