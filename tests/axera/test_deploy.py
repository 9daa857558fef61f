"""What lies around the Axera family: its setup script, the systemd unit, its instructions."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import HOME, clean_environment

PAGE = (HOME / "docs" / "axera.md").read_text()
MODELS = tomllib.loads((HOME / "axera" / "model.toml").read_text())["models"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_systemd_unit_is_well_formed(tmp_path: Path) -> None:
    """Its command is made to exist: whether it does is a matter of the installation."""
    unit = (HOME / "deploy" / "systemd" / "easel.service").read_text()
    assert "ExecStart=/opt/easel/.venv/bin/python -m app serve" in unit
    (tmp_path / "easel.service").write_text(
        unit.replace("/opt/easel/.venv/bin/python", os.path.realpath(sys.executable))
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "easel.service")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_page_names_every_variable_and_model() -> None:
    places = {name for model in MODELS.values() for name in model.get("places", [])}
    for name in {*MODELS, *places, "TEXT_MODEL_DIR", "OUTPUT_DIR", "HOST", "PORT"}:
        assert f"`{name}" in PAGE or f" {name} " in PAGE, name


def test_the_page_explains_what_the_runtime_says() -> None:
    """Each message that axengine or app.runtime.axera can show has its line in the table."""
    said = (HOME / "app" / "runtime" / "axera.py").read_text() + (
        HOME / "tests" / "doubles" / "axengine" / "session.py"
    ).read_text()
    table = PAGE[PAGE.index("## What can go wrong") : PAGE.index("## What only the hardware")]
    for words in (
        "driver is missing",
        "no Axera card is on the PCI bus",
        "Get AXCL device failed",
        "is out of range, total",
        "already runs a pipeline on",
        "axclrtEngineLoadFromFile failed",
        "axclrtEngineExecute failed",
        "values that are no numbers (NaN)",
    ):
        assert words in re.sub(r'"\s+f?"', "", said), words
        assert words in table, words


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python environment that sees the packages here."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, system_site_packages=True, with_pip=True)
    return folder


@pytest.fixture
def environment(empty_environment: Path, tmp_path: Path) -> dict[str, str]:
    """A copy of it, which can have one more package installed."""
    shutil.copytree(empty_environment, tmp_path / "venv", symlinks=True)
    cleaned = {k: v for k, v in clean_environment().items() if k != "PYTHONPATH"}
    return cleaned | {"VENV": str(tmp_path / "venv")}


def setup(environment: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["axera/setup.sh"], cwd=HOME, env=environment | more, capture_output=True, text=True
    )


def test_the_setup_asks_for_the_wheel(environment: dict[str, str], tiny_set: Path) -> None:
    done = setup(environment, TEXT_MODEL_DIR=str(tiny_set))
    assert done.returncode == 1 and "AXENGINE_WHEEL=<path or address>" in done.stderr


def test_the_setup_installs_the_wheel(
    environment: dict[str, str], tiny_set: Path, tmp_path: Path
) -> None:
    wheel = tmp_path / "axengine-0.1.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("axengine/__init__.py", "raise ImportError('No providers found.')\n")
        about = "axengine-0.1.3.dist-info"
        file.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: axengine\nVersion: 0.1.3\n"
        )
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")
    done = setup(environment, TEXT_MODEL_DIR=str(tiny_set), AXENGINE_WHEEL=str(wheel))
    assert done.returncode == 0, done.stderr
    assert "the driver is not: ImportError: No providers found." in done.stderr
    assert f"The weights in {tiny_set} are used where they lie." in done.stderr
