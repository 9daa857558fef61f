"""A worker may die, hang, babble or answer nonsense: it costs its job a retry or an error, nothing
else."""

import io
import os
import signal

import pytest
from PIL import Image


def kill_worker(service, job_id: str) -> int:
    """kill -9 of the worker in the middle of a job; its process id."""
    service.running(job_id)
    [pid] = service.workers()
    os.kill(pid, signal.SIGKILL)
    return pid


def pixels(service, job: dict) -> bytes:
    return Image.open(io.BytesIO(service.picture(job))).tobytes()


@pytest.fixture(autouse=True)
def the_service_goes_on(brittle):
    """After every fault: the same service process, and the next job is made."""
    process = brittle.process.pid
    yield
    assert brittle.generate("well")["state"] == "succeeded"
    assert brittle.process.pid == process
    assert brittle.process.poll() is None
    assert not [line for line in brittle.log_lines() if "traceback" in line]


def test_a_preview_that_fails_costs_no_picture(brittle):
    def complaints() -> list[dict]:
        return [line for line in brittle.log_lines() if "no preview" in line.get("line", "")]

    assert brittle.generate("blind", steps=3)["state"] == "succeeded"
    assert not complaints()  # nobody looked, so none was made
    blocker = brittle.submit("slow", steps=500)
    events = brittle.follow(brittle.submit("blind", steps=3))
    brittle.client.delete(f"/jobs/{blocker}")
    kinds = [event.kind for event in events]
    assert kinds == ["state", "state", *["progress"] * 3, "done"]
    assert len(complaints()) == 3


def test_a_killed_worker_costs_its_job_one_retry(brittle):
    job = brittle.submit("slow", steps=60)
    pid = kill_worker(brittle, job)
    assert brittle.ended(job)["state"] == "succeeded"
    assert pid not in brittle.workers()


def test_the_retry_is_told_as_going_back_to_the_queue(brittle):
    job = brittle.submit("slow", steps=60)
    kill_worker(brittle, job)
    events = list(brittle.events(job))
    states = [event.data["state"] for event in events if event.kind in ("state", "done")]
    assert states[-4:] == ["running", "queued", "running", "succeeded"]
    steps = [event.data["step"] for event in events if event.kind == "progress"]
    assert steps[-60:] == list(range(1, 61))


def test_a_worker_killed_twice_fails_its_job_with_the_reason(brittle):
    job = brittle.submit("slow", steps=5000)
    first = kill_worker(brittle, job)
    brittle.wait_for(lambda: brittle.workers() not in ([], [first]))
    brittle.wait_for(lambda: brittle.job(job)["state"] == "running")
    kill_worker(brittle, job)
    ended = brittle.ended(job)
    assert ended["state"] == "failed"
    assert ended["error"]["code"] == "worker_died"
    assert "SIGKILL" in ended["error"]["message"]
    assert ended["images"] == []


def test_the_next_job_does_not_pay_for_the_worker_that_had_it_already(brittle):
    brittle.running(doomed := brittle.submit("hang"))
    events = brittle.follow(brittle.submit("well"))
    first = kill_worker(brittle, doomed)
    brittle.wait_for(lambda: brittle.workers() not in ([], [first]))
    kill_worker(brittle, doomed)
    assert brittle.ended(doomed)["state"] == "failed"
    told = [event.data["state"] for event in events if event.kind in ("state", "done")]
    assert told == ["queued", "running", "succeeded"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("abort", "SIGABRT"), ("kill", "SIGKILL"), ("exit", "exit code 7")],
)
def test_a_pipeline_that_takes_its_process_down_is_tried_twice(brittle, prompt, words):
    job = brittle.generate(prompt)
    assert job["state"] == "failed"
    assert job["error"]["code"] == "worker_died"
    assert words in job["error"]["message"]
    tried = [line for line in brittle.log_lines() if line.get("job") == job["id"]]
    assert [line["event"] for line in tried] == ["trying again", "job ended"]


def test_an_abort_tells_the_last_words_of_the_runtime(brittle):
    assert "terminate called by the double" in brittle.generate("abort")["error"]["message"]


@pytest.mark.parametrize("fault", ["abort", "kill", "exit"])
def test_a_pipeline_that_breaks_once_costs_nothing_but_time(brittle, fault):
    job = brittle.generate(f"once {fault}", seed=1)
    assert job["state"] == "succeeded"
    assert job["error"] is None
    assert pixels(brittle, job) == pixels(brittle, brittle.generate("well", seed=1))


def test_an_exception_is_told_and_its_worker_lives_on(brittle):
    brittle.generate("well")
    workers = brittle.workers()
    job = brittle.generate("raise")
    assert (job["state"], job["error"]["code"]) == ("failed", "generation_failed")
    assert "the double was asked to raise" in job["error"]["message"]
    assert brittle.workers() == workers


@pytest.mark.parametrize("prompt", ["nan", "small", "nothing"])
def test_a_result_that_is_no_picture_of_the_asked_size_fails_the_job(brittle, prompt):
    job = brittle.generate(prompt)
    assert (job["state"], job["error"]["code"]) == ("failed", "generation_failed")
    assert job["images"] == []


def test_a_runtime_that_prints_without_end_is_not_blocked(brittle):
    assert brittle.generate("chatter")["state"] == "succeeded"


def test_the_jobs_behind_a_dying_one_are_all_made(brittle):
    brittle.running(first := brittle.submit("slow", steps=5000))
    jobs = [brittle.submit(prompt) for prompt in ("well", "abort", "well", "raise", "exit", "well")]
    brittle.client.delete(f"/jobs/{first}")
    states = [brittle.ended(job)["state"] for job in jobs]
    assert states == ["succeeded", "failed", "succeeded", "failed", "failed", "succeeded"]


def test_an_idle_worker_that_dies_is_replaced_unnoticed(brittle):
    brittle.generate("well")
    [pid] = brittle.workers()
    os.kill(pid, signal.SIGKILL)
    job = brittle.generate("well")
    assert (job["state"], job["error"]) == ("succeeded", None)


def test_a_worker_that_hangs_is_killed_and_its_job_told_why(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles, STALL_TIMEOUT="1").ready()
    job = service.generate("hang")
    assert (job["state"], job["error"]["code"]) == ("failed", "worker_died")
    assert "STALL_TIMEOUT" in job["error"]["message"]
    assert "memory" not in job["error"]["message"]
    # Slow is not stuck: every step is a sign of life.
    assert service.generate("slow", steps=75)["state"] == "succeeded"


def test_jobs_that_come_and_go_behind_it_are_no_sign_of_life_of_one_that_hangs(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles, STALL_TIMEOUT="1").ready()
    job = service.submit("hang")

    def ended() -> bool:
        service.client.delete(f"/jobs/{service.submit('well')}")
        return service.job(job)["state"] == "failed"

    service.wait_for(ended)
    assert service.job(job)["error"]["code"] == "worker_died"


def test_the_bundled_models_worker_can_be_killed_in_mid_job(service):
    reference = service.generate(seed=6, steps=30)
    job = service.submit(seed=6, steps=30)
    service.running(job, step=3)
    [pid] = service.workers()
    os.kill(pid, signal.SIGKILL)
    ended = service.ended(job)
    assert ended["state"] == "succeeded"
    assert service.picture(ended) == service.picture(reference)
