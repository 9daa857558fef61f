"""The Docker engine as the tests use it: commands, images and containers that are removed again."""

import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import free_port

HOME = Path(__file__).resolve().parents[2]
LABEL = "easel-test"
DATA = "/usr/src/app/data"
PATIENCE = 240  # seconds; generous, because the machine may be busy with something else


def why_not() -> str | None:
    """Why there is no engine to test with, or None."""
    if shutil.which("docker") is None:
        return "there is no docker command on this machine"
    answer = subprocess.run(
        ["docker", "version", "--format", "{{.Server.APIVersion}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        return f"no Docker engine answers: {answer.stderr.strip().splitlines()[-1]}"
    # A client newer than its engine would ask for a builder that the engine does not have.
    os.environ.setdefault("DOCKER_API_VERSION", answer.stdout.strip())
    return None


def docker(*arguments: str, check: bool = True, **options: Any) -> str:
    """Runs a docker command; what it prints, both streams together."""
    answer = subprocess.run(
        ["docker", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,
    )
    if check and answer.returncode != 0:
        pytest.fail(f"docker {' '.join(arguments)}: {answer.returncode}\n{answer.stdout[-4000:]}")
    return answer.stdout.strip()


def build(tag: str, target: str) -> str:
    """Builds a target of the Dockerfile from this checkout; its tag."""
    with _package_sources() as sources:
        docker(
            "build",
            "--network=host",
            "--quiet",
            f"--target={target}",
            f"--tag={tag}",
            *(f"--build-arg={source}" for source in sources),
            *(["--build-arg=CONVERT=1"] if target == "convert" else []),
            str(HOME),
        )
    return tag


@contextlib.contextmanager
def _package_sources() -> Iterator[list[str]]:
    """What pip is told by this machine's environment, as build arguments. A local folder of
    packages is shown to the build over HTTP, always on one port if it is free: other arguments are
    another build."""
    sources = [
        f"{name}={os.environ[name]}"
        for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
        if os.environ.get(name, "").startswith("http")
    ]
    folder = os.environ.get("PIP_FIND_LINKS", "")
    if not Path(folder).is_dir() or not folder:
        yield sources
        return
    handler = functools.partial(_Quiet, directory=folder)
    with _listen(handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield [*sources, f"PIP_FIND_LINKS=http://127.0.0.1:{server.server_port}/"]
        finally:
            server.shutdown()
            thread.join()


def _listen(handler: Callable[..., Any]) -> http.server.ThreadingHTTPServer:
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", 18999), handler)
    except OSError:
        return http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class Container:
    """`docker run -d` of an image with its port published; `client` talks to it.

    With `--network=host` among the options it shares this machine's network, and its servers.
    """

    def __init__(self, image: str, *options: str, command: tuple[str, ...] = ()) -> None:
        self.name = f"{LABEL}-{uuid.uuid4().hex[:12]}"
        self._own_port = free_port() if "--network=host" in options else None
        publish = ["--publish=127.0.0.1::8100"]
        if self._own_port is not None:
            publish = ["--env=HOST=127.0.0.1", f"--env=PORT={self._own_port}"]
        docker(
            "run",
            "--detach",
            f"--label={LABEL}",
            f"--name={self.name}",
            *publish,
            *options,
            image,
            *command,
        )
        self.client = httpx.Client(timeout=120)
        self._find_port()

    def _find_port(self) -> None:
        port = self._own_port
        if port is None:  # 9 is nobody's: what has ended already has no port
            published = docker("port", self.name, "8100", check=False)
            port = int(published.rpartition(":")[2]) if published.startswith("127.") else 9
        self.client.base_url = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        """The same container again, after stop()."""
        docker("start", self.name)
        self._find_port()

    def stop(self, seconds: int = 10) -> int:
        """`docker stop`; its exit code, 137 when it had to be killed."""
        docker("stop", f"--time={seconds}", self.name)
        return self.exit_code()

    def exit_code(self) -> int:
        return int(self.look("{{.State.ExitCode}}"))

    def ended(self) -> int:
        """Waits for its end; its exit code."""
        return int(docker("wait", self.name, timeout=PATIENCE))

    def look(self, template: str) -> str:
        return docker("inspect", "--format", template, self.name)

    def logs(self) -> str:
        return docker("logs", self.name)

    def run(self, *command: str, check: bool = True) -> str:
        """A command inside it."""
        return docker("exec", self.name, *command, check=check)

    def python(self, code: str) -> str:
        return self.run("python", "-c", code)

    def remove(self) -> None:
        self.client.close()
        docker("rm", "--force", "--volumes", self.name, check=False)

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline or self.look("{{.State.Running}}") != "true":
                told = [line for line in self.logs().splitlines() if '"request"' not in line]
                pytest.fail(f"{what}: it did not come to that; the log:\n{chr(10).join(told)}")
            time.sleep(0.05)

    def answers(self, path: str) -> int | None:
        try:
            return self.client.get(path).status_code
        except httpx.TransportError:
            return None

    def healthy(self) -> "Container":
        self.wait_for(lambda: self.answers("/health") == 200, "/health answers")
        return self

    def ready(self) -> "Container":
        """Waits until a job would be worked on; a load that failed does not come to that."""
        self.healthy()
        self.wait_for(lambda: self.readiness() in ("ready", "failed"), "it is ready")
        assert self.readiness() == "ready", self.client.get("/health/ready").text
        return self

    def readiness(self) -> str:
        return str(self.client.get("/health/ready").json()["status"])

    def submit(self, **keys: Any) -> str:
        body = {"prompt": "a red circle on a blue background", "seed": 3, **keys}
        answer = self.client.post("/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def job(self, job: str) -> dict[str, Any]:
        return self.client.get(f"/jobs/{job}").json()

    def succeeded(self, job: str) -> dict[str, Any]:
        """The job, once it has ended; fails when it ended otherwise."""
        self.wait_for(lambda: self.job(job)["finished"] is not None, "the job ends")
        found = self.job(job)
        assert found["state"] == "succeeded", found
        return found

    def picture(self, job: dict[str, Any]) -> bytes:
        answer = self.client.get(job["images"][0]["url"])
        assert answer.status_code == 200, answer.text
        return answer.content

    def draws(self, **keys: Any) -> bytes:
        """A picture through the published port."""
        return self.picture(self.succeeded(self.submit(**keys)))

    def workers(self) -> list[int]:
        """Process ids inside it."""
        code = (
            "from pathlib import Path\n"
            "for process in Path('/proc').glob('[0-9]*'):\n"
            "    if b'\\0app.runtime.main\\0' in (process / 'cmdline').read_bytes():\n"
            "        print(process.name)"
        )
        return [int(pid) for pid in self.python(code).split()]
