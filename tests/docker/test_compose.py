"""docker-compose.yml, used as its head says."""

import json
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable

import httpx
import pytest

from tests.conftest import clean_environment, free_port
from tests.docker.engine import HOME, LABEL, PATIENCE, docker

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


def command() -> list[str]:
    """Compose as a plugin of docker, or as the command it was before."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if plugin.returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    pytest.skip("there is no docker compose on this machine")


class Project:
    """A compose project of its own name, port and image tag, so that it meets no other."""

    def __init__(self, **variables: str) -> None:
        self.command = command()
        self.name = f"{LABEL}-{uuid.uuid4().hex[:8]}"
        self.port = free_port()
        self.environment = {
            **clean_environment(),
            "COMPOSE_PROJECT_NAME": self.name,
            "IMAGE": LABEL,
            "PORT": str(self.port),
            **variables,
        }

    def __call__(self, *arguments: str, check: bool = True) -> str:
        answer = subprocess.run(
            [*self.command, *arguments],
            cwd=HOME,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=2 * PATIENCE,
        )
        if check and answer.returncode != 0:
            pytest.fail(f"compose {' '.join(arguments)}: {answer.stdout[-4000:]}")
        return answer.stdout

    def container(self, service: str) -> str:
        labels = {"project": self.name, "service": service}
        filters = [f"--filter=label=com.docker.compose.{key}={labels[key]}" for key in labels]
        return docker("ps", "--all", "--quiet", *filters)


@pytest.fixture
def compose(image):
    docker("tag", image, f"{LABEL}:cpu")
    projects: list[Project] = []

    def make(**variables: str) -> Project:
        projects.append(Project(**variables))
        return projects[-1]

    yield make
    for project in projects:
        project("--profile", "cpu", "down", "--volumes", "--timeout", "1", check=False)


@pytest.mark.parametrize("profile", ["cpu", "gpu", "axera", "convert"])
def test_every_profile_is_understood(profile):
    project = Project()
    described = project("--profile", profile, "config")
    assert "/usr/src/app/data" in described
    assert "service_completed_successfully" in described


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)


def test_up_is_healthy_draws_and_keeps_to_its_limits(compose, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("open-sesame\n")
    keys.chmod(0o644)
    project = compose(API_KEY_FILE=str(keys), MEMORY="3g")
    project("--profile", "cpu", "up", "--detach", "--no-build")
    installed = project.container("install")
    assert docker("inspect", "--format", "{{.State.ExitCode}}", installed) == "0"
    name = project.container("easel")
    with httpx.Client(base_url=f"http://127.0.0.1:{project.port}", timeout=120) as client:
        client.headers["X-API-Key"] = "open-sesame"
        wait(lambda: docker("inspect", "--format", "{{.State.Health.Status}}", name) == "healthy")
        wait(lambda: client.get("/health/ready").status_code == 200)
        answer = client.post(
            "/jobs", json={"prompt": "a red circle"}, headers={"Prefer": "wait=100"}
        )
        assert answer.json()["state"] == "succeeded", answer.text
        assert httpx.get(client.base_url.join("/jobs")).status_code == 401
    host = json.loads(docker("inspect", "--format", "{{json .HostConfig}}", name))
    assert host["Memory"] == 3 * 2**30
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["PortBindings"]["8100/tcp"][0]["HostIp"] == "127.0.0.1"
    assert "open-sesame" not in docker("inspect", name)
    assert "open-sesame" not in project("--profile", "cpu", "logs")
