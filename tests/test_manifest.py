"""Whether an installed model is still what was installed."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import NotInstalled
from app.models import manifest
from app.models.catalog import HOME, Catalog
from app.models.manifest import Manifest
from app.models.model import Model


@pytest.fixture
def model(tmp_path: Path) -> Model:
    listed = Catalog([HOME], tmp_path).get("stable-diffusion-xl")
    folder = tmp_path / "it"
    for n in range(40):
        (folder / f"part{n % 5}").mkdir(parents=True, exist_ok=True)
        (folder / f"part{n % 5}" / f"{n}.bin").write_bytes(bytes([n]) * 1000)
    Manifest(
        model="it",
        reference="it",
        repository=None,
        revision=None,
        format="int8",
        converted=True,
        like=None,
        files=manifest.contents(folder, lambda count: None),
    ).write(folder)
    return replace(listed, weights_dir=folder)


def test_a_whole_model_passes_in_no_time(model: Model) -> None:
    began = time.perf_counter()
    manifest.check(model)
    assert time.perf_counter() - began < 0.2
    assert manifest.changed(model.weights_dir, lambda count: None) == []


def test_a_missing_and_a_short_file_are_named(model: Model) -> None:
    (model.weights_dir / "part0" / "0.bin").unlink()
    (model.weights_dir / "part1" / "1.bin").write_bytes(b"short")
    with pytest.raises(NotInstalled) as error:
        manifest.check(model)
    assert "part0/0.bin is missing" in error.value.detail
    assert "part1/1.bin has 5 bytes instead of 1000" in error.value.detail
    assert f"python -m app install {model.name}" in error.value.detail


def test_a_flipped_bit_is_found_by_content_only(model: Model) -> None:
    (model.weights_dir / "part2" / "2.bin").write_bytes(b"\x03" + b"\x02" * 999)
    manifest.check(model)
    assert manifest.changed(model.weights_dir, lambda count: None) == ["part2/2.bin"]


def test_without_a_manifest_nothing_is_claimed(model: Model) -> None:
    for content in (None, "", "{", "[]", '{"files": 3}', '{"files": {}}'):
        if content is None:
            (model.weights_dir / manifest.NAME).unlink()
        else:
            (model.weights_dir / manifest.NAME).write_text(content)
        assert manifest.read(model.weights_dir) is None
        manifest.check(model)


def test_a_model_that_is_not_there(model: Model) -> None:
    with pytest.raises(NotInstalled, match="is not installed"):
        manifest.check(replace(model, weights_dir=Path("nowhere")))
