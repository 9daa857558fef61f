"""The command line: a picture without a server, lists, and errors in one line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import HOME, clean_environment, easel
from tests.pictures import gradient, half_mask

PROMPT = "a red circle on a blue background"


@pytest.fixture
def drawn(tmp_path, doubles):
    """Runs `generate` with the double; gives the ended process."""

    def generate(*arguments: str, **settings: str):
        fixed = {"MODEL": "brittle", "MODELS_PATH": doubles, "DATA_DIR": str(tmp_path / "data")}
        return easel("generate", *arguments, **{**fixed, **settings})

    return generate


def test_a_picture_without_a_server_is_the_same_as_with_one(service, tmp_path):
    path = tmp_path / "circle.png"
    data = str(service.folder / "data")  # its compiled model
    done = easel("generate", PROMPT, "-o", str(path), "--seed", "3", "--steps", "4", DATA_DIR=data)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "seed 3" in done.stderr
    assert path.read_bytes() == service.picture(service.generate(PROMPT, seed=3, steps=4))


@pytest.mark.parametrize(
    ("ending", "form"), [("png", "PNG"), ("jpg", "JPEG"), ("JPEG", "JPEG"), ("webp", "WEBP")]
)
def test_the_ending_says_the_format(drawn, tmp_path, ending, form):
    path = tmp_path / f"a.{ending}"
    assert drawn("well", "-o", str(path)).returncode == 0
    with Image.open(path) as image:
        assert image.format == form


def test_several_pictures_are_numbered(drawn, tmp_path):
    done = drawn("well", "-o", str(tmp_path / "a.png"), "-n", "3", "--seed", "8", "--width", "96")
    assert done.returncode == 0
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["a-1.png", "a-2.png", "a-3.png"]
    with Image.open(tmp_path / "a-2.png") as image:
        assert image.size == (96, 64)
    assert "seed 9" in done.stderr


def test_a_picture_can_start_from_another(drawn, tmp_path):
    gradient(64, 64).save(tmp_path / "from.png")
    half_mask(64, 64).save(tmp_path / "mask.png")
    done = drawn(
        "well",
        *("-o", str(tmp_path / "to.png")),
        *("--init", str(tmp_path / "from.png")),
        *("--mask", str(tmp_path / "mask.png")),
        *("--strength", "0.5"),
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "to.png") as image:
        assert "Denoising strength: 0.5" in image.text["parameters"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["", "-o", "a.png"], "prompt is empty"),
        (["well", "-o", "a.gif"], "should end in"),
        (["well", "-o", "/no/such/folder/a.png"], "no folder"),
        (["well", "-m", "dall-e"], "no model 'dall-e'"),
        (["well", "-m", "absent"], "install absent"),
        (["well", "-m", "load-raises"], "of another planet"),
        (["well", "-d", "TPU"], "it runs on"),
        (["well", "--steps", "0"], "steps is a number from 1"),
        (["well", "--seed", "-1"], "seed is a number"),
        (["well", "--init", "/no/such/file"], "/no/such/file"),
        (["well", "--init", "/"], "directory"),
        (["well", "--init", "/dev/null"], "init_image"),
        (["raise"], "the double was asked to raise"),
        (["abort"], "SIGABRT"),
    ],
    ids=str,
)
def test_what_goes_wrong_is_told_in_one_line(drawn, tmp_path, arguments, words):
    if "-o" not in arguments:
        arguments = [*arguments, "-o", str(tmp_path / "a.png")]
    done = drawn(*arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("easel: ")]
    assert len(told) == 1, done.stderr
    assert words in told[0]
    assert list(tmp_path.glob("*.png")) == []


def test_ctrl_c_ends_it_in_one_line_and_leaves_no_worker(tmp_path, doubles):
    environment = {
        **clean_environment(),
        "MODEL": "brittle",
        "MODELS_PATH": doubles,
        "DATA_DIR": str(tmp_path / "data"),
    }
    command = [sys.executable, "-m", "app", "generate", "once hang", "-o", str(tmp_path / "a.png")]
    process = subprocess.Popen(
        command, cwd=HOME, env=environment, stderr=subprocess.PIPE, text=True
    )
    marker = tmp_path / "data" / "cache" / "once-hang"
    while not marker.exists() and process.poll() is None:
        pass
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    with open(children) as file:
        [worker] = [int(pid) for pid in file.read().split()]
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in told
    assert told.splitlines()[-1].startswith("easel: ")
    assert not (tmp_path / "a.png").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_models_lists_what_is_there(doubles):
    done = easel("models", MODELS_PATH=doubles, COLUMNS="200")
    assert done.returncode == 0
    assert "demo" in done.stdout
    assert "brittle" in done.stdout


def test_devices_are_listed_for_people_and_for_programs():
    done = easel("devices", COLUMNS="200")
    assert (done.returncode, "CPU" in done.stdout) == (0, True)
    devices = json.loads(easel("devices", "--json").stdout)
    assert devices[0]["name"] == "CPU"


def test_help_names_the_commands_and_their_options():
    done = easel("--help", COLUMNS="120")
    assert done.returncode == 0
    for command in ("serve", "generate", "models", "devices"):
        assert command in done.stdout
    done = easel("generate", "--help", COLUMNS="120")
    for option in ("--output", "--seed", "--steps", "--init", "--mask", "--strength"):
        assert option in done.stdout


def test_a_wrong_command_or_option_is_explained():
    for arguments in (["paint"], ["generate", "well", "--colour", "red"], ["generate"]):
        done = easel(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "Usage" in done.stderr


def test_run_sh_means_the_callers_folder_wherever_it_is_called_from(tmp_path):
    if not Path(sys.prefix, ".installed-runtime").exists():
        pytest.skip("the environment was not made by run.sh, which would make it again")
    (tmp_path / "app.py").write_text("raise SystemExit('not this one')")
    command = [str(HOME / "run.sh"), "generate", PROMPT, "--steps", "2", "-o", "circle.png"]
    environment = {**clean_environment(), "VENV": sys.prefix, "DATA_DIR": "kept"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "circle.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.py", "circle.png", "kept"]
