"""Jobs: what a record tells, the queue, waiting, idempotency keys, history, deletion."""

import base64
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

PROMPT = "a red circle on a blue background"
RECIPE_KEYS = {
    "prompt",
    "negative_prompt",
    "model",
    "width",
    "height",
    "steps",
    "guidance",
    "seed",
    "images",
    "sampler",
    "init_image",
    "strength",
    "mask",
    "mask_padding",
    "format",
    "quality",
}


# The record


def test_a_job_tells_everything_about_itself(service):
    answer = service.client.post("/jobs", json={"prompt": PROMPT})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert job["state"] in ("queued", "running")
    assert job["model"] == "demo"
    assert (job["error"], job["images"], job["finished"]) == (None, [], None)

    job = service.ended(job["id"])
    assert job["state"] == "succeeded"
    assert job["device"] == "CPU"
    assert set(job["recipe"]) >= RECIPE_KEYS
    steps = job["recipe"]["steps"]
    assert job["progress"] == {
        "step": steps,
        "steps": steps,
        "fraction": 1.0,
        "eta_seconds": 0.0,
    }
    assert job["queue_position"] is None
    times = [datetime.fromisoformat(job[key]) for key in ("created", "started", "finished")]
    assert times == sorted(times)
    assert all(time.utcoffset().total_seconds() == 0 for time in times)
    assert set(job["timings_ms"]) == {
        "queue",
        "load",
        "text",
        "denoise",
        "decode",
        "encode",
        "total",
    }
    assert all(value >= 0 for value in job["timings_ms"].values())
    assert job["timings_ms"]["total"] >= job["timings_ms"]["denoise"] > 0
    assert (job["warnings"], job["error"]) == ([], None)
    [image] = job["images"]
    assert image["bytes"] == len(service.picture(job))
    assert image["seed"] == job["recipe"]["seed"]
    size = (job["recipe"]["width"], job["recipe"]["height"])
    assert (image["width"], image["height"], image["media_type"]) == (*size, "image/png")


def test_the_gaps_of_a_request_are_filled_with_the_models_defaults(service):
    defaults = service.client.get("/models/demo").json()["defaults"]
    recipe = service.generate()["recipe"]
    for key in ("width", "height", "steps", "guidance", "sampler"):
        assert recipe[key] == defaults[key]


def test_what_was_asked_is_in_the_recipe_as_it_was_asked(brittle):
    asked = {
        "prompt": 'line one\nline "two": ünï, 画 🎈',
        "negative_prompt": "blurry",
        "model": "the-double",
        "width": 96,
        "height": 64,
        "steps": 3,
        "guidance": 7,
        "seed": 0,
        "images": 2,
        "sampler": "ddim",
        "format": "webp",
        "quality": 1,
    }
    job = brittle.generate(**asked)
    assert job["state"] == "succeeded"
    assert {key: job["recipe"][key] for key in asked} == {**asked, "model": "brittle"}


def test_a_seed_is_drawn_when_none_is_given_and_told(brittle):
    seeds = {brittle.generate("well")["recipe"]["seed"] for _ in range(5)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_seeds_count_up_and_around(brittle):
    job = brittle.generate("well", seed=2**32 - 1, images=3)
    assert [image["seed"] for image in job["images"]] == [2**32 - 1, 0, 1]


def test_a_negative_prompt_without_guidance_is_warned_about(service):
    job = service.generate(PROMPT, negative_prompt="blurry", guidance=1.0, steps=1)
    assert job["state"] == "succeeded"
    assert "negative_prompt" in job["warnings"][0]


def test_a_prompt_longer_than_the_model_reads_is_warned_about(service):
    job = service.generate("red circle " * 200, steps=1)
    assert job["state"] == "succeeded"
    assert "tokens" in job["warnings"][0]


# Progress in the queue


def test_waiting_jobs_know_their_place(brittle):
    first = brittle.submit("slow", steps=2000)
    brittle.running(first)
    waiting = [brittle.submit("well") for _ in range(3)]
    assert brittle.job(first)["queue_position"] is None
    assert [brittle.job(job)["queue_position"] for job in waiting] == [0, 1, 2]
    brittle.client.delete(f"/jobs/{waiting[0]}")
    assert [brittle.job(job)["queue_position"] for job in waiting] == [None, 0, 1]
    brittle.client.delete(f"/jobs/{first}")
    assert [brittle.ended(job)["state"] for job in waiting[1:]] == ["succeeded"] * 2


def test_jobs_are_made_in_the_order_they_came(brittle):
    brittle.running(first := brittle.submit("slow", steps=2000))
    jobs = [brittle.submit("well") for _ in range(5)]
    brittle.client.delete(f"/jobs/{first}")
    started = [brittle.ended(job)["started"] for job in jobs]
    assert started == sorted(started)


def test_a_running_job_tells_how_long_it_will_take(brittle):
    job = brittle.running(brittle.submit("slow", steps=2000), step=3)
    assert job["state"] == "running"
    assert job["progress"]["steps"] == 2000
    assert 0 < job["progress"]["fraction"] < 1
    assert job["progress"]["eta_seconds"] > 1
    brittle.client.delete(f"/jobs/{job['id']}")


def test_a_full_queue_is_429_and_says_when_to_come_back(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles, GRACE="0", QUEUE_LIMIT="2").ready()
    service.running(service.submit("slow", steps=5000))
    keyed = {"json": {"prompt": "well"}, "headers": {"Idempotency-Key": "k"}}
    kept = service.client.post("/jobs", **keyed).json()["id"]
    waiting = service.submit("well")
    answer = service.client.post("/jobs", json={"prompt": "well"})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["code"] == "queue_full"
    assert "QUEUE_LIMIT" in answer.json()["detail"]
    # A job that was accepted is told again even so.
    assert service.client.post("/jobs", **keyed).json()["id"] == kept
    service.client.delete(f"/jobs/{waiting}")
    assert service.client.post("/jobs", json={"prompt": "well"}).status_code == 202


def test_a_full_queue_decodes_no_pictures(start, doubles):
    """Decoding is work: a picture that cannot be read is refused for that only if there is room."""
    service = start(MODEL="brittle", MODELS_PATH=doubles, GRACE="0", QUEUE_LIMIT="1").ready()
    service.running(service.submit("slow", steps=5000))
    damaged = {"prompt": "well", "init_image": base64.b64encode(b"\x89PNG damaged").decode()}
    assert service.client.post("/jobs", json=damaged).status_code == 422
    service.submit("well")
    assert service.client.post("/jobs", json=damaged).status_code == 429


def test_many_at_once_fill_the_queue_exactly(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles, GRACE="0", QUEUE_LIMIT="5").ready()
    service.running(service.submit("slow", steps=5000))
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(
                lambda _: service.client.post("/jobs", json={"prompt": "well"}).status_code,
                range(24),
            )
        )
    assert sorted(answers) == [202] * 5 + [429] * 19


