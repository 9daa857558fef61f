"""Whatever a caller sends, the answer is a clear 4xx and the service goes on unimpressed.

One table of bad bodies, then bad pictures, then bad HTTP.
"""

import io
import json
import socket
import struct
import zlib
from base64 import b64decode, encodebytes
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from tests.pictures import base64_of, bomb, encoded, gradient, half_mask, png

PROMPT = "a red circle on a blue background"

# A body's keys beside a good prompt, the field the answer names, and words its `detail` must have:
# what is allowed, or what to do.
BAD_KEYS = [
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": " \n\t"}, "prompt", "empty"),
    ({"prompt": "a" * 10_001}, "prompt", "10000"),
    ({"prompt": "a" * 1_000_000}, "prompt", "10000"),
    ({"prompt": "a\0b"}, "prompt", "NUL"),
    ({"prompt": "\ud800"}, "prompt", "Unicode"),
    ({"prompt": None}, "prompt", "string"),
    ({"prompt": 7}, "prompt", "string"),
    ({"prompt": ["a"]}, "prompt", "string"),
    ({"negative_prompt": "a" * 10_001}, "negative_prompt", "10000"),
    ({"negative_prompt": "a\0b"}, "negative_prompt", "NUL"),
    ({"negative_prompt": 1.5}, "negative_prompt", "string"),
    ({"width": 0}, "width", "64 to 512"),
    ({"width": -1}, "width", "64 to 512"),
    ({"width": 511}, "width", "multiple of"),
    ({"width": 100_000}, "width", "64 to 512"),
    ({"width": 10**30}, "width", "64 to 512"),
    ({"width": 128.5}, "width", "integer"),
    ({"width": "128"}, "width", "integer"),
    ({"width": True}, "width", "integer"),
    ({"height": 0}, "height", "64 to 512"),
    ({"height": -16}, "height", "64 to 512"),
    ({"height": 511}, "height", "multiple of"),
    ({"height": 528}, "height", "64 to 512"),
    ({"height": [128]}, "height", "integer"),
    ({"steps": 0}, "steps", "1 to 150"),
    ({"steps": -1}, "steps", "1 to 150"),
    ({"steps": 10_000}, "steps", "1 to 150"),
    ({"steps": "many"}, "steps", "integer"),
    ({"steps": 12.0}, "steps", "integer"),
    ({"guidance": -0.1}, "guidance", "0.0 to 20.0"),
    ({"guidance": 20.5}, "guidance", "0.0 to 20.0"),
    ({"guidance": float("nan")}, "guidance", "finite"),
    ({"guidance": float("inf")}, "guidance", "finite"),
    ({"guidance": 10**400}, "guidance", "number"),
    ({"guidance": "7"}, "guidance", "number"),
    ({"guidance": True}, "guidance", "number"),
    ({"seed": -1}, "seed", "0 to 4294967295"),
    ({"seed": 2**32}, "seed", "0 to 4294967295"),
    ({"seed": 2**63}, "seed", "0 to 4294967295"),
    ({"seed": 1.5}, "seed", "integer"),
    ({"images": 0}, "images", "1 to 8"),
    ({"images": -1}, "images", "1 to 8"),
    ({"images": 9}, "images", "1 to 8"),
    ({"sampler": "magic"}, "sampler", "euler, euler_ancestral, ddim"),
    ({"sampler": "\ud800"}, "sampler", "euler, euler_ancestral, ddim"),
    ({"sampler": 3}, "sampler", "string"),
    ({"format": "gif"}, "format", "'png', 'jpeg' or 'webp'"),
    ({"quality": 0}, "quality", "1 to 100"),
    ({"quality": 101}, "quality", "1 to 100"),
    ({"strength": 0.5}, "strength", "init_image"),
    ({"colour": "red"}, "colour", "not a key"),
    ({"num_inference_steps": 5}, "num_inference_steps", "not a key"),
    ({"model": 5}, "model", "string"),
    ({"init_image": ""}, "init_image", "empty"),
    ({"init_image": "!!!"}, "init_image", "base64"),
    ({"init_image": "abc"}, "init_image", "base64"),
    ({"init_image": "\u0660\u0661"}, "init_image", "base64"),
    ({"init_image": "data:image/png,abc"}, "init_image", "base64"),
    ({"init_image": "data:image/png;base64"}, "init_image", "base64"),
    ({"init_image": "data:image/png;base64,"}, "init_image", "empty"),
    ({"init_image": "https://example.org/a.png"}, "init_image", "base64"),
    ({"init_image": "/etc/passwd"}, "init_image", "base64"),
    ({"init_image": 5}, "init_image", "string"),
    ({"mask": encoded(half_mask())}, "mask", "init_image"),
]


