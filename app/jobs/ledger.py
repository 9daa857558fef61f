"""The store off the event loop: one thread that reads and writes, and a memory for what the disk
would not take yet."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from app.errors import StorageFailed, UnknownImage
from app.jobs.job import Job, JobError, JobState
from app.jobs.store import Store

log = logging.getLogger(__name__)
T = TypeVar("T")


class Ledger:
    """Every method answers when the disk has; the order of calls is the order of the work."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, "store")
        self._unsaved: dict[str, Job] = {}  # ended, but not recorded yet

    async def add(
        self, job: Job, inputs: Mapping[str, bytes], key: str | None, digest: str | None
    ) -> None:
        """Raises KeyError for a used idempotency key, StorageFailed when there is no room."""
        await self._call(self._store.add, job, inputs, key=key, digest=digest)

    async def find_key(self, owner: str, key: str) -> tuple[Job, str] | None:
        return await self._call(self._store.find_key, owner, key)

    async def get(self, job_id: str) -> Job:
        return self._unsaved.get(job_id) or await self._call(self._store.get, job_id)

    async def page(self, **filters: Any) -> list[Job]:
        page = await self._call(self._store.page, **filters)
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
        """Records a job as it is now; False, and a line in the log, when the disk does not take
        it."""
        try:
            await self._call(self._store.update, job)
        except StorageFailed as error:
            log.error("job not recorded", extra={"job": job.id, "detail": error.detail})
            return False
        self._unsaved.pop(job.id, None)
        return True

    async def finish(self, job: Job, files: Mapping[str, bytes]) -> Job:
        """Records an ended job with its pictures. When the disk does not take them, the job has
        failed for that reason; `save_late` records it when there is room again."""
        try:
            await self._call(self._store.finish, job, files)
        except StorageFailed as error:
            log.error("job not recorded", extra={"job": job.id, "detail": error.detail})
            if job.state is JobState.SUCCEEDED:
                told = JobError(code=error.code, message=error.detail)
                job = replace(job, state=JobState.FAILED, error=told, images=())
            self._unsaved[job.id] = job
        return job

    async def save_late(self) -> None:
        for job in list(self._unsaved.values()):
            await self.save(job)

    def folder(self, job_id: str) -> Path:
        return self._store.folder(job_id)

    def close(self) -> None:
        self._thread.shutdown()
        self._store.close()

    async def _call(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: work(*args, **kwargs))