# Waiting


def test_prefer_wait_answers_with_the_ended_job(service):
    answer = service.client.post("/jobs", json={"prompt": PROMPT}, headers={"Prefer": "wait=60"})
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=60"
    assert answer.json()["state"] == "succeeded"


def test_prefer_wait_gives_up_after_its_time(brittle):
    headers = {"Prefer": "respond-async, wait=0"}
    answer = brittle.client.post("/jobs", json={"prompt": "slow", "steps": 2000}, headers=headers)
    assert answer.status_code == 202
    assert answer.json()["state"] in ("queued", "running")
    brittle.client.delete(answer.headers["location"])


def test_prefer_wait_is_at_most_600_seconds(brittle):
    headers = {"Prefer": "wait=99999"}
    answer = brittle.client.post("/jobs", json={"prompt": "well"}, headers=headers)
    assert answer.headers["preference-applied"] == "wait=600"


def test_waiting_ends_when_the_job_is_canceled(brittle):
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(brittle.generate, "slow", steps=5000)
        brittle.wait_for(lambda: bool(_active(brittle)))
        [job] = _active(brittle)
        brittle.client.delete(f"/jobs/{job['id']}")
        assert waiting.result(timeout=20)["state"] == "canceled"


def _active(service):
    return [
        job
        for state in ("queued", "running")
        for job in service.client.get("/jobs", params={"state": state}).json()["jobs"]
    ]


# Idempotency


def test_the_same_key_gives_the_same_job(brittle):
    body, headers = {"prompt": "well", "seed": 1}, {"Idempotency-Key": "once-only"}
    first = brittle.client.post("/jobs", json=body, headers=headers)
    again = brittle.client.post("/jobs", json=body, headers={**headers, "Prefer": "wait=20"})
    assert first.status_code == 202
    assert again.status_code == 200
    assert again.json()["id"] == first.json()["id"]


def test_the_same_key_with_another_body_is_refused(brittle):
    headers = {"Idempotency-Key": "two bodies"}
    assert brittle.client.post("/jobs", json={"prompt": "well"}, headers=headers).is_success
    answer = brittle.client.post("/jobs", json={"prompt": "ill"}, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["field"].lower() == "idempotency-key"
    assert "another body" in answer.json()["detail"]


def test_a_key_is_good_for_its_job_when_the_picture_it_named_is_gone(brittle):
    source = brittle.generate("well")["id"]
    body = {"prompt": "well", "init_image": f"/jobs/{source}/images/0"}
    headers = {"Idempotency-Key": "outlives its picture", "Prefer": "wait=20"}
    first = brittle.client.post("/jobs", json=body, headers=headers)
    assert first.status_code == 200, first.text
    assert brittle.client.delete(f"/jobs/{source}").status_code == 204
    again = brittle.client.post("/jobs", json=body, headers=headers)
    assert again.json()["id"] == first.json()["id"]


def test_a_key_of_a_refused_request_is_not_used_up(brittle):
    headers = {"Idempotency-Key": "second try"}
    bad = brittle.client.post("/jobs", json={"prompt": "well", "steps": 0}, headers=headers)
    assert bad.status_code == 422
    assert brittle.client.post("/jobs", json={"prompt": "well"}, headers=headers).is_success


def test_one_key_from_many_at_once_is_one_job(brittle):
    def post(_: int) -> str:
        headers = {"Idempotency-Key": "stampede"}
        answer = brittle.client.post("/jobs", json={"prompt": "well"}, headers=headers)
        assert answer.is_success
        return answer.json()["id"]

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(post, range(24)))) == 1


