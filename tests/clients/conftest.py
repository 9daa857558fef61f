"""What the tests of the dialects share: the bundled model's facts, and a second model."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DOUBLES, HOME, Service

ENDLESS = {"prompt": "slow and endless", "steps": 100_000}
"""A job of the brittle model that runs until somebody ends it."""


@pytest.fixture(scope="session")
def facts(service: Service) -> dict[str, Any]:
    """What GET /models/demo says: defaults, limits, samplers."""
    return service.client.get("/models/demo").json()


@pytest.fixture(scope="session")
def default_size(facts: dict[str, Any]) -> tuple[int, int]:
    return facts["defaults"]["width"], facts["defaults"]["height"]


@pytest.fixture(scope="session")
def small(facts: dict[str, Any]) -> int:
    """A side that the model can make and that is not its default."""
    low, high = facts["limits"]["side"]
    step = facts["limits"]["multiple_of"]
    side = facts["defaults"]["width"] - step
    return side if low <= side else min(side + 2 * step, high)


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with names of other services for its models, and a key in every place for one."""
    families = tmp_path_factory.mktemp("families")
    shutil.copytree(DOUBLES / "brittle", families / "brittle")
    settings = {
        "MODELS_PATH": str(families),
        "MODEL_ALIASES": "dall-e-3=demo, gpt-image-1=demo,anime=other",
        "GENERATION_AUTH_KEY": "wiv83hveivd83vk83",
        "API_KEYS": "first-key,second-key",
    }
    folder: Path = tmp_path_factory.mktemp("two-models")
    shared = Service(folder, settings).ready()
    yield shared
    shared.stop()


__all__ = ["ENDLESS", "HOME"]
