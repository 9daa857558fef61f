"""What one device is occupied with: the attempt whose turn it is, and the one its worker has next.

Knows no queue and no disk.
"""

from dataclasses import dataclass, field

from app.jobs.live_job import LiveJob, now
from app.workers.message import Drawn
from app.workers.worker import Worker


@dataclass(eq=False, kw_only=True)
class Attempt:
    """One attempt at a job on a device. `worker` is None until the job has been sent to it.

    A closed attempt does not concern its job any more: that was canceled, has failed or waits
    again. It still occupies its device until the worker reports that it has stopped.
    """

    live: LiveJob
    device: str
    worker: Worker | None = None
    closed: bool = False
    began: float = field(default_factory=now)
    load_ms: float = 0.0
    drawn: Drawn | None = None


@dataclass(kw_only=True)
class Lane:
    """`following` was sent to the worker of `present` in advance (prefetched), so that the worker
    goes on without asking."""

    present: Attempt | None = None
    following: Attempt | None = None

    def can_hand_over(self, worker: Worker | None) -> bool:
        """Whether this worker, which has the model of a waiting job loaded, is drawing here and
        has no next job yet."""
        drawing = self.present.worker if self.present else None
        return self.following is None and worker is not None and worker is drawing

    def leave(self, attempt: Attempt) -> Attempt | None:
        """Takes an attempt out, if it is here. Returns the one whose turn has come by that."""
        if self.following is attempt:
            self.following = None
        elif self.present is attempt:
            self.present, self.following = self.following, None
            return self.present
        return None
