"""Background tasks of the event loop. An exception in one is logged, where asyncio would report it
only when the task is garbage-collected."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


class Background:
    """The background tasks of one owner, who ends them with `cancel` or `join`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T], *, awaited: bool = False) -> asyncio.Task[T]:
        """Starts a task and holds a reference until it ends (the event loop holds a weak one only).
        `awaited`: the owner awaits the task and so gets its exception; it is not logged here."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._awaited if awaited else self._ended)
        return task

    async def join(self) -> None:
        """Waits until all tasks have ended by themselves."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def cancel(self) -> None:
        """Cancels all tasks and waits until they have ended."""
        for task in self._tasks:
            task.cancel()
        await self.join()

    def _awaited(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("background task broke", extra={"task": task.get_name()}, exc_info=error)
