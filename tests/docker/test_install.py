"""MODEL and HF_TOKEN at run time: a model comes from the hub while its container is up already."""

import json

import pytest

from tests.docker.engine import DATA, HOME
from tests.hub.server import TOKEN, Hub

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

FAMILY = """
title = "Tiny"
licence = "Apache-2.0"
devices = ["CPU"]
samplers = ["euler"]
defaults = { width = 128, height = 128, steps = 4, guidance = 4.0 }
limits = { steps = [1, 50], side = [64, 512], multiple_of = 16, guidance = [0.0, 20.0] }

[models.tiny]
title = "Tiny, ready-made"
weights = { repository = "tests/tiny", openvino = { FORMATS } }

[models.tiny-to-convert]
title = "Tiny, to be converted"
weights = { repository = "tests/to-convert" }
"""
PIPELINE = """
from app.runtime import genai


def load(weights, device, options):
    return genai.load(weights, device, options)
"""
READY = "tests/tiny-ov"


@pytest.fixture
def hub(tmp_path):
    """A hub that has the bundled model behind a licence, and a checkpoint to be converted."""
    checkpoint = tmp_path / "checkpoint"
    for part in ("unet", "vae", "text_encoder"):
        (checkpoint / part).mkdir(parents=True)
        (checkpoint / part / "config.json").write_text("{}")
        (checkpoint / part / "diffusion_pytorch_model.safetensors").write_bytes(bytes(100))
    index = {"_class_name": "StableDiffusionPipeline"}
    index |= {part: ["diffusers", "Part"] for part in ("unet", "vae", "text_encoder")}
    (checkpoint / "model_index.json").write_text(json.dumps(index))
    with Hub() as hub:
        hub.add(READY, HOME / "demo" / "weights", gated=True)
        hub.add("tests/to-convert", checkpoint)
        yield hub


@pytest.fixture
def options(hub, tmp_path, volume):
    """Of `docker run`: the hub, the family, the token in a file, the volume."""
    family = tmp_path / "families" / "tiny"
    family.mkdir(parents=True)
    formats = ", ".join(f'{name} = "{READY}"' for name in ("fp16", "int8", "int4"))
    (family / "model.toml").write_text(FAMILY.replace("FORMATS", formats))
    (family / "pipeline.py").write_text(PIPELINE)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o644)
    return [
        "--network=host",
        f"--env=HF_ENDPOINT={hub.url}",
        "--env=MODELS_PATH=/families",
        f"--volume={tmp_path}/families:/families:ro",
        "--env=HF_TOKEN_FILE=/run/secrets/hf_token",
        f"--volume={token}:/run/secrets/hf_token:ro",
        f"--volume={volume}:{DATA}",
        "--env=LOG_LEVEL=DEBUG",
        "--read-only",
    ]


def test_it_answers_while_the_model_comes_and_the_next_container_fetches_nothing(
    hub, options, start
):
    hub.speed = 200_000
    first = start(*options, "--env=MODEL=tiny").healthy()
    first.wait_for(lambda: downloading(first), "it says how far it is")
    assert first.answers("/health") == 200
    assert hub.sent < 9_000_000, "it was not asked meanwhile"
    hub.speed = None
    picture = first.ready().draws()
    assert TOKEN not in first.logs()
    assert first.run("grep", "-rl", TOKEN, DATA, "/tmp", check=False) == ""
    compiled = first.run("ls", "--full-time", f"{DATA}/cache")
    assert first.stop(60) == 0
    sent = hub.sent

    second = start(*options, "--env=MODEL=tiny").ready()
    assert hub.sent == sent
    assert second.run("ls", "--full-time", f"{DATA}/cache") == compiled
    assert second.draws() == picture


def downloading(container) -> bool:
    answer = container.client.get("/health/ready")
    told = answer.json()
    return (
        answer.status_code == 503
        and told["status"] == "installing"
        and told["progress"]["state"] == "downloading"
    )


def test_what_needs_conversion_says_so_before_it_is_downloaded(hub, options, start):
    container = start(*options, "--env=MODEL=tiny-to-convert").healthy()
    container.wait_for(lambda: container.readiness() == "failed", "it says so")
    told = container.client.get("/health/ready").json()["detail"]
    assert "docker build --target convert" in told
    assert not hub.asked("safetensors")
    assert container.answers("/health") == 200
