"""The loaded workers, kept within a memory budget: which are loaded, which have to go, which are
ended for being idle or for not answering. Knows no job."""

import asyncio
import logging
from dataclasses import dataclass

from app.errors import Busy, LoadFailed
from app.machine import Machine
from app.models.model import Model
from app.workers.launcher import Launch, launch
from app.workers.worker import Worker, WorkerOptions

log = logging.getLogger(__name__)

RETRY_LOAD = 30.0  # seconds after which a job may try a model again that failed to load

Key = tuple[str, str]  # model name, device


class Pool:
    """At most one worker per model and device, per device where a model wants it alone, and no more
    of them than the machine is good for."""

    def __init__(
        self, options: WorkerOptions, machine: Machine, *, launch: Launch = launch
    ) -> None:
        self._options = options
        self._launch = launch
        self._budget = machine.budget
        self._max_loaded = machine.max_loaded
        self._workers: dict[Key, Worker] = {}
        self._loading: dict[Key, _Load] = {}
        self._locks: dict[Key, asyncio.Lock] = {}
        self._making_room = asyncio.Lock()
        self._freed = asyncio.Event()
        self._failures: dict[str, tuple[float, str]] = {}  # by model: when, and why
        self.loads_waiting = 0  # for a busy worker to become idle, so that it can be ended

    def loaded(self, name: str) -> Worker | None:
        """A worker that has this model loaded, on whatever device; of several the last used."""
        found = [
            worker for key, worker in self._workers.items() if key[0] == name and not worker.dead
        ]
        return max(found, key=lambda worker: worker.last_used, default=None)

    def ready(self, name: str, device: str) -> Worker | None:
        """The worker that has this model loaded on this device, if there is one."""
        worker = self._workers.get((name, device))
        return None if worker is None or worker.dead else worker

    async def get(self, model: Model, device: str) -> Worker:
        """The worker for a model on a device, loaded if need be; raises NotInstalled, LoadFailed.

        It is reserved: nobody ends it before its next job, unless the caller releases it.
        """
        key = (model.name, device)
        async with self._locks.setdefault(key, asyncio.Lock()):
            if worker := self.ready(*key):
                worker.reserved = True
                return worker
            self._workers.pop(key, None)
            model.require_installed()
            load = _Load(model=model, memory=await asyncio.to_thread(model.read_memory))
            await self._make_room(key, load)
            try:
                log.info("loading", extra={"model": model.name, "device": device})
                worker = await Worker.start(
                    model, device, self._options, launch=self._launch, memory=load.memory
                )
                worker.reserved = True
                worker.on_idle = self.freed
                self._workers[key] = worker
            finally:
                del self._loading[key]
                self.freed()
            log.info(
                "loaded", extra={"model": model.name, "device": device, "ms": round(worker.load_ms)}
            )
            self._failures.pop(model.name, None)
            await self._trim(keep=key)
            return worker

    def note_failure(self, name: str, why: str) -> None:
        """Remembers that a model could not be loaded, so that jobs for it are refused for a
        while instead of loading it in vain each."""
        self._failures[name] = (_now(), why)

    def failure(self, name: str) -> str | None:
        """Why a model could not be loaded in the last RETRY_LOAD seconds, if that is so."""
        when, why = self._failures.get(name, (-RETRY_LOAD, None))
        return why if _now() - when < RETRY_LOAD else None

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
            if worker.drawing:
                worker.kill()
            await worker.stop()

    def release(self, worker: Worker) -> None:
        """Takes back that a worker is reserved."""
        worker.reserved = False
        self.freed()

    def freed(self) -> None:
        """To be called when a worker has become idle: loads that wait for room look again."""
        self._freed.set()
        self._freed = asyncio.Event()

    def kill_unresponsive(self) -> None:
        """Ends the workers that report nothing any more, or go on with a canceled job."""
        for worker in self._workers.values():
            what = {"model": worker.model.name, "pid": worker.pid}
            if worker.dead:
                continue
            if worker.stalled:
                log.error("worker stalled", extra=what)
                seconds = self._options.stall_timeout
                worker.kill(f"it gave no sign of life for {seconds:g} seconds (STALL_TIMEOUT)")
            elif worker.unresponsive:
                log.error("worker did not stop", extra=what)
                seconds = self._options.cancel_timeout
                worker.kill(f"it went on with a canceled job for {seconds:g} s (CANCEL_TIMEOUT)")

    async def end_idle(self, seconds: float) -> None:
        """Ends the workers that have not been used for so long; their memory goes back to the
        machine."""
        for key, worker in list(self._workers.items()):
            if worker.idle and _now() - worker.last_used > seconds:
                log.info("idle, unloading", extra={"model": worker.model.name})
                await self._end(key, worker)

    async def _make_room(self, key: Key, load: "_Load") -> None:
        """Ends idle workers, the least recently used first, until the model fits the budget; waits
        for busy ones to become idle."""
        name = load.model.name
        if load.memory > self._budget:
            raise LoadFailed(
                f"{name} takes about {_mb(load.memory)} MB of memory; "
                f"the budget is {_mb(self._budget)} MB (MEMORY_BUDGET)."
            )
        while True:
            async with self._making_room:
                in_the_way = self._in_the_way(key, load)
                if not in_the_way:
                    self._loading[key] = load
                    return
                idle = [
                    item for item in self._workers.items() if item[0] in in_the_way and item[1].idle
                ]
                if idle:
                    victim, worker = min(idle, key=lambda item: item[1].last_used)
                    log.info("making room", extra={"unloaded": worker.model.name, "for": name})
                    await self._end(victim, worker)
                    continue
                freed = self._freed
            self.loads_waiting += 1
            try:
                await freed.wait()
            finally:
                self.loads_waiting -= 1

    def _in_the_way(self, key: Key, load: "_Load") -> set[Key]:
        """Whose end would make room: all others where memory is short, or those on the device
        where one of the models wants it for itself."""
        if self._used() + load.memory > self._budget:
            return self._workers.keys() | self._loading.keys()
        loaded = {at: worker.model for at, worker in self._workers.items() if not worker.dead}
        loading = {at: other.model for at, other in self._loading.items()}
        return {
            other
            for other, neighbour in (loaded | loading).items()
            if other != key
            and (load.model.limits.alone or neighbour.limits.alone)
            and _same_device(other[1], key[1])
        }

    def _used(self) -> int:
        loaded = sum(worker.memory() for worker in self._workers.values() if not worker.dead)
        return loaded + sum(load.memory for load in self._loading.values())

    async def _trim(self, keep: Key) -> None:
        """Ends the least recently used workers beyond the number that stays loaded."""
        while len(self._workers) > self._max_loaded:
            idle = [item for item in self._workers.items() if item[0] != keep and item[1].idle]
            if not idle:
                return  # a busy one goes when the next pipeline is loaded
            await self._end(*min(idle, key=lambda item: item[1].last_used))

    async def _end(self, key: Key, worker: Worker) -> None:
        """Ends a worker, unless it was ended or given a job while another one was being ended."""
        if self._workers.get(key) is worker and worker.idle:
            del self._workers[key]
            await worker.stop()


@dataclass(frozen=True, kw_only=True)
class _Load:
    """A model that is being loaded, and the bytes it is expected to take."""

    model: Model
    memory: int


def _now() -> float:
    return asyncio.get_running_loop().time()


def _same_device(one: str, other: str) -> bool:
    return one.removesuffix(".0") == other.removesuffix(".0")


def _mb(size: int) -> int:
    return round(size / 2**20)
