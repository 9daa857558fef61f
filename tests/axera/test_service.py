"""The whole service on the double: MODEL=axera-sd15-lcm, pictures, refusals, faults."""

import base64
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Service


@pytest.fixture(scope="module")
def fault_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults") / "faults"


@pytest.fixture(scope="module")
def axera(
    double: None, tiny_set: Path, fault_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A running service, shared by tests that leave it as it was."""
    shared = Service(
        tmp_path_factory.mktemp("service"),
        {
            "MODEL": "axera-sd15-lcm",
            "TEXT_MODEL_DIR": str(tiny_set),
            "AXENGINE_DOUBLE_FAULTS": str(fault_file),
            "STALL_TIMEOUT": "1",
            "CANCEL_TIMEOUT": "1",
        },
    )
    yield shared.ready()
    shared.stop()


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    """A TMPDIR of its own: a card that the shared service does not hold."""
    (tmp_path / "locks").mkdir()
    return tmp_path / "locks"


@pytest.fixture
def faults(fault_file: Path) -> Iterator[Path]:
    """Where to write what goes wrong; all is well again after the test."""
    yield fault_file
    fault_file.unlink(missing_ok=True)


def pixels(axera: Service, job: dict[str, Any], n: int = 0) -> Any:
    return np.asarray(Image.open(io.BytesIO(axera.client.get(job["images"][n]["url"]).content)))


def picture(width: int = 512, height: int = 512) -> str:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_prompt_becomes_a_picture(axera: Service) -> None:
    job = axera.generate(seed=1, images=2)
    assert job["state"] == "succeeded", job
    assert (job["device"], job["model"]) == ("AXERA", "axera-sd15-lcm")
    assert job["recipe"]["steps"] == 4 and job["recipe"]["sampler"] == "lcm"
    assert pixels(axera, job).shape == (512, 512, 3)
    again = axera.generate(seed=2)
    assert np.array_equal(pixels(axera, again), pixels(axera, job, 1)), "image n uses seed + n"


def test_a_picture_becomes_another(axera: Service) -> None:
    small = axera.generate(seed=1, init_image=picture(100, 60), strength=0.1)
    assert small["state"] == "succeeded" and small["progress"]["steps"] == 1, small
    default = axera.generate(seed=1, init_image=picture())
    assert default["recipe"]["strength"] == 0.6 and default["progress"]["steps"] == 2
    assert not np.array_equal(pixels(axera, small), pixels(axera, default))


def test_steps_are_reported_with_previews(axera: Service) -> None:
    blockers = [axera.submit(images=4) for _ in range(4)]
    events = axera.follow(axera.submit(seed=3))
    for blocker in blockers:
        axera.client.delete(f"/jobs/{blocker}")
    kinds = [event.kind for event in events]
    assert kinds == ["state", "state", *["progress", "preview"] * 4, "done"]


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"width": 1024}, "width"),
        ({"width": 512, "height": 256}, "width"),
        ({"steps": 20}, "steps"),
        ({"guidance": 7.5}, "guidance"),
        ({"negative_prompt": "blurry"}, "negative_prompt"),
        ({"sampler": "euler"}, "sampler"),
        ({"init_image": picture(), "mask": picture()}, "mask"),
    ],
)
def test_what_it_cannot_do_is_refused(axera: Service, keys: dict[str, Any], field: str) -> None:
    answer = axera.client.post("/jobs", json={"prompt": "a fox", **keys})
    assert (answer.status_code, answer.json().get("field")) == (422, field), answer.text


def test_a_long_prompt_warns(axera: Service) -> None:
    job = axera.generate("fox " * 60)
    assert any("the rest was cut off" in warning for warning in job["warnings"]), job


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("unet raise", "The UNet failed on the NPU: axclrtEngineExecute failed 0x8006008a."),
        ("unet nan", "The UNet answered with values that are no numbers"),
        ("vae_decoder nan", "The VAE decoder answered with values that are no numbers"),
    ],
)
def test_a_failing_run_fails_its_job_and_no_other(
    axera: Service, faults: Path, fault: str, words: str
) -> None:
    workers = axera.workers()
    faults.write_text(fault)
    job = axera.generate()
    assert (job["state"], job["error"]["code"]) == ("failed", "generation_failed"), job
    assert words in job["error"]["message"]
    faults.unlink()
    assert axera.generate()["state"] == "succeeded"
    assert axera.workers() == workers, "the pipeline stayed loaded"


def test_a_hanging_run_is_ended_and_the_service_lives(axera: Service, faults: Path) -> None:
    faults.write_text("unet hang")
    job = axera.submit()
    axera.wait_for(lambda: axera.job(job)["state"] == "running")
    assert axera.client.get("/health").json() == {"status": "healthy"}
    ended = axera.ended(job)
    assert (ended["state"], ended["error"]["code"]) == ("failed", "worker_died"), ended
    faults.unlink()
    assert axera.generate()["state"] == "succeeded"


def test_a_hanging_run_can_be_canceled(axera: Service, faults: Path) -> None:
    faults.write_text("unet hang")
    job = axera.submit()
    axera.wait_for(lambda: axera.job(job)["state"] == "running")
    assert axera.client.delete(f"/jobs/{job}").json()["state"] == "canceled"
    faults.unlink()
    assert axera.generate()["state"] == "succeeded"


def test_a_card_is_not_shared_with_a_second_service(
    axera: Service, start: Callable[..., Service], tiny_set: Path
) -> None:
    second = start(MODEL="axera-sd15-lcm", TEXT_MODEL_DIR=str(tiny_set))
    assert "Another process already runs a pipeline on AXERA" in why_not_ready(second)
    assert axera.generate()["state"] == "succeeded"


def test_without_the_driver_the_service_says_what_to_install(
    start: Callable[..., Service], tiny_set: Path
) -> None:
    bare = start(MODEL="axera-sd15-lcm", TEXT_MODEL_DIR=str(tiny_set), AXENGINE_DOUBLE="no-driver")
    devices = {device["name"]: device for device in bare.client.get("/devices").json()}
    assert not devices["AXERA"]["available"]
    assert "driver is missing" in devices["AXERA"]["reason"]
    assert "driver is missing" in why_not_ready(bare)
    answer = bare.client.post("/jobs", json={"prompt": "a fox"})
    assert answer.status_code == 503 and "driver is missing" in answer.json()["detail"]
    assert bare.client.get("/health").status_code == 200


def test_the_models_take_turns_on_the_card(
    start: Callable[..., Service],
    tiny_set: Path,
    write_tiny_set: Callable[[Path, int, int], Path],
    tmp_path: Path,
    locks: Path,
) -> None:
    """Both want the card alone: each is loaded when it is asked for, and the other one goes."""
    data = tmp_path / "data"
    portrait = write_tiny_set(data / "models" / "axera-sd15-lcm-1024x768", 768, 1024)
    (portrait / "vae_encoder.axmodel").unlink()
    both = start(
        MODEL="axera-sd15-lcm", TEXT_MODEL_DIR=str(tiny_set), DATA_DIR=str(data), TMPDIR=str(locks)
    ).ready()
    for model, size in (
        ("axera-sd15-lcm-1024x768", (1024, 768, 3)),
        ("axera-sd15-lcm", (512, 512, 3)),
        ("axera-sd15-lcm-1024x768", (1024, 768, 3)),
    ):
        job = both.generate(model=model)
        assert job["state"] == "succeeded", job
        assert pixels(both, job).shape == size
        assert len(both.workers()) == 1
    refused = both.client.post(
        "/jobs",
        json={"prompt": "a fox", "model": "axera-sd15-lcm-1024x768", "init_image": picture()},
    )
    assert (refused.status_code, refused.json()["field"]) == (422, "init_image")


def test_files_of_the_former_service_are_used_where_they_lie(
    start: Callable[..., Service], tiny_set: Path, tmp_path: Path, locks: Path
) -> None:
    """With the former service's variables alone: places of files, host, port, folder for output."""
    models = shutil.copytree(tiny_set, tmp_path / "models")
    place = {
        "UNET_MODEL": "unet.axmodel",
        "VAE_DECODER_MODEL": "vae_decoder.axmodel",
        "VAE_ENCODER_MODEL": "vae_encoder.axmodel",
        "TIME_INPUT_TXT2IMG": "time_input_txt2img.npy",
        "TIME_INPUT_IMG2IMG": "time_input_img2img.npy",
    }
    places = {key: str((models / name).rename(tmp_path / name)) for key, name in place.items()}
    output = tmp_path / "txt2img_server_output"
    former = start(
        MODEL="axera-sd15-lcm",
        TEXT_MODEL_DIR=str(models),
        OUTPUT_DIR=str(output),
        DATA_DIR="",
        HOST="127.0.0.1",
        TMPDIR=str(locks),
        **places,
    ).ready()
    assert former.generate(init_image=picture())["state"] == "succeeded"
    assert list(output.rglob("*.png"))


def test_a_folder_that_is_not_there_is_reported(start: Callable[..., Service]) -> None:
    service = start(MODEL="axera-sd15-lcm", TEXT_MODEL_DIR="/nowhere/models")
    words = "There is no folder /nowhere/models, which TEXT_MODEL_DIR names."
    assert words in why_not_ready(service)


@pytest.mark.parametrize(
    ("double", "device", "words"),
    [("cards", "AXERA.2", "AXERA.2 is not available here"), ("card", "AXERA.1", "not available")],
)
def test_a_device_that_is_not_there_is_reported(
    start: Callable[..., Service], tiny_set: Path, double: str, device: str, words: str
) -> None:
    service = start(
        MODEL="axera-sd15-lcm",
        DEVICE=device,
        TEXT_MODEL_DIR=str(tiny_set),
        AXENGINE_DOUBLE=double,
    )
    assert words in why_not_ready(service)


def why_not_ready(service: Service) -> str:
    def state() -> dict[str, Any]:
        return service.client.get("/health/ready").json()

    service.wait_for(lambda: state()["status"] not in ("installing", "loading"))
    assert state()["status"] == "failed"
    return state()["detail"]
