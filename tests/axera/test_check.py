"""`devices --check AXERA` over the double: what it finds well, and what it says is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HOME, clean_environment


def run_check(device: str, tmp_path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **clean_environment(),
        "DATA_DIR": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "COLUMNS": "300",
        **settings,
    }
    return subprocess.run(
        [sys.executable, "-m", "app", "devices", "--check", device],
        cwd=HOME,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_check_of_a_device_finds_all_well(tiny_set: Path, tmp_path: Path) -> None:
    done = run_check("AXERA", tmp_path, TEXT_MODEL_DIR=str(tiny_set))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 10 and all(line.startswith("ok ") for line in lines)
    assert "Another process already runs a pipeline on AXERA" in done.stdout


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("unet raise", "axclrtEngineExecute failed"),
        ("unet nan", "NaN"),
        ("unet hang", "nothing came of it in 6 s"),
    ],
)
def test_the_check_of_a_device_tells_what_is_wrong(
    tiny_set: Path, tmp_path: Path, fault: str, words: str
) -> None:
    (tmp_path / "faults").write_text(fault)
    done = run_check(
        "AXERA",
        tmp_path,
        TEXT_MODEL_DIR=str(tiny_set),
        AXENGINE_DOUBLE_FAULTS=str(tmp_path / "faults"),
        STALL_TIMEOUT="6",
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "FAILED axera-sd15-lcm: a picture: " in done.stdout and words in done.stdout


def test_the_check_without_a_model_says_which_there_are(tmp_path: Path) -> None:
    done = run_check("AXERA", tmp_path)
    assert done.returncode == 1
    assert "no model for AXERA is installed; there are: axera-sd15-lcm" in done.stdout
