"""The API process stays small: no runtime is loaded in it, whatever it has been asked for."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import HOME
from tests.pictures import encoded, gradient

HEAVY = ("numpy", "openvino", "torch", "diffusers", "axengine", "tokenizers", "libopenvino")


def test_after_a_life_of_work_no_runtime_is_mapped_into_it(service):
    service.generate(init_image=encoded(gradient()), steps=2, format="webp")
    service.client.get("/devices")
    service.client.post("/pipeline/select-device", json={"device": "CPU"})
    maps = Path(f"/proc/{service.process.pid}/maps").read_text()
    assert not [name for name in HEAVY if f"/{name}" in maps]
    worker = Path(f"/proc/{service.workers()[0]}/maps").read_text()
    assert "openvino" in worker  # the question can be asked this way


def test_importing_the_service_imports_no_runtime():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import app.server, app.__main__"],
        cwd=HOME,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.split("\n")
    }
    assert "fastapi" in imported
    assert not imported.intersection(HEAVY)
