"""The event stream of a job: state, progress, preview and done, in order, numbered, replayable."""

import base64
import io
import itertools
import threading

from PIL import Image


def test_a_job_is_told_from_its_acceptance_to_its_end(service):
    stream, job = _followed_from_the_start(service, steps=5, images=2)
    events = list(stream)
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert [event.kind for event in events[:2]] == ["state", "state"]
    assert events[0].data["state"] == "queued"
    assert events[1].data["state"] == "running"
    assert [event.kind for event in events[2:-1]] == ["progress", "preview"] * 10
    steps = [event.data["step"] for event in events if event.kind == "progress"]
    assert steps == list(range(1, 11))
    fractions = [event.data["fraction"] for event in events if event.kind == "progress"]
    assert fractions[-1] == 1.0
    assert events[-1].kind == "done"
    assert events[-1].data == service.job(job)


def _followed_from_the_start(service, **keys):
    """The events of a job that is followed before it begins, and the job."""
    blocker = service.submit(steps=150)
    job = service.submit(**keys)
    stream = service.follow(job)
    service.client.delete(f"/jobs/{blocker}")
    return stream, job


def test_previews_are_small_pictures_that_become_the_result(service):
    stream, job = _followed_from_the_start(service, steps=12, seed=4, width=256, height=128)
    previews = [event.data["image"] for event in stream if event.kind == "preview"]
    assert len(previews) == 12
    for preview in previews:
        head, data = preview.split(",")
        assert head == "data:image/jpeg;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.format == "JPEG"
        assert picture.width == 2 * picture.height <= 128
        assert len(data) < 16_384
    result = Image.open(io.BytesIO(service.picture(service.job(job)))).resize(picture.size)
    assert _distance(previews[-1], result) < _distance(previews[0], result)
    assert _distance(previews[-1], result) < 40


def test_who_comes_late_is_told_every_step_all_the_same(brittle):
    job = brittle.submit("slow", steps=50)
    brittle.wait_for(lambda: brittle.job(job)["progress"]["step"] > 10)
    seen = brittle.job(job)["progress"]["step"]
    *events, done = brittle.events(job)
    assert [event.kind for event in events] == ["state", "state"] + ["progress", "preview"] * 50
    steps = [event.data["step"] for event in events if event.kind == "progress"]
    assert steps == list(range(1, 51))
    assert seen < 50
    assert done.data["state"] == "succeeded"


def _distance(preview: str, result: Image.Image) -> float:
    """Mean absolute difference, 0 to 255."""
    picture = Image.open(io.BytesIO(base64.b64decode(preview.split(",")[1])))
    pairs = zip(picture.convert("RGB").tobytes(), result.convert("RGB").tobytes(), strict=True)
    return sum(abs(a - b) for a, b in pairs) / (3 * picture.width * picture.height)


def test_last_event_id_goes_on_where_the_stream_broke_off(brittle):
    job = brittle.submit("slow", steps=40)
    before = list(itertools.islice(brittle.events(job), 12))
    after = list(brittle.events(job, last=before[-1].id))
    assert [event.id for event in before + after] == list(range(1, len(before + after) + 1))
    assert after[-1].kind == "done"


def test_two_listeners_hear_the_same(brittle):
    job = brittle.submit("slow", steps=20)
    heard: list[list] = [[], []]
    threads = [
        threading.Thread(target=lambda n=n: heard[n].extend(brittle.events(job))) for n in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert heard[0] == heard[1]
    assert heard[0][-1].kind == "done"


def test_an_ended_job_tells_its_end_at_once(brittle):
    job = brittle.generate("well")
    for last in (None, 0, 5, 10**8):
        events = list(brittle.events(job["id"], last=last))
        assert events[-1].kind == "done"
        assert events[-1].data == job
        assert [event.kind for event in events] == ["state", "done"]


def test_a_number_from_another_life_of_the_service_starts_the_stream_anew(brittle):
    """After a restart the events are numbered from 1 again; a client that comes back with an old
    number must not wait for it in vain."""
    job = brittle.submit("slow", steps=10)
    events = list(brittle.events(job, last=10**6))
    assert events[0].id == 1
    assert events[-1].kind == "done"


def test_a_last_event_id_that_is_no_number_is_ignored(brittle):
    job = brittle.generate("well")["id"]
    for value in ("x", "-1", "9" * 400, "1e3"):
        url = f"/jobs/{job}/events"
        assert brittle.client.get(url, headers={"Last-Event-ID": value}).status_code == 200


def test_cancel_and_failure_are_told_as_done(brittle):
    job = brittle.submit("slow", steps=5000)
    stream = brittle.events(job)
    assert next(stream).kind == "state"
    brittle.client.delete(f"/jobs/{job}")
    assert list(stream)[-1].data["state"] == "canceled"
    *_, last = brittle.events(brittle.submit("raise"))
    assert last.kind == "done"
    assert last.data["state"] == "failed"
    assert last.data["error"]["code"] == "generation_failed"


def test_a_listener_that_hangs_up_disturbs_nobody(brittle):
    job = brittle.submit("slow", steps=30)
    for _ in range(5):
        next(brittle.events(job))
    assert brittle.ended(job)["state"] == "succeeded"
