"""Installing what is ready-made: real downloads by the real command, from a hub that behaves
badly."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.hub.server import TOKEN, Fault, Hub

HOME = Path(__file__).resolve().parents[2]
BUNDLED = HOME / "demo" / "weights"
MODEL, REPOSITORY = "tiny", "tests/tiny-int8-ov"

# Bytes that an installation fetches, and that may be on their way when it ends early.
TOTAL = sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file())
ON_THE_WAY = 1_500_000

FAMILY = """
title = "Tiny"
licence = "Apache-2.0"
devices = ["CPU"]

[models.tiny]
title = "Tiny"
samplers = ["euler"]
weights = { repository = "tests/tiny", openvino = { int8 = "tests/tiny-int8-ov" } }
defaults = { width = 128, height = 128, steps = 4, guidance = 4.0 }
limits = { steps = [1, 50], side = [64, 512], multiple_of = 16, guidance = [0.0, 20.0] }

[[accepts]]
like = "tiny"
pipeline = "StableDiffusionPipeline"
config = { "vae_decoder/config.json" = { latent_channels = 16 } }
"""
AS_IT_IS = """
title = "Graphs"
licence = "MIT"
devices = ["AXERA"]

[models.graphs]
title = "Graphs"
defaults = { width = 512, height = 512, steps = 4 }
limits = { steps = [4, 4], side = [512, 512] }

