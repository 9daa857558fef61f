"""A container's first start: MODEL is not here yet, and comes while the service tells how far it
is."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hub.server import Fault
from tests.hub.test_download import BUNDLED, MODEL, REPOSITORY, Machine

Start = Callable[..., Any]


@pytest.fixture
def settings(machine: Machine) -> dict[str, str]:
    return {key: value for key, value in machine.environ.items() if key not in ("PATH", "HOME")}


@pytest.mark.parametrize("model", [MODEL, REPOSITORY], ids=["listed", "any-repository"])
def test_the_model_comes_and_then_serves(
    machine: Machine, settings: dict[str, str], start: Start, model: str
) -> None:
    machine.hub.speed = 3_000_000
    service = start(**settings, MODEL=model)
    told: list[dict[str, Any]] = []

    def watch() -> bool:
        answer = service.client.get("/health/ready")
        told.append(answer.json())
        assert service.client.get("/health").status_code == 200
        return answer.status_code == 200

    service.wait_for(watch)
    installing = [one for one in told if one["status"] == "installing" and one.get("progress")]
    counted = [one["progress"] for one in installing if one["progress"].get("total", 0) > 1_000_000]
    assert counted[0]["bytes"] < counted[-1]["bytes"] <= counted[-1]["total"]
    assert any(progress["speed"] and progress["eta_seconds"] for progress in counted)
    name = model.replace("/", "--")
    assert service.client.get(f"/models/{name}").json()["installed"]
    job = service.generate()
    assert job["state"] == "succeeded", (job["error"], job["recipe"])
    # The next start asks nobody.
    asked = len(machine.hub.seen)
    service.stop()
    service.start()
    service.ready()
    assert service.generate(model=model)["state"] == "succeeded"
    assert len(machine.hub.seen) == asked


def test_a_first_start_that_is_killed_goes_on_at_the_next(
    machine: Machine, settings: dict[str, str], start: Start
) -> None:
    machine.hub.speed = 1_500_000
    service = start(**settings, MODEL=MODEL)
    service.wait_for(lambda: machine.hub.sent > 2_000_000)
    service.kill()
    assert not (machine.models / MODEL).exists()
    machine.hub.speed = None
    service.start()
    service.ready()
    assert machine.is_whole()


def test_a_gate_is_told_by_the_readiness(
    machine: Machine, settings: dict[str, str], start: Start
) -> None:
    machine.hub.repositories[REPOSITORY].gated = True
    service = start(**settings, MODEL=MODEL)
    service.wait_for(lambda: service.client.get("/health/ready").json()["status"] == "failed")
    detail = service.client.get("/health/ready").json()["detail"]
    assert f"{machine.hub.url}/{REPOSITORY}" in detail and "HF_TOKEN" in detail
    answer = service.client.post("/jobs", json={"prompt": "a fox"})
    assert answer.status_code in (409, 503), answer.text


def test_a_model_damaged_on_the_disk_is_repaired_at_the_next_start(
    machine: Machine, settings: dict[str, str], start: Start
) -> None:
    machine.install()
    (machine.models / MODEL / "unet" / "openvino_model.bin").write_bytes(b"")
    service = start(**settings, MODEL=MODEL).ready()
    assert machine.is_whole()
    assert service.generate()["state"] == "succeeded"


def test_a_folder_with_an_openvino_pipeline_is_served_where_it_lies(
    machine: Machine, settings: dict[str, str], start: Start, tmp_path: Path
) -> None:
    own = tmp_path / "my own"
    shutil.copytree(BUNDLED, own)
    service = start(**settings, MODEL=str(own)).ready()
    assert service.generate(steps=2)["model"].startswith("local--my-own--")
    assert not machine.models.exists()


def test_the_network_may_come_later_than_the_service(
    machine: Machine, settings: dict[str, str], start: Start
) -> None:
    machine.hub.faults.append(Fault("api/models", status=503, times=2))
    start(**settings, MODEL=MODEL).ready()
    assert machine.is_whole()
