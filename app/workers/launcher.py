"""Starts a worker process on this machine and carries messages to and from it.

Knows processes and sockets; knows no job. A worker somewhere else needs a Process of its own kind
and nothing else.
"""

import asyncio
import collections
import contextlib
import contextvars
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
import psutil

from app.background import Background
from app.models.catalog import HOME
from app.settings import without_secrets
from app.workers.message import LENGTH, Loaded, LoadFailed, Order, Report, pack, read_answer

log = logging.getLogger(__name__)

STOP_TIMEOUT = 5.0  # seconds an idle worker gets to end by itself
LIMIT = 2**30  # bytes of one message


class Process(Protocol):
    """A worker process, wherever it runs, as its handle (worker.py) sees it."""

    pid: int

    def send(self, order: Order) -> None:
        """Sends a message, without waiting; one to a process that has ended is lost."""

    async def receive(self) -> Loaded | LoadFailed | Report | None:
        """The next message, or None when there will be none any more."""

    def memory(self) -> int:
        """Bytes it has in memory (resident), 0 when that is not known."""
        ...

    def kill(self) -> None:
        """Ends it the hard way."""

    async def close(self) -> None:
        """Ends it: an idle one by itself, one that does not within STOP_TIMEOUT the hard way."""

    async def cause_of_death(self) -> str:
        """Waits for its end and says how it ended, in words."""
        ...


Launch = Callable[[], Awaitable[Process]]


async def launch() -> Process:
    """A worker as a child process of this one, which listens for its first message."""
    ours, theirs = socket.socketpair()
    with theirs:
        child = await asyncio.create_subprocess_exec(
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
    reader, writer = await asyncio.open_connection(sock=ours, limit=LIMIT)
    return ChildProcess(child, reader, writer)


class ChildProcess:
    """A Process over a socket pair."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.pid = child.pid
        self._child = child
        self._reader = reader
        self._writer = writer
        self._output: collections.deque[str] = collections.deque(maxlen=8)  # its last lines
        # In a context of its own: what the process prints later is not of the request (request_id
        # in the log) that started it.
        self._listening = contextvars.Context().run(Background().spawn, self._log_output())

    def send(self, order: Order) -> None:
        if not self._writer.is_closing():
            self._writer.write(pack(order))

    async def receive(self) -> Loaded | LoadFailed | Report | None:
        try:
            head = await self._reader.readexactly(LENGTH.size)
            return read_answer(await self._reader.readexactly(LENGTH.unpack(head)[0]))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except msgspec.DecodeError:
            log.exception("worker sent something else than a message", extra={"pid": self.pid})
            self.kill()
            return None

    def memory(self) -> int:
        try:
            return psutil.Process(self.pid).memory_info().rss
        except psutil.Error:
            return 0

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._child.kill()

    async def close(self) -> None:
        self._writer.close()  # a healthy worker ends when its channel does
        try:
            await asyncio.wait_for(self._child.wait(), STOP_TIMEOUT)
        except TimeoutError:
            self.kill()
            await self._child.wait()

    async def cause_of_death(self) -> str:
        code = await self._child.wait()
        self._writer.close()
        with contextlib.suppress(TimeoutError):  # a grandchild may hold the output open
            await asyncio.wait_for(asyncio.shield(self._listening), 1)
        if code < 0:
            name = signal.Signals(-code).name
            hint = "; out of memory is the usual reason" if name == "SIGKILL" else ""
            how = f"was ended by {name}{hint}"
        else:
            how = f"ended with exit code {code}"
        said = f" Its last words: {self._output[-1]}" if self._output else ""
        return f"The worker process {how}.{said}"

    async def _log_output(self) -> None:
        """What the runtime prints goes to the log; its last lines tell why a process died."""
        assert self._child.stdout is not None
        while True:
            try:
                line = await self._child.stdout.readline()
            except ValueError:  # longer than any line worth keeping; it was dropped
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()[:500]
            if text:
                self._output.append(text)
                log.warning("worker said", extra={"pid": self.pid, "line": text})