def _name(keys: dict[str, object]) -> str:
    return ascii(keys)[:48]


def assert_problem(answer: httpx.Response, status: int, code: str, field: str | None, words: str):
    """RFC 9457, with the code, the field and a detail that says what is allowed; no traceback."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    problem = answer.json()
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["type"] == f"urn:easel:error:{code}"
    assert problem["title"]
    assert problem.get("field") == field
    assert words in problem["detail"]
    assert len(problem["detail"]) < 600
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text


@pytest.fixture(scope="module", autouse=True)
def nothing_breaks(service) -> Iterator[None]:
    """After all of it: the same process, the same worker, no job more, no traceback in the log."""
    service.generate()
    workers, jobs = service.workers(), service.client.get("/jobs?limit=500").json()["jobs"]
    lines = len(service.log_lines())
    yield
    assert service.process.poll() is None
    assert service.workers() == workers
    accepted = [j for j in service.client.get("/jobs?limit=500").json()["jobs"] if j not in jobs]
    assert [job["state"] for job in accepted] == ["succeeded"] * len(accepted)
    assert service.generate()["state"] == "succeeded"
    assert not [line for line in service.log_lines()[lines:] if "traceback" in line]


@pytest.mark.parametrize(("keys", "field", "words"), BAD_KEYS, ids=[_name(k[0]) for k in BAD_KEYS])
def test_a_bad_key_is_refused_by_name(service, keys, field, words):
    body = json.dumps({"prompt": PROMPT, **keys})
    answer = service.client.post(
        "/jobs", content=body, headers={"Content-Type": "application/json"}
    )
    assert_problem(answer, 422, "invalid_request", field, words)


def test_an_unknown_model_is_404_and_the_known_ones_are_told(service):
    answer = service.client.post("/jobs", json={"prompt": PROMPT, "model": "dall-e"})
    assert_problem(answer, 404, "unknown_model", "model", "demo")


# Pictures

GOOD_PNG = encoded(gradient())
BAD_PICTURES = {
    "not a picture": (base64_of(b"hello, world"), "not a picture"),
    "a PDF": (base64_of(b"%PDF-1.7\n" + b"x" * 500), "not a picture"),
    "an SVG": (base64_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "not a picture"),
    "EPS": (base64_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not a picture"),
    "truncated PNG": (GOOD_PNG[: len(GOOD_PNG) // 2 // 4 * 4], "damaged"),
    "PNG header only": (base64_of(b"\x89PNG\r\n\x1a\n"), "PNG, JPEG"),
    "PNG without data": (
        base64_of(png(struct.pack("!IIBBBBB", 64, 64, 8, 2, 0, 0, 0), b"")),
        "damaged",
    ),
    "PNG with a text bomb": (
        base64_of(
            png(struct.pack("!IIBBBBB", 64, 64, 8, 2, 0, 0, 0), b"")[:33]
            + (lambda body: struct.pack("!I", len(body)) + b"zTXt" + body + struct.pack("!I", 0))(
                b"a\0\0" + zlib.compress(b"\0" * 2**27)
            )
        ),
        "PNG, JPEG",
    ),
    "truncated JPEG": (encoded(gradient(), "JPEG")[:1000], "damaged"),
    "truncated WebP": (encoded(gradient(), "WEBP")[:400], "damaged"),
    "PNG bomb": (base64_of(bomb()), "million pixels"),
    "PNG of 2^31 pixels a side": (base64_of(bomb(2**31 - 1)), "million pixels"),
    "too many pixels": (encoded(Image.new("1", (8000, 8000))), "million pixels"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
@pytest.mark.parametrize("field", ["init_image", "mask"])
def test_a_bad_picture_is_refused_by_field(service, name, field):
    picture, words = BAD_PICTURES[name]
    body = {"prompt": PROMPT, "init_image": GOOD_PNG, field: picture}
    answer = service.client.post("/jobs", json=body)
    assert_problem(answer, 422, "invalid_request", field, words)


def test_a_mask_of_another_size_is_refused_with_both_sizes(service):
    body = {"prompt": PROMPT, "init_image": GOOD_PNG, "mask": encoded(half_mask(64, 128))}
    answer = service.client.post("/jobs", json=body)
    assert_problem(answer, 422, "invalid_request", "mask", "64x128")
    assert "128x128" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("strength", "words"),
    [(0, "0.01 to 1.0"), (-1, "0.01 to 1.0"), (1.01, "0.01 to 1.0"), (0.05, "at least 0.09")],
)
def test_a_strength_that_cannot_be_is_refused(service, strength, words):
    body = {"prompt": PROMPT, "init_image": GOOD_PNG, "strength": strength, "steps": 12}
    answer = service.client.post("/jobs", json=body)
    assert_problem(answer, 422, "invalid_request", "strength", words)


def test_a_job_to_take_a_picture_from_must_be_known(service):
    path = "/jobs/00000000-0000-0000-0000-000000000000/images/0"
    answer = service.client.post("/jobs", json={"prompt": PROMPT, "init_image": path})
    assert_problem(answer, 404, "unknown_job", None, "There is no job")


def _sixteen_bit() -> Image.Image:
    """A 16-bit grey ramp: 0 at the left, 65535 at the right."""
    ramp = b"".join(struct.pack("<H", x * 65535 // 127) for x in range(128))
    return Image.frombytes("I;16", (128, 128), ramp * 128)


def _grey_with_transparency(depth: int) -> str:
    """A grey PNG of 8 or 16 bits of which one grey value counts as transparent."""
    row = b"\0" + b"\x40" * (128 * depth // 8)
    header = struct.pack("!IIBBBBB", 128, 128, depth, 0, 0, 0, 0)
    whole = png(header, zlib.compress(row * 128))
    body = b"tRNS" + struct.pack("!H", 0x4040 if depth == 16 else 0x40)
    chunk = struct.pack("!I", 2) + body + struct.pack("!I", zlib.crc32(body))
    return base64_of(whole[:33] + chunk + whole[33:])


def _oriented() -> str:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(gradient(), "JPEG", exif=exif.tobytes())


ODD_PICTURES = {
    "animated GIF": lambda: encoded(
        gradient(64, 64).quantize(),
        "GIF",
        save_all=True,
        append_images=[Image.new("P", (64, 64))] * 3,
    ),
    "CMYK JPEG": lambda: encoded(gradient(64, 64).convert("CMYK"), "JPEG"),
    "grey JPEG": lambda: encoded(gradient(64, 64).convert("L"), "JPEG"),
    "turned JPEG": _oriented,
    "16-bit PNG": lambda: encoded(_sixteen_bit()),
    "alpha PNG": lambda: encoded(gradient(64, 64).convert("RGBA")),
    "grey alpha PNG": lambda: encoded(gradient(64, 64).convert("LA")),
    "palette PNG": lambda: encoded(gradient(64, 64).quantize(16)),
    "palette PNG with transparency": lambda: encoded(gradient(64, 64).quantize(16), transparency=3),
    "1-bit PNG": lambda: encoded(gradient(64, 64).convert("1")),
    "8-bit grey with transparency": lambda: _grey_with_transparency(8),
    "16-bit grey with transparency": lambda: _grey_with_transparency(16),
    "32-bit TIFF": lambda: encoded(gradient(64, 64).convert("I"), "TIFF"),
    "float TIFF": lambda: encoded(gradient(64, 64).convert("F"), "TIFF"),
    "LAB TIFF": lambda: encoded(Image.new("LAB", (64, 64)), "TIFF"),
    "YCbCr TIFF": lambda: encoded(gradient(64, 64).convert("YCbCr"), "TIFF"),
    "WebP with alpha": lambda: encoded(gradient(64, 64).convert("RGBA"), "WEBP"),
    "BMP": lambda: encoded(gradient(64, 64), "BMP"),
    "data URI": lambda: f"data:image/png;base64,{encoded(gradient(64, 64))}",
    "base64 in lines": lambda: encodebytes(b64decode(encoded(gradient(64, 64)))).decode(),
    "one pixel": lambda: encoded(Image.new("RGB", (1, 1))),
    "one pixel high": lambda: encoded(Image.new("RGB", (600, 1))),
}


@pytest.mark.parametrize("name", ODD_PICTURES)
def test_an_odd_picture_is_converted(service, name):
    """What Pillow can read becomes RGB, or a greyscale mask, of the recipe's size."""
    picture = ODD_PICTURES[name]()
    job = service.generate(PROMPT, init_image=picture, mask=picture, steps=1, strength=1.0)
    assert job["state"] == "succeeded", job["error"]
    for field, mode in (("init_image", "RGB"), ("mask", "L")):
        seen = Image.open(io.BytesIO(service.client.get(job["recipe"][field]).content))
        assert seen.mode == mode
        assert seen.size == (job["recipe"]["width"], job["recipe"]["height"])


