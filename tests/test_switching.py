"""Switching between models within a memory budget: who stays, who goes, and where the memory is."""

import shutil
from pathlib import Path

import psutil
import pytest

from tests.conftest import HOME, Service

MEMORY = 400  # MB that each of the test's models says it takes
ROUND = ("first", "second", "third")


@pytest.fixture
def families(tmp_path: Path) -> str:
    """Three models that share the bundled weights, and one that no machine can hold."""
    folder = tmp_path / "families" / "copies"
    folder.mkdir(parents=True)
    shutil.copy(HOME / "demo" / "pipeline.py", folder)
    (folder / "weights").symlink_to(HOME / "demo" / "weights")
    models = "".join(
        f"[models.{name}]\ntitle = '{name}'\nlimits.memory = {memory * 2**20}\n"
        for name, memory in (*((name, MEMORY) for name in ROUND), ("enormous", 2**30))
    )
    (folder / "model.toml").write_text(
        "licence = 'Apache-2.0'\ndevices = ['CPU']\nsamplers = ['euler']\n"
        "weights.path = 'weights'\n"
        "defaults = { width = 128, height = 128, steps = 2, guidance = 4.0, sampler = 'euler' }\n"
        "limits = { steps = [1, 50], side = [64, 512], multiple_of = 16, guidance = [0.0, 20.0] }\n"
        + models
    )
    return str(folder.parent)


def loaded(service: Service) -> set[str]:
    models = service.client.get("/models").json()["models"]
    return {model["name"] for model in models if model["loaded"]}


def memory(service: Service) -> float:
    """MB that the service and its workers take."""
    process = psutil.Process(service.process.pid)
    return sum(p.memory_info().rss for p in (process, *process.children(recursive=True))) / 2**20


def test_the_least_recently_used_pipeline_makes_room(start, families):
    service = start(
        MODELS_PATH=families, MODEL="first", MEMORY_BUDGET=str(2 * MEMORY + 50), MACHINE_SIZE="big"
    ).ready()
    service.generate(model="second")
    assert loaded(service) == {"first", "second"}
    service.generate(model="first")
    service.generate(model="third")
    assert loaded(service) == {"first", "third"}
    assert len(service.workers()) == 2


def test_a_pipeline_goes_only_when_its_pictures_are_encoded(start, families):
    """A worker that still encodes is not idle: ended, it would cost the job another attempt."""
    settings = {"MEMORY_BUDGET": str(MEMORY + 50), "MACHINE_SIZE": "big", "STARVATION": "0"}
    service = start(MODELS_PATH=families, MODEL="first", **settings).ready()
    slow = {"steps": 1, "images": 4, "format": "webp", "width": 512, "height": 512}
    jobs = [service.submit(model=ROUND[n % 2], **slow) for n in range(4)]
    assert [service.ended(job)["state"] for job in jobs] == ["succeeded"] * 4
    job = service.submit(model="first", **slow)
    while service.job(job)["finished"] is None:
        assert service.client.delete("/models/first/load").status_code in (200, 204, 409)
    assert service.job(job)["state"] == "succeeded"
    assert not [line for line in service.log_lines() if line["event"] == "trying again"]


@pytest.fixture
def cramped(start, doubles) -> Service:
    """Room for one pipeline at a time, whatever its model."""
    return start(MODELS_PATH=doubles, MODEL="brittle", MEMORY_BUDGET="5").ready()


def test_a_job_that_is_canceled_after_its_last_step_lets_the_next_model_in(cramped):
    canceled = cramped.submit("lingers", steps=3)
    cramped.wait_for(lambda: cramped.job(canceled)["progress"]["step"] == 3)
    job = cramped.submit("well", model="other")
    cramped.client.delete(f"/jobs/{canceled}")
    assert cramped.ended(job)["state"] == "succeeded"
    assert cramped.generate("well")["state"] == "succeeded"


def test_two_devices_with_room_for_one_pipeline_take_turns(cramped):
    """A pipeline that was just loaded is not ended before its job has begun."""
    jobs = [cramped.submit("slow", model=name) for name in ("other", "elsewhere") * 2]
    assert {cramped.ended(job)["state"] for job in jobs} == {"succeeded"}
    loads = [line for line in cramped.log_lines() if line["event"] == "loaded"]
    assert len(loads) <= 1 + len(jobs)


def test_only_so_many_pipelines_stay_warm_as_the_machine_is_good_for(start, families):
    service = start(MODELS_PATH=families, MODEL="first", MACHINE_SIZE="tiny").ready()
    service.generate(model="second")
    assert loaded(service) == {"second"}


def test_a_model_that_does_not_fit_alone_is_refused_with_the_numbers(start, families):
    service = start(MODELS_PATH=families, MODEL="first", MEMORY_BUDGET="1000").ready()
    answer = service.client.post("/models/enormous/load")
    assert answer.status_code == 503
    assert "1073741824 MB" in answer.json()["detail"]
    assert "1000 MB" in answer.json()["detail"]
    assert service.generate()["model"] == "first"


def test_the_serving_pipeline_goes_on_while_another_loads(start, families):
    service = start(MODELS_PATH=families, MODEL="first", MACHINE_SIZE="big").ready()
    running = service.submit(steps=50, images=4)
    service.wait_for(lambda: service.job(running)["progress"]["step"] > 2)
    assert service.client.post("/models/second/load").json()["loaded"] == "CPU"
    job = service.job(running)
    assert job["state"] in ("running", "succeeded")
    assert service.ended(running)["state"] == "succeeded"
    assert service.generate()["model"] == "second"


def test_a_load_waits_for_what_the_worker_has_where_there_is_room_for_one(cramped):
    """The running job and the next one, which the worker has already; not for the one behind."""
    # The first one is at work for two seconds, in which the load is asked for.
    jobs = [cramped.submit("slow", steps=steps) for steps in (100, 25, 25)]
    events = cramped.follow(jobs[1])
    cramped.running(jobs[0])
    assert cramped.client.post("/models/other/load").status_code == 200
    assert {cramped.ended(job)["state"] for job in jobs} == {"succeeded"}
    steps = [event.data["step"] for event in events if event.kind == "progress"]
    assert steps == list(range(1, 26))
    lines = cramped.log_lines()
    ends = [line for line in lines if line["event"] in ("loaded", "job ended")]
    order = [line.get("job") or line["model"] for line in ends]
    assert order == ["brittle", *jobs[:2], "other", "brittle", jobs[2]]


def test_an_idle_pipeline_is_unloaded_and_the_next_job_loads_it_again(start):
    service = start(IDLE_UNLOAD="0.5").ready()
    service.wait_for(lambda: not service.workers())
    assert service.answers("/health/ready") == 200
    assert service.generate()["state"] == "succeeded"


@pytest.mark.slow
def test_thirty_switches_leave_no_memory_behind(start, families):
    service = start(MODELS_PATH=families, MODEL="first", MEMORY_BUDGET=str(MEMORY + 50)).ready()
    for name in ROUND:
        service.generate(model=name)
    after_one_round = memory(service)
    for _ in range(10):
        for name in ROUND:
            assert service.generate(model=name)["state"] == "succeeded"
    assert memory(service) < after_one_round + 50
    # The gauge sees what stays: one more pipeline beside the last one is well over the 50 MB.
    roomy = start(MODELS_PATH=families, MODEL="first", MACHINE_SIZE="big").ready()
    one = memory(roomy)
    roomy.generate(model="second")
    assert memory(roomy) > one + 50
