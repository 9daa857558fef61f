"""The service's handle on one worker process: start it, hand it jobs, hear from it, end it.

Knows processes and messages; knows no queue, no store and no retries.
"""

import asyncio
import collections
import contextlib
import contextvars
import logging
import os
import pickle
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from app.errors import EaselError, LoadFailed, WorkerDied, from_code
from app.models.catalog import HOME
from app.models.model import Model
from app.request import Recipe
from app.settings import Settings, without_secrets
from app.workers.message import (
    LENGTH,
    Cancel,
    Counted,
    Drawn,
    Encoded,
    Failed,
    Load,
    Loaded,
    Run,
    Stepped,
    Stopped,
    Watch,
    pack,
)

log = logging.getLogger(__name__)

STOP_TIMEOUT = 5.0  # seconds an idle worker gets to end by itself
LIMIT = 2**30  # bytes of one message


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
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


OnStep = Callable[[Stepped | Counted], None]


class Task:
    """A job inside a worker. `drawn` ends when the pipeline is free again, `encoded` when the
    files are there."""

    def __init__(self, on_step: OnStep) -> None:
        loop = asyncio.get_running_loop()
        self.drawn: asyncio.Future[Drawn | Stopped] = loop.create_future()
        self.encoded: asyncio.Future[Encoded] = loop.create_future()
        self.on_step = on_step
        self.canceled: float | None = None  # when it was told so

    def fail(self, error: EaselError) -> None:
        for future in (self.drawn, self.encoded):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody waiting for it is no reason for a log line


