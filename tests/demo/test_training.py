"""The code that trains the bundled model, with minutes of training left out: from nothing to files
the runtime draws with, over a kill; and from the shipped files back to weights."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.installation.convert import environment_is_ready, make_environment
from app.models.catalog import HOME
from demo.training.evaluate import drawn_by

pytestmark = [pytest.mark.convert, pytest.mark.timeout(900)]

ENVIRONMENT = Path(os.environ.get("CONVERT_VENV", HOME / ".venv-convert"))


@pytest.fixture(scope="module", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    if not environment_is_ready(ENVIRONMENT):
        log = tmp_path_factory.mktemp("environment") / "log"
        make_environment(ENVIRONMENT, log, lambda progress: None)


def training(part: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [ENVIRONMENT / "bin" / "python", "-m", f"demo.training.{part}", *map(str, arguments)],
        cwd=HOME,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finished(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate()
    assert process.returncode == 0, said[-3000:]
    return said


def steps(log: Path) -> Iterator[int]:
    for line in log.read_text().splitlines():
        facts = json.loads(line)
        if "step" in facts:
            yield facts["step"]


def test_from_nothing_over_a_kill_to_a_picture(tmp_path):
    runs, weights = tmp_path / "runs", tmp_path / "weights"
    eye = ("vae", "--runs", runs, "--workers", 2, "--minutes", 0.5)
    first = training(*eye)
    deadline = time.monotonic() + 300
    while not (runs / "vae.pt").exists():
        assert first.poll() is None, first.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.kill()
    first.communicate()  # its processes, which hold the pipe, end with it
    finished(training(*eye))
    assert {file.name for file in runs.glob("vae-*.pt")} == {
        f"vae-{side}.pt" for side in (32, 64, 128, 256)
    }
    hand = ("denoiser", "--runs", runs, "--workers", 2, "--minutes", 0.3, "--pool", 128)
    finished(training(*hand))
    before = max(steps(runs / "denoiser.jsonl"))
    finished(training(*hand))  # the budget is used: nothing is done again
    assert max(steps(runs / "denoiser.jsonl")) <= before + 1
    finished(training("export", "--runs", runs, "--out", weights))
    picture = drawn_by(weights)("a red circle on a blue background")
    assert picture.shape == (256, 256, 3)
    assert picture.dtype == np.uint8


def test_the_shipped_files_become_weights_again(tmp_path):
    """A text encoder, a UNet and an autoencoder that answer as the shipped ones do."""
    said = finished(training("restore", "--runs", tmp_path))
    assert "start.pt" in said
    check = """
import sys, numpy, openvino, torch
from pathlib import Path
from demo.training import denoiser, tokenizer, vae
from demo.training.export import WEIGHTS
runs = Path(sys.argv[1])
words = tokenizer.load(runs / "tokenizer")
text, unet = denoiser.build(words)
known = torch.load(runs / "start.pt")
text.load_state_dict(known["text"]), unet.load_state_dict(known["unet"])
eye = vae.load(runs, 256)
ids = denoiser.read(words, ["a red circle on a blue background"])
chance = torch.Generator().manual_seed(1)
x, t = torch.randn(1, 16, 8, 8, generator=chance), torch.tensor(500)
with torch.no_grad():
    hidden = text.eval()(ids)[0]
    mine = [hidden, unet.eval()(x, t, hidden).sample, eye.decode(x).sample]
    mine.append(eye.encode(mine[2]).latent_dist.mean)
core = openvino.Core()
def ask(part, *given):
    model = core.compile_model(WEIGHTS / part / "openvino_model.xml", "CPU")
    return model([numpy.asarray(each) for each in given])[0]
theirs = [ask("text_encoder", ids), ask("unet", x, t[None], hidden), ask("vae_decoder", x)]
theirs.append(ask("vae_encoder", mine[2])[:, :16])
for a, b in zip(mine, theirs, strict=True):
    away = numpy.abs(a.numpy() - b).mean() / numpy.abs(b).mean()
    print(away)
    assert away < 0.02
"""
    done = subprocess.run(
        [ENVIRONMENT / "bin" / "python", "-c", check, tmp_path],
        cwd=HOME,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
