"""An event loop with a simulated clock: nothing waits for real, and every run is the same.

Time stands still until `advance` moves it from timer to timer. What an executor would do on a
thread is done on the loop, one call after the other, and can be held back as by a slow disk.
"""

import asyncio
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any


class SimulatedLoop(asyncio.BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self  # what the base class asks for input and output: there is none
        self._held: deque[Callable[[], None]] = deque()
        self.holds = False  # True: calls for the executor wait
        self.broken: list[dict[str, Any]] = []  # what nobody caught
        self.set_exception_handler(lambda _, context: self.broken.append(context))

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def run_in_executor(self, executor: Any, work: Callable[..., Any], *args: Any) -> Any:
        future = self.create_future()

        def call() -> None:
            try:
                result = work(*args)
            except Exception as error:  # noqa: BLE001 - it is the caller's
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self._held.append(call)
        if not self.holds:
            self.call_soon(self.release)
        return future

    def submit(self, work: Callable[..., Any], *args: Any) -> Any:
        """As the storage thread's executor, which is this loop."""
        return self.run_in_executor(None, work, *args)

    def _write_to_self(self) -> None:
        pass  # who calls from another thread would wake the loop by that; there is none

    def release(self) -> None:
        """Does what the executor was asked for, in order."""
        while self._held and not self.holds:
            self._held.popleft()()

    def settle(self) -> None:
        """Runs everything that can run now."""
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            while self._ready or (self._scheduled and self._scheduled[0]._when <= self._now):
                self._run_once()
        finally:
            events._set_running_loop(before)

    def advance(self, seconds: float) -> None:
        """Lets time pass, and everything happen that it brings."""
        target = self._now + seconds
        self.settle()
        while self._scheduled and self._scheduled[0]._when <= target:
            self._now = max(self._now, self._scheduled[0]._when)
            self._run_once_with_timers()
        self._now = target
        self.settle()

    def _run_once_with_timers(self) -> None:
        events._set_running_loop(self)
        try:
            self._run_once()
        finally:
            events._set_running_loop(None)
        self.settle()

    def do(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Starts a task and lets everything run that can."""
        task = self.create_task(work)
        self.settle()
        return task

    def call(self, work: Callable[..., Any], *args: Any) -> Any:
        """Calls something that belongs on the loop, and lets everything run that can."""
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            result = work(*args)
        finally:
            events._set_running_loop(before)
        self.settle()
        return result

    def end_all_tasks(self) -> None:
        """Ends everything where it stands, as the death of the process would."""
        self._held.clear()
        for task in asyncio.all_tasks(self):
            task.cancel()
        self.settle()
        self.broken.clear()
