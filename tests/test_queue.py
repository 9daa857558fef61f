"""In which order jobs come: the loaded model's first, nobody passed over for ever."""


def started(service, *jobs: str) -> list[str]:
    """These jobs in the order in which they began."""
    ended = [service.ended(job) for job in jobs]
    assert {job["state"] for job in ended} == {"succeeded"}
    return [job["id"] for job in sorted(ended, key=lambda job: job["started"])]


def blocked(service) -> str:
    """A job that keeps the device until it is canceled."""
    service.running(blocker := service.submit("slow", steps=100_000))
    return blocker


def test_jobs_of_the_loaded_model_go_first(brittle):
    blocker = blocked(brittle)
    other = brittle.submit("slow", model="other")
    first, second = brittle.submit("slow"), brittle.submit("slow")
    places = [brittle.job(job)["queue_position"] for job in (other, first, second)]
    assert places == [2, 0, 1]
    brittle.client.delete(f"/jobs/{blocker}")
    assert started(brittle, other, first, second) == [first, second, other]


def test_who_has_waited_long_enough_is_not_passed_over(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles, STARVATION="0").ready()
    blocker = blocked(service)
    other = service.submit("slow", model="other")
    first, second = service.submit("slow"), service.submit("slow")
    service.client.delete(f"/jobs/{blocker}")
    assert started(service, other, first, second) == [other, first, second]


def test_a_job_that_its_worker_has_already_keeps_its_place_till_it_begins(brittle):
    """A worker is given the next job while it draws. That is not told as running, the job can be
    canceled, and those behind it move up."""
    blocker = blocked(brittle)
    following, last = brittle.submit("well"), brittle.submit("well")
    waiting = brittle.job(following)
    assert (waiting["state"], waiting["queue_position"]) == ("queued", 0)
    assert waiting["started"] is None
    brittle.client.delete(f"/jobs/{following}")
    assert brittle.job(last)["queue_position"] == 0
    brittle.client.delete(f"/jobs/{blocker}")
    assert brittle.ended(last)["state"] == "succeeded"
    assert brittle.job(following)["state"] == "canceled"
