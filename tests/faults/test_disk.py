"""A disk that is full or read-only is told as such; nothing breaks, and with room all goes on."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import serve_and_fail
from tests.pictures import encoded, gradient


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts file systems of a size for the test; skips where that is not allowed."""
    folders: list[Path] = []

    def mount(folder: Path, *options: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"needs the right to mount: {done.stderr.decode().strip()}")
        folders.append(folder)
        return folder

    yield mount
    for folder in reversed(folders):
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def fill(folder: Path, leave: int = 0) -> Path:
    """Fills the file system, down to so many bytes; the file that does it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave))
    return ballast


def test_a_new_job_needs_free_disk_and_says_how_much(start, doubles):
    service = start(MODEL="brittle", MODELS_PATH=doubles, MIN_FREE_DISK=str(10**9)).ready()
    answer = service.client.post("/jobs", json={"prompt": "well"})
    assert answer.status_code == 507
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "storage_failed"
    for words in ("MIN_FREE_DISK", "are free", "needed"):
        assert words in answer.json()["detail"]
    assert service.client.get("/jobs").json() == {"jobs": [], "next": None}
    answer = service.client.post("/pipeline/run", json={"prompt": "well"})
    assert (answer.status_code, answer.json()["status"]) == (507, "error")
    other = service.client.post("/jobs", json={"prompt": "well", "model": "other"})
    assert other.status_code == 507
    # Drawing begins before the record is made, but nothing comes of it, not even a load.
    service.stop()
    assert list((service.folder / "data" / "jobs").iterdir()) == []
    lines = service.log_lines()
    assert "job ended" not in [line["event"] for line in lines]
    assert [line["model"] for line in lines if line["event"] == "loading"] == ["brittle"]


def test_a_disk_that_fills_up_refuses_jobs_until_there_is_room(start, doubles, tmp_path, mounted):
    data = mounted(tmp_path / "service-0" / "data", "-t", "tmpfs", "-o", "size=16m", "tmpfs")
    service = start(MODEL="brittle", MODELS_PATH=doubles, MIN_FREE_DISK="4", GRACE="0").ready()
    assert service.generate("well")["state"] == "succeeded"
    ballast = fill(data, leave=2 * 2**20)
    assert service.client.post("/jobs", json={"prompt": "well"}).status_code == 507
    assert service.client.get("/jobs").status_code == 200
    ballast.unlink()
    assert service.generate("well")["state"] == "succeeded"


def test_a_disk_without_a_byte_fails_jobs_with_that_reason(start, doubles, tmp_path, mounted):
    """Whether the record still finds room or not: 507, or a job that failed for the disk."""
    data = mounted(tmp_path / "service-0" / "data", "-t", "tmpfs", "-o", "size=16m", "tmpfs")
    service = start(MODEL="brittle", MODELS_PATH=doubles, MIN_FREE_DISK="0", GRACE="0").ready()
    running = service.submit("slow", steps=50)
    service.running(running)
    ballast = fill(data)
    failed = service.ended(running)
    assert (failed["state"], failed["error"]["code"]) == ("failed", "storage_failed")
    assert "full" in failed["error"]["message"]
    picture = encoded(gradient(128, 128))
    answer = service.client.post("/jobs", json={"prompt": "well", "init_image": picture})
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_failed")
    assert "full" in answer.json()["detail"]
    answer = service.client.post("/jobs", json={"prompt": "well"}, headers={"Prefer": "wait=60"})
    assert answer.status_code in (200, 507)
    if answer.status_code == 200:
        assert answer.json()["error"]["code"] == "storage_failed"
    assert service.client.get("/jobs").status_code == 200
    assert service.client.get("/health").status_code == 200

    ballast.unlink()
    assert service.generate("well")["state"] == "succeeded"
    # The end that the disk would not take is recorded late, and told after a restart as before.
    service.wait_for(lambda: recorded(service, running) == "failed", seconds=30)
    service.kill()
    service.start()
    assert service.job(running) == failed
    assert list((data / "jobs" / running).glob("*.png")) == []


def recorded(service, job_id: str) -> str:
    """The state of a job as the database has it."""
    import sqlite3

    database = sqlite3.connect(service.folder / "data" / "easel.db")
    try:
        return database.execute("select state from jobs where id = ?", (job_id,)).fetchone()[0]
    finally:
        database.close()


def test_a_disk_that_turns_read_only_refuses_jobs(start, doubles, mounted):
    service = start(MODEL="brittle", MODELS_PATH=doubles, GRACE="0").ready()
    done = service.generate("well")
    data = service.folder / "data"
    mounted(data, "--bind", str(data))
    mounted(data, "-o", "remount,bind,ro")
    for body in ({"prompt": "well"}, {"prompt": "well", "init_image": encoded(gradient())}):
        answer = service.client.post("/jobs", json=body)
        assert (answer.status_code, answer.json()["code"]) == (507, "storage_failed")
        assert "read-only" in answer.json()["detail"]
    assert service.picture(done)
    subprocess.run(["umount", "--lazy", str(data)], check=True)
    assert service.generate("well")["state"] == "succeeded"


def test_a_read_only_data_dir_stops_the_start_with_one_line(tmp_path, mounted):
    data = mounted(tmp_path / "data", "-t", "tmpfs", "-o", "ro", "tmpfs")
    line = serve_and_fail(DATA_DIR=str(data))
    assert "DATA_DIR" in line
    assert "read-only" in line


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_data_dir_that_is_a_file_stops_the_start_with_one_line(tmp_path, below):
    (tmp_path / "file").write_text("not a folder")
    assert "DATA_DIR" in serve_and_fail(DATA_DIR=str(tmp_path / "file" / below))


def test_a_picture_that_was_taken_away_is_404(brittle):
    job = brittle.generate("well")
    (brittle.folder / "data" / "jobs" / job["id"] / "0.png").unlink()
    answer = brittle.client.get(job["images"][0]["url"])
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_image")
    assert brittle.client.delete(f"/jobs/{job['id']}").status_code == 204
