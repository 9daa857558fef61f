"""What was accepted is done or its failure told, however often the service dies in between."""

import subprocess
import threading
from pathlib import Path

import pytest

from tests.conftest import serve_and_fail
from tests.pictures import encoded, gradient


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has collected yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def breakable(start, doubles):
    """A service with the double, for one test."""
    return start(MODEL="brittle", MODELS_PATH=doubles, GRACE="0").ready()


def test_twenty_accepted_jobs_survive_kill_9_and_a_recipe_its_bytes(start):
    service = start().ready()
    reference = service.generate(seed=11, steps=4)
    key = {"Idempotency-Key": "across restarts"}
    body = {"prompt": "a red circle", "steps": 4, "seed": 1}
    keyed = service.client.post("/jobs", json=body, headers=key).json()["id"]
    jobs = [keyed] + [service.submit(seed=n, steps=4) for n in range(19)]
    picture = service.picture(reference)
    service.kill()
    service.start()
    ended = [service.ended(job) for job in jobs]
    assert [job["state"] for job in ended] == ["succeeded"] * 20
    assert all(service.picture(job) for job in ended)
    assert service.client.post("/jobs", json=body, headers=key).json()["id"] == keyed
    assert service.client.post("/jobs", json={"prompt": "x"}, headers=key).status_code == 422
    assert service.job(reference["id"]) == reference
    assert service.picture(reference) == picture
    assert service.picture(service.generate(seed=11, steps=4)) == picture


def test_the_running_and_the_waiting_go_on_in_their_order(breakable):
    jobs = [breakable.submit("slow", steps=20, seed=n) for n in range(4)]
    breakable.running(jobs[0])
    breakable.kill()
    breakable.start()
    started = [breakable.ended(job)["started"] for job in jobs]
    assert started == sorted(started)
    assert {breakable.job(job)["state"] for job in jobs} == {"succeeded"}
    assert sum(breakable.job(job)["recipe"]["seed"] for job in jobs) == 6


def test_a_job_that_ran_while_the_service_died_twice_is_failed_with_the_reason(breakable):
    job, other = breakable.submit("slow", steps=100_000), breakable.submit("well")
    for _ in range(2):
        breakable.running(job)
        breakable.kill()
        breakable.start()
    ended = breakable.ended(job)
    assert ended["state"] == "failed"
    assert ended["error"]["code"] == "worker_died"
    assert "twice" in ended["error"]["message"]
    assert breakable.ended(other)["state"] == "succeeded"


def test_a_canceled_job_stays_canceled(breakable):
    breakable.running(job := breakable.submit("slow", steps=100_000))
    waiting = breakable.submit("well")
    for canceled in (waiting, job):
        breakable.client.delete(f"/jobs/{canceled}")
    breakable.kill()
    breakable.start()
    breakable.generate("well")
    assert [breakable.job(j)["state"] for j in (job, waiting)] == ["canceled"] * 2


def test_the_pictures_a_job_starts_from_survive_too(breakable):
    breakable.running(breakable.submit("slow", steps=30))
    job = breakable.submit("well", init_image=encoded(gradient(64, 64)))
    breakable.kill()
    breakable.start()
    assert breakable.ended(job)["state"] == "succeeded"


def test_no_worker_outlives_a_killed_service(breakable):
    breakable.running(breakable.submit("hang"))
    [pid] = breakable.workers()
    breakable.kill()
    breakable.wait_for(lambda: gone(pid), seconds=20)
    breakable.start()


def test_no_worker_outlives_a_service_killed_while_it_loads(start, doubles):
    service = start(MODEL="load-hangs", MODELS_PATH=doubles, GRACE="0")
    service.wait_for(lambda: len(service.workers()) == 1)
    [pid] = service.workers()
    service.kill()
    service.wait_for(lambda: gone(pid), seconds=20)