def _as_seen(service, picture: str) -> Image.Image:
    """An init_image as the pipeline was given it."""
    job = service.generate(PROMPT, init_image=picture, steps=1, strength=1.0)
    return Image.open(io.BytesIO(service.client.get(job["recipe"]["init_image"]).content))


def test_sixteen_bits_are_scaled_and_not_cut_off(service):
    seen = _as_seen(service, encoded(_sixteen_bit()))
    assert [seen.getpixel((x, 5))[0] for x in (0, 64, 127)] == [0, 128, 255]


def test_transparency_becomes_white(service):
    seen = _as_seen(service, encoded(Image.new("RGBA", (128, 128), (255, 0, 0, 0))))
    assert seen.getpixel((9, 9)) == (255, 255, 255)


def test_cmyk_keeps_its_colours(service):
    red = Image.new("CMYK", (128, 128), (0, 255, 255, 0))
    r, g, b = _as_seen(service, encoded(red, "JPEG", quality=95)).getpixel((9, 9))
    assert r > 240
    assert g < 15
    assert b < 15


def test_a_turned_photograph_is_set_upright(service):
    red_on_top = Image.new("RGB", (128, 128), "blue")
    red_on_top.paste("red", (0, 0, 128, 64))
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    seen = _as_seen(service, encoded(red_on_top, exif=exif.tobytes()))
    assert seen.getpixel((64, 120)) == (255, 0, 0)