# History


def test_the_history_is_paged_newest_first(brittle):
    made = [brittle.generate("well", steps=1)["id"] for _ in range(7)]
    seen: list[str] = []
    query = "limit=3"
    while True:
        page = brittle.client.get(f"/jobs?{query}").json()
        assert len(page["jobs"]) <= 3
        seen += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        assert page["next"] == page["jobs"][-1]["id"]
        query = f"limit=3&before={page['next']}"
    assert seen[:7] == made[::-1]
    assert len(set(seen)) == len(seen)
    everything = brittle.client.get("/jobs?limit=500").json()
    assert [job["id"] for job in everything["jobs"]] == seen
    assert everything["next"] is None


def test_the_history_can_be_asked_for_one_state(brittle):
    brittle.generate("raise")
    brittle.generate("well")
    running = brittle.submit("slow", steps=1000)
    brittle.wait_for(lambda: brittle.job(running)["state"] == "running")
    queued, canceled = brittle.submit("well"), brittle.submit("well")
    brittle.client.delete(f"/jobs/{canceled}")
    for state in ("queued", "running", "succeeded", "failed", "canceled"):
        page = brittle.client.get(f"/jobs?state={state}").json()
        assert {job["state"] for job in page["jobs"]} == {state}
    for job in (queued, running):
        brittle.client.delete(f"/jobs/{job}")
    assert brittle.client.get("/jobs?state=failed&limit=1").json()["jobs"][0]["error"]


def test_the_history_tells_the_same_as_the_job_itself(brittle):
    job = brittle.generate("well")
    assert brittle.client.get("/jobs?limit=1").json()["jobs"] == [job]
    assert brittle.job(job["id"]) == job


# Deletion


def test_deleting_an_active_job_cancels_it(brittle):
    job = brittle.submit("slow", steps=5000)
    brittle.running(job)
    answer = brittle.client.delete(f"/jobs/{job}")
    assert answer.status_code == 202
    assert answer.json()["state"] == "canceled"
    assert answer.json()["finished"]
    assert brittle.job(job) == answer.json()
    assert brittle.client.get(f"/jobs/{job}/images/0").status_code == 404


def test_deleting_a_waiting_job_keeps_it_from_running(brittle):
    brittle.running(first := brittle.submit("slow", steps=5000))
    waiting = brittle.submit("well")
    answer = brittle.client.delete(f"/jobs/{waiting}")
    assert (answer.status_code, answer.json()["state"]) == (202, "canceled")
    brittle.client.delete(f"/jobs/{first}")
    assert brittle.generate("well")["state"] == "succeeded"
    assert brittle.job(waiting)["state"] == "canceled"
    assert brittle.job(waiting)["started"] is None


def test_deleting_an_ended_job_removes_all_of_it(brittle):
    job = brittle.generate("well", images=2)
    files = brittle.folder / "data" / "jobs" / job["id"]
    assert sorted(path.name for path in files.iterdir()) == ["0.png", "1.png"]
    answer = brittle.client.delete(f"/jobs/{job['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert not files.exists()
    for path in ("", "/images/0", "/events"):
        assert brittle.client.get(f"/jobs/{job['id']}{path}").status_code == 404
    assert brittle.client.delete(f"/jobs/{job['id']}").status_code == 404
    assert job["id"] not in [j["id"] for j in brittle.client.get("/jobs").json()["jobs"]]


# The picture's address


def test_a_picture_is_cached_for_ever_by_its_tag(service):
    url = service.generate(steps=1)["images"][0]["url"]
    answer = service.client.get(url)
    assert answer.headers["content-type"] == "image/png"
    assert "immutable" in answer.headers["cache-control"]
    tag = answer.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]+"', tag)
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = service.client.get(url, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert service.client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_picture_that_is_not_there_yet_is_409_and_one_that_never_will_be_404(brittle):
    job = brittle.submit("slow", steps=5000)
    answer = brittle.client.get(f"/jobs/{job}/images/0")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_ended")
    brittle.client.delete(f"/jobs/{job}")
    answer = brittle.client.get(f"/jobs/{job}/images/0")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_image")
    well = brittle.generate("well", images=2)
    assert brittle.client.get(f"/jobs/{well['id']}/images/1").status_code == 200
    assert brittle.client.get(f"/jobs/{well['id']}/images/2").status_code == 404
