"""The image that converts: a checkpoint goes in, and the image that serves draws with it."""

import pytest

from tests.docker.engine import DATA, HOME, docker

# Its packages take several times as long to come as everything else here.
pytestmark = [pytest.mark.docker, pytest.mark.convert, pytest.mark.timeout(1800)]

CHECKPOINT = f"{DATA}/tiny-checkpoint"


@pytest.fixture
def checkpoint(convert_image, volume):
    """The volume, with a checkpoint of the architecture of Stable Diffusion 1.5, random weights."""
    docker(
        "run",
        "--rm",
        "--network=none",
        f"--volume={volume}:{DATA}",
        f"--volume={HOME}/tests/models:/tiny:ro",
        "--entrypoint=/opt/convert/bin/python",
        convert_image,
        "/tiny/tiny.py",
        "sd15",
        CHECKPOINT,
    )
    return volume


def test_its_environment_is_what_the_service_looks_for(convert_image):
    code = (
        "from app.installation.convert import environment_is_ready; "
        "from app.settings import read_settings; "
        "print(environment_is_ready(read_settings().convert_venv))"
    )
    options = ["--rm", "--network=none", "--entrypoint=python", convert_image, "-c", code]
    assert docker("run", *options) == "True"


def test_it_brings_no_drivers_for_other_makes(convert_image):
    """torch for the CPU is a tenth of torch for everything, where a package index has it."""
    code = "from importlib.metadata import version; print(version('torch'))"
    options = ["--rm", "--network=none", "--entrypoint=/opt/convert/bin/python", convert_image]
    version = docker("run", *options, "-c", code)
    if not version.endswith("+cpu"):
        pytest.skip(f"this machine's package index has no CPU build, so it is {version}")
    assert int(docker("inspect", "--format", "{{.Size}}", convert_image)) < 2_500_000_000


def test_a_checkpoint_is_converted_in_one_image_and_served_in_the_other(
    checkpoint, convert_image, start
):
    data = f"--volume={checkpoint}:{DATA}"
    serving = start(data, command=("install", CHECKPOINT))
    assert serving.ended() == 1
    told = serving.logs().splitlines()[-1]
    assert told.startswith("easel: ")
    assert "docker build --target convert" in told
    assert "docker compose run --rm convert" in told

    sealed = ["--rm", "--network=none", "--read-only", data]
    docker("run", *sealed, convert_image, "install", CHECKPOINT)
    container = start(data, f"--env=MODEL={CHECKPOINT}").ready()
    container.draws(steps=2, width=64, height=64)
