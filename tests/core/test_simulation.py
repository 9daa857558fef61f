"""Jobs and workers under everything that can happen, in any order, by a simulated clock.

Hypothesis hands in jobs, lets workers step, finish, fail and die, cancels, follows, hangs up, fills
the disk, restarts and kills the service. What must hold, holds after each of it (`invariant`), and
in the end every accepted job has ended (`teardown`).
"""

import logging
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.caller import Caller
from app.errors import Busy, StorageFailed
from app.jobs.dispatcher import ATTEMPTS, Dispatcher
from app.jobs.job import Job, JobEvent, JobState, new_job
from app.jobs.lane import Attempt
from app.jobs.ledger import Ledger
from app.jobs.live_job import LiveJob
from app.jobs.phase import Phase as JobPhase
from app.jobs.waiters import Waiters
from app.machine import Machine
from app.models.catalog import Catalog
from app.request import ImageRequest, Recipe
from app.workers.message import Report
from app.workers.placement import Placement
from app.workers.pool import Pool
from app.workers.worker import WorkerOptions
from tests.conftest import DOUBLES
from tests.core.clock import SimulatedLoop
from tests.core.doubles import MemoryStore, SimulatedProcess

MB = 1_000_000
BUDGET = 6 * MB  # brittle takes 1, other and elsewhere take 4 each
STARVATION, IDLE, WINDOW = 30.0, 600.0, 5.0
OPTIONS = WorkerOptions(
    cache_dir=None, threads=0, load_timeout=300.0, stall_timeout=900.0, cancel_timeout=60.0
)
MODELS = ("brittle", "other", "elsewhere")  # the last one on a device of its own
CATALOG = Catalog([DOUBLES], DOUBLES)
MACHINE = Machine(size="little", budget=BUDGET, max_loaded=2, weight_format="int8")
FAULTS = ("fail_load", "fail", "die", "die")
SELDOM = st.sampled_from((False, False, False, True))


def _recipe(name: str, *, with_picture: bool) -> Recipe:
    recipe, _ = CATALOG.get(name).complete(ImageRequest(prompt="well", seed=1))
    return replace(recipe, init_image="init_image.png", strength=0.5) if with_picture else recipe


RECIPES = {(name, has): _recipe(name, with_picture=has) for name in MODELS for has in (True, False)}


class SimulatedError(Exception):
    """Something broke inside the service."""


class Service:
    """The real jobs/ and workers/ of one life of the service, between the doubles."""

    def __init__(
        self, loop: SimulatedLoop, store: MemoryStore, deaths: Counter[str] | None = None
    ) -> None:
        self.loop = loop
        self.deaths: Counter[str] = Counter() if deaths is None else deaths
        self.store = store
        self.processes: list[SimulatedProcess] = []
        loop.call(self._build)
        for job in store.unfinished():
            loop.do(self.dispatcher.recover(job))

    def _build(self) -> None:
        self.ledger = Ledger(self.store, self.loop)  # type: ignore[arg-type]
        self.pool = Pool(OPTIONS, MACHINE, launch=self._launch)
        self.placement = Placement(self.pool, CATALOG, preferred="CPU")
        self.dispatcher = Dispatcher(self.pool, self.ledger, self.placement, starvation=STARVATION)
        self.waiters = Waiters(self.dispatcher, cancels=True, window=WINDOW)
        hear = self.dispatcher._heard
        self.next_report_breaks = False

        def heard(attempt: Attempt, report: Report) -> None:
            if self.next_report_breaks:
                self.next_report_breaks = False
                self.deaths[attempt.live.job.id] += 1  # its worker is ended for that
                raise SimulatedError
            hear(attempt, report)

        self.dispatcher._heard = heard  # type: ignore[method-assign]

    async def _launch(self) -> SimulatedProcess:
        self.processes.append(SimulatedProcess(self.deaths))
        return self.processes[-1]

    def keep_house(self) -> None:
        self.loop.call(self.pool.kill_unresponsive)
        self.loop.do(self.pool.end_idle(IDLE))
        self.loop.do(self.ledger.save_late())
        self.loop.call(self.dispatcher.pump)

    def alive(self) -> list[SimulatedProcess]:
        return [process for process in self.processes if process.alive]

    async def stop(self, grace: float) -> None:
        await self.dispatcher.drain(grace)
        await self.waiters.close()
        await self.dispatcher.stop()
        await self.pool.close()


