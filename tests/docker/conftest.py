"""Images built once for all tests, and containers and volumes that go with their test."""

import subprocess
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.docker.engine import LABEL, Container, build, docker, why_not


@pytest.fixture(scope="session")
def engine() -> None:
    """Skips, with the reason, where there is no Docker engine."""
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    """The default target, built from this checkout."""
    return build("easel-test:runtime", "runtime")


@pytest.fixture(scope="session")
def convert_image(image: str) -> str:
    return build("easel-test:convert", "convert")


@pytest.fixture
def volume(engine: None) -> Iterator[str]:
    name = docker("volume", "create", f"--label={LABEL}", f"{LABEL}-{uuid.uuid4().hex[:12]}")
    yield name
    subprocess.run(["docker", "volume", "rm", "--force", name], capture_output=True, check=False)


@pytest.fixture
def start(image: str, volume: str) -> Iterator[Callable[..., Container]]:
    """Starts a container of the image with options of `docker run`; removes it with the test,
    before the volume that it may use."""
    started: list[Container] = []

    def start(*options: str, image: str = image, command: tuple[str, ...] = ()) -> Container:
        started.append(Container(image, *options, command=command))
        return started[-1]

    yield start
    for container in started:
        container.remove()
