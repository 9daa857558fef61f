"""Doubles at the outermost edges of jobs/ and workers/: a worker process that does what a test
says, and a store in memory. What lies between them is the real thing."""

import asyncio
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from app.caller import Idempotency
from app.errors import StorageFailed, UnknownJob
from app.jobs.job import Job, JobQuery
from app.workers import message
from app.workers.message import Cancel, Counted, Drawn, Encoded, Failed, Load, Run, Stepped, Stopped


class SimulatedProcess:
    """A worker as runtime/main.py is one: draws one job after the other, encodes beside that, hears
    of a cancel at its next step. Nothing happens by itself."""

    pid = 1

    def __init__(self, deaths: Counter[str]) -> None:
        """`deaths` counts the processes that died under a job, by job."""
        self._deaths = deaths
        self.load: Load | None = None
        self.loaded = False
        self.alive = True
        self.ignores_cancels = False  # goes on with canceled jobs
        self.jobs: deque[Run] = deque()  # the first one is being drawn
        self.encoding: deque[Run] = deque()
        self.canceled: set[str] = set()
        self.watched: set[str] = set()
        self.step = 0
        self._sent: asyncio.Queue[Any] = asyncio.Queue()

    # As the service sees it

    def send(self, order: Any) -> None:
        if not self.alive:
            if isinstance(order, Run):
                self._deaths[order.job] += 1
            return
        match order:
            case Load():
                self.load = order
            case Run():
                assert self.loaded, "a job for a worker without a pipeline"
                assert all(order.job != run.job for run in (*self.jobs, *self.encoding))
                self.jobs.append(order)
                self.canceled.discard(order.job)
            case Cancel():
                self.canceled.add(order.job)
            case _:
                self.watched.add(order.job)

    async def receive(self) -> Any:
        return await self._sent.get()

    def memory(self) -> int:
        return 0

    def kill(self) -> None:
        self.die()

    async def close(self) -> None:
        self.die()

    async def cause_of_death(self) -> str:
        return "The simulated process ended."

    # What a test has it do; each does nothing where it cannot be

    def finish_load(self) -> None:
        if self.load is not None and not self.loaded and self.alive:
            self.loaded = True
            self._sent.put_nowait(message.Loaded(milliseconds=1.0))

    def fail_load(self) -> None:
        if self.load is not None and not self.loaded and self.alive:
            self._sent.put_nowait(message.LoadFailed(code="load_failed", detail="simulated"))
            self.die()

    def make_step(self) -> None:
        if not self.jobs or not self.alive or self._stop_if_canceled():
            return
        run = self.jobs[0]
        self.step += 1
        steps = run.recipe.steps * run.recipe.images
        if run.watched or run.job in self.watched:
            told: Any = Stepped(job=run.job, step=self.step, steps=steps, preview=b"jpeg")
        else:
            told = Counted(job=run.job, step=self.step, steps=steps)
        self._sent.put_nowait(told)

    def finish_drawing(self) -> None:
        if not self.jobs or not self.alive or self._stop_if_canceled():
            return
        run = self._next()
        self.encoding.append(run)
        self._sent.put_nowait(Drawn(job=run.job, timings_ms={"denoise": 1.0}, warnings=()))

    def finish_encoding(self) -> None:
        if self.encoding and self.alive:
            job = self.encoding.popleft().job
            picture = job.encode()
            self._sent.put_nowait(
                Encoded(job=job, pictures=(picture,), size=(64, 64), milliseconds=1.0)
            )

    def fail(self) -> None:
        if self.jobs and self.alive and not self._stop_if_canceled():
            job = self._next().job
            self._sent.put_nowait(Failed(job=job, code="generation_failed", detail="simulated"))

    def die(self) -> None:
        if self.alive:
            self.alive = False
            self._deaths.update(run.job for run in (*list(self.jobs)[:1], *self.encoding))
            self._sent.put_nowait(None)

    def _next(self) -> Run:
        self.step = 0
        return self.jobs.popleft()

    def _stop_if_canceled(self) -> bool:
        if self.jobs[0].job not in self.canceled or self.ignores_cancels:
            return False
        self._sent.put_nowait(Stopped(job=self._next().job))
        return True


class MemoryStore:
    """Records that outlive a simulated restart. A full disk takes nothing; a record of an end is
    final."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        self.ends: Counter[str] = Counter()  # by job: how often an end was recorded
        self.full = False
        self._dead = False

    def killed(self) -> "MemoryStore":
        """The process that wrote here was killed: what another one finds."""
        self._dead = True
        found = MemoryStore()
        found.jobs, found.files, found.ends = self.jobs, self.files, self.ends
        return found

    def add(self, job: Job, inputs: Mapping[str, bytes], idempotency: Idempotency | None) -> None:
        self._check_room()
        self.jobs[job.id] = job
        self.files |= {(job.id, name): data for name, data in inputs.items()}

    def update(self, job: Job) -> None:
        self._check_room()
        before = self.jobs.get(job.id)
        if before is None:
            return  # as an UPDATE of a row that was not inserted
        assert not before.state.ended or before.state == job.state, (before.state, job.state)
        self.jobs[job.id] = job
        self.ends[job.id] += job.state.ended and not before.state.ended

    def finish(self, job: Job, files: Mapping[str, bytes]) -> None:
        self._check_room()
        self.files |= {(job.id, name): data for name, data in files.items()}
        self.update(job)

    def get(self, job_id: str) -> Job:
        if job_id not in self.jobs:
            raise UnknownJob(job_id)
        return self.jobs[job_id]

    def read(self, job_id: str, name: str) -> bytes:
        return self.files[job_id, name]

    def page(self, query: JobQuery) -> list[Job]:
        return list(reversed(self.jobs.values()))[: query.limit]

    def unfinished(self) -> list[Job]:
        return [job for job in self.jobs.values() if not job.state.ended]

    def close(self) -> None:
        pass

    def _check_room(self) -> None:
        if self.full or self._dead:
            raise StorageFailed("the simulated disk is full")
