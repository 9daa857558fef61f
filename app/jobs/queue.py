"""The jobs that wait, and in which order they come. Knows no device and no record."""

import time
from collections.abc import Callable, Iterator

from app.jobs.live import LiveJob


class Queue:
    """`warm` says whether a model is loaded; after `starvation` seconds nobody is passed over."""

    def __init__(self, warm: Callable[[str], bool], *, starvation: float) -> None:
        self._warm = warm
        self._starvation = starvation
        self._waiting: list[LiveJob] = []  # by their acceptance

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[LiveJob]:
        return iter(self._waiting)

    def add(self, live: LiveJob, *, first: bool = False) -> None:
        self._waiting.insert(0 if first else len(self), live)

    def remove(self, live: LiveJob) -> None:
        if live in self._waiting:
            self._waiting.remove(live)

    def order(self) -> list[LiveJob]:
        """All of them, the next one first."""
        return self._in_order(self._waiting)

    def heads(self) -> list[LiveJob]:
        """Those a worker has already, and the next one of each model, in order; the queue may be
        long."""
        heads: dict[tuple[str, str | None], LiveJob] = {}
        for live in self._waiting:
            heads.setdefault((live.job.model, live.next_on), live)
        return self._in_order(list(heads.values()))

    def _in_order(self, waiting: list[LiveJob]) -> list[LiveJob]:
        """What a worker has already, then jobs of a loaded model, as long as nobody starves."""
        starving = waiting and time.time() - waiting[0].job.created > self._starvation
        models = {live.job.model for live in waiting}
        late = {name: not starving and not self._warm(name) for name in models}
        return sorted(waiting, key=lambda live: (not live.next_on, late[live.job.model]))
