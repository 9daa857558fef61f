"""One attempt at a job: whether it is still wanted, and which of its steps are reported to the
service. Knows no socket and no pipeline."""

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from PIL import Image

from app.pictures import codec
from app.runtime.protocol import Pixels, Preview
from app.workers.message import Counted, Run, Stepped

COUNT_INTERVAL = 0.25  # seconds between two counts of an unwatched job: each delays the drawing
KEPT_STEPS = 64  # the last steps of an unwatched job, kept in case that somebody begins to watch


class Attempt:
    """Unwatched, a job's steps are only counted, a few times a second. From the moment somebody
    watches it, each step is reported with a preview, the kept ones before that included.

    `report_step` is called by the thread that draws, `watch` and `canceled` by the one that listens
    to the service.
    """

    def __init__(self, run: Run, send: Callable[[Stepped | Counted], None]) -> None:
        self.run = run
        self.canceled = False  # set from outside; the drawing looks at it before each step
        self._send = send
        self._watched = run.watched
        self._last_count = -math.inf
        self._unreported: deque[tuple[int, int, Preview]] = deque(maxlen=KEPT_STEPS)
        self._lock = threading.Lock()  # keeps the reports of the two threads in the order of steps

    def report_step(self, step: int, steps: int, preview: Preview) -> None:
        """`step` of `steps`, both over all pictures of the job."""
        with self._lock:
            self._unreported.append((step, steps, preview))
            if self._watched:
                self._report_kept()
            elif time.monotonic() - self._last_count >= COUNT_INTERVAL:
                self._last_count = time.monotonic()
                self._send(Counted(job=self.run.job, step=step, steps=steps))

    def watch(self) -> None:
        """Somebody follows the job from now on."""
        with self._lock:
            self._watched = True
            self._report_kept()

    def end(self) -> None:
        """No step is reported any more, and the kept latents' memory is free."""
        with self._lock:
            self._unreported.clear()

    def _report_kept(self) -> None:
        while self._unreported:
            step, steps, preview = self._unreported.popleft()
            small = _small_jpeg(preview) if preview else None
            self._send(Stepped(job=self.run.job, step=step, steps=steps, preview=small))


def _small_jpeg(preview: Callable[[], Pixels]) -> bytes | None:
    """None where the preview cannot be made; the job goes on without it."""
    try:
        return codec.preview_jpeg(Image.fromarray(preview()))
    except Exception as error:  # noqa: BLE001 - a family's code may raise anything
        print(f"no preview: {error!r}", file=sys.stderr, flush=True)
        return None