def test_sigterm_lets_the_running_job_finish_and_takes_no_new_ones(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles, GRACE="60").ready()
    service.running(job := service.submit("slow", steps=100))
    waiting = service.submit("well")
    service.process.terminate()
    service.wait_for(lambda: "draining" in [line["event"] for line in service.log_lines()])
    answer = service.client.post("/jobs", json={"prompt": "well"})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert service.client.get("/health").json() == {"status": "healthy"}
    assert service.job(job)["state"] == "running"
    [pid] = service.workers()
    service.process.wait(60)
    assert gone(pid)
    assert "traceback" not in service.log()
    finished = [line for line in service.log_lines() if line["event"] == "job ended"]
    assert [(line["job"], line["state"]) for line in finished] == [(job, "succeeded")]
    service.start()
    assert service.job(job)["state"] == "succeeded"
    assert service.ended(waiting)["state"] == "succeeded"


def test_sigterm_takes_the_next_job_back_from_the_worker_that_has_it_already(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles, GRACE="60").ready()
    warm = service.generate("well", model="elsewhere")["id"]  # its load would outlast the first
    service.running(first := service.submit("slow", steps=75))
    service.running(longer := service.submit("slow", steps=125, model="elsewhere"))
    following = service.submit("slow", steps=10)
    events = service.follow(following)
    service.process.terminate()
    told = list(events)
    service.process.wait(60)
    ended = [line["job"] for line in service.log_lines() if line["event"] == "job ended"]
    assert ended == [warm, first, longer]
    assert [(event.kind, event.data["state"]) for event in told] == [("state", "queued")]
    service.start()
    assert service.ended(following)["state"] == "succeeded"


def test_without_grace_the_running_job_goes_back_to_the_queue_as_often_as_need_be(breakable):
    """A stop in good order is not the job's fault, so it does not count as an attempt."""
    job = breakable.submit("slow", steps=60)
    for _ in range(3):
        breakable.running(job)
        breakable.stop()
        assert "job ended" not in [line["event"] for line in breakable.log_lines()]
        breakable.start()
    assert breakable.ended(job)["state"] == "succeeded"


def test_a_second_signal_ends_the_service_at_once(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles, GRACE="3600").ready()
    service.running(job := service.submit("slow", steps=100_000))
    service.process.terminate()
    service.wait_for(lambda: "draining" in [line["event"] for line in service.log_lines()])
    service.process.terminate()
    service.process.wait(30)
    assert "traceback" not in service.log()
    service.client.close()
    service.start()
    assert service.job(job)["state"] in ("queued", "running")
    service.client.delete(f"/jobs/{job}")


def test_listeners_and_waiters_do_not_hold_up_the_end(breakable):
    breakable.running(job := breakable.submit("slow", steps=100_000))
    heard: list = []
    listener = threading.Thread(target=lambda: heard.extend(breakable.events(job)))
    waiter = threading.Thread(target=lambda: heard.append(_waited(breakable)))
    listener.start()
    waiter.start()
    breakable.wait_for(lambda: breakable.client.get("/jobs").json()["jobs"][0]["id"] != job)
    breakable.process.terminate()
    breakable.process.wait(30)
    listener.join(10)
    waiter.join(10)
    assert not listener.is_alive()
    assert (202, "queued") in heard
    assert "traceback" not in breakable.log()


def _waited(service):
    answer = service.client.post("/jobs", json={"prompt": "well"}, headers={"Prefer": "wait=600"})
    return answer.status_code, answer.json()["state"]


def test_a_second_service_on_the_same_folder_is_refused(breakable, doubles):
    """It would run the first one's jobs a second time."""
    line = serve_and_fail(DATA_DIR=str(breakable.folder / "data"))
    assert "in use by another Easel" in line
    assert breakable.generate("well")["state"] == "succeeded"


def test_records_that_are_damaged_stop_the_start_with_one_line(breakable):
    breakable.stop()
    folder = breakable.folder / "data"
    for name in ("easel.db-wal", "easel.db-shm"):
        (folder / name).unlink(missing_ok=True)
    (folder / "easel.db").write_bytes(b"no database " * 1000)
    assert "records" in serve_and_fail(DATA_DIR=str(folder))


def test_the_service_is_ended_by_ctrl_c_too(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles).ready()
    service.process.send_signal(2)
    try:
        service.process.wait(30)
    except subprocess.TimeoutExpired:
        pytest.fail("SIGINT did not end the service")
    assert "Traceback" not in service.log()
