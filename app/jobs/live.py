"""A job while it is alive: its record as it changes, and the events that tell of it."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from app.jobs.job import Job, JobEvent, JobState, Progress
from app.logs import request_id
from app.workers.worker import Task, Worker


class LiveJob:
    """Kept by the engine from acceptance to the end; whoever follows it may keep it longer."""

    def __init__(self, job: Job, *, ask: str = "", watched: bool = False) -> None:
        self.job = job
        self.events: list[JobEvent] = []
        self.recorded = asyncio.Event()  # it may be drawn before, but does not end before
        self.ended = asyncio.Event()
        self.wanted = True  # False once it is canceled
        self.ending = False  # True once its end is on the way to the disk
        self.pictures: list[bytes] = []  # when it has succeeded, for those who waited
        self.audience = 0  # callers that wait for it
        self.ask = ask  # what was asked, where a repeated request shall find the job again
        self.request_id = request_id.get()  # of the request that handed it in
        self.handed: tuple[Worker, Task] | None = None  # while it runs, or its worker has it next
        self.watched = watched  # True once somebody looks: every step is told then, with a preview
        self._changed = asyncio.Event()
        self._first_step: tuple[float, int] | None = None

    @property
    def next_on(self) -> str | None:
        """For a queued job: the device whose worker has it already."""
        worker = self.handed[0] if self.handed else None
        return worker.device if worker is not None and not worker.dead.is_set() else None

    def change(self, **values: Any) -> Job:
        self.job = replace(self.job, **values)
        return self.job

    def publish(self, kind: str, preview: bytes | None = None, *, job: Job | None = None) -> None:
        self.events.append(
            JobEvent(id=len(self.events) + 1, kind=kind, job=job or self.job, preview=preview)
        )
        if kind == "done":
            self.ended.set()
        self._changed.set()
        self._changed = asyncio.Event()

    def count(self, step: int, steps: int) -> None:
        """Notes how far it is; the time left is told from the second time on."""
        now = time.monotonic()
        first = self._first_step = self._first_step or (now, step)
        eta = None
        if step > first[1]:
            eta = round((now - first[0]) / (step - first[1]) * (steps - step), 3)
        self.change(progress=Progress(step=step, steps=steps, eta_seconds=eta))

    def step(self, step: int, steps: int, preview: bytes | None) -> None:
        """Tells a denoising step; one that is told late takes nothing back."""
        late = step <= self.job.progress.step
        if not late:
            self.count(step, steps)
        job = replace(self.job, progress=Progress(step=step, steps=steps)) if late else self.job
        self.publish("progress", job=job)
        if preview is not None:
            self.publish("preview", preview, job=job)

    def restart(self) -> None:
        """Back to the queue, without the steps of the attempt that failed."""
        self._first_step = None
        self.change(state=JobState.QUEUED, progress=Progress(steps=self.job.progress.steps))

    def watch(self) -> None:
        if not self.watched:
            self.watched = True
            if self.handed:
                self.handed[0].watch(self.job.id)

    def preview(self) -> bytes | None:
        """The latest preview, if there is one yet; who asks once, asks again."""
        self.watch()
        return next((event.preview for event in reversed(self.events) if event.preview), None)

    async def follow(self, after: int = 0) -> AsyncIterator[JobEvent]:
        """The events after the one with this id, as they come, until the last one. An id that was
        not given yet is of an earlier life of the service: everything is told."""
        self.watch()
        position = after if 0 <= after <= len(self.events) else 0
        while True:
            changed = self._changed
            while position < len(self.events):
                yield self.events[position]
                position += 1
            if self.ended.is_set():
                return
            await changed.wait()