class Worker:
    """One process with one pipeline. Made by `start`, which returns when the pipeline is loaded."""

    def __init__(self, model: Model, device: str, options: WorkerOptions) -> None:
        self.model = model
        self.device = device
        self.options = options
        self.load_ms = 0.0
        self.last_used = time.monotonic()
        self.reserved = False  # for whoever had it loaded, until its job begins
        self.on_idle: Callable[[], None] = lambda: None
        self.dead = asyncio.Event()
        self._tasks: dict[str, Task] = {}
        self._began = self._heard = time.monotonic()  # its present job; its last sign of life
        self._stderr: collections.deque[str] = collections.deque(maxlen=8)
        self._listeners: list[asyncio.Task[None]] = []
        self._verdict: str | None = None  # why it was killed from here

    @classmethod
    async def start(cls, model: Model, device: str, options: WorkerOptions) -> "Worker":
        """A worker with its pipeline ready; raises LoadFailed."""
        worker = cls(model, device, options)
        await worker._launch()
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
        worker.last_used = time.monotonic()
        return worker

    async def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process: Process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "app.runtime.main",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                cwd=HOME,
                env=without_secrets(os.environ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal reaches the service alone
            )
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=LIMIT)
        # In a context of its own: what a worker says later is not of the request that started it.
        self._listeners = [asyncio.create_task(self._log_output(), context=contextvars.Context())]

    async def _load(self) -> None:
        options = self.options
        load = Load(
            model=self.model,
            device=self.device,
            cache_dir=options.cache_dir,
            threads=options.threads,
        )
        self._writer.write(pack(load))
        answer = await self._receive()
        if isinstance(answer, Failed):
            raise from_code(answer.code, answer.detail)
        if not isinstance(answer, Loaded):
            raise LoadFailed(
                f"{self.model.name} cannot be loaded on {self.device}: {await self._epitaph()}"
            )
        self.load_ms = answer.milliseconds
        self._listeners.append(asyncio.create_task(self._listen()))

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(
        self,
        job: str,
        recipe: Recipe,
        folder: Path | None,
        on_step: OnStep,
        *,
        watched: bool = False,
    ) -> Task:
        """Hands a job to the process, which draws one after the other; the worker is busy until the
        task's `drawn` is done."""
        task = Task(on_step)
        if self.dead.is_set():
            task.fail(WorkerDied("The worker process has ended."))
            return task
        if not self.busy:
            self._began = self._heard = time.monotonic()
        self._tasks[job] = task
        self.reserved = False
        self._writer.write(pack(Run(job=job, recipe=recipe, folder=folder, watched=watched)))
        task.drawn.add_done_callback(self._freed)
        return task

    def cancel(self, job: str) -> None:
        if not self.dead.is_set():
            self._writer.write(pack(Cancel(job=job)))
        if task := self._tasks.get(job):
            task.canceled = time.monotonic()

    def watch(self, job: str) -> None:
        if not self.dead.is_set():
            self._writer.write(pack(Watch(job=job)))

    def kill(self, why: str | None = None) -> None:
        """Ends the process the hard way; its jobs are told why."""
        self._verdict = why
        with contextlib.suppress(ProcessLookupError, AttributeError):
            self.process.kill()

    async def stop(self) -> None:
        """Ends the process; closing its channel is enough for a healthy one."""
        self._writer.close()
        try:
            await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            self.kill()
            await self.process.wait()

    def memory(self) -> int:
        """Bytes the process takes, or will take when it is warm, whichever is more."""
        try:
            return max(self.model.memory, psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return self.model.memory

    @property
    def busy(self) -> bool:
        return self._present is not None

    @property
    def _present(self) -> Task | None:
        """What it draws: the first that it was given and has not drawn yet."""
        return next((task for task in self._tasks.values() if not task.drawn.done()), None)

    @property
    def idle(self) -> bool:
        """Whether nothing is lost with it: no job is drawn, none that was drawn is being encoded,
        and none is about to begin."""
        return not self._tasks and not self.reserved

    def stalled(self) -> bool:
        """Whether it has been at a job without a sign of life for too long."""
        return bool(self._tasks) and time.monotonic() - self._heard > self.options.stall_timeout

    def deaf(self) -> bool:
        """Whether it goes on with a canceled job for too long."""
        task = self._present
        if task is None or task.canceled is None:
            return False
        since = max(task.canceled, self._began)
        return time.monotonic() - since > self.options.cancel_timeout

    def _freed(self, _: Any) -> None:
        self._began = self.last_used = time.monotonic()

    async def _listen(self) -> None:
        while (message := await self._receive()) is not None:
            self._heard = time.monotonic()
            task = self._tasks.get(message.job)
            if task is None:
                continue
            match message:
                case Stepped() | Counted():
                    task.on_step(message)
                case Drawn():
                    task.drawn.set_result(message)
                case Stopped():
                    task.drawn.set_result(message)
                    self._dismiss(message.job)
                case Encoded():
                    task.encoded.set_result(message)
                    self._dismiss(message.job)
                case _:
                    task.fail(from_code(message.code, message.detail))
                    self._dismiss(message.job)
        self.dead.set()
        epitaph = await self._epitaph()
        for task in self._tasks.values():
            task.fail(WorkerDied(epitaph))
        self._tasks.clear()
        self.on_idle()
        self._writer.close()

    def _dismiss(self, job: str) -> None:
        del self._tasks[job]
        if self.idle:
            self.on_idle()

    async def _receive(self) -> Any:
        """The next message, or None when the process has closed its end."""
        try:
            head = await self._reader.readexactly(LENGTH.size)
            return pickle.loads(await self._reader.readexactly(LENGTH.unpack(head)[0]))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _log_output(self) -> None:
        """What the runtime prints goes to the log; its last lines tell why a process died."""
        assert self.process.stdout is not None
        while True:
            try:
                line = await self.process.stdout.readline()
            except ValueError:  # longer than any line worth keeping; it was dropped
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()[:500]
            if text:
                self._stderr.append(text)
                log.warning("worker said", extra={"pid": self.pid, "line": text})

    async def _epitaph(self) -> str:
        """Why the process ended, in words."""
        code = await self.process.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._listeners[0]), 1)
        if self._verdict:
            return f"The worker process was killed: {self._verdict}."
        if code < 0:
            name = signal.Signals(-code).name
            hint = "; out of memory is the usual reason" if name == "SIGKILL" else ""
            how = f"was ended by {name}{hint}"
        else:
            how = f"ended with exit code {code}"
        said = f" Its last words: {self._stderr[-1]}" if self._stderr else ""
        return f"The worker process {how}.{said}"
