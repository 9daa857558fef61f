"""The store off the event loop: one thread reads and writes, so that the order of calls is the
order on the disk. Remembers the ends of jobs that a full disk did not take."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from app.caller import Idempotency
from app.errors import StorageFailed, UnknownImage
from app.jobs.job import Job, JobError, JobQuery, JobState
from app.jobs.store import Store

log = logging.getLogger(__name__)
T = TypeVar("T")


class Ledger:
    """Every method returns when the disk has answered."""

    def __init__(self, store: Store, thread: Executor | None = None) -> None:
        self._store = store
        self._thread = thread or ThreadPoolExecutor(1, "store")
        self._unsaved: dict[str, Job] = {}  # the latest records that are not on the disk

    async def add(
        self, job: Job, inputs: Mapping[str, bytes], idempotency: Idempotency | None
    ) -> None:
        """Raises KeyError for a used idempotency key, StorageFailed when there is no room."""
        await self._call(self._store.add, job, inputs, idempotency)

    async def inputs(self, job: Job) -> dict[str, bytes]:
        """The files that the recipe names, by those names."""
        names = [name for name in (job.recipe.init_image, job.recipe.mask) if name is not None]
        if not names:
            return {}  # nothing to read: the job need not wait for the disk
        return dict(zip(names, await self.read_all(job.id, names), strict=True))

    async def find_key(self, owner: str, key: str) -> tuple[Job, str] | None:
        """The job that an idempotency key was first used for, and the digest of its body."""
        return await self._call(self._store.find_key, owner, key)

    async def get(self, job_id: str) -> Job:
        return self._unsaved.get(job_id) or await self._call(self._store.get, job_id)

    async def page(self, query: JobQuery) -> list[Job]:
        page = await self._call(self._store.page, query)
        return [self._unsaved.get(job.id, job) for job in page]

    async def unfinished(self) -> list[Job]:
        return await self._call(self._store.unfinished)

    async def delete(self, job_id: str) -> None:
        self._unsaved.pop(job_id, None)
        await self._call(self._store.delete, job_id)

    async def read(self, job_id: str, name: str) -> bytes:
        return (await self.read_all(job_id, [name]))[0]

    async def read_all(self, job_id: str, names: list[str]) -> list[bytes]:
        try:
            return await self._call(lambda: [self._store.read(job_id, name) for name in names])
        except StorageFailed:
            raise UnknownImage("The file is no longer there.") from None

    async def save(self, job: Job) -> bool:
        """Records a job as it is now. False when the disk does not take it: `save_late` does it
        when there is room again."""
        if not job.state.ended:
            self._unsaved.pop(job.id, None)  # an older record must not come after this one
        try:
            await self._call(self._store.update, job)
        except StorageFailed as error:
            self._note_unsaved(job, error)
            return False
        self._unsaved.pop(job.id, None)
        return True

    def note(self, job: Job) -> None:
        """Records a job as it is now, and nobody waits for it; `save_late` does it where the disk
        does not take it. The event loop is not woken: while a picture is drawn on all cores, that
        alone costs a millisecond."""
        self._unsaved.pop(job.id, None)  # an older record must not come after this one
        self._thread.submit(self._note, job, asyncio.get_running_loop())

    def _note(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._store.update(job)
        except StorageFailed as error:
            loop.call_soon_threadsafe(self._note_unsaved, job, error)
        except Exception:
            log.exception("job not recorded", extra={"job": job.id})

    async def flush(self) -> None:
        """Returns when everything before this call is on the disk, or known not to be."""
        await self._call(lambda: None)

    async def finish(self, job: Job, files: Mapping[str, bytes]) -> Job:
        """Records an ended job with its pictures. When the disk does not take them, the job has
        failed for that reason; `save_late` records it when there is room again."""
        self._unsaved.pop(job.id, None)
        try:
            await self._call(self._store.finish, job, files)
            self._unsaved.pop(job.id, None)
        except StorageFailed as error:
            if job.state is JobState.SUCCEEDED:
                cause = JobError(code=error.code, message=error.detail)
                job = replace(job, state=JobState.FAILED, error=cause, images=())
            self._note_unsaved(job, error)
        return job

    async def save_late(self) -> None:
        """Records what a full disk did not take."""
        for job_id in list(self._unsaved):
            if job := self._unsaved.get(job_id):
                await self.save(job)

    def _note_unsaved(self, job: Job, error: StorageFailed) -> None:
        log.error("job not recorded", extra={"job": job.id, "detail": error.detail})
        self._unsaved[job.id] = job

    def close(self) -> None:
        self._thread.shutdown()
        self._store.close()

    async def _call(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: work(*args, **kwargs))
