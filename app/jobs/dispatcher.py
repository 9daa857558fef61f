"""From a job's acceptance to its end: what each device draws, what its worker has next, and how a
job ends. The phases and their moves are in phase.py.

Knows the pool and the ledger; knows no request, no face and no readiness.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from app.background import Background
from app.caller import Idempotency
from app.errors import EaselError, WorkerDied, from_code
from app.jobs.job import Job, JobState
from app.jobs.lane import Attempt, Lane
from app.jobs.ledger import Ledger
from app.jobs.live_job import LiveJob, now
from app.jobs.phase import Phase
from app.jobs.queue import Queue
from app.jobs.recorder import Recorder
from app.jobs.result import files_of, record_of
from app.logs import request_id
from app.workers.message import Counted, Drawn, Encoded, Failed, Report, Run, Stepped, Stopped
from app.workers.placement import Placement
from app.workers.pool import Pool

log = logging.getLogger(__name__)

ATTEMPTS = 2  # a job whose worker died is tried once more


class Dispatcher:
    """All methods run on the event loop and make their moves at once, without waiting in between;
    what takes time (reading inputs, loading, recording) is a background task that ends in such a
    move."""

    def __init__(
        self, pool: Pool, ledger: Ledger, placement: Placement, *, starvation: float
    ) -> None:
        self._pool = pool
        self._ledger = ledger
        self._recorder = Recorder(ledger)
        self._placement = placement
        self._queue = Queue(lambda name: pool.loaded(name) is not None, starvation=starvation)
        self._lanes: dict[str, Lane] = {}  # by device
        self._attempts: dict[str, Attempt] = {}  # by job: the one that concerns it
        self._sending = Background()
        self.live = self._recorder.live
        self.seconds_per_job = 1.0  # a running mean
        self.stopping = False

    # Jobs come

    async def admit(
        self, live: LiveJob, inputs: Mapping[str, bytes], idempotency: Idempotency | None
    ) -> None:
        """Takes a job in: when this returns, it is durable and waits for its turn. A caller that is
        canceled meanwhile changes nothing about that.

        Raises KeyError for a used idempotency key, StorageFailed when there is no room.
        """

        def queue(recorded: asyncio.Task[None]) -> None:
            # A job that was canceled while it was being recorded is ending by now.
            if recorded.exception() is None and live.phase is Phase.QUEUED:
                self._queue.add(live)
                self.pump()

        recorded = self._recorder.accept(live, inputs, idempotency)
        recorded.add_done_callback(queue)
        await asyncio.shield(recorded)

    async def recover(self, job: Job) -> None:
        """Takes up a job of an earlier process: queued again, or failed if it was tried often
        enough."""
        tried = job.attempts >= ATTEMPTS
        live = self.live[job.id] = LiveJob(job if tried else job.requeued())
        if tried:
            detail = "The service ended twice while this job was running; it is not tried again."
            await self._end(live, JobState.FAILED, error=WorkerDied(detail))
        else:
            self._recorder.note(live)
            self._queue.add(live)
            self.pump()

    # Jobs wait

    def waiting(self) -> list[LiveJob]:
        """The jobs that have not begun, the next one first: those a worker has already, then the
        queue in its order."""
        handed = [live for live in self.live.values() if live.phase is Phase.HANDED]
        return handed + self._queue.order()

    def count_waiting(self) -> int:
        """How many have not begun, those included that are just being recorded."""
        return sum(live.phase in (Phase.QUEUED, Phase.HANDED) for live in self.live.values())

    def pump(self) -> None:
        """Gives every free device its next job, and every busy one's worker the job after that.

        While a load waits for memory, no further jobs are given out: otherwise no worker would
        become idle and could be ended to free it.
        """
        if self.stopping or self._pool.loads_waiting:
            return
        served: set[str] = set()
        for live in self._queue.next_of_each_model():
            device = self._placement.device_for(live.job.model)
            if device in served:
                continue
            served.add(device)
            lane = self._lanes.setdefault(device, Lane())
            if lane.present is None:
                self._queue.remove(live)
                lane.present = self._attempt(live, device)
                self._begin(lane.present)
            elif lane.can_hand_over(self._pool.ready(live.job.model, device)):
                self._queue.remove(live)
                live.hand_over()
                lane.following = self._attempt(live, device)

    # Attempts at a job

    def _attempt(self, live: LiveJob, device: str) -> Attempt:
        attempt = self._attempts[live.job.id] = Attempt(live=live, device=device)
        self._sending.spawn(self._send(attempt))
        return attempt

    def _begin(self, attempt: Attempt) -> None:
        """The attempt's turn has come: it occupies its device."""
        attempt.began = now()
        attempt.live.begin(attempt.device)
        # Recorded while it runs: a job that takes the service down twice must not run for ever.
        self._recorder.note(attempt.live)

    async def _send(self, attempt: Attempt) -> None:
        """Sends the job to its worker, which is loaded if need be."""
        request_id.set(attempt.live.request_id)
        try:
            inputs = await self._ledger.inputs(attempt.live.job)
            if attempt.closed:
                return
            name = attempt.live.job.model
            worker = await self._placement.worker_for(name, attempt.device)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job ends and the queue goes on
            self._leave(attempt)
            self._fail(attempt, error)
            self.pump()
            return
        if attempt.closed:
            self._pool.release(worker)  # it is loaded for the model's next job
            return
        live = attempt.live
        attempt.load_ms = (now() - attempt.began) * 1000
        attempt.worker = worker
        order = Run(job=live.job.id, recipe=live.job.recipe, inputs=inputs, watched=live.watched)
        worker.run(order, lambda report: self._heard(attempt, report))
        self.pump()  # the worker can have the next job, too

    def _heard(self, attempt: Attempt, report: Report) -> None:
        """What a worker reports of an attempt. Reports come in the order in which things
        happened, those of one job before those of the next."""
        match report:
            case Stepped() | Counted() | Encoded() if attempt.closed:
                pass  # the job was canceled meanwhile
            case Stepped():
                attempt.live.step(report.step, report.steps, report.preview)
            case Counted():
                attempt.live.count(report.step, report.steps)
            case Encoded():
                self._succeed(attempt, report)
            case Drawn():
                attempt.drawn = report
                if not attempt.closed:
                    attempt.live.drawn()
                    self.seconds_per_job += 0.2 * (now() - attempt.began - self.seconds_per_job)
                self._leave(attempt)
                self.pump()
            case Stopped():
                self._leave(attempt)
                self.pump()
            case Failed():
                self._leave(attempt)
                self._fail(attempt, from_code(report.code, report.detail))
                self.pump()

    def _leave(self, attempt: Attempt) -> None:
        """The attempt occupies its device no more: the turn of what the worker has next comes."""
        following = self._lanes[attempt.device].leave(attempt)
        if following is None or following.closed:
            return
        if following.worker is not None and following.worker.dead:
            self._take_back(following)
        else:
            self._begin(following)

    def _take_back(self, attempt: Attempt) -> None:
        """The job that a worker had next has not begun, so that nothing has happened to it: it
        waits as before."""
        self._close(attempt)
        attempt.live.take_back()
        self._queue.add(attempt.live, first=True)

    def _close(self, attempt: Attempt) -> None:
        """From now on the attempt does not concern its job; the worker is told to leave it off."""
        attempt.closed = True
        self._attempts.pop(attempt.live.job.id, None)
        if attempt.worker is None or attempt.worker.dead:
            self._leave(attempt)  # nobody will report its end
        else:
            attempt.worker.cancel(attempt.live.job.id)

    def _fail(self, attempt: Attempt, error: Exception) -> None:
        """An attempt came to nothing. A worker's death costs one retry, anything else the job."""
        if attempt.closed:
            return
        live = attempt.live
        if not isinstance(error, EaselError):
            log.error("job broke", extra={"job": live.job.id}, exc_info=error)
            error = EaselError("Something inside Easel broke; the log says more.")
        died = isinstance(error, WorkerDied)
        if died and live.phase is Phase.HANDED:
            self._take_back(attempt)
            return
        attempt.closed = True
        self._attempts.pop(live.job.id, None)
        if died and (self.stopping or live.job.attempts < ATTEMPTS):
            log.warning("trying again", extra={"job": live.job.id, "detail": error.detail})
            live.requeue(counts=not self.stopping)
            self._recorder.note(live)
            self._queue.add(live, first=True)
            self._recorder.note_idle()
        else:
            self._end(live, JobState.FAILED, error=error)

    def _succeed(self, attempt: Attempt, encoded: Encoded) -> None:
        assert attempt.drawn is not None
        attempt.closed = True
        self._attempts.pop(attempt.live.job.id, None)
        job = attempt.live.job
        files = files_of(job, encoded)
        record = record_of(job, attempt.drawn, encoded, files, load_ms=attempt.load_ms)
        self._end(attempt.live, JobState.SUCCEEDED, files=files, **record)

    # Who follows a job, and who has had enough of it

    def watch(self, live: LiveJob) -> None:
        """Somebody follows the job: from now on every step is reported, with a preview."""
        if live.watched:
            return
        live.watched = True
        attempt = self._attempts.get(live.job.id)
        if attempt is not None and attempt.worker is not None:
            attempt.worker.watch(live.job.id)

    async def cancel(self, live: LiveJob) -> None:
        """Ends a job at once; returns when that is recorded. Its worker stops within a step, or is
        killed and replaced."""
        if live.phase is not Phase.ENDED:
            ended = self._end(live, JobState.CANCELED)
            self.pump()
            await asyncio.shield(ended)

    def _end(self, live: LiveJob, state: JobState, **values: Any) -> asyncio.Task[None]:
        """How a job ends is decided; the first decision counts."""
        task = self._recorder.end(live, state, **values)
        self._queue.remove(live)
        if attempt := self._attempts.get(live.job.id):
            self._close(attempt)
        return task

    # The service ends

    async def drain(self, seconds: float) -> None:
        """Starts no more jobs, and waits until those that have begun are kept, so long at most."""
        self._start_no_more()
        await self._recorder.until_idle(seconds)

    async def stop(self) -> None:
        """Ends all work; what has not ended is recorded as queued, for the next start."""
        self._start_no_more()
        await self._sending.cancel()
        for attempt in list(self._attempts.values()):
            attempt.closed = True
        await self._recorder.close()

    def _start_no_more(self) -> None:
        self.stopping = True
        for lane in self._lanes.values():
            if lane.following is not None and not lane.following.closed:
                self._take_back(lane.following)