[models.graphs.weights]
repository = "tests/graphs"
folder = "models"
files = ["*.axmodel", "text/*"]
"""
# The command with waits between attempts that suit a test.
QUICK = """
import sys, app.installation.hub, app.installation.command
app.installation.hub.WAITS = (0.05, 0.05)
app.installation.command.main(sys.argv[1:], "easel")
"""


class Machine:
    """A new user's machine: no models, no cache, one family of its own; it knows the hub `hub`."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.hub = hub
        self.models = folder / "data" / "models"
        family = folder / "families" / "a-family"
        family.mkdir(parents=True)
        (family / "model.toml").write_text(FAMILY)
        shutil.copy(HOME / "demo" / "pipeline.py", family)
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        self.environ = kept | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "hub-cache"),
            "DATA_DIR": str(folder / "data"),
            "MODELS_PATH": str(folder / "families"),
            "CONVERT_VENV": str(folder / "no-environment"),
        }

    def start(self, *arguments: str, first: str = "", **settings: str) -> "subprocess.Popen[str]":
        """The command; `first` is Python that changes something in it beforehand."""
        return subprocess.Popen(
            [sys.executable, "-c", first + QUICK, *arguments],
            env=self.environ | settings,
            cwd=HOME,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, first: str = "", **settings: str) -> tuple[int, str]:
        """Exit code and all output."""
        process = self.start(*arguments, first=first, **settings)
        out, error = process.communicate(timeout=500)
        return process.returncode, out + error

    def install(self, *arguments: str, **settings: str) -> str:
        code, output = self.run(*(arguments or (MODEL,)), **settings)
        assert code == 0, output
        return output

    def snapshot_download(self, **options: str) -> None:
        """huggingface_hub's own download of the repository."""
        code = "import json, sys; from huggingface_hub import snapshot_download as get; "
        code += "get(sys.argv[1], **json.loads(sys.argv[2]))"
        command = [sys.executable, "-c", code, REPOSITORY, json.dumps(options)]
        subprocess.run(command, env=self.environ, check=True, capture_output=True)

    def easel(self, *arguments: str) -> str:
        """Any other command of Easel's."""
        command = [sys.executable, "-m", "app", *arguments]
        done = subprocess.run(
            command, env=self.environ, cwd=HOME, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def is_whole(self, name: str = MODEL) -> bool:
        folder = self.models / name
        manifest = json.loads((folder / "manifest.json").read_text())
        files = {path: (folder / path).stat().st_size for path in manifest["files"]}
        same = all((folder / path).read_bytes() == (BUNDLED / path).read_bytes() for path in files)
        return same and files == {path: facts["size"] for path, facts in manifest["files"].items()}


def test_a_ready_made_model_comes_whole_and_once(machine: Machine) -> None:
    machine.install()
    assert machine.is_whole()
    manifest = json.loads((machine.models / MODEL / "manifest.json").read_text())
    assert (manifest["repository"], manifest["revision"]) == (REPOSITORY, "a" * 40)
    assert not (machine.models / ".installing" / MODEL).exists()
    sent = machine.hub.sent
    assert "is installed" in machine.install()
    assert machine.hub.sent == sent


def test_huggingface_hub_itself_understands_the_hub_of_these_tests(
    machine: Machine, tmp_path: Path
) -> None:
    machine.snapshot_download(local_dir=str(tmp_path / "it"))
    for path in BUNDLED.rglob("*.bin"):
        assert (tmp_path / "it" / path.relative_to(BUNDLED)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "fault",
    [
        Fault("unet/openvino_model.bin", cut=100_000, times=3),
        Fault("unet/openvino_model.bin", cut=0),
        Fault("unet/openvino_model.bin", garble=True),
        Fault("unet/openvino_model.bin", status=503, times=2),
        Fault("model_index.json", status=429, headers={"Retry-After": "0"}, times=2),
        Fault("api/models", status=429, headers={"Retry-After": "0"}, times=2),
        Fault("api/models", status=500),
        Fault("text_encoder/config.json", garble=True),
    ],
    ids=["cuts", "nothing", "flipped-bit", "503", "429", "429-list", "500-list", "flipped-small"],
)
def test_a_passing_fault_is_lived_through(machine: Machine, fault: Fault) -> None:
    machine.hub.faults.append(fault)
    machine.install()
    assert machine.is_whole()
    assert fault.times == 0


def test_a_cut_costs_no_byte_twice(machine: Machine) -> None:
    machine.hub.faults.append(Fault("unet/openvino_model.bin", cut=100_000, times=4))
    machine.install()
    assert machine.is_whole()
    assert machine.hub.sent == TOTAL


def test_a_hub_that_ignores_ranges_sends_a_file_again_whole(machine: Machine) -> None:
    machine.hub.faults += [
        Fault("unet/openvino_model.bin", cut=100_000),
        Fault("unet/openvino_model.bin", no_ranges=True),
    ]
    machine.install()
    assert machine.is_whole()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_anywhere_it_leaves_no_half_model_and_goes_on(machine: Machine, how: int) -> None:
    machine.hub.speed = 2_000_000
    for wait_for in (100_000, 1_500_000, 3_000_000):
        process = machine.start(MODEL)
        while machine.hub.sent < wait_for and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(how)
        process.communicate(timeout=20)
        assert not (machine.models / MODEL).exists()
    machine.hub.speed = None
    machine.install()
    assert machine.is_whole()
    assert machine.hub.sent < TOTAL + 3 * ON_THE_WAY


def test_two_at_once_do_not_meet(machine: Machine) -> None:
    machine.hub.speed = 3_000_000
    first = machine.start(MODEL)
    while not machine.hub.sent:
        time.sleep(0.01)
    code, output = machine.run(MODEL)
    assert code == 1 and "another process" in output
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert machine.is_whole()


def test_a_gated_repository_says_what_to_do_in_one_message(machine: Machine) -> None:
    machine.hub.repositories[REPOSITORY].gated = True
    code, output = machine.run(MODEL)
    assert code == 1
    assert f"{machine.hub.url}/{REPOSITORY}" in output and "HF_TOKEN" in output
    assert "Traceback" not in output
    machine.install(HF_TOKEN=TOKEN)
    assert machine.is_whole()


def test_the_token_is_nowhere_but_in_the_header_to_the_hub(
    machine: Machine, tmp_path: Path
) -> None:
    machine.hub.repositories[REPOSITORY].private = True
    machine.hub.speed = 3_000_000
    process = machine.start(MODEL, "--json", HF_TOKEN=TOKEN)
    seen = b""
    while process.poll() is None:
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen += line.read_bytes()
            except OSError:
                continue
        time.sleep(0.05)
    out, error = process.communicate()
    assert process.returncode == 0
    assert TOKEN.encode() not in seen and TOKEN not in out + error
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".bin"]
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)
    # The store on the other host refuses a request that shows the token, so none did.
    assert machine.is_whole()


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        ({"HF_TOKEN": "hf_wrong"}, "refuses HF_TOKEN"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(
    machine: Machine, prepare: dict[str, str], told: str
) -> None:
    code, output = machine.run(MODEL, **prepare)
    assert code == 1 and told in output and "Traceback" not in output, output
    assert not (machine.models / MODEL).exists()


def test_a_repository_that_is_not_there(machine: Machine) -> None:
    del machine.hub.repositories[REPOSITORY]
    code, output = machine.run(MODEL)
    assert code == 1 and f"no repository {REPOSITORY}" in output


def test_a_hub_that_stays_ill_is_given_up_and_what_came_is_kept(machine: Machine) -> None:
    machine.hub.faults.append(Fault("unet/openvino_model.bin", status=503, times=99))
    code, output = machine.run(MODEL)
    assert code == 1 and "answers 503" in output
    machine.hub.faults.clear()
    machine.install()
    assert machine.is_whole()
    assert machine.hub.sent < TOTAL + ON_THE_WAY


def test_without_network_the_hubs_own_cache_will_do(machine: Machine) -> None:
    machine.snapshot_download()
    machine.install(HF_HUB_OFFLINE="1")
    assert machine.is_whole()


def test_what_the_hubs_cache_has_is_not_fetched_again(machine: Machine) -> None:
    machine.snapshot_download()
    sent = machine.hub.sent
    machine.install()
    assert machine.is_whole() and machine.hub.sent == sent


def test_a_disk_without_room_is_refused_before_a_byte_comes(
    machine: Machine, tmp_path: Path
) -> None:
    huge = tmp_path / "huge"
    shutil.copytree(BUNDLED, huge)
    with (huge / "unet" / "openvino_model.bin").open("r+b") as file:
        file.truncate(shutil.disk_usage(tmp_path).free + 10**9)  # a hole: takes no room here
    machine.hub.repositories[REPOSITORY].folder = huge
    machine.hub.repositories[REPOSITORY].unhashed = True
    code, output = machine.run(MODEL)
    assert code == 1 and re.search(r"takes [\d.]+ GB of disk .* [\d.]+ GB are free", output), output
    assert machine.hub.sent < 5000


def test_a_disk_that_fills_up_on_the_way_keeps_what_came(machine: Machine) -> None:
    small = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
    code, output = machine.run(MODEL, first=small)
    assert code == 1 and "is kept" in output and "Traceback" not in output, output
    assert not (machine.models / MODEL).exists()
    sent = machine.hub.sent
    machine.install()
    assert machine.is_whole() and sent > 1_000_000
    assert machine.hub.sent < TOTAL + ON_THE_WAY


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(machine: Machine) -> None:
    machine.models.parent.mkdir()
    machine.models.write_text("a file where the folder should be")
    code, output = machine.run(MODEL)
    assert code == 1 and "failed" in output and "Traceback" not in output, output


def test_files_as_they_are_for_a_runtime_of_its_own(machine: Machine, tmp_path: Path) -> None:
    family = tmp_path / "families" / "b-family"
    family.mkdir()
    (family / "model.toml").write_text(AS_IT_IS)
    folder = tmp_path / "graphs"
    for path in (
        "models/unet.axmodel",
        "models/text/vocab.json",
        "models/notes.md",
        "other.axmodel",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    machine.hub.add("tests/graphs", folder)
    machine.install("graphs")
    installed = machine.models / "graphs"
    paths = {path.relative_to(installed).as_posix() for path in installed.rglob("*.*")}
    assert paths == {"unet.axmodel", "text/vocab.json", "manifest.json"}


def test_progress_tells_bytes_speed_and_time_left(machine: Machine) -> None:
    machine.hub.speed = 2_000_000
    lines = [json.loads(line) for line in machine.install(MODEL, "--json").splitlines()]
    on_the_way = [line for line in lines if line["state"] == "downloading" and line["speed"]]
    assert len(on_the_way) > 3
    assert on_the_way[-1]["bytes"] == on_the_way[-1]["total"] > 1_000_000
    assert any(line["eta_seconds"] for line in on_the_way)
    assert lines[-1]["state"] == "installed"


def test_damage_is_seen_and_only_what_is_damaged_comes_again(machine: Machine) -> None:
    machine.install()
    weights = machine.models / MODEL / "unet" / "openvino_model.bin"
    good = weights.read_bytes()
    weights.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    code, output = machine.run(MODEL, "--verify")
    assert code == 1 and "unet/openvino_model.bin" in output and "--again" in output
    sent = machine.hub.sent
    machine.install(MODEL, "--again")
    assert machine.is_whole() and machine.hub.sent - sent == len(good)
    weights.write_bytes(good[:-1])  # by its size it is seen without being asked for
    machine.install(MODEL)
    assert machine.is_whole()


def test_a_model_can_be_removed(machine: Machine) -> None:
    machine.install()
    assert "are free again" in machine.install(MODEL, "--remove")
    assert not (machine.models / MODEL).exists()
    code, output = machine.run("demo", "--remove")
    assert code == 1 and "not installed by Easel" in output


def test_any_repository_that_a_family_can_run_is_a_model(machine: Machine) -> None:
    machine.install(REPOSITORY)
    assert machine.is_whole(REPOSITORY.replace("/", "--"))
    code, output = machine.run(REPOSITORY, "--verify")
    assert code == 0, output


def test_a_repository_no_family_can_run_is_refused_before_its_weights_come(
    machine: Machine, tmp_path: Path
) -> None:
    folder = tmp_path / "video"
    shutil.copytree(BUNDLED, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "LTXPipeline"}))
    machine.hub.add("tests/video", folder)
    code, output = machine.run("tests/video")
    assert code == 1 and "LTXPipeline" in output and "StableDiffusionPipeline" in output
    assert not machine.hub.asked("openvino_model.bin")


