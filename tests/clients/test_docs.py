"""docs/clients.md is true: its blocks run, or are replayed, against the running service."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import HOME

PAGE = (HOME / "docs" / "clients.md").read_text()
ADDRESS = re.compile(r"http://127\.0\.0\.1:8100")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list:
    found = [text for name, text in BLOCKS if name == kind]
    return [pytest.param(text, id=f"{kind}-{n}") for n, text in enumerate(found)]


def pictures(folder: Path) -> list[tuple[str, str]]:
    """The pictures that a block has made: the ending of the file, and its format."""
    made: list[tuple[str, str]] = []
    for file in folder.iterdir():
        if file.suffix in (".png", ".jpg"):
            with Image.open(file) as picture:
                made.append((file.suffix, picture.format or ""))
    return made


def test_every_client_has_its_block():
    assert len(blocks("python")) == 3
    assert len(blocks("sh")) == 4
    assert len(blocks("http")) == 7


@pytest.mark.parametrize("text", blocks("python"))
def test_python(service, tmp_path, text):
    text = ADDRESS.sub(service.url, text).replace("port=8100", f"port={service.port}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", text],
        cwd=tmp_path, capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (".png", "PNG") in pictures(tmp_path)


@pytest.mark.parametrize("text", blocks("sh"))
def test_shell(service, tmp_path, text):
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    text = ADDRESS.sub(service.url, text)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=tmp_path, capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for ending, form in pictures(tmp_path):
        assert ending == {"PNG": ".png", "JPEG": ".jpg"}[form]
    for answer in tmp_path.glob("*.json"):
        body = json.loads(answer.read_text())
        assert isinstance(body, list) or not {"error", "detail"} & set(body), body
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize("text", blocks("http"))
def test_replayed(service, text):
    head, _, body = text.strip().partition("\n")
    method, path = head.split()
    answer = service.client.request(method, path, json=json.loads(body) if body else None)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    if path.endswith("generations"):
        [picture] = found["data"]
        wanted = json.loads(body)["response_format"]
        assert picture[wanted] and len({"url", "b64_json"} & set(picture)) == 1
    if path.endswith("txt2img"):
        assert len(found["images"]) == 1
        warnings = json.loads(found["info"])["warnings"]
        assert not [warning for warning in warnings if "Not honoured" in warning], warnings


def test_every_route_of_the_dialects_is_on_the_page(service):
    """A route without its line in docs/clients.md fails here (the native ones: docs/api.md)."""
    native = ("/jobs", "/models", "/devices", "/health", "/pipeline")
    for path in service.client.get("/openapi.json").json()["paths"]:
        if not path.startswith(native):
            name = path.removeprefix("/sdapi/v1/").replace("/v3/", "/v1/")
            assert name in PAGE, path
