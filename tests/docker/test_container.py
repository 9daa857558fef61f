"""The service in a container, used as the documents say."""

import io
import os
import re

import pytest
from PIL import Image

from tests.docker.engine import DATA, docker

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

ZOMBIES = """
from pathlib import Path
for status in Path("/proc").glob("[0-9]*/status"):
    if "State:\tZ" in status.read_text(): print(status)
"""
LONG = {"steps": 150, "width": 256, "height": 256}


def colours(picture: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The mean colour of the middle and of the four corners."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    width, height = image.size
    middle = image.crop((width * 3 // 8, height * 3 // 8, width * 5 // 8, height * 5 // 8))
    corners = Image.new("RGB", (width // 4, height // 4))
    for left in (0, width * 7 // 8):
        for top in (0, height * 7 // 8):
            corner = image.crop((left, top, left + width // 8, top + height // 8))
            corners.paste(corner, (left and width // 8, top and height // 8))
    return tuple(_mean(middle)), tuple(_mean(corners))


def _mean(image: Image.Image) -> tuple[int, ...]:
    mean = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert isinstance(mean, tuple)
    return tuple(int(value) for value in mean)


def data_files(container, folder: str) -> dict[str, str]:
    """Name and time of change of every file below a folder of DATA_DIR."""
    lines = container.run("find", f"{DATA}/{folder}", "-type", "f", "-printf", "%p %T@\n")
    return dict(line.split() for line in lines.splitlines())


def test_it_draws_what_was_asked_for(start):
    container = start().ready()
    middle, corners = colours(container.draws(prompt="a red circle on a blue background"))
    assert middle[0] > 120 > max(middle[1:]), f"the middle is {middle}, not red"
    assert corners[2] > 120 > max(corners[:2]), f"the corners are {corners}, not blue"


def test_its_health_is_known_to_the_engine(start):
    container = start()
    container.wait_for(
        lambda: container.look("{{.State.Health.Status}}") == "healthy", "it is healthy"
    )


def test_a_volume_keeps_everything_for_the_next_container(start, volume):
    first = start(f"--volume={volume}:{DATA}").ready()
    job = first.succeeded(first.submit())
    picture = first.picture(job)
    compiled = data_files(first, "cache")
    assert compiled
    assert first.stop() == 0
    first.remove()

    second = start(f"--volume={volume}:{DATA}", "--network=bridge").ready()
    assert data_files(second, "cache") == compiled, "something was compiled again"
    assert [found["id"] for found in second.client.get("/jobs").json()["jobs"]] == [job["id"]]
    assert second.picture(second.job(job["id"])) == picture
    assert second.draws() == picture, "the same seed makes the same picture"


def test_docker_stop_lets_the_running_job_finish(start, volume):
    container = start(f"--volume={volume}:{DATA}", "--env=GRACE=200").ready()
    job = container.submit(**LONG)
    container.wait_for(lambda: container.job(job)["progress"]["step"] >= 1, "it is at work")
    assert container.stop(seconds=240) == 0
    container.start()
    container.healthy()
    assert container.succeeded(job)["started"] < container.look("{{.State.StartedAt}}")


def test_docker_stop_without_time_resumes_the_job_after_the_restart(start, volume):
    container = start(f"--volume={volume}:{DATA}", "--env=GRACE=0").ready()
    jobs = [container.submit(**LONG), container.submit()]
    container.wait_for(lambda: container.job(jobs[0])["progress"]["step"] >= 1, "it is at work")
    assert container.stop(seconds=60) == 0
    container.start()
    container.ready()
    for job in jobs:
        container.succeeded(job)


def test_a_killed_container_resumes_its_jobs(start, volume):
    container = start(f"--volume={volume}:{DATA}").ready()
    jobs = [container.submit(**LONG), container.submit(), container.submit(seed=4)]
    container.wait_for(lambda: container.job(jobs[0])["progress"]["step"] >= 1, "it is at work")
    docker("kill", container.name)
    docker("wait", container.name)
    container.start()
    container.ready()
    for job in jobs:
        container.succeeded(job)


def test_a_killed_worker_costs_nothing_but_time(start):
    container = start().ready()
    job = container.submit(**LONG)
    container.wait_for(lambda: container.job(job)["progress"]["step"] >= 1, "it is at work")
    (worker,) = container.workers()
    container.python(f"import os; os.kill({worker}, 9)")
    container.succeeded(job)
    assert worker not in container.workers()
    assert container.answers("/health") == 200
    assert container.run("cat", "/proc/1/comm") == "tini"
    assert container.python(ZOMBIES) == ""


def test_a_read_only_root_file_system_is_enough(start):
    container = start("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges").ready()
    container.draws()
    assert "Read-only file system" in container.run("touch", "/usr/src/app/new", check=False)


def test_it_is_nobody_in_particular(start):
    container = start().healthy()
    assert container.run("id", "-u") == "1000"
    assert "Permission denied" in container.run("touch", "/usr/src/app/app/new", check=False)


def test_any_user_can_run_it_over_a_folder_of_theirs(start, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    os.chown(folder, 4321, 4321)
    container = start("--user=4321:4321", f"--volume={folder}:{DATA}").ready()
    container.draws()
    assert container.run("id", "-u") == "4321"
    assert (folder / "easel.db").stat().st_uid == 4321


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--env=MODEL=nothing-like-it"], "There is no model 'nothing-like-it'; known are: "),
        (["--env=PORT=http"], "PORT: "),
        (["--env=HF_TOKEN_FILE=/run/secrets/none"], "HF_TOKEN_FILE names /run/secrets/none"),
        (["--user=4321:4321"], "DATA_DIR cannot be used: "),
        (["--mount=type=tmpfs,target=/usr/src/app/data,tmpfs-mode=0755"], "DATA_DIR cannot be "),
        (["--volume={folder}:/usr/src/app/data:ro"], "DATA_DIR cannot be used: "),
    ],
    ids=["model", "port", "secret", "user", "owner", "read-only"],
)
def test_what_cannot_work_ends_with_one_line(start, tmp_path, options, told):
    container = start(*(option.format(folder=tmp_path) for option in options))
    assert container.ended() == 1
    assert container.logs().startswith(f"easel: {told}")
    assert len(container.logs().splitlines()) == 1


def test_a_token_is_in_no_log_and_in_no_file(start, volume):
    token = "hf_" + "Sesame" * 5
    options = [f"--volume={volume}:{DATA}", f"--env=HF_TOKEN={token}", "--env=LOG_LEVEL=DEBUG"]
    container = start(*options).ready()
    container.draws()
    assert token not in container.logs()
    assert container.run("grep", "-rl", token, DATA, "/tmp", check=False) == ""


def test_keys_from_a_file_close_everything_but_health(start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# the tests\nopen-sesame\n")
    keys.chmod(0o644)
    container = start(
        f"--volume={keys}:/run/secrets/keys:ro", "--env=API_KEY_FILE=/run/secrets/keys"
    )
    container.ready()
    assert container.answers("/jobs") == 401
    container.client.headers["X-API-Key"] = "open-sesame"
    container.draws()
    assert "open-sesame" not in container.logs()


def test_the_memory_limit_is_what_the_budget_is_a_share_of(start):
    """Told beforehand: without it, the kernel would end the worker in the middle of a job."""
    container = start("--memory=300m").healthy()
    container.wait_for(lambda: container.readiness() == "failed", "it says so")
    detail = container.client.get("/health/ready").json()["detail"]
    budget = re.search(r"the budget is (\d+) MB \(MEMORY_BUDGET\)", detail)
    assert budget and int(budget[1]) < 300, detail
