"""A running service for tests: the real command, its own folder, a port of its own."""

import contextlib
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

HOME = Path(__file__).resolve().parent.parent
DOUBLES = Path(__file__).resolve().parent / "doubles"
READY_TIMEOUT = 120


class Event(NamedTuple):
    """A server-sent event of a job."""

    id: int
    kind: str
    data: dict[str, Any]


def pytest_configure() -> None:
    """Started in the background of a script, this process ignores Ctrl-C, and so would the programs
    that tests send it to."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Service:
    """`python -m app serve` as a child process; `client` talks to it."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self.settings = settings
        self.log_path = folder / "service.log"
        self.start()

    def start(self) -> None:
        """Starts it, again after stop() or kill(): same folder, same settings, another port, which
        the system picks and the service tells."""
        if hasattr(self, "client"):
            self.client.close()
        environment = {
            **clean_environment(),
            "DATA_DIR": str(self.folder / "data"),
            "PORT": "0",
            **self.settings,
        }
        with self.log_path.open("ab") as log:
            log_start = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"],
                cwd=HOME,
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.wait_for(lambda: self._address(log_start) is not None)
        self.url = self._address(log_start)
        self.port = int(self.url.rpartition(":")[2])
        key = self.settings.get("API_KEYS", "").split(",")[0]
        headers = {"X-API-Key": key} if key else {}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=120)
        self.wait_for(lambda: self.answers("/health") == 200)

    def _address(self, log_start: int) -> str | None:
        """Where the service listens, once its log behind that byte says so."""
        ended = self.process.poll()
        said = self.log_path.read_bytes()[log_start:].decode(errors="replace")
        if address := re.search(r"Easel listens on (http://[\d.]+:\d+) ", said):
            return address[1]
        if ended is not None:
            pytest.fail(f"the service ended with {ended}:\n{self.log()}")
        return None

    def answers(self, path: str) -> int | None:
        try:
            return self.client.get(path).status_code
        except httpx.TransportError:
            if self.process.poll() is not None:
                pytest.fail(f"the service ended with {self.process.returncode}:\n{self.log()}")
            return None

    def wait_for(self, condition: Callable[[], bool], seconds: float = READY_TIMEOUT) -> None:
        """Polls until the condition holds; fails with the service's log when it does not come
        true."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"nothing came of it in {seconds} s; the log:\n{self.log()}")
            time.sleep(0.02)

    def ready(self) -> "Service":
        self.wait_for(lambda: self.answers("/health/ready") == 200)
        return self

    def generate(
        self, prompt: str = "a red circle on a blue background", **keys: Any
    ) -> dict[str, Any]:
        """A job from its acceptance to its end."""
        answer = self.client.post(
            "/jobs", json={"prompt": prompt, **keys}, headers={"Prefer": "wait=120"}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def submit(self, prompt: str = "a red circle on a blue background", **keys: Any) -> str:
        """A job handed in; its id."""
        answer = self.client.post("/jobs", json={"prompt": prompt, **keys})
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def job(self, job_id: str) -> dict[str, Any]:
        return self.client.get(f"/jobs/{job_id}").json()

    def ended(self, job_id: str, seconds: float = READY_TIMEOUT) -> dict[str, Any]:
        """The job, once it has ended."""
        self.wait_for(lambda: self.job(job_id)["finished"] is not None, seconds)
        return self.job(job_id)

    def picture(self, job: dict[str, Any], n: int = 0) -> bytes:
        """The file of a job's n-th picture."""
        answer = self.client.get(job["images"][n]["url"])
        assert answer.status_code == 200, answer.text
        return answer.content

    def running(self, job_id: str, step: int = 1) -> dict[str, Any]:
        """The job, once it runs and has done so many steps."""
        self.wait_for(lambda: self.job(job_id)["progress"]["step"] >= step)
        return self.job(job_id)

    def events(self, job_id: str, last: int | None = None) -> Iterator["Event"]:
        """The job's event stream, until it ends."""
        headers = {} if last is None else {"Last-Event-ID": str(last)}
        with self.client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            fields: dict[str, str] = {}
            for line in stream.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "data" in fields:
                    yield Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
                    fields = {}

    def follow(self, job_id: str) -> Iterator["Event"]:
        """The job's events, followed from now on though they may be read later."""
        events = self.events(job_id)
        return itertools.chain([next(events)], events)

    def workers(self) -> list[int]:
        """The process ids of the service's workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [
            int(pid)
            for pid in children.split()
            if b"app.runtime.main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        self.process.kill()
        self.process.wait()
        self.client.close()

    def stop(self, seconds: float = 60) -> int:
        """SIGTERM; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(seconds)
        self.client.close()
        return code


def easel(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """`python -m app` with its arguments and settings, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=HOME,
        env={**clean_environment(), **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def serve_and_fail(**settings: str) -> str:
    """The one line that a start which cannot succeed ends with."""
    ended = easel("serve", **{"PORT": "0", **settings})
    assert ended.returncode == 1, ended
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("easel: ")
    return lines[0]


def free_port() -> int:
    """A port for a container, which has to be told one. From below the range (32768 and up) out of
    which the system serves everybody who asks for port 0, so that no service of another test gets
    it before the container does."""
    for port in random.sample(range(20_000, 30_000), 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    pytest.fail("a hundred ports were tried, and none of them is free")


def clean_environment() -> dict[str, str]:
    """This process's environment without anything that Easel would read as a setting."""
    from pydantic import AliasChoices

    from app.settings import Settings

    names = {name.upper() for name in Settings.model_fields}
    for field in Settings.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            names |= {str(alias) for alias in field.validation_alias.choices}
    return {key: value for key, value in os.environ.items() if key not in names}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts a service with its own settings; ends it with the test."""
    services: list[Service] = []

    def start(**settings: str) -> Service:
        folder = tmp_path / f"service-{len(services)}"
        folder.mkdir(exist_ok=True)  # a test may have put a small disk there
        services.append(Service(folder, settings))
        return services[-1]

    yield start
    for service in services:
        if service.process.poll() is None:
            service.stop()
        service.client.close()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service with the bundled model, shared by the tests that leave no trace in it."""
    shared = Service(tmp_path_factory.mktemp("shared"), {}).ready()
    yield shared
    shared.stop()


@pytest.fixture(scope="session")
def doubles() -> str:
    """MODELS_PATH of the families that break on request."""
    return str(DOUBLES)


@pytest.fixture(scope="module")
def brittle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose model does what a prompt says: tests/doubles/brittle. One per module."""
    settings = {
        "MODEL": "brittle",
        "MODELS_PATH": str(DOUBLES),
        "CANCEL_TIMEOUT": "0.5",
        "GRACE": "0",
    }
    shared = Service(tmp_path_factory.mktemp("brittle"), settings).ready()
    yield shared
    shared.stop()
