"""POST /generate with the bodies of both documents that describe it."""

import base64
import io
import json

import httpx
import pytest
from PIL import Image

from tests.pictures import encoded

# The bodies as the documents have them.
TXT2IMG = {
    "mode": "txt2img",
    "prompt": "A photograph of a red fox in the snow, highly detailed",
    "seed": 1234567890,
}
IMG2IMG = {
    "mode": "img2img",
    "prompt": "Convert to sketch",
    "init_image": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==",  # noqa: E501
}
ANIME = {
    "prompt": "A serene mountain landscape at sunset",
    "model_type": "anime",
    "height": 128,
    "width": 64,
}


def picture(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["base64"])))


def post(service, text: str) -> httpx.Response:
    return service.client.post(
        "/generate", content=text, headers={"Content-Type": "application/json"}
    )


def last_job(service):
    return service.client.get("/jobs", params={"limit": 1}).json()["jobs"][0]


def test_text_to_image(service, default_size):
    answer = service.client.post("/generate", json=TXT2IMG)
    made = picture(answer)
    assert (made.format, made.size) == ("PNG", default_size)
    body = answer.json()
    assert body["status"] == "ok"
    assert body["seed"] == 1234567890
    assert 0 <= body["text_time_ms"] <= body["total_time_ms"]
    assert body["warnings"] == []


def test_the_same_seed_gives_the_same_picture(service):
    first, second = (service.client.post("/generate", json=TXT2IMG).json() for _ in range(2))
    assert first["base64"] == second["base64"]


def test_image_to_image_with_the_documents_own_one_pixel(service):
    made = picture(service.client.post("/generate", json=IMG2IMG))
    assert made.format == "PNG"
    assert last_job(service)["recipe"]["init_image"] is not None


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"sampler": "DPM++ 2M Karras"}, "sampler"),
        ({"cfg_scale": 1000}, "guidance"),
        ({"n_iter": 4, "batch_size": 2}, "n_iter"),
        ({"width": 511}, "width"),
        ({"height": 1_000_000}, "height"),
        ({"steps": 10_000}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"seed": -7}, "seed"),
        ({"strength": 2}, "strength"),
        ({"resize_mode": 9}, "resize_mode"),
        ({"mode": "inpaint"}, "mode"),
        ({"init_image": "not a picture at all"}, "init_image"),
        ({"\ud800": 1}, "Not honoured"),
    ],
)
def test_a_picture_whatever_the_parameters_are(service, facts, extra, told):
    few = {"steps": facts["limits"]["steps"][0]}
    body = {"mode": "txt2img", "prompt": "a red circle", **few, **extra}
    if extra.get("steps") == 10_000:
        body |= {"width": facts["limits"]["side"][0], "height": facts["limits"]["side"][0]}
    answer = post(service, json.dumps(body))
    made = picture(answer)
    low, high = facts["limits"]["side"]
    assert all(low <= side <= high for side in made.size)
    assert any(told in warning for warning in answer.json()["warnings"]), answer.json()["warnings"]


def test_nan_is_left_out(service):
    body = '{"prompt": "a red circle", "cfg_scale": NaN}'
    answer = post(service, body)
    picture(answer)
    assert "cfg_scale" in answer.json()["warnings"][0]


def test_a_seed_of_minus_one_is_drawn(service):
    seeds = {
        service.client.post("/generate", json={"prompt": "a circle", "seed": -1}).json()["seed"]
        for _ in range(2)
    }
    assert len(seeds) == 2


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_resize_mode_says_how_the_picture_is_fitted(service, default_size, mode):
    """A picture twice as wide as high, red on its left and right quarters, blue between them."""
    init = Image.new("RGB", (256, 128), "red")
    init.paste("blue", (64, 0, 192, 128))
    width, height = default_size
    body = {
        "prompt": "a blue square",
        "mode": "img2img",
        "init_image": encoded(init),
        "strength": 0.5,
        "resize_mode": mode,
        "width": width,
        "height": height,
    }
    answer = service.client.post("/generate", json=body)
    assert picture(answer).size == default_size
    job = last_job(service)
    assert job["recipe"]["strength"] == 0.5
    data = service.client.get(job["recipe"]["init_image"]).content
    fitted = Image.open(io.BytesIO(data))
    corner, side = fitted.getpixel((2, 2)), fitted.getpixel((2, height // 2))
    red, blue, black = (255, 0, 0), (0, 0, 255), (0, 0, 0)
    assert (corner, side) == {0: (red, red), 1: (blue, blue), 2: (black, red)}[mode]


def test_no_prompt_and_no_picture_are_errors_in_the_documents_shape(service):
    for body in ({}, {"prompt": ""}, {"prompt": "a", "mode": "img2img"}, {"prompt": 5}):
        answer = service.client.post("/generate", json=body)
        assert answer.status_code == 422
        assert answer.json()["status"] == "error"
        assert isinstance(answer.json()["error"], str)


def test_accept_asks_for_bytes(service, default_size):
    for kind in ("image/png", "image/jpeg", "image/webp"):
        answer = service.client.post(
            "/generate", json=TXT2IMG | {"foo": 1}, headers={"Accept": kind}
        )
        assert answer.headers["content-type"] == kind
        assert answer.headers["x-seed"] == "1234567890"
        assert "foo" in answer.headers["x-warnings"]
        made = Image.open(io.BytesIO(answer.content))
        assert (f"image/{made.format.lower()}", made.size) == (kind, default_size)


def test_model_type_selects_the_model_and_the_answer_is_a_jpeg(two_models):
    """The document's call: a bare key, a model that is not loaded yet."""
    answer = httpx.post(
        f"{two_models.url}/generate",
        headers={"Authorization": "wiv83hveivd83vk83", "Content-Type": "application/json"},
        json=ANIME,
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/jpeg"
    made = Image.open(io.BytesIO(answer.content))
    assert (made.format, made.size) == ("JPEG", (64, 128))
    assert last_job(two_models)["model"] == "other"


@pytest.mark.parametrize("model_type", ["sdxl-anime-legacy", "sdxl-anime", "sdxl-turbo"])
def test_the_documents_own_model_types_are_known(service, model_type):
    """Known, and here not installed: the answer says what installs it."""
    answer = service.client.post("/generate", json=ANIME | {"model_type": model_type})
    assert (answer.status_code, answer.json()["status"]) == (409, "error")
    assert "install" in answer.json()["error"]


def test_model_type_is_strict(two_models):
    for more, status in (({"width": 511}, 422), ({"foo": 1}, 422), ({"model_type": "nope"}, 404)):
        answer = two_models.client.post("/generate", json=ANIME | more)
        assert answer.status_code == status
        assert answer.json()["status"] == "error"
    answer = httpx.post(f"{two_models.url}/generate", json=ANIME)
    assert (answer.status_code, answer.json()["status"]) == (401, "error")
