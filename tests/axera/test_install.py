"""The weights from the hub to a picture: only the files that are needed, of the pinned revision."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from app.models.catalog import HOME, Catalog
from tests.conftest import Service, clean_environment
from tests.hub.server import Hub


def test_from_the_hub_to_a_picture(
    tmp_path: Path,
    tiny_set: Path,
    write_tiny_set: Callable[[Path, int, int], Path],
    start: Callable[..., Service],
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(tiny_set, repository / "models")
    portrait = write_tiny_set(repository / "models_1024x768", 768, 1024)
    for name in ("vae_encoder.axmodel", "time_input_img2img.npy"):
        (portrait / name).unlink()
    # What the repository holds besides: other chips' files, sources, pictures.
    (repository / "models" / "text_encoder" / "model.safetensors").write_bytes(b"0" * 50_000)
    (repository / "models" / "unet.onnx").write_bytes(b"0" * 50_000)
    (repository / "ax620e_models").mkdir()
    (repository / "ax620e_models" / "unet.axmodel").write_bytes(b"0" * 50_000)
    (repository / "README.md").write_text("about\n")

    catalog = Catalog([HOME], tmp_path / "data" / "models")
    with Hub() as hub:
        weights = catalog.get("axera-sd15-lcm").weights
        assert weights.repository is not None and weights.revision is not None
        hub.add(weights.repository, repository, revision=weights.revision)
        environment = clean_environment() | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hub-cache"),
            "DATA_DIR": str(tmp_path / "data"),
        }
        for name in ("axera-sd15-lcm", "axera-sd15-lcm-1024x768"):
            subprocess.run(
                [sys.executable, "-m", "app", "install", name],
                cwd=HOME,
                env=environment,
                check=True,
                capture_output=True,
            )
    installed = catalog.get("axera-sd15-lcm").weights_dir
    files = {path.relative_to(installed).as_posix() for path in installed.rglob("*.*")}
    assert files >= {"unet.axmodel", "tokenizer/vocab.json", "time_input_txt2img.npy"}
    assert not any(file.endswith((".onnx", ".safetensors", ".md")) for file in files)

    service = start(
        MODEL="axera-sd15-lcm", DATA_DIR=str(tmp_path / "data"), TMPDIR=os.environ["TMPDIR"]
    ).ready()
    for model in ("axera-sd15-lcm", "axera-sd15-lcm-1024x768"):
        assert service.generate(model=model)["state"] == "succeeded"
