"""The jobs that wait, and in which order they come. Knows no device and no record."""

from collections.abc import Callable, Iterator

from app.jobs.live_job import LiveJob, now


class Queue:
    """Jobs of loaded models come first, otherwise the oldest. Once the oldest has waited for more
    than `starvation` seconds, all come in the order of their acceptance.

    `is_loaded` says whether a model of this name is loaded somewhere.
    """

    def __init__(self, is_loaded: Callable[[str], bool], *, starvation: float) -> None:
        self._is_loaded = is_loaded
        self._starvation = starvation
        self._waiting: list[LiveJob] = []  # by their acceptance

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[LiveJob]:
        return iter(self._waiting)

    def add(self, live: LiveJob, *, first: bool = False) -> None:
        self._waiting.insert(0 if first else len(self), live)

    def remove(self, live: LiveJob) -> None:
        """Takes a job out, if it is there."""
        if live in self._waiting:
            self._waiting.remove(live)

    def order(self) -> list[LiveJob]:
        """All jobs, the next one first."""
        return self._in_order(self._waiting)

    def next_of_each_model(self) -> list[LiveJob]:
        """The next job of each model, in order: all that a free device can be given, however long
        the queue is."""
        heads: dict[str, LiveJob] = {}
        for live in self._waiting:
            heads.setdefault(live.job.model, live)
        return self._in_order(list(heads.values()))

    def _in_order(self, waiting: list[LiveJob]) -> list[LiveJob]:
        if not self._waiting or now() - self._waiting[0].accepted > self._starvation:
            return list(waiting)
        loaded = {name: self._is_loaded(name) for name in {live.job.model for live in waiting}}
        return sorted(waiting, key=lambda live: not loaded[live.job.model])
