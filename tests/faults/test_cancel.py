"""A canceled job gives its device back: within a step, or by the death of its worker."""

import random
import threading

import pytest


def test_a_running_job_ends_at_once_and_its_worker_goes_on(brittle):
    job = brittle.submit("slow", steps=5000)
    brittle.running(job)
    workers = brittle.workers()
    answer = brittle.client.delete(f"/jobs/{job}")
    assert answer.json()["state"] == "canceled"
    assert brittle.generate("well")["state"] == "succeeded"
    assert brittle.workers() == workers


def test_the_bundled_model_stops_within_a_step_and_is_none_the_worse(service):
    """Of 150 steps of a large picture only a few are made; the next picture is the same as ever."""
    reference = service.picture(service.generate(seed=2))
    workers = service.workers()
    job = service.submit(width=512, height=512, steps=150)
    service.running(job, step=2)
    canceled = service.client.delete(f"/jobs/{job}").json()
    assert canceled["state"] == "canceled"
    assert canceled["progress"]["step"] < 100
    after = service.generate(seed=2)
    assert service.picture(after) == reference
    assert service.workers() == workers
    assert service.job(job) == canceled


def test_nothing_is_told_of_a_job_after_its_cancellation(brittle):
    job = brittle.submit("slow", steps=5000)
    stream = brittle.events(job)
    brittle.running(job, step=2)
    brittle.client.delete(f"/jobs/{job}")
    events = list(stream)
    assert [event.kind for event in events].count("done") == 1
    assert events[-1].kind == "done"


def test_a_pipeline_that_ignores_it_costs_its_worker(brittle):
    """After CANCEL_TIMEOUT, which is three seconds here."""
    job = brittle.submit("deaf")
    brittle.running(job)
    workers = brittle.workers()
    assert brittle.client.delete(f"/jobs/{job}").json()["state"] == "canceled"
    assert brittle.generate("well")["state"] == "succeeded"
    assert brittle.workers() != workers
    assert brittle.job(job)["state"] == "canceled"


def test_a_job_canceled_while_its_model_loads_frees_the_device(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles).ready()
    job = service.submit("well", model="load-hangs")
    service.wait_for(lambda: service.job(job)["state"] == "running")
    waiting = service.submit("well")
    assert service.client.delete(f"/jobs/{job}").json()["state"] == "canceled"
    assert service.ended(waiting, seconds=20)["state"] == "succeeded"


def test_canceling_twice_changes_nothing(brittle):
    brittle.running(first := brittle.submit("slow", steps=5000))
    job = brittle.submit("well")
    brittle.client.delete(f"/jobs/{job}")
    brittle.client.delete(f"/jobs/{first}")
    assert brittle.client.delete(f"/jobs/{job}").status_code == 204
    assert brittle.client.delete(f"/jobs/{job}").status_code == 404


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whenever_a_cancel_comes_the_record_agrees_with_what_was_told(brittle, seed):
    """Sixty jobs in flight, each canceled at some moment of its life: what DELETE and the event
    stream said last is what the record says for ever."""
    moments = random.Random(seed)
    told: dict[str, str] = {}

    def hand_in_and_cancel(delay: float) -> None:
        job = brittle.submit("well", steps=1)
        threading.Event().wait(delay)
        answer = brittle.client.delete(f"/jobs/{job}")
        told[job] = answer.json()["state"] if answer.status_code == 202 else "deleted"

    threads = [
        threading.Thread(target=hand_in_and_cancel, args=(moments.uniform(0, 0.1),))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(told) == 20
    assert brittle.generate("well")["state"] == "succeeded"
    for job, state in told.items():
        answer = brittle.client.get(f"/jobs/{job}")
        if state == "deleted":
            assert answer.status_code == 404
        else:
            assert answer.json()["state"] == state in ("canceled", "succeeded")
            *_, last = brittle.events(job)
            assert last.data["state"] == state
            for image in answer.json()["images"]:
                assert brittle.client.get(image["url"]).status_code == 200
    active = [brittle.client.get(f"/jobs?state={s}").json()["jobs"] for s in ("queued", "running")]
    assert active == [[], []]