def test_of_an_animation_the_first_frame_counts(service):
    first = Image.new("RGB", (128, 128), "red").quantize()
    rest = [Image.new("RGB", (128, 128), "blue").quantize()] * 3
    seen = _as_seen(service, encoded(first, "GIF", save_all=True, append_images=rest))
    assert seen.getpixel((9, 9)) == (255, 0, 0)


# HTTP


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "missing"),
        (b"null", "JSON object"),
        (b"[]", "JSON object"),
        (b'"prompt"', "JSON object"),
        (b"{", "not valid JSON"),
        (b"{'prompt': 'x'}", "not valid JSON"),
        (b'{"prompt": "\xff"}', "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b'{"prompt": "x", "seed": ' + b"9" * 6000 + b"}", "not valid JSON"),
        (b'{"prompt": "x", "\\ud800": 1}', ""),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_body_that_is_no_json_object_is_refused(service, body, words):
    answer = service.client.post(
        "/jobs", content=body, headers={"Content-Type": "application/json"}
    )
    assert_problem(answer, 422, "invalid_request", None, words)


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense", "/"],
)
def test_another_content_type_is_refused_with_the_right_one(service, content_type):
    body = json.dumps({"prompt": PROMPT})
    answer = service.client.post("/jobs", content=body, headers={"Content-Type": content_type})
    assert_problem(answer, 422, "invalid_request", None, "application/json")


def _mebibytes(count: int) -> Iterator[bytes]:
    yield b'{"prompt": "'
    for _ in range(count):
        yield b"a" * 2**20
    yield b'"}'


def test_a_body_over_its_limit_is_413(service):
    headers = {"Content-Type": "application/json"}
    body = b"".join(_mebibytes(33))
    answer = service.client.post("/jobs", content=body, headers=headers)
    assert_problem(answer, 413, "too_large", None, "32 MiB")


