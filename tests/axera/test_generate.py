"""POST /generate with the bodies of the former Axera service, over the double."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import Service

# The picture that the former service's own instructions send: one pixel.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5E"
    "rkJggg=="
)


@pytest.fixture(scope="module")
def former(
    double: None, tiny_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    faults = tmp_path_factory.mktemp("faults") / "faults"
    service = Service(
        tmp_path_factory.mktemp("service"),
        {
            "MODEL": "axera-sd15-lcm",
            "TEXT_MODEL_DIR": str(tiny_set),
            "AXENGINE_DOUBLE_FAULTS": str(faults),
        },
    )
    yield service.ready()
    service.stop()


def generate(service: Service, **body: Any) -> dict[str, Any]:
    answer = service.client.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def size(answer: dict[str, Any]) -> tuple[int, int]:
    picture = Image.open(io.BytesIO(base64.b64decode(answer["base64"])))
    assert picture.format == "PNG"
    return picture.size


def test_text_to_image(former: Service) -> None:
    body = {
        "mode": "txt2img",
        "prompt": "A photograph of a red fox in the snow, highly detailed",
        "seed": 1234567890,
    }
    answer = generate(former, **body)
    assert answer["status"] == "ok" and answer["seed"] == 1234567890
    assert answer["total_time_ms"] >= answer["text_time_ms"] > 0
    assert size(answer) == (512, 512)
    assert generate(former, **body)["base64"] == answer["base64"]


def test_image_to_image(former: Service) -> None:
    answer = generate(former, mode="img2img", prompt="Convert to sketch", init_image=PIXEL)
    assert answer["status"] == "ok" and size(answer) == (512, 512)


def test_without_a_mode_or_a_seed(former: Service) -> None:
    answer = generate(former, mode="txt2img", prompt="A beautiful landscape")
    assert isinstance(answer["seed"], int)


def test_what_the_hardware_cannot_do_is_warned_of(former: Service) -> None:
    """The former service ignored all this in silence; a picture is made all the same."""
    answer = generate(
        former,
        mode="txt2img",
        prompt="a fox",
        width=1024,
        height=768,
        steps=30,
        cfg_scale=7.5,
        negative_prompt="blurry",
        sampler_name="Euler a",
        n_iter=2,
        batch_size=4,
    )
    assert answer["status"] == "ok" and size(answer) == (512, 512)
    warnings = " ".join(answer["warnings"])
    for word in ("512x512", "steps", "guidance", "negative_prompt", "n_iter", "batch_size"):
        assert word in warnings, answer["warnings"]


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_a_picture_of_another_shape_is_fitted(former: Service, mode: int) -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((300, 100)).save(buffer, "JPEG")
    answer = generate(
        former,
        mode="img2img",
        prompt="a fox",
        init_image=base64.b64encode(buffer.getvalue()).decode(),
        denoising_strength=0.3,
        resize_mode=mode,
        seed=1,
    )
    assert size(answer) == (512, 512)


@pytest.mark.parametrize("body", [{"mode": "txt2img"}, {"mode": "img2img", "prompt": "a fox"}])
def test_what_is_missing_is_reported(former: Service, body: dict[str, Any]) -> None:
    answer = former.client.post("/generate", json=body)
    assert 400 <= answer.status_code < 500
    assert answer.json()["status"] == "error" and answer.json()["error"]


def test_a_failing_run_is_an_error_and_the_next_one_works(former: Service) -> None:
    faults = Path(former.settings["AXENGINE_DOUBLE_FAULTS"])
    faults.write_text("unet nan")
    answer = former.client.post("/generate", json={"mode": "txt2img", "prompt": "a fox"})
    assert answer.status_code >= 500 and answer.json()["status"] == "error"
    assert "no numbers (NaN)" in answer.json()["error"]
    faults.unlink()
    assert generate(former, mode="txt2img", prompt="a fox")["status"] == "ok"
