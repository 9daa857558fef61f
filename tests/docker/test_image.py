"""What is in the image, and what is not."""

import json

import pytest

from tests.docker.engine import HOME, docker

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

LARGEST = 650_000_000  # bytes
LEFTOVERS = """
/ -xdev -type f -size +0 ( -path */.cache/* -o -path /var/lib/apt/lists/* -o -path /var/cache/apt/*
-o -path /tmp/* -o -name *.whl -o -name *.deb )
"""
FAMILIES = sorted(path.parent.name for path in HOME.glob("*/model.toml"))


def inside(image: str, *command: str) -> str:
    return docker(
        "run", "--rm", "--network=none", f"--entrypoint={command[0]}", image, *command[1:]
    )


def test_it_is_small(image):
    assert int(docker("inspect", "--format", "{{.Size}}", image)) <= LARGEST


def test_it_says_how_it_is_run(image):
    config = json.loads(docker("inspect", "--format", "{{json .Config}}", image))
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"][0] == "tini"
    assert set(config["Volumes"]) == {"/usr/src/app/data", "/tmp"}
    assert list(config["ExposedPorts"]) == ["8100/tcp"]
    assert "/health" in config["Healthcheck"]["Test"][-1]


def test_there_is_no_torch_no_pip_and_no_compiler_in_it(image):
    code = (
        "import importlib.util, shutil\n"
        "names = ['torch', 'diffusers', 'transformers', 'optimum', 'pip', 'pytest']\n"
        "print([name for name in names if importlib.util.find_spec(name)])\n"
        "print([name for name in ['gcc', 'g++', 'make', 'git', 'curl'] if shutil.which(name)])"
    )
    assert inside(image, "python", "-c", code) == "[]\n[]"


def test_nothing_is_left_of_the_installations(image):
    found = docker(
        "run",
        "--rm",
        "--user=0",
        "--entrypoint=find",
        image,
        *LEFTOVERS.split(),
    )
    assert found == ""


def test_every_family_is_in_it_and_nothing_that_is_not_the_service(image):
    found = inside(image, "ls", "-A", "/usr/src/app").split()
    assert sorted(found) == sorted(["LICENSE", "app", "data", "requirements", *FAMILIES])
    models = inside(image, "python", "-m", "app", "models")
    assert "demo" in models
    weights = inside(image, "find", "demo", "-name", "*.bin")
    assert "demo/weights/unet/openvino_model.bin" in weights
    assert inside(image, "find", "/usr/src/app", "-name", "training") == ""


def test_everything_python_is_compiled(image):
    """Nobody may write beside it later, so what is not compiled now is so at every start."""
    code = (
        "import importlib.util, pathlib, sys\n"
        "for path in pathlib.Path('/usr/src/app').rglob('*.py'):\n"
        "    if not pathlib.Path(importlib.util.cache_from_source(path)).exists(): print(path)"
    )
    assert inside(image, "python", "-c", code) == ""


def test_no_layer_knows_a_secret(image):
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    environment = docker("inspect", "--format", "{{json .Config.Env}}", image)
    for name in (
        "HF_TOKEN",
        "API_KEY",
        "PIP_INDEX_URL=",
        "PIP_EXTRA_INDEX_URL=",
        "PIP_FIND_LINKS=",
    ):
        assert name not in history
        assert name not in environment


def test_the_command_line_is_the_entrypoint(image):
    assert "MODEL" not in docker("run", "--rm", "--network=none", image, "--help").split()
    assert "demo" in docker("run", "--rm", "--network=none", image, "models")
