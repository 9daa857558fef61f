"""docs/models.md: its table says what the model.toml files say, and its examples run as they are
written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from app.models.catalog import HOME, Catalog
from app.models.model import Model
from tests.conftest import clean_environment
from tests.hub.server import Hub
from tests.hub.test_download import BUNDLED, Machine

TEXT = (HOME / "docs" / "models.md").read_text()
LISTED = list(Catalog([HOME], Path("nowhere")))


def examples(heading: str) -> dict[str, str]:
    """The code of a section, by its language."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"```(toml|python)\n(.*?)```", section, re.DOTALL))


@pytest.mark.parametrize("model", LISTED, ids=[model.name for model in LISTED])
def test_every_model_has_its_row(model: Model) -> None:
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{model.name}`"))
    _, _, names, made, origin, gated, _ = (cell.strip() for cell in row.split("|"))
    assert re.findall(r"`([^`]+)`", names) == list(model.aliases)
    defaults = model.defaults
    steps = f"{defaults.steps} step{'s' if defaults.steps > 1 else ''}"
    assert made == f"{defaults.width}x{defaults.height}, {steps}"
    assert (model.weights.repository or "in this repository") in origin
    ready = (model.weights.openvino or {}).get("int8", "")
    assert ready in origin
    assert (gated == "yes") == model.weights.gated


def test_every_family_has_its_setup_and_its_page() -> None:
    for folder in {model.folder for model in LISTED if model.weights.path is None}:
        assert (folder / "setup.sh").stat().st_mode & 0o100
        page = (folder / "README.md").read_text()
        for model in LISTED:
            assert model.folder != folder or f"`{model.name}`" in page


def test_the_example_of_a_family_of_ones_own(tmp_path: Path) -> None:
    code = examples("Adding a family")
    with Hub() as hub:
        hub.add("someone/shapes-int8-ov", BUNDLED)
        machine = Machine(tmp_path, hub)
        family = tmp_path / "families" / "shapes"
        family.mkdir()
        (family / "model.toml").write_text(code["toml"])
        (family / "pipeline.py").write_text(code["python"])
        machine.install("shapes")
        picture = tmp_path / "circle.png"
        machine.easel("generate", "a red circle", "--model", "shapes", "-o", str(picture))
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_lines_for_a_python_shell_draw_a_picture(tmp_path: Path) -> None:
    lines = examples("A picture from a Python shell")["python"]
    environment = clean_environment() | {"PYTHONPATH": str(HOME), "DATA_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, env=environment, check=True)
    picture = Image.open(tmp_path / "circle.png")
    assert picture.size == (256, 256)
    red, green, blue = picture.getpixel((128, 128))
    assert red > 150 and max(green, blue) < 100


@pytest.mark.parametrize("script", ["setup.sh", "stable-diffusion-xl/setup.sh"])
def test_the_setup_scripts_install_a_model(tmp_path: Path, script: str) -> None:
    if not Path(sys.prefix, ".installed-runtime").exists():
        pytest.skip("the environment was not made by run.sh, which would make it again")
    with Hub() as hub:
        hub.add("OpenVINO/stable-diffusion-xl-base-1.0-int8-ov", BUNDLED)
        machine = Machine(tmp_path, hub)
        environ = machine.environ | {"VENV": sys.prefix, "MODEL": "sdxl"}
        done = subprocess.run(
            [HOME / script], env=environ, cwd=tmp_path, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert machine.is_whole("stable-diffusion-xl")
