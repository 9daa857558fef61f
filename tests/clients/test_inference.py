"""POST /inference with the body of seed 004."""

import base64
import io

import pytest
from PIL import Image

from tests.pictures import encoded, gradient

BODY = {
    "uid": "<your-uid>",
    "prompt": "A futuristic cityscape at sunset",
    "steps": 50,
    "seed": 42,
    "strength": 0.9,
    "do_scale": True,
    "scale": 8.0,
}


def recipe(service):
    return service.client.get("/jobs", params={"limit": 1}).json()["jobs"][0]["recipe"]


def infer(service, **changes):
    body = {key: value for key, value in (BODY | changes).items() if value is not None}
    answer = service.client.post("/inference", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_documents_body(service, default_size):
    answer = infer(service)
    assert answer["message"] == "success"
    assert answer["uid"] == "<your-uid>"
    made = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    assert (made.format, made.size) == ("PNG", default_size)
    asked = recipe(service)
    assert (asked["steps"], asked["seed"], asked["guidance"]) == (50, 42, 8.0)
    assert asked["strength"] is None  # there is no image that it could keep


def test_do_scale_false_is_no_guidance(service):
    infer(service, do_scale=False, steps=5)
    assert recipe(service)["guidance"] == 1.0


def test_a_missing_uid_is_made(service):
    first, second = infer(service, uid=None, steps=2), infer(service, uid=None, steps=2)
    assert first["uid"] and second["uid"] and first["uid"] != second["uid"]
    assert first["image"] == second["image"]


@pytest.mark.parametrize("key", ["image", "init_image", "input_image"])
def test_strength_with_an_init_image(service, default_size, key):
    infer(service, steps=10, **{key: encoded(gradient(*default_size))})
    assert recipe(service)["strength"] == 0.9


def test_errors_have_the_dialects_shape(service):
    for change in ({"steps": 0}, {"foo": 1}, {"scale": "8"}, {"image": "!"}, {"strength": 7}):
        change = change | ({"image": encoded(gradient())} if "strength" in change else {})
        answer = service.client.post("/inference", json=BODY | change)
        assert answer.status_code == 422, change
        assert answer.json()["message"] == "error"
        assert isinstance(answer.json()["error"], str)
    answer = service.client.post("/inference", json=BODY | {"model": "nope"})
    assert answer.status_code == 404
