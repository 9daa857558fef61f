"""Whatever is sent to a dialect, the answer is in its words and nothing breaks."""

import json

import pytest

from tests.pictures import encoded, gradient

PICTURE = encoded(gradient(64, 64))
# A body that works, at the smallest cost, for each route.
ROUTES = {
    "/generate": {"prompt": "a", "steps": 1, "width": 64, "height": 64, "init_image": PICTURE},
    "/image/generate": {"prompt": "hang"},
    "/inference": {"prompt": "a", "steps": 1, "width": 64, "height": 64, "uid": "u", "scale": 2},
    "/v1/images/generations": {"prompt": "a", "num_inference_steps": 1, "size": "64x64", "n": 1},
    "/sdapi/v1/txt2img": {"prompt": "a", "steps": 1, "width": 64, "height": 64, "seed": 1,
                          "override_settings": {}, "sampler_name": "Euler", "cfg_scale": 2},
    "/sdapi/v1/img2img": {"prompt": "a", "steps": 1, "width": 64, "height": 64, "mask": PICTURE,
                          "init_images": [PICTURE], "inpaint_full_res_padding": 1,
                          "mask_blur": 1, "resize_mode": 1, "batch_size": 1},
    "/sdapi/v1/options": {"sd_model_checkpoint": "brittle"},
    "/sdapi/v1/png-info": {"image": PICTURE},
    "/sdapi/v1/extra-single-image": {"image": PICTURE, "upscaling_resize": 1,
                                     "upscaling_resize_w": 64},
    "/internal/progress": {"id_task": "x", "live_preview": True},
    "/hf/brittle": {"inputs": "a", "parameters": {"num_inference_steps": 1}},
}  # fmt: skip
VALUES = [
    None, True, -1, 0, 10**30, 10**399, -1.5, 1e300, float("nan"), float("-inf"), "", "a\0b",
    "\ud800", "x" * 20_000, "data:image/png;base64,", "data:,", "AAAA", [], [[]], ["\ud800"], {},
    {"a": {}},
]  # fmt: skip
WHOLE = ["", "[]", "null", "5", '"a"', "{", '{"prompt": "a"', "[" * 5000, '{"\ud800": 1}', "\0"]


def post(service, path: str, text: str):
    headers = {"Content-Type": "application/json"}
    return service.client.post(path, content=text.encode(errors="surrogatepass"), headers=headers)


@pytest.mark.parametrize("path", ROUTES)
def test_bad_values_never_break_anything(brittle, path):
    brittle.ready()
    for key in (*ROUTES[path], "unknown"):
        for value in VALUES:
            if key == "steps" and value in (10**30, 10**399, 1e300, True):
                continue  # allowed or moved inside: a hundred thousand steps take a while
            if path == "/image/generate":
                brittle.client.delete(f"/jobs/{newest(brittle)}")
            answer = post(brittle, path, json.dumps({**ROUTES[path], key: value}))
            assert answer.status_code in (200, 404, 413, 422, 429), (key, value, answer.text)
            if answer.headers["content-type"] == "application/json":
                answer.json()
    assert "Traceback" not in brittle.log()


def test_a_warning_that_repeats_a_line_break_stays_one_header(brittle):
    body = {"prompt": "a", "steps": 1, "two\r\nlines": 1, "bell\x07": 1}
    answer = brittle.client.post("/generate", json=body, headers={"Accept": "image/png"})
    assert answer.status_code == 200
    assert "two??lines" in answer.headers["x-warnings"]


def newest(service) -> str:
    return service.client.get("/jobs", params={"limit": 1}).json()["jobs"][0]["id"]


@pytest.mark.parametrize("path", ROUTES)
def test_bodies_that_are_none(brittle, path):
    for text in WHOLE:
        answer = post(brittle, path, text)
        assert answer.status_code in (200, 422), (text[:20], answer.text)
        if answer.status_code == 200:
            assert path.startswith(("/sdapi", "/internal"))
        else:
            assert answer.json()


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v3/images/variations"])
def test_forms_that_are_none(brittle, path):
    client = brittle.client
    picture = ("a.png", b"\x89PNG nonsense")
    for options in (
        {},
        {"json": {"prompt": "a"}},
        {"data": {"prompt": "a"}},
        {"data": {"image": "a"}},
        {"data": {"prompt": "a", "n": "x"}, "files": {"image": picture}},
        {"data": {"prompt": "a"}, "files": {"image": ("", b"")}},
        {"data": {"prompt": "a"}, "files": {"image": picture, "other": picture}},
        {"content": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"nonsense", "headers": {"Content-Type": "multipart/form-data"}},
    ):
        answer = client.post(path, **options)
        assert answer.status_code == 422, (options, answer.text)
        assert set(answer.json()["error"]) == {"message", "type", "code", "param"}
