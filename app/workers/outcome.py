"""The reports of one job as something to wait for, for commands that run one job at a time."""

import asyncio
from collections.abc import Callable

from app.errors import EaselError, from_code
from app.workers.message import Counted, Drawn, Encoded, Failed, Report, Run, Stepped, Stopped
from app.workers.worker import Worker


class Outcome:
    """Gives a worker a job. `drawn` is done when the pipeline is free again, `encoded` when the
    files are there; both raise what the job failed with."""

    def __init__(
        self, worker: Worker, order: Run, on_step: Callable[[int, int], None] | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        self.drawn: asyncio.Future[Drawn | Stopped] = loop.create_future()
        self.encoded: asyncio.Future[Encoded] = loop.create_future()
        self._on_step = on_step
        worker.run(order, self._hear)

    def _hear(self, report: Report) -> None:
        match report:
            case Stepped() | Counted():
                if self._on_step is not None:
                    self._on_step(report.step, report.steps)
            case Drawn() | Stopped():
                self.drawn.set_result(report)
            case Encoded():
                self.encoded.set_result(report)
            case Failed():
                self._fail(from_code(report.code, report.detail))

    def _fail(self, error: EaselError) -> None:
        for future in (self.drawn, self.encoded):
            if not future.done():
                future.set_exception(error)
                future.exception()  # marks it as seen: perhaps only one of the two is awaited
