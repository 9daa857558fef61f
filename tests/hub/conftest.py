"""A hub with one small ready-made model, and a machine that knows it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.server import Hub
from tests.hub.test_download import BUNDLED, REPOSITORY, Machine


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        hub.add(REPOSITORY, BUNDLED)
        yield hub


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    return Machine(tmp_path, hub)
