"""The /pipeline routes, and each fault of the service they come from: impossible here."""

import io

import pytest
from PIL import Image

from tests.pictures import encoded, gradient

BUSY = "Pipeline execution is already running or pipeline is not initialized."
STARTED = "Pipeline execution started in background."
NOT_COMPLETE = "Pipeline execution is not yet complete."


@pytest.fixture
def face(brittle):
    """The shared service, with nothing running before and after."""
    brittle.client.post("/pipeline/cancel")
    brittle.client.post("/models/brittle/load")
    yield brittle
    brittle.client.post("/pipeline/cancel")


def run(service, prompt="well", **keys) -> str:
    answer = service.client.post("/pipeline/run", json={"prompt": prompt, **keys})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "status": "success",
        "message": STARTED,
        "job": answer.json()["job"],
    }
    return answer.json()["job"]


def status(service) -> dict:
    return service.client.get("/pipeline/status").json()


def error(answer) -> str:
    """The message of an error in this dialect."""
    assert answer.json() == {"status": "error", "message": answer.json()["message"]}
    return answer.json()["message"]


def completed(service) -> dict:
    service.wait_for(lambda: not status(service)["running"])
    return status(service)


def test_the_whole_way_as_the_documents_describe_it(service):
    answer = service.client.post("/pipeline/select-device", json={"device": "CPU"})
    assert answer.json() == {"status": "success", "message": "Pipeline prepared on CPU."}
    job = run(
        service,
        "a red circle on a blue background",
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=3.5,
        negative_prompt="blurry",
        seed=5,
    )
    assert completed(service) == {
        "running": False,
        "completed": True,
        "job": job,
        "step": 3,
        "steps": 3,
        "device": "CPU",
        "model": "demo",
        "error": None,
    }
    answer = service.client.get("/pipeline/image")
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
    recipe = service.job(job)["recipe"]
    assert (recipe["steps"], recipe["guidance"], recipe["seed"]) == (3, 3.5, 5)
    assert recipe["negative_prompt"] == "blurry"


def test_an_image_makes_it_image_to_image(service):
    run(service, "a house", image=encoded(gradient()), strength=0.5, num_inference_steps=4)
    job = completed(service)["job"]
    assert service.job(job)["recipe"]["strength"] == 0.5
    assert service.job(job)["recipe"]["init_image"]


def test_before_the_first_run_there_is_nothing_to_tell(start, doubles):
    service = start(MODEL="load-slow", MODELS_PATH=doubles)
    answer = service.client.post("/pipeline/run", json={"prompt": "well"})
    assert (answer.status_code, error(answer)) == (409, BUSY)
    assert status(service) == {
        "running": False,
        "completed": False,
        "job": None,
        "step": 0,
        "steps": 0,
        "device": "CPU",
        "model": "load-slow",
        "error": None,
    }
    answer = service.client.get("/pipeline/image")
    assert (answer.status_code, error(answer)) == (409, NOT_COMPLETE)
    assert service.client.post("/pipeline/cancel").json()["status"] == "success"
    service.ready()
    run(service)


def test_an_unknown_or_absent_device_is_400_and_not_a_success(face):
    for device in ("TPU", "GPU.9", "cpux", ""):
        answer = face.client.post("/pipeline/select-device", json={"device": device})
        assert answer.status_code == 400
        assert error(answer)
    assert face.client.post("/pipeline/select-device", json={"device": "cpu"}).is_success


def test_a_failed_compile_is_500_and_the_old_pipeline_is_not_dropped(face):
    for model in ("load-raises", "load-aborts"):
        answer = face.client.post("/pipeline/select-device", json={"device": "CPU", "model": model})
        assert answer.status_code == 500
        assert error(answer)
        assert status(face)["model"] == "brittle"
        run(face)
        assert completed(face)["completed"]


def test_an_unknown_model_is_400(face):
    answer = face.client.post("/pipeline/select-device", json={"device": "CPU", "model": "dall-e"})
    assert answer.status_code == 400
    assert "dall-e" in error(answer)


def test_reading_the_status_does_not_let_a_second_run_in(face):
    job = run(face, "slow", num_inference_steps=5000)
    for _ in range(5):
        assert status(face)["running"] is True
        answer = face.client.post("/pipeline/run", json={"prompt": "well"})
        assert (answer.status_code, error(answer)) == (409, BUSY)
    assert status(face)["job"] == job


def test_a_device_is_not_changed_under_a_run(face):
    run(face, "slow", num_inference_steps=5000)
    answer = face.client.post("/pipeline/select-device", json={"device": "CPU"})
    assert answer.status_code == 409
    assert error(answer)


def test_an_old_picture_is_not_served_as_the_new_one(face):
    run(face, seed=1)
    assert completed(face)["completed"]
    assert face.client.get("/pipeline/image").status_code == 200
    run(face, "slow", num_inference_steps=5000)
    assert status(face)["completed"] is False
    answer = face.client.get("/pipeline/image")
    assert (answer.status_code, error(answer)) == (409, NOT_COMPLETE)


def test_the_picture_is_there_as_often_as_it_is_asked_for(face):
    run(face, seed=2)
    completed(face)
    pictures = [face.client.get("/pipeline/image").content for _ in range(3)]
    assert pictures[0] == pictures[1] == pictures[2]
    assert pictures[0].startswith(b"\x89PNG")


def test_a_failed_run_is_told_and_the_next_one_works(face):
    run(face, "raise")
    failed = completed(face)
    assert failed["completed"] is False
    assert "the double was asked to raise" in failed["error"]
    assert face.client.get("/pipeline/image").status_code == 409
    run(face)
    assert completed(face)["error"] is None


def test_a_run_can_be_canceled(face):
    job = run(face, "slow", num_inference_steps=5000)
    answer = face.client.post("/pipeline/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "success")
    assert status(face)["running"] is False
    assert face.job(job)["state"] == "canceled"
    run(face)
    assert completed(face)["completed"]


def test_jobs_of_other_doors_are_not_this_ones_last_run(face):
    job = run(face)
    completed(face)
    face.generate("raise")
    assert status(face)["job"] == job
    assert status(face)["error"] is None


@pytest.mark.parametrize(
    "keys",
    [
        {"prompt": ""},
        {"prompt": None},
        {"width": 0},
        {"height": 100_000},
        {"num_inference_steps": 0},
        {"guidance_scale": -1},
        {"seed": -1},
        {"strength": 0.5},
        {"image": "!!!"},
        {"steps": 5},
        {"seed": "5"},
    ],
    ids=str,
)
def test_ranges_are_checked(face, keys):
    answer = face.client.post("/pipeline/run", json={"prompt": "well", **keys})
    assert answer.status_code == 422
    assert error(answer)
    assert status(face)["running"] is False


def test_the_last_run_is_remembered_over_a_restart(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles, GRACE="0").ready()
    job = run(service, seed=3)
    before = completed(service)
    picture = service.client.get("/pipeline/image").content
    service.kill()
    service.start()
    assert status(service) == before
    assert before["job"] == job
    assert service.client.get("/pipeline/image").content == picture
