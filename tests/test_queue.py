"""In which order jobs come: the loaded model's first, nobody passed over for ever."""


def started(service, *jobs: str) -> list[str]:
    """These jobs in the order in which they began."""
    ended = [service.ended(job) for job in jobs]
    assert {job["state"] for job in ended} == {"succeeded"}
    return [job["id"] for job in sorted(ended, key=lambda job: job["started"])]


def test_jobs_of_the_loaded_model_go_first(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles).ready()
    service.running(service.submit("slow", steps=30))
    other = service.submit("slow", model="other")
    first, second = service.submit("slow"), service.submit("slow")
    places = [service.job(job)["queue_position"] for job in (other, first, second)]
    assert places == [2, 0, 1]
    assert started(service, other, first, second) == [first, second, other]


def test_who_has_waited_long_enough_is_not_passed_over(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles, STARVATION="0").ready()
    service.running(service.submit("slow", steps=30))
    other = service.submit("slow", model="other")
    first, second = service.submit("slow"), service.submit("slow")
    assert started(service, other, first, second) == [other, first, second]


def test_what_a_worker_has_already_goes_before_who_starves_meanwhile(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles, STARVATION="3").ready()
    service.running(service.submit("slow", steps=200))  # four seconds
    other, first = service.submit("slow", model="other"), service.submit("slow")
    assert started(service, other, first) == [first, other]


def test_a_job_that_its_worker_has_already_keeps_its_place_till_it_begins(brittle):
    """A worker is given the next job while it draws. That is not told as running, the job can be
    canceled, and those behind it move up."""
    blocker = brittle.submit("slow", steps=5000)
    brittle.running(blocker)
    following, last = brittle.submit("well"), brittle.submit("well")
    waiting = brittle.job(following)
    assert (waiting["state"], waiting["queue_position"]) == ("queued", 0)
    assert waiting["started"] is None
    brittle.client.delete(f"/jobs/{following}")
    assert brittle.job(last)["queue_position"] == 0
    brittle.client.delete(f"/jobs/{blocker}")
    assert brittle.ended(last)["state"] == "succeeded"
    assert brittle.job(following)["state"] == "canceled"
