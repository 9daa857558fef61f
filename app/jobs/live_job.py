"""A job from its acceptance to its end: its phase, its record as it changes, the events that tell
of it. Knows no worker, no queue and no disk: the dispatcher makes the moves."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from app.jobs.job import Job, JobEvent, JobState, Progress
from app.jobs.phase import Phase, moved


def now() -> float:
    """Seconds by a clock that never jumps; tests replace it by replacing the event loop."""
    return asyncio.get_running_loop().time()


class LiveJob:
    """Kept by the dispatcher until the job has ended; whoever follows it may keep it longer.

    `repeat` is the digest by which the same request is known when it comes again, empty where that
    does not count. `watched` says that somebody follows the job, so that every step is reported,
    with a preview.
    """

    def __init__(
        self, job: Job, *, repeat: str = "", watched: bool = False, request_id: str | None = None
    ) -> None:
        self.job = job
        self.phase = Phase.QUEUED
        self.repeat = repeat
        self.watched = watched
        self.request_id = request_id  # of the HTTP request that handed it in
        self.waiters = 0  # clients that wait for its end
        self.accepted = now() - max(0.0, time.time() - job.created)
        self.over = asyncio.Event()  # it has ended, or the service closes: nobody waits any longer
        self._events: list[JobEvent] = []
        self._published = asyncio.Event()
        self._first_step: tuple[float, int] | None = None
        self._publish("state")

    # The moves

    def hand_over(self) -> None:
        """Its worker has it next."""
        self.phase = moved(self.phase, Phase.HANDED)

    def take_back(self) -> None:
        """Its worker has it no more; it had not begun."""
        self.phase = moved(self.phase, Phase.QUEUED)

    def begin(self, device: str) -> None:
        """Its turn has come: an attempt begins."""
        self.phase = moved(self.phase, Phase.DRAWING)
        self._change(
            state=JobState.RUNNING,
            device=device,
            started=time.time(),
            attempts=self.job.attempts + 1,
        )
        self._publish("state")

    def drawn(self) -> None:
        """Its pictures are made; they are not files yet."""
        self.phase = moved(self.phase, Phase.ENCODING)

    def requeue(self, *, counts: bool) -> None:
        """The attempt came to nothing: back to the queue. One that the end of the service
        interrupted does not count."""
        self.phase = moved(self.phase, Phase.QUEUED)
        self._first_step = None
        if counts:
            self.job = self.job.requeued()
        else:
            self.job = self.job.requeued(started=None, attempts=self.job.attempts - 1)
        self._publish("state")

    def ending(self) -> None:
        """How it ends is decided; from now on nothing changes that."""
        self.phase = moved(self.phase, Phase.ENDING)

    def end(self, job: Job) -> None:
        """Its end is recorded, as `job`."""
        self.phase = moved(self.phase, Phase.ENDED)
        self.job = job
        self._publish("done")
        self.over.set()

    # Its progress and its events

    def count(self, step: int, steps: int) -> None:
        """Notes how far it is. The time left is known from the second report on."""
        first = self._first_step = self._first_step or (now(), step)
        eta = None
        if step > first[1]:
            eta = round((now() - first[0]) / (step - first[1]) * (steps - step), 3)
        self._change(progress=Progress(step=step, steps=steps, eta_seconds=eta))

    def step(self, step: int, steps: int, preview: bytes | None) -> None:
        """Publishes a denoising step. One that is reported late (a follower came late and is sent
        the earlier previews) is published, but does not lower `progress`."""
        late = step <= self.job.progress.step
        if not late:
            self.count(step, steps)
        job = replace(self.job, progress=Progress(step=step, steps=steps)) if late else self.job
        self._publish("progress", job=job)
        if preview is not None:
            self._publish("preview", preview, job=job)

    def preview(self) -> bytes | None:
        """The latest preview, if there is one yet."""
        return next((event.preview for event in reversed(self._events) if event.preview), None)

    async def follow(self, after: int = 0) -> AsyncIterator[JobEvent]:
        """The events behind the one with this id, as they come, until the last one or the end of
        the service. An id that was not given yet is one of before a restart: then all are sent."""
        position = after if 0 <= after <= len(self._events) else 0
        while True:
            published = self._published
            while position < len(self._events):
                yield self._events[position]
                position += 1
            if self.over.is_set():
                return
            await published.wait()

    def release(self) -> None:
        """The service closes: lets go of all who wait or follow, though it has not ended."""
        self.over.set()
        self._published.set()

    def _change(self, **values: Any) -> None:
        self.job = replace(self.job, **values)

    def _publish(self, kind: str, preview: bytes | None = None, *, job: Job | None = None) -> None:
        number = len(self._events) + 1
        self._events.append(JobEvent(id=number, kind=kind, job=job or self.job, preview=preview))
        self._published.set()
        self._published = asyncio.Event()


def ended_events(job: Job) -> list[JobEvent]:
    """The events for who follows a job that has ended: its state and its end, no steps."""
    return [JobEvent(id=n, kind=kind, job=job) for n, kind in enumerate(("state", "done"), 1)]