class Simulation(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = SimulatedLoop()
        self.service = Service(self.loop, MemoryStore())
        self.handed_in = 0
        self.accepted: dict[str, Job] = {}  # by id
        self.canceled: set[str] = set()  # by us, and told so
        self.stories: list[tuple[LiveJob, list[JobEvent]]] = []  # of whom somebody follows
        self.waiting: list[Any] = []  # clients that wait: context managers of the waiters
        self.errors = _Errors()
        logging.getLogger("app").addHandler(self.errors)

    # Callers

    @rule(count=st.integers(1, 3), model=st.sampled_from(MODELS), with_picture=st.booleans())
    def hand_in_some(self, count: int, model: str, with_picture: bool) -> None:
        for _ in range(count):
            self.hand_in(model, with_picture, 0)

    @rule(model=st.sampled_from(MODELS), with_picture=st.booleans(), repeat=st.integers(0, 3))
    def hand_in(self, model: str, with_picture: bool, repeat: int) -> None:
        recipe = RECIPES[model, with_picture]
        job = new_job(recipe, Caller(face="native"), tag="", warnings=())
        self.handed_in += 1
        job = replace(job, id=f"job-{self.handed_in}")
        inputs = {"init_image.png": b"png"} if with_picture else {}

        async def admit() -> None:
            live = LiveJob(job, repeat=str(repeat) if repeat else "")
            with suppress(StorageFailed):
                await self.service.dispatcher.admit(live, inputs, None)
                self.accepted[job.id] = job

        self.loop.do(admit())

    @precondition(lambda self: self.service.dispatcher.live)
    @rule(n=st.integers(0, 20))
    def cancel(self, n: int) -> None:
        live = self._one_of(list(self.service.dispatcher.live.values()), n)

        async def cancel() -> None:
            await self.service.dispatcher.cancel(live)
            if live.job.state is JobState.CANCELED:
                self.canceled.add(live.job.id)

        self.loop.do(cancel())

    @precondition(lambda self: self.service.dispatcher.live)
    @rule(n=st.integers(0, 20))
    def follow(self, n: int) -> None:
        live = self._one_of(list(self.service.dispatcher.live.values()), n)
        story: list[JobEvent] = []
        self.stories.append((live, story))

        async def follow() -> None:
            self.service.dispatcher.watch(live)
            async for event in live.follow():
                story.append(event)

        self.loop.do(follow())

    @precondition(lambda self: self.service.dispatcher.live)
    @rule(n=st.integers(0, 20))
    def wait(self, n: int) -> None:
        live = self._one_of(list(self.service.dispatcher.live.values()), n)
        client = self.service.waiters.waiting(live)
        self.loop.call(client.__enter__)
        self.waiting.append(client)

    @precondition(lambda self: self.waiting)
    @rule(n=st.integers(0, 20))
    def hang_up(self, n: int) -> None:
        client = self._one_of(self.waiting, n)
        self.waiting.remove(client)
        self.loop.call(client.__exit__, None, None, None)

    @rule(repeat=st.integers(1, 3))
    def ask_again(self, repeat: int) -> None:
        live = self.loop.call(self.service.waiters.repeated, str(repeat))
        if live is not None and not live.job.state.ended:
            client = self.service.waiters.waiting(live)
            self.loop.call(client.__enter__)
            self.waiting.append(client)

    # Workers

    def a_worker(self, n: int, action: str) -> None:
        self.loop.call(getattr(self._one_of(self.service.alive(), n), action))

    @precondition(lambda self: any(not process.loaded for process in self.service.alive()))
    @rule()
    def all_loads_finish(self) -> None:
        for process in self.service.alive():
            self.loop.call(process.finish_load)

    @precondition(lambda self: self.service.alive())
    @rule(rounds=st.integers(1, 3))
    def all_workers_work(self, rounds: int) -> None:
        for _ in range(rounds):
            for process in self.service.alive():
                for action in ("finish_load", "make_step", "finish_drawing", "finish_encoding"):
                    self.loop.call(getattr(process, action))

    @precondition(lambda self: any(process.jobs for process in self.service.alive()))
    @rule(n=st.integers(0, 20))
    def a_worker_steps(self, n: int) -> None:
        self.a_worker(n, "make_step")

    @precondition(lambda self: any(process.jobs for process in self.service.alive()))
    @rule(n=st.integers(0, 20))
    def a_worker_has_drawn(self, n: int) -> None:
        self.a_worker(n, "finish_drawing")

    @precondition(lambda self: any(process.encoding for process in self.service.alive()))
    @rule(n=st.integers(0, 20))
    def a_worker_has_encoded(self, n: int) -> None:
        self.a_worker(n, "finish_encoding")

    @precondition(lambda self: self.service.alive())
    @rule(n=st.integers(0, 20), fault=st.sampled_from(FAULTS))
    def a_worker_fails(self, n: int, fault: str) -> None:
        self.a_worker(n, fault)

    @precondition(lambda self: any(process.jobs for process in self.service.alive()))
    @rule(n=st.integers(0, 20))
    def a_worker_ignores_cancels(self, n: int) -> None:
        self._one_of(self.service.alive(), n).ignores_cancels = True

    @rule(model=st.sampled_from(MODELS), device=st.sampled_from(("CPU", "GPU")))
    def put_a_model_on_a_device(self, model: str, device: str) -> None:
        if CATALOG.get(model).supports(device):
            self.loop.call(self.service.placement.choose, CATALOG.get(model), device)
            self.loop.call(self.service.dispatcher.pump)

    @precondition(lambda self: any(process.loaded for process in self.service.alive()))
    @rule(model=st.sampled_from(MODELS))
    def unload(self, model: str) -> None:
        async def unload() -> None:
            with suppress(Busy):
                await self.service.pool.unload(model)

        self.loop.do(unload())

    @precondition(lambda self: self.service.alive())
    @rule()
    def a_listener_breaks(self) -> None:
        """The next report meets an error in the service itself."""
        self.service.next_report_breaks = True

    # Time, disk, and the ends of the service

    @rule(seconds=st.sampled_from((0.5, 6.0, 31.0, 61.0, 301.0, 901.0)))
    def time_passes(self, seconds: float) -> None:
        self.loop.advance(seconds)
        self.service.keep_house()

    @rule(full=st.booleans())
    def the_disk(self, full: bool) -> None:
        self.service.store.full = full

    @precondition(lambda self: not self.loop.holds)
    @rule()
    def the_disk_is_slow(self) -> None:
        self.loop.holds = True

    @precondition(lambda self: self.loop.holds)
    @rule()
    def the_disk_answers(self) -> None:
        self.loop.holds = False
        self.loop.call(self.loop.release)

    @precondition(lambda self: self.service.dispatcher.live)
    @rule(grace=st.sampled_from((0.0, 10.0)), now=SELDOM)
    def restart(self, grace: float, now: bool) -> None:
        if not now:
            return
        self.the_disk_works_again()
        self.loop.do(self.service.stop(grace))
        self.loop.advance(grace + 10)
        self.all_clients_leave()
        unfinished = self.service.store.unfinished()
        assert all(job.state is JobState.QUEUED for job in unfinished), "a job was left running"
        self.service = Service(self.loop, self.service.store, self.service.deaths)

    @precondition(lambda self: self.service.dispatcher.live)
    @rule(now=SELDOM)
    def kill_the_service(self, now: bool) -> None:
        """As kill -9: what was told is kept, what was under way is not."""
        if not now:
            return
        self.loop.holds = False
        self.stories.clear()
        self.service.waiters._closed = True
        self.all_clients_leave()
        survivor = self.service.store.killed()
        self.service.deaths.update(
            job.id for job in survivor.unfinished() if job.state is JobState.RUNNING
        )
        # A cancel that a full disk did not take is forgotten: it was told, but not recorded.
        ended = {job.id for job in survivor.jobs.values() if job.state.ended}
        self.canceled &= ended
        self.loop.end_all_tasks()
        self.service = Service(self.loop, survivor, self.service.deaths)

    def all_clients_leave(self) -> None:
        for client in self.waiting:
            self.loop.call(client.__exit__, None, None, None)
        self.waiting.clear()

    def the_disk_works_again(self) -> None:
        self.loop.holds = False
        self.service.store.full = False
        self.loop.call(self.loop.release)

    # What must hold

    @invariant()
    def what_must_hold_holds(self) -> None:
        self.nothing_broke()
        self.never_two_jobs_at_a_time_on_a_device()
        self.never_over_the_budget()
        self.an_end_is_final_and_comes_once()
        self.a_success_has_the_pictures_of_its_own_job()
        self.only_a_death_costs_an_attempt()
        self.a_device_draws_one_job()
        self.every_phase_has_its_place()
        self.what_is_told_is_in_order()

    def nothing_broke(self) -> None:
        assert not self.loop.broken, self.loop.broken
        assert self.errors.unexpected == []

    def never_two_jobs_at_a_time_on_a_device(self) -> None:
        drawing: dict[str, list[str]] = {}
        for process in self.service.alive():
            wanted = [run.job for run in process.jobs if run.job not in process.canceled]
            if process.load is not None and wanted:
                drawing.setdefault(process.load.device, []).append(wanted[0])
        assert all(len(jobs) == 1 for jobs in drawing.values()), drawing

    def never_over_the_budget(self) -> None:
        models = [process.load.model for process in self.service.alive() if process.load]
        taken = sum(model.limits.memory for model in models)
        assert taken <= BUDGET, [model.name for model in models]

    def an_end_is_final_and_comes_once(self) -> None:
        store = self.service.store
        assert all(count == 1 for count in store.ends.values() if count)
        for job_id in self.canceled & self.accepted.keys():
            told = self.service.ledger._unsaved.get(job_id) or store.jobs[job_id]
            assert told.state is JobState.CANCELED

    def a_success_has_the_pictures_of_its_own_job(self) -> None:
        for job in self.service.store.jobs.values():
            if job.state is JobState.SUCCEEDED:
                assert self.service.store.files[job.id, "0.png"] == job.id.encode()

    def only_a_death_costs_an_attempt(self) -> None:
        for live in self.service.dispatcher.live.values():
            assert live.job.attempts <= min(ATTEMPTS, self.service.deaths[live.job.id] + 1)
        for job in self.service.store.jobs.values():
            if job.error is not None and job.error.code == "worker_died":
                assert self.service.deaths[job.id] >= ATTEMPTS

    def a_device_draws_one_job(self) -> None:
        jobs = [live for live in self.service.dispatcher.live.values()]
        devices = [live.job.device for live in jobs if live.phase is JobPhase.DRAWING]
        assert len(devices) == len(set(devices)), devices

    def every_phase_has_its_place(self) -> None:
        dispatcher = self.service.dispatcher
        queued = set(dispatcher._queue)
        for live in dispatcher.live.values():
            attempt = dispatcher._attempts.get(live.job.id)
            assert (live in queued) == (live.phase is JobPhase.QUEUED and attempt is None) or (
                self.loop.holds and live.phase is JobPhase.QUEUED
            ), live.phase
            begun = (JobPhase.HANDED, JobPhase.DRAWING, JobPhase.ENCODING)
            assert (attempt is not None) == (live.phase in begun), live.phase

    def what_is_told_is_in_order(self) -> None:
        for live, story in self.stories:
            assert [event.id for event in story] == list(range(1, len(story) + 1))
            ends = [event for event in story if event.kind == "done"]
            assert len(ends) == (live.phase is JobPhase.ENDED)
            assert not ends or story[-1] is ends[0]

    def teardown(self) -> None:
        """Everybody behaves well for a while; then nothing may be waiting any more."""
        self.the_disk_works_again()
        self.all_clients_leave()
        for _ in range(12 + 4 * len(self.service.dispatcher.live)):
            if not self.service.dispatcher.live:
                break
            self.all_workers_work(1)
            self.loop.advance(1.0)
            self.service.keep_house()
        self.service.keep_house()
        try:
            waiting = {live.job.id: live.phase for live in self.service.dispatcher.live.values()}
            assert not waiting, f"waits for ever: {waiting}"
            for job_id in self.accepted:
                assert self.service.store.jobs[job_id].state.ended, job_id
            self.nothing_broke()
            self.an_end_is_final_and_comes_once()
        finally:
            logging.getLogger("app").removeHandler(self.errors)
            self.loop.end_all_tasks()
            self.loop.close()

    def _one_of(self, things: list[Any], n: int) -> Any:
        return things[n % len(things)]


class _Errors(logging.Handler):
    """What the service logs as an error of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.unexpected: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, SimulatedError):
            self.unexpected.append(f"{record.getMessage()}: {error!r}")


def simulate(examples: int, number: int) -> None:
    machine = seed(number)(Simulation)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            report_multiple_bugs=False,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        ),
    )


def test_whatever_happens_every_job_ends_once() -> None:
    simulate(200, 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 5))
def test_whatever_happens_in_any_of_two_thousand_lives(number: int) -> None:
    simulate(500, number)
