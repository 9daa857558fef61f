"""Clients that hang up, and clients that ask again."""

import base64
import contextlib
import threading
import time

import httpx
import openai
import pytest

from tests.clients.conftest import ENDLESS
from tests.conftest import DOUBLES
from tests.pictures import encoded, gradient

FACES = {
    "/generate": ENDLESS,
    "/inference": ENDLESS,
    "/sdapi/v1/txt2img": {**ENDLESS, "width": 64, "height": 64},
    "/sdapi/v1/img2img": {**ENDLESS, "init_images": [encoded(gradient(64, 64))]},
    "/hf/brittle": {"inputs": "slow", "parameters": {"num_inference_steps": 100_000}},
    "/v1/images/generations": {"prompt": "slow", "num_inference_steps": 100_000},
    "/v3/images/generations": {"prompt": "slow", "num_inference_steps": 100_000, "stream": True},
}


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """A service that gives a client one second to come again."""
    from tests.conftest import Service

    settings = {"MODEL": "brittle", "MODELS_PATH": str(DOUBLES), "RETRY_WINDOW": "1"}
    shared = Service(tmp_path_factory.mktemp("impatient"), settings).ready()
    yield shared
    shared.stop()


def newest(service):
    return service.client.get("/jobs", params={"limit": 1}).json()["jobs"][0]


def hang_up(service, path, body, when) -> str:
    """Posts the body, waits until `when` holds for its job, and closes the connection."""
    before = service.client.get("/jobs", params={"limit": 1}).json()["jobs"]
    known = before[0]["id"] if before else None
    request = httpx.Request("POST", service.url + path, json=body)
    with contextlib.closing(_connected(service)) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(request.content)}\r\n\r\n".encode())
        connection.sendall(request.content)

        def reached() -> bool:
            jobs = service.client.get("/jobs", params={"limit": 1}).json()["jobs"]
            return bool(jobs) and jobs[0]["id"] != known and when(jobs[0])

        service.wait_for(reached)
    return newest(service)["id"]


def _connected(service):
    import socket

    return socket.create_connection(("127.0.0.1", service.port))


def is_running(job) -> bool:
    return job["progress"]["step"] > 0


@pytest.mark.parametrize("path", FACES)
def test_who_hangs_up_cancels_the_running_job(impatient, path):
    job = hang_up(impatient, path, FACES[path], is_running)
    assert impatient.ended(job)["state"] == "canceled"
    assert impatient.generate("well")["state"] == "succeeded"  # the device is free again


def test_who_hangs_up_cancels_the_queued_job(impatient):
    blocker = impatient.submit(**ENDLESS)
    impatient.running(blocker)
    job = hang_up(impatient, "/generate", ENDLESS, lambda job: job["state"] == "queued")
    assert impatient.ended(job)["state"] == "canceled"
    assert impatient.job(blocker)["state"] == "running"
    impatient.client.delete(f"/jobs/{blocker}")


def test_a_native_job_goes_on_without_its_client(impatient):
    body = {"prompt": "slow", "steps": 50}
    with httpx.Client(base_url=impatient.url) as client, contextlib.suppress(httpx.ReadTimeout):
        client.post("/jobs", json=body, headers={"Prefer": "wait=60"}, timeout=0.3)
    assert impatient.ended(newest(impatient)["id"])["state"] == "succeeded"


def test_a_finished_picture_is_kept(impatient):
    answer = impatient.client.post("/inference", json={"prompt": "well", "seed": 1})
    job = newest(impatient)
    assert job["state"] == "succeeded"
    assert impatient.picture(job) == base64.b64decode(answer.json()["image"])


def test_the_setting_turns_it_off(start):
    patient = start(MODEL="brittle", MODELS_PATH=str(DOUBLES), CANCEL_ON_DISCONNECT="0").ready()
    body = {"prompt": "slow", "steps": 50}
    job = hang_up(patient, "/generate", body, is_running)
    assert patient.ended(job)["state"] == "succeeded"


def test_a_repeated_request_gets_the_running_job(brittle):
    """The SDK gives up after a moment and repeats the request by itself: one job serves both."""
    brittle.ready()
    count = len(brittle.client.get("/jobs", params={"limit": 500}).json()["jobs"])
    with openai.OpenAI(
        base_url=f"{brittle.url}/v1", api_key="any", max_retries=4, timeout=1.0
    ) as client:
        answer = client.images.generate(
            prompt="slow and repeated", extra_body={"num_inference_steps": 75}
        )
    assert answer.data[0].b64_json
    jobs = brittle.client.get("/jobs", params={"limit": 500}).json()["jobs"]
    assert len(jobs) == count + 1
    assert jobs[0]["state"] == "succeeded"


def test_a_repeated_request_gets_the_picture_that_was_finished_meanwhile(brittle):
    brittle.ready()
    body = {"prompt": "slow and soon", "num_inference_steps": 30}
    job = hang_up(brittle, "/v1/images/generations", body, is_running)
    assert brittle.ended(job)["state"] == "succeeded"  # within the retry window
    answer = brittle.client.post("/v1/images/generations", json=body)
    assert newest(brittle)["id"] == job
    assert answer.json()["data"][0]["seed"] == brittle.job(job)["recipe"]["seed"]


def test_another_body_is_another_job(brittle):
    brittle.ready()
    body = {"prompt": "slow and other", "num_inference_steps": 60}
    job = hang_up(brittle, "/v1/images/generations", body, is_running)
    other = brittle.client.post("/v1/images/generations", json={**body, "guidance_scale": 3})
    assert other.status_code == 200
    assert newest(brittle)["id"] != job


def test_two_that_wait_at_once_get_a_picture_each(brittle):
    """Without a seed the same wish twice means two pictures."""
    brittle.ready()
    answers: list[httpx.Response] = []
    body = {"prompt": "slow and twice", "num_inference_steps": 20}

    def ask() -> None:
        answers.append(httpx.post(f"{brittle.url}/v1/images/generations", json=body, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = (answer.json()["data"][0] for answer in answers)
    assert first["seed"] != second["seed"]


def test_after_the_window_the_job_is_canceled_and_the_same_body_a_new_one(impatient):
    path = "/v1/images/generations"
    body = {"prompt": "slow and forgotten", "num_inference_steps": 100_000}
    job = hang_up(impatient, path, body, is_running)
    left = time.monotonic()
    assert impatient.ended(job)["state"] == "canceled"
    assert time.monotonic() - left > 0.5  # it had its second to come again
    again = hang_up(impatient, path, body, is_running)
    assert again != job
    assert impatient.ended(again)["state"] == "canceled"


def test_a_restart_does_not_cancel_what_clients_waited_for(start):
    service = start(MODEL="brittle", MODELS_PATH=str(DOUBLES), GRACE="0").ready()
    body = {"prompt": "slow", "steps": 75}
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{service.url}/generate", json=body, timeout=60))

    thread = threading.Thread(target=ask)
    thread.start()
    service.wait_for(lambda: newest_or_none(service) is not None and is_running(newest(service)))
    job = newest(service)["id"]
    service.stop()
    thread.join()
    assert answers[0].status_code == 503
    assert job in answers[0].json()["error"]  # where the result will be
    service.start()
    assert service.ended(job)["state"] == "succeeded"


def newest_or_none(service):
    jobs = service.client.get("/jobs", params={"limit": 1}).json()["jobs"]
    return jobs[0] if jobs else None
