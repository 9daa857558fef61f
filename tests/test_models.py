"""Models and devices over the native routes: what is told, what loads, and what a failed load does
not break."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.models.manifest import Manifest, contents
from tests.conftest import HOME


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> str:
    """Families of the bundled weights with a fault each."""
    root = tmp_path_factory.mktemp("families")
    for name in ("cut-off", "no-tokenizer", "no-index"):
        family = root / name
        shutil.copytree(HOME / "demo" / "weights", family / "weights")
        shutil.copy(HOME / "demo" / "pipeline.py", family)
        facts = (HOME / "demo" / "model.toml").read_text()
        lines = [line for line in facts.splitlines() if not line.startswith("aliases")]
        (family / "model.toml").write_text(
            "\n".join(lines).replace("models.demo", f"models.{name}")
        )
    weights = root / "cut-off" / "weights" / "unet" / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:1000])
    shutil.rmtree(root / "no-tokenizer" / "weights" / "tokenizer")
    (root / "no-index" / "weights" / "model_index.json").unlink()
    return str(root)


def test_the_bundled_model_tells_its_facts(service):
    [model] = [m for m in service.client.get("/models").json()["models"] if m["name"] == "demo"]
    assert model == service.client.get("/models/demo").json()
    assert set(model) >= {
        "name",
        "title",
        "aliases",
        "family",
        "licence",
        "installed",
        "bytes",
        "loaded",
        "devices",
        "defaults",
        "limits",
        "samplers",
    }
    assert model["installed"] is True
    assert model["loaded"] == "CPU"
    assert model["limits"]["steps"] == [1, 150]
    assert model["limits"]["side"] == [64, 512]
    for name in model["aliases"]:
        assert service.client.get(f"/models/{name}").json() == model


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/models/none"), ("POST", "/models/none/load"), ("DELETE", "/models/none/load")],
)
def test_an_unknown_model_is_404_and_the_known_are_told(service, method, path):
    answer = service.client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
    assert "demo" in answer.json()["detail"]


def test_the_devices_are_told_with_reasons(service):
    devices = {device["name"]: device for device in service.client.get("/devices").json()}
    assert devices["CPU"]["available"] is True
    assert {"CPU", "AUTO", "AXERA"} <= set(devices)
    for device in devices.values():
        assert {"name", "full_name", "kind", "available", "reason"} == set(device)
        assert device["available"] or device["reason"]


def test_ready_tells_model_and_device(service):
    assert service.client.get("/health/ready").json() == {
        "status": "ready",
        "model": "demo",
        "device": "CPU",
    }


def serving(brittle) -> tuple[str, str]:
    ready = brittle.client.get("/health/ready").json()
    return ready["model"], ready["device"]


@pytest.fixture
def first(brittle):
    """The shared service with its own model serving, before and after."""
    assert brittle.client.post("/models/brittle/load").status_code == 200
    yield brittle
    assert brittle.client.post("/models/brittle/load").status_code == 200


def test_loading_makes_the_serving_model(first):
    answer = first.client.post("/models/other/load", json={"device": "cpu"})
    assert (answer.status_code, answer.json()["loaded"]) == (200, "CPU")
    assert serving(first) == ("other", "CPU")
    assert first.generate("well")["model"] == "other"
    # the one before is still there for who asks for it
    assert first.generate("well", model="the-double")["model"] == "brittle"


def test_loading_what_is_loaded_changes_nothing(first):
    workers = first.workers()
    assert first.client.post("/models/the-double/load").status_code == 200
    assert first.client.post("/models/brittle/load", json={}).status_code == 200
    assert first.workers() == workers


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("load-raises", "of another planet"),
        ("load-aborts", "SIGABRT"),
        ("load-exits", "exit code 3"),
        ("huge", "MEMORY_BUDGET"),
    ],
)
def test_a_failed_load_says_why_and_the_old_pipeline_serves_on(first, model, words):
    workers = first.workers()
    answer = first.client.post(f"/models/{model}/load")
    assert (answer.status_code, answer.json()["code"]) == (503, "load_failed")
    assert words in answer.json()["detail"]
    assert serving(first) == ("brittle", "CPU")
    assert first.generate("well")["model"] == "brittle"
    assert first.workers() == workers


def test_a_job_for_a_model_that_does_not_load_fails_with_the_reason(first):
    job = first.generate("well", model="load-raises")
    assert (job["state"], job["error"]["code"]) == ("failed", "load_failed")
    assert "of another planet" in job["error"]["message"]
    # The next one is told at once, and when to come back.
    answer = first.client.post("/jobs", json={"prompt": "well", "model": "load-raises"})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert "of another planet" in answer.json()["detail"]
    assert first.generate("well")["state"] == "succeeded"


def test_a_load_on_a_device_that_fails_keeps_the_old_one(first):
    answer = first.client.post("/models/brittle/load", json={"device": "GPU"})
    assert answer.status_code in (422, 503)
    assert serving(first) == ("brittle", "CPU")
    assert first.generate("well")["device"] == "CPU"


@pytest.mark.parametrize(
    ("device", "words"),
    [("TPU", "it runs on"), ("NPU", "it runs on"), ("", "it runs on"), ("x" * 5000, "it runs on")],
)
def test_an_unknown_device_is_refused_with_the_right_ones(first, device, words):
    answer = first.client.post("/models/brittle/load", json={"device": device})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_device")
    assert answer.json()["field"] == "device"
    assert words in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 500


def test_a_device_that_is_not_here_is_refused_with_those_that_are(first):
    answer = first.client.post("/models/brittle/load", json={"device": "GPU.7"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_device")
    assert "not available here" in answer.json()["detail"]


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"device": 5}', b'{"devices": "CPU"}'])
def test_a_bad_body_of_a_load_is_refused(first, body):
    headers = {"Content-Type": "application/json"}
    answer = first.client.post("/models/other/load", content=body, headers=headers)
    assert answer.status_code == 422
    assert serving(first) == ("brittle", "CPU")


def test_a_model_whose_weights_are_not_here_is_409_with_the_command(first):
    for answer in (
        first.client.post("/jobs", json={"prompt": "well", "model": "absent"}),
        first.client.post("/models/absent/load"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "not_installed")
        assert "install absent" in answer.json()["detail"]
    assert first.client.get("/models/absent").json()["installed"] is False


def test_unloading_frees_the_worker_and_the_next_job_loads_again(first):
    assert first.client.delete("/models/brittle/load").status_code == 204
    assert first.client.get("/models/brittle").json()["loaded"] is None
    assert first.client.delete("/models/brittle/load").status_code == 204
    job = first.generate("well")
    assert job["state"] == "succeeded"
    assert job["timings_ms"]["load"] > 0
    assert first.client.get("/models/brittle").json()["loaded"] == "CPU"


def test_a_model_at_a_job_is_not_unloaded(first):
    first.running(job := first.submit("slow", steps=5000))
    answer = first.client.delete("/models/brittle/load")
    assert (answer.status_code, answer.json()["code"]) == (409, "busy")
    assert first.job(job)["state"] == "running"
    first.client.delete(f"/jobs/{job}")


def test_the_old_pipeline_serves_while_a_new_one_loads(first):
    with ThreadPoolExecutor(1) as threads:
        began = time.monotonic()
        loading = threads.submit(first.client.post, "/models/load-slow/load")
        job = first.generate("well", model="brittle")
        between = time.monotonic() - began
        assert job["state"] == "succeeded"
        assert between > 2 or not loading.done()
        assert loading.result().status_code == 200
    assert serving(first) == ("load-slow", "CPU")


def test_many_loads_at_once_end_with_one_worker_each(first):
    with ThreadPoolExecutor(8) as threads:
        names = ["brittle", "other"] * 6
        answers = list(threads.map(lambda name: first.client.post(f"/models/{name}/load"), names))
    assert [answer.status_code for answer in answers] == [200] * 12
    for name in ("brittle", "other"):
        assert first.generate("well", model=name)["state"] == "succeeded"


def test_the_limits_of_a_compiled_model_are_told(first):
    body = {"prompt": "well", "model": "fixed"}
    for keys, field, words in (
        ({"width": 96}, "width", "64x64, 128x64"),
        ({"guidance": 25}, "guidance", "0.0 to 20.0"),
        ({"negative_prompt": "x"}, "negative_prompt", "no negative prompt"),
        ({"init_image": "/jobs/x"}, "init_image", "base64"),
    ):
        answer = first.client.post("/jobs", json={**body, **keys})
        assert (answer.status_code, answer.json()["field"]) == (422, field)
        assert words in answer.json()["detail"]
    assert first.generate("well", model="fixed", width=128)["state"] == "succeeded"


# The real runtime


@pytest.mark.parametrize(
    ("model", "words"),
    [("cut-off", "weights"), ("no-tokenizer", ""), ("no-index", "model_index.json")],
)
def test_weights_that_the_runtime_refuses_leave_the_service_serving(shared_broken, model, words):
    answer = shared_broken.client.post(f"/models/{model}/load")
    assert (answer.status_code, answer.json()["code"]) == (503, "load_failed")
    assert words in answer.json()["detail"]
    assert "Traceback" not in answer.text
    assert serving(shared_broken) == ("brittle", "CPU")
    assert shared_broken.generate("well")["state"] == "succeeded"


@pytest.fixture(scope="module")
def shared_broken(broken, doubles, tmp_path_factory):
    from tests.conftest import Service

    settings = {"MODEL": "brittle", "MODELS_PATH": f"{doubles}:{broken}", "GRACE": "0"}
    service = Service(tmp_path_factory.mktemp("broken"), settings).ready()
    yield service
    service.stop()


def test_a_service_whose_model_does_not_load_says_so_and_can_be_given_another(start, doubles):
    service = start(MODEL="load-raises", MODELS_PATH=doubles)
    service.wait_for(
        lambda: service.client.get("/health/ready").json()["status"] == "failed", seconds=60
    )
    ready = service.client.get("/health/ready")
    assert ready.status_code == 503
    assert "of another planet" in ready.json()["detail"]
    assert service.client.get("/health").status_code == 200
    answer = service.client.post("/jobs", json={"prompt": "well"})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert service.generate("well", model="brittle")["state"] == "succeeded"
    assert service.client.post("/models/other/load").status_code == 200
    assert service.client.get("/health/ready").status_code == 200
    assert service.generate("well")["model"] == "other"


def test_a_load_that_never_ends_is_ended(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles, LOAD_TIMEOUT="3").ready()
    answer = service.client.post("/models/load-hangs/load")
    assert (answer.status_code, answer.json()["code"]) == (503, "load_failed")
    assert "LOAD_TIMEOUT" in answer.json()["detail"]
    assert len(service.workers()) == 1
    assert service.generate("well")["state"] == "succeeded"


def test_what_another_process_installs_is_known_without_a_restart(brittle):
    """`python -m app install` beside a running service, as it leaves the disk."""
    models = brittle.folder / "data" / "models"
    staged = models / ".installing" / "somebody--shapes"
    shutil.copytree(HOME / "demo" / "weights", staged)
    Manifest(
        model="somebody--shapes",
        reference="somebody/shapes",
        repository="somebody/shapes",
        revision="main",
        format="int8",
        converted=False,
        like="demo",
        files=contents(staged, lambda done: None),
    ).write(staged)
    assert brittle.client.get("/models/somebody/shapes").status_code == 404
    staged.rename(models / "somebody--shapes")
    brittle.wait_for(lambda: brittle.client.get("/models/somebody--shapes").status_code == 200)
    job = brittle.generate("a red circle", model="somebody/shapes", steps=1)
    assert job["model"] == "somebody--shapes"
    shutil.rmtree(models / "somebody--shapes")
