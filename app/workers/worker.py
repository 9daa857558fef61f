"""The service's handle on one worker: load a model, give it jobs, hear its reports, end it.

Knows messages; knows no queue, no disk and no retries, and not where the process runs.
"""

import asyncio
import contextvars
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.background import Background
from app.errors import LoadFailed, WorkerDied, from_code
from app.models.model import Model
from app.settings import Settings
from app.workers import message
from app.workers.launcher import Launch, Process, launch
from app.workers.message import Cancel, Drawn, Encoded, Failed, Report, Run, Stopped, Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Times in seconds; 0 threads: the runtime decides."""

    cache_dir: Path | None
    threads: int
    load_timeout: float
    stall_timeout: float
    cancel_timeout: float

    @classmethod
    def of(cls, settings: Settings) -> "WorkerOptions":
        return cls(
            cache_dir=settings.data_dir.resolve() / "cache",
            threads=settings.threads,
            load_timeout=settings.load_timeout,
            stall_timeout=settings.stall_timeout,
            cancel_timeout=settings.cancel_timeout,
        )


OnReport = Callable[[Report], None]


@dataclass(kw_only=True)
class _Task:
    """A job that the process has. It is drawn, or waits for that, until `drawn`."""

    on_report: OnReport
    drawn: bool = False
    canceled: float | None = None  # when Cancel was sent to the process


class Worker:
    """One process with one pipeline. Made by `start`, which returns when the pipeline is loaded.

    Every job that it is given ends with one of Encoded, Stopped and Failed; when the process dies,
    its jobs fail with WorkerDied's code. A listener that raises ends the process, and with it its
    jobs: nothing is left waiting for a report that was not heard.
    """

    def __init__(
        self, model: Model, device: str, options: WorkerOptions, process: Process, memory: int
    ) -> None:
        self.model = model
        self.device = device
        self.load_ms = 0.0
        self.dead = False
        self.reserved = False  # for whoever had it loaded, until its job comes
        self.on_idle: Callable[[], None] = lambda: None
        self._options = options
        self._process = process
        self._memory = memory
        self._tasks: dict[str, _Task] = {}  # by job, in the order in which they came
        self._background = Background()
        self._killed_because: str | None = None
        self.last_used = self._present_since = self._last_report = self._now()

    @classmethod
    async def start(
        cls,
        model: Model,
        device: str,
        options: WorkerOptions,
        *,
        launch: Launch = launch,
        memory: int = 0,
    ) -> "Worker":
        """A worker with its pipeline loaded; raises LoadFailed. `memory` is what the model is
        expected to take, in bytes."""
        worker = cls(model, device, options, await launch(), memory)
        try:
            async with asyncio.timeout(options.load_timeout):
                await worker._load()
        except TimeoutError:
            raise LoadFailed(
                f"{model.name} was not ready on {device} after {options.load_timeout:g} seconds "
                "(LOAD_TIMEOUT)."
            ) from None
        finally:
            if not worker.load_ms:
                worker.kill()
                await asyncio.shield(worker.stop())
        worker.last_used = worker._now()
        # In a context of its own: what it reports later is not of the request that started it.
        contextvars.Context().run(worker._background.spawn, worker._listen())
        return worker

    async def _load(self) -> None:
        self._process.send(
            message.Load(
                model=self.model,
                device=self.device,
                cache_dir=self._options.cache_dir,
                threads=self._options.threads,
            )
        )
        answer = await self._process.receive()
        if isinstance(answer, message.LoadFailed):
            raise from_code(answer.code, answer.detail)
        if not isinstance(answer, message.Loaded):
            cause = await self._process.cause_of_death()
            raise LoadFailed(f"{self.model.name} cannot be loaded on {self.device}: {cause}")
        self.load_ms = answer.milliseconds

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, order: Run, on_report: OnReport) -> None:
        """Gives the process a job; it draws one after the other. `on_report` hears all that is
        reported of it, on the event loop."""
        self.reserved = False
        if self.dead:
            detail = "The worker process has ended."
            on_report(Failed(job=order.job, code=WorkerDied.code, detail=detail))
            return
        if self._present is None:
            self._present_since = self._last_report = self._now()
        self._tasks[order.job] = _Task(on_report=on_report)
        self._process.send(order)

    def cancel(self, job: str) -> None:
        """Nobody wants the job any more; Stopped is reported when the process is free of it."""
        if task := self._tasks.get(job):
            task.canceled = self._now()
            self._process.send(Cancel(job=job))

    def watch(self, job: str) -> None:
        """From now on every step of the job is reported, with a preview."""
        if job in self._tasks:
            self._process.send(Watch(job=job))

    def kill(self, because: str | None = None) -> None:
        """Ends the process the hard way; its jobs fail and say why."""
        self._killed_because = because or self._killed_because
        self._process.kill()

    async def stop(self) -> None:
        """Ends the process; an idle one by itself."""
        await self._process.close()
        await self._background.join()

    def memory(self) -> int:
        """Bytes the process takes, or is expected to take, whichever is more."""
        return max(self._memory, self._process.memory())

    @property
    def idle(self) -> bool:
        """Whether nothing is lost with it: no job is drawn, none that was drawn is being encoded,
        and none is about to come."""
        return not self._tasks and not self.reserved

    @property
    def drawing(self) -> bool:
        return self._present is not None

    @property
    def stalled(self) -> bool:
        """Whether it has been at a job without any report for more than STALL_TIMEOUT."""
        silent = self._now() - self._last_report
        return bool(self._tasks) and silent > self._options.stall_timeout

    @property
    def unresponsive(self) -> bool:
        """Whether it goes on with a canceled job for more than CANCEL_TIMEOUT."""
        present = self._present
        if present is None or present.canceled is None:
            return False
        since = max(present.canceled, self._present_since)
        return self._now() - since > self._options.cancel_timeout

    @property
    def _present(self) -> _Task | None:
        """What it draws: the first that it was given and has not drawn yet."""
        return next((task for task in self._tasks.values() if not task.drawn), None)

    async def _listen(self) -> None:
        """Hears the process to its end, which is that of its jobs."""
        try:
            while (report := await self._process.receive()) is not None:
                self._last_report = self._now()
                if isinstance(report, message.Loaded | message.LoadFailed):
                    continue
                if task := self._tasks.get(report.job):
                    self._hear(report, task)
        except Exception:
            log.exception("listening to a worker broke", extra={"pid": self.pid})
            self.kill("the service could not hear it any more")
        self.dead = True
        cause = await self._process.cause_of_death()
        if self._killed_because:
            cause = f"The worker process was killed: {self._killed_because}."
        for job, task in self._tasks.items():
            end = Failed(job=job, code=WorkerDied.code, detail=cause)
            if not self._pass_on(task, end):
                self._pass_on(task, end)  # once more: no report comes after this one
        self._tasks.clear()
        self.on_idle()

    def _hear(self, report: Report, task: _Task) -> None:
        if isinstance(report, Drawn | Stopped | Failed):
            task.drawn = True
            self._present_since = self.last_used = self._now()
        if self._pass_on(task, report) and isinstance(report, Encoded | Stopped | Failed):
            del self._tasks[report.job]
            if self.idle:
                self.on_idle()

    def _pass_on(self, task: _Task, report: Report) -> bool:
        """Whether the listener could take the report."""
        try:
            task.on_report(report)
        except Exception:
            log.exception("report not taken", extra={"job": report.job, "pid": self.pid})
            self.kill("the service could not take its report")
            return False
        return True

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
