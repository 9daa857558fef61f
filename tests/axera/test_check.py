"""`devices --check AXERA` over the double: what it finds well, and what it says is wrong."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import HOME, clean_environment

Check = subprocess.Popen[str]


def start_check(folder: Path, **settings: str) -> Check:
    """`devices --check AXERA` with a card and a folder of its own."""
    environment = {
        **clean_environment(),
        "DATA_DIR": str(folder),
        "TMPDIR": str(folder),
        "COLUMNS": "300",
        **settings,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "app", "devices", "--check", "AXERA"],
        cwd=HOME,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(check: Check) -> tuple[int, str, str]:
    """Its exit code, its findings, and what it complained of."""
    findings, complaints = check.communicate(timeout=120)
    return check.returncode, findings, complaints


WRONG = {
    "unet raise": "axclrtEngineExecute failed",
    "unet nan": "NaN",
    "unet hang": "nothing came of it in 6 s",
}


@pytest.fixture(scope="module")
def checks(
    double: None, tiny_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Check]]:
    """A check for each fault, begun together: each spends five seconds waiting for a card that it
    holds itself."""
    begun: dict[str, Check] = {}
    for fault in WRONG:
        folder = tmp_path_factory.mktemp("check")
        (folder / "faults").write_text(fault)
        begun[fault] = start_check(
            folder,
            TEXT_MODEL_DIR=str(tiny_set),
            AXENGINE_DOUBLE_FAULTS=str(folder / "faults"),
            STALL_TIMEOUT="6" if fault == "unet hang" else "60",
        )
    yield begun
    for check in begun.values():
        with check:  # closes its pipes
            check.kill()


def test_the_check_of_a_device_finds_all_well(tiny_set: Path, tmp_path: Path) -> None:
    code, findings, complaints = finished(start_check(tmp_path, TEXT_MODEL_DIR=str(tiny_set)))
    assert code == 0, findings + complaints
    lines = findings.splitlines()
    assert len(lines) == 10 and all(line.startswith("ok ") for line in lines)
    assert "Another process already runs a pipeline on AXERA" in findings


@pytest.mark.parametrize(("fault", "words"), WRONG.items())
def test_the_check_of_a_device_tells_what_is_wrong(
    checks: dict[str, Check], fault: str, words: str
) -> None:
    code, findings, complaints = finished(checks[fault])
    assert code == 1 and "Traceback" not in complaints
    assert "FAILED axera-sd15-lcm: a picture: " in findings and words in findings


def test_the_check_without_a_model_says_which_there_are(tmp_path: Path) -> None:
    code, findings, _ = finished(start_check(tmp_path))
    assert code == 1
    assert "no model for AXERA is installed; there are: axera-sd15-lcm" in findings