@pytest.mark.parametrize("path", ["/jobs", "/pipeline/run"])
def test_a_body_that_does_not_tell_its_length_is_413_too(service, path):
    headers = {"Content-Type": "application/json"}
    answer = service.client.post(path, content=_mebibytes(33), headers=headers)
    assert answer.status_code == 413
    assert "32 MiB" in answer.text


def test_unknown_routes_and_methods_are_told_so(service):
    assert_problem(service.client.get("/no/such"), 404, "not_found", None, "/docs")
    answer = service.client.request("PUT", "/jobs")
    assert_problem(answer, 405, "method_not_allowed", None, "PUT")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "POST"}
    nested = service.client.get("/v1/images/generations")
    assert (nested.status_code, nested.headers["allow"]) == (405, "POST")
    assert service.client.head("/no/such").content == b""
    assert service.client.head("/jobs").status_code in (200, 405)


@pytest.mark.parametrize(
    "job_id", ["1", "x" * 4000, "%00", "%ff", "%2e%2e", "00000000-0000-0000-0000-000000000000"]
)
def test_an_unknown_job_is_404_on_every_route(service, job_id):
    for method, path in (
        ("GET", f"/jobs/{job_id}"),
        ("DELETE", f"/jobs/{job_id}"),
        ("GET", f"/jobs/{job_id}/events"),
        ("GET", f"/jobs/{job_id}/images/0"),
        ("GET", f"/jobs/{job_id}/inputs/mask"),
    ):
        answer = service.client.request(method, path)
        assert_problem(answer, 404, "unknown_job", None, "There is no job")


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("limit=0", 422, "limit"),
        ("limit=-5", 422, "limit"),
        ("limit=many", 422, "limit"),
        ("limit=" + "9" * 5000, 422, "limit"),
        ("state=lost", 422, "state"),
        ("before=nobody", 404, "before"),
    ],
)
def test_a_bad_query_is_refused_by_name(service, query, status, field):
    code = {422: "invalid_request", 404: "unknown_job"}[status]
    assert_problem(service.client.get(f"/jobs?{query}"), status, code, field, "")


@pytest.mark.parametrize("n", ["-1", "x", "9" * 5000, "1.0"])
def test_a_picture_number_that_cannot_be_is_refused(service, n):
    newest = service.client.get("/jobs?limit=1").json()["jobs"][0]
    answer = service.client.get(f"/jobs/{newest['id']}/images/{n}")
    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("key", ["", "k" * 256, "k" * 60_000])
def test_an_idempotency_key_has_a_length(service, key):
    answer = service.client.post("/jobs", json={"prompt": PROMPT}, headers={"Idempotency-Key": key})
    assert_problem(answer, 422, "invalid_request", "idempotency-key", "character")


@pytest.mark.parametrize(
    "prefer", ["wait", "wait=", "wait=-1", "wait=x", ";;,=", "respond-async", "é" * 100]
)
def test_a_preference_that_makes_no_sense_is_ignored(service, prefer):
    headers = {"Prefer": prefer.encode()}
    answer = service.client.post("/jobs", json={"prompt": PROMPT, "steps": 1}, headers=headers)
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers
    service.ended(answer.json()["id"])


@pytest.mark.parametrize(
    "request_id", ["", "a b", "<script>", "x" * 129, "é", "a\tb", '{"level": "error"}']
)
def test_a_request_id_that_could_do_harm_is_replaced(service, request_id):
    answer = service.client.get("/health", headers={"X-Request-ID": request_id.encode()})
    assert answer.status_code == 200
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX-Long: " + b"a" * 200_000 + b"\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"Connection: close\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_bytes_that_are_hardly_http_are_answered_or_hung_up_on(service, request_bytes):
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert b"Traceback" not in answer
    assert service.client.get("/health").json() == {"status": "healthy"}


def test_a_lone_surrogate_is_refused_with_an_idempotency_key_too(service):
    answer = service.client.post(
        "/jobs",
        content=b'{"prompt": "\\ud800"}',
        headers={"Content-Type": "application/json", "Idempotency-Key": "surrogate"},
    )
    assert_problem(answer, 422, "invalid_request", "prompt", "Unicode")
