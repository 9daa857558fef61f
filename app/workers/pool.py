"""The warm workers, kept within a memory budget: who is loaded, who has to go, who is ended for
being idle."""

import asyncio
import logging
import time

from app.errors import Busy, LoadFailed
from app.machine import Machine
from app.models.model import Model
from app.workers.worker import Worker, WorkerOptions

log = logging.getLogger(__name__)

Key = tuple[str, str]  # model name, device


class Pool:
    """At most one worker per model and device, per device where a model wants it alone, and no more
    of them than the machine is good for."""

    def __init__(self, options: WorkerOptions, machine: Machine) -> None:
        self._options = options
        self._budget = machine.budget
        self._warm = machine.warm
        self._workers: dict[Key, Worker] = {}
        self._loading: dict[Key, Model] = {}
        self._locks: dict[Key, asyncio.Lock] = {}
        self._making_room = asyncio.Lock()
        self._freed = asyncio.Event()
        self.crowded = 0  # loads that wait for a busy worker to become idle, so that it can go

    def warm(self, name: str) -> Worker | None:
        """A live worker that has this model loaded, the last used one first."""
        found = [
            worker for key, worker in self._workers.items() if key[0] == name and _alive(worker)
        ]
        return max(found, key=lambda worker: worker.last_used, default=None)

    def ready(self, name: str, device: str) -> Worker | None:
        """The live worker for a model on a device, if there is one."""
        worker = self._workers.get((name, device))
        if worker is None or not _alive(worker):
            return None
        worker.last_used = time.monotonic()  # or it might be ended before its job begins
        return worker

    async def get(self, model: Model, device: str) -> Worker:
        """The worker for a model on a device, loaded if need be; raises LoadFailed.

        It is reserved: nobody ends it before its next job, unless the caller gives that up.
        """
        key = (model.name, device)
        async with self._locks.setdefault(key, asyncio.Lock()):
            if worker := self.ready(*key):
                worker.reserved = True
                return worker
            self._workers.pop(key, None)
            await self._make_room(key, model)
            try:
                log.info("loading", extra={"model": model.name, "device": device})
                worker = await Worker.start(model, device, self._options)
                worker.reserved = True
                worker.on_idle = self.freed
                self._workers[key] = worker
            finally:
                del self._loading[key]
                self.freed()
            log.info(
                "loaded", extra={"model": model.name, "device": device, "ms": round(worker.load_ms)}
            )
            await self._trim(keep=key)
            return worker

    async def unload(self, name: str) -> None:
        """Ends the workers of a model; raises Busy when one is at a job."""
        workers = {key: worker for key, worker in self._workers.items() if key[0] == name}
        if any(not worker.idle for worker in workers.values()):
            raise Busy(f"{name} is at a job; cancel it or wait for its end.")
        for key, worker in workers.items():
            await self._end(key, worker)

    async def close(self) -> None:
        for key in list(self._workers):
            worker = self._workers.pop(key)
            if worker.busy:
                worker.kill()
            await worker.stop()

    def give_up(self, worker: Worker) -> None:
        """Takes back that a worker is reserved."""
        worker.reserved = False
        self.freed()

    def freed(self) -> None:
        """To be called when a worker has become idle: whoever waits for room looks again."""
        self._freed.set()
        self._freed = asyncio.Event()

    def kill_stuck(self) -> None:
        """Ends the workers that are at a job for ever, or at one that nobody wants any more."""
        for worker in filter(_alive, self._workers.values()):
            what = {"model": worker.model.name, "pid": worker.pid}
            if worker.stalled():
                log.error("worker stalled", extra=what)
                seconds = self._options.stall_timeout
                worker.kill(f"it gave no sign of life for {seconds:g} seconds (STALL_TIMEOUT)")
            elif worker.deaf():
                log.error("worker did not stop", extra=what)
                seconds = self._options.cancel_timeout
                worker.kill(f"it went on with a canceled job for {seconds:g} s (CANCEL_TIMEOUT)")

    async def end_idle(self, seconds: float) -> None:
        """Ends the workers that have not been used for so long; their memory goes back to the
        machine."""
        now = time.monotonic()
        for key, worker in list(self._workers.items()):
            if worker.idle and now - worker.last_used > seconds:
                log.info("idle, unloading", extra={"model": worker.model.name})
                await self._end(key, worker)

    async def _make_room(self, key: Key, model: Model) -> None:
        """Ends idle workers, the least recently used first, until the model fits the budget."""
        if model.memory > self._budget:
            raise LoadFailed(
                f"{model.name} takes about {_mb(model.memory)} MB of memory; "
                f"the budget is {_mb(self._budget)} MB (MEMORY_BUDGET)."
            )
        while True:
            async with self._making_room:
                in_the_way = self._in_the_way(key, model)
                if not in_the_way:
                    self._loading[key] = model
                    return
                idle = [item for item in self._workers.items() if item[0] in in_the_way]
                idle = [item for item in idle if item[1].idle]
                if idle:
                    victim, worker = min(idle, key=lambda item: item[1].last_used)
                    log.info(
                        "making room", extra={"unloaded": worker.model.name, "for": model.name}
                    )
                    await self._end(victim, worker)
                    continue
                freed = self._freed
            self.crowded += 1
            try:
                await freed.wait()
            finally:
                self.crowded -= 1

    def _in_the_way(self, key: Key, model: Model) -> set[Key]:
        """Whose end would make room: all others where memory is short, or those on the device."""
        if self._used() + model.memory > self._budget:
            return self._workers.keys() | self._loading.keys()
        loaded = {at: worker.model for at, worker in self._workers.items() if _alive(worker)}
        return {
            other
            for other, neighbour in (loaded | self._loading).items()
            if other != key
            and (model.limits.alone or neighbour.limits.alone)
            and _same_device(other[1], key[1])
        }

    def _used(self) -> int:
        loaded = sum(worker.memory() for worker in self._workers.values() if _alive(worker))
        return loaded + sum(model.memory for model in self._loading.values())

    async def _trim(self, keep: Key) -> None:
        """Ends the least recently used workers beyond the number that stays warm."""
        while len(self._workers) > self._warm:
            idle = [item for item in self._workers.items() if item[0] != keep and item[1].idle]
            if not idle:
                return  # a busy one goes when the next pipeline is loaded
            await self._end(*min(idle, key=lambda item: item[1].last_used))

    async def _end(self, key: Key, worker: Worker) -> None:
        """Ends a worker, unless it was ended or given a job while another one was being ended."""
        if self._workers.get(key) is worker and worker.idle:
            del self._workers[key]
            await worker.stop()


def _alive(worker: Worker) -> bool:
    return not worker.dead.is_set()


def _same_device(one: str, other: str) -> bool:
    return one.removesuffix(".0") == other.removesuffix(".0")


def _mb(size: int) -> int:
    return round(size / 2**20)