def test_a_pipeline_that_lacks_a_part_is_refused_before_it_comes(
    machine: Machine, tmp_path: Path
) -> None:
    folder = tmp_path / "without-tokenizer"
    shutil.copytree(BUNDLED, folder)
    (folder / "tokenizer" / "openvino_tokenizer.bin").unlink()
    machine.hub.repositories[REPOSITORY].folder = folder
    code, output = machine.run(MODEL)
    assert code == 1 and "tokenizer/openvino_tokenizer.bin" in output
    assert not machine.hub.asked("openvino_model.bin")


def test_a_name_that_climbs_out_of_the_folder_is_refused(machine: Machine, tmp_path: Path) -> None:
    machine.hub.repositories[REPOSITORY].extra = ["../../escaped.json"]
    code, output = machine.run(MODEL)
    assert code == 1 and "not touched" in output
    assert not list(tmp_path.rglob("escaped.json"))


def test_the_service_side_hears_progress_and_reasons(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    from app.errors import InstallFailed, UnknownModel
    from app.installation import child

    for name, value in machine.environ.items():
        monkeypatch.setenv(name, value)
    heard: list[dict[str, Any]] = []
    asyncio.run(child.install(MODEL, heard.append))
    assert machine.is_whole() and heard[-1]["state"] == "installed"
    with pytest.raises(UnknownModel):
        asyncio.run(child.install("no-such", heard.append))
    machine.hub.repositories.clear()
    with pytest.raises(InstallFailed, match="no repository"):
        asyncio.run(child.install("tests/other", heard.append))
