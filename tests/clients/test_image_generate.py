"""One generation at a time, as the document of seed 002 has it."""

import base64
import io
import uuid

from PIL import Image


def finished(service, generation):
    service.ended(generation["generation_uuid"])
    answer = service.client.get("/image/generate", params=generation)
    assert answer.status_code == 200
    [record] = answer.json()
    return record


def test_a_generation_from_its_start_to_its_result(service, default_size):
    assert service.client.get("/server/status").json() == {"is_available": True}
    generation = service.client.post("/image/generate", json={"prompt": "a red circle"}).json()
    assert list(generation) == ["generation_uuid"]
    assert str(uuid.UUID(generation["generation_uuid"])) == generation["generation_uuid"]
    record = finished(service, generation)
    assert list(record) == ["uuid", "prompt", "created_time", "errors", "data"]
    assert (record["uuid"], record["prompt"]) == (generation["generation_uuid"], "a red circle")
    assert record["errors"] == []
    made = Image.open(io.BytesIO(base64.b64decode(record["data"])))
    assert (made.format, made.size) == ("PNG", default_size)


def test_one_at_a_time(brittle):
    running = brittle.client.post("/image/generate", json={"prompt": "hang on"})
    assert running.status_code == 200
    assert brittle.client.get("/server/status").json() == {"is_available": False}
    refused = brittle.client.post("/image/generate", json={"prompt": "another"})
    assert refused.status_code == 429
    assert isinstance(refused.json()["detail"], str)
    # Not a result yet, and not an error either.
    assert brittle.client.get("/image/generate", params=running.json()).json() == []
    brittle.client.delete(f"/jobs/{running.json()['generation_uuid']}")
    assert brittle.client.get("/server/status").json() == {"is_available": True}
    record = finished(brittle, running.json())
    assert record["data"] is None
    assert len(record["errors"]) == 1


def test_errors_are_in_the_record(brittle):
    brittle.ready()
    generation = brittle.client.post("/image/generate", json={"prompt": "raise it"}).json()
    record = finished(brittle, generation)
    assert record["data"] is None
    assert "asked to raise" in record["errors"][0]


def test_results_stay_newest_first_and_paged(brittle):
    brittle.ready()
    prompts = [f"picture {n}" for n in range(3)]
    for prompt in prompts:
        finished(brittle, brittle.client.post("/image/generate", json={"prompt": prompt}).json())
    everything = brittle.client.get("/image/generate").json()
    assert [record["prompt"] for record in everything[:3]] == prompts[::-1]
    times = [record["created_time"] for record in everything]
    assert times == sorted(times, reverse=True)
    first = brittle.client.get("/image/generate", params={"limit": 2})
    assert first.json() == everything[:2]
    second = brittle.client.get(first.links["next"]["url"])
    assert second.json() == everything[2:4]


def test_what_is_wrong_is_told(service):
    assert service.client.post("/image/generate", json={}).status_code == 422
    assert service.client.post("/image/generate", json={"prompt": ""}).status_code == 422
    answer = service.client.post("/image/generate", json={"prompt": "a", "steps": 3})
    assert "steps" in answer.json()["detail"]
    for unknown in (str(uuid.uuid4()), service.submit()):  # no job, and a job of another face
        answer = service.client.get("/image/generate", params={"generation_uuid": unknown})
        assert answer.status_code == 404
        assert isinstance(answer.json()["detail"], str)
    answer = service.client.get("/image/generate", params={"generation_uuid": "nonsense"})
    assert answer.status_code == 422
