"""The worker process as the service meets it: orders into a socket pair, reports out of it."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.models.catalog import HOME, Catalog
from app.request import ImageRequest
from app.workers.message import (
    LENGTH,
    Cancel,
    Counted,
    Encoded,
    Failed,
    Load,
    Loaded,
    LoadFailed,
    Run,
    Stepped,
    Stopped,
    Watch,
    pack,
    read_answer,
)

CATALOG = Catalog([HOME / "tests" / "doubles"], Path("nowhere"))
ENDS = (Encoded, Stopped, Failed)


class Worker:
    """A process that was told to load, and the service's end of its socket pair."""

    def __init__(self, model: str, device: str = "CPU") -> None:
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.runtime.main", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                cwd=HOME,
                stderr=subprocess.PIPE,
                text=True,
            )
        self.socket.settimeout(30)
        self._incoming = self.socket.makefile("rb")
        self.tell(Load(model=CATALOG.get(model), device=device, cache_dir=None, threads=0))
        self.loaded = self.hear()

    def tell(self, order: Any) -> None:
        self.socket.sendall(pack(order))

    def draw(self, prompt: str, *, watched: bool = False, **asked: Any) -> str:
        """Orders a job that is called as its prompt."""
        recipe, _ = CATALOG.get("brittle").complete(ImageRequest(prompt=prompt, seed=1, **asked))
        self.tell(Run(job=prompt, recipe=recipe, watched=watched))
        return prompt

    def hear(self) -> Any:
        (length,) = LENGTH.unpack(self._incoming.read(LENGTH.size))
        return read_answer(self._incoming.read(length))

    def hear_to_the_end(self, job: str) -> list[Any]:
        """The reports up to the one that ends the job."""
        heard = [self.hear()]
        while not (isinstance(heard[-1], ENDS) and heard[-1].job == job):
            heard.append(self.hear())
        return heard

    def hang_up(self) -> None:
        self._incoming.close()
        self.socket.close()

    def ended(self) -> tuple[int, str]:
        """Its exit code and what it printed; fails if it does not end."""
        _, printed = self.process.communicate(timeout=10)
        return self.process.returncode, printed


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("brittle")
    assert isinstance(worker.loaded, Loaded)
    yield worker
    worker.hang_up()
    worker.process.kill()
    worker.process.communicate()


@pytest.mark.parametrize(
    ("model", "device", "code", "words"),
    [
        ("load-raises", "CPU", "load_failed", "of another planet"),
        ("brittle", "GPU", "load_failed", "cannot be loaded on GPU: RuntimeError: there is no GPU"),
        ("absent", "CPU", "not_installed", "`python -m app install absent`"),
    ],
)
def test_a_failed_load_is_reported_and_ends_the_process(
    model: str, device: str, code: str, words: str
) -> None:
    worker = Worker(model, device)
    assert isinstance(worker.loaded, LoadFailed) and worker.loaded.code == code
    assert words in worker.loaded.detail
    assert worker.ended() == (0, "")
    worker.hang_up()


def test_steps_are_counted_until_somebody_watches(worker: Worker) -> None:
    began = time.monotonic()
    slow = worker.draw("slow", steps=150)
    counted = [worker.hear()]
    while counted[-1].step <= 70:
        counted.append(worker.hear())
    most = (time.monotonic() - began) / 0.25 + 1
    worker.tell(Watch(job=slow))
    stepped = [r for r in worker.hear_to_the_end(slow) if isinstance(r, Stepped)]
    assert {type(report) for report in counted} == {Counted} and len(counted) <= most
    first = stepped[0].step
    assert first > 1, "only the last 64 are kept"
    assert [report.step for report in stepped] == list(range(first, 151))
    assert all(report.preview for report in stepped)


def test_a_watched_job_reports_each_step_of_all_its_pictures(worker: Worker) -> None:
    heard = worker.hear_to_the_end(worker.draw("well", watched=True, images=2))
    assert [type(report).__name__ for report in heard] == ["Stepped"] * 8 + ["Drawn", "Encoded"]
    assert [(report.step, report.steps) for report in heard[:8]] == [(n, 8) for n in range(1, 9)]
    assert len(heard[-1].pictures) == 2


def test_a_cancel_stops_the_job_that_is_drawn_and_skips_one_that_waits(worker: Worker) -> None:
    drawn, waiting = worker.draw("slow", steps=1000), worker.draw("slow too", steps=1000)
    worker.tell(Cancel(job=waiting))
    worker.tell(Cancel(job="unknown"))
    assert isinstance(worker.hear(), Counted)
    worker.tell(Cancel(job=drawn))
    assert isinstance(worker.hear_to_the_end(drawn)[-1], Stopped)
    assert worker.hear_to_the_end(waiting) == [Stopped(job=waiting)]


def test_an_order_that_cannot_be_read_ends_the_process_with_a_line(worker: Worker) -> None:
    worker.socket.sendall(LENGTH.pack(3) + b"\xc1ab")
    code, printed = worker.ended()
    assert code == 1 and "order from the service cannot be read" in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("prompt", ["slow", "hang"])
def test_it_ends_with_its_service_even_in_the_middle_of_a_step(worker: Worker, prompt: str) -> None:
    worker.draw(prompt, steps=1000)
    worker.hear()
    worker.socket.sendall(LENGTH.pack(100) + b"half an order")
    worker.hang_up()
    assert worker.ended() == (0, "")


def test_it_starts_without_what_it_does_not_need() -> None:
    script = "import app.runtime.main, sys; print({'pydantic', 'openvino'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], cwd=HOME, capture_output=True, text=True)
    assert done.stdout == "set()\n"
