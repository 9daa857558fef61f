"""Every architecture end to end: served by a hub, downloaded, converted by optimum-intel, and run.

The checkpoints are tiny and random, the code that handles them is all real. About half a minute
each.
"""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.installation.convert import environment_is_ready, make_environment
from app.models import manifest, recognition, source
from app.models.catalog import HOME, Catalog
from app.models.model import Model
from app.request import ImageRequest
from app.runtime import Inputs, load
from tests.hub.server import TOKEN, Hub
from tests.hub.test_download import Machine

pytestmark = [pytest.mark.convert, pytest.mark.timeout(600)]

ENVIRONMENT = Path(os.environ.get("CONVERT_VENV", HOME / ".venv-convert"))
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    kind: str  # of tiny.py
    model: str
    repository: str
    weight_format: str = "int8"
    gated: bool = False


CASES = [
    Case("sd15", "stable-diffusion-v1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "fp16"),
    Case("sd21", "stable-diffusion-v2.1", "stabilityai/stable-diffusion-2-1", "int4"),
    Case("lcm", "lcm-dreamshaper-v7", "SimianLuo/LCM_Dreamshaper_v7", "fp16"),
    Case("sdxl", "stable-diffusion-xl", "stabilityai/stable-diffusion-xl-base-1.0", "fp16"),
    Case("sdxl-turbo", "sdxl-turbo", "stabilityai/sdxl-turbo"),
    Case(
        "sd3", "stable-diffusion-v3", "stabilityai/stable-diffusion-3-medium-diffusers", gated=True
    ),
    Case("sd35", "stable-diffusion-v3.5", "stabilityai/stable-diffusion-3.5-medium", gated=True),
    Case("flux-schnell", "flux-schnell", "black-forest-labs/FLUX.1-schnell", "fp16"),
    Case("flux-dev", "flux-dev", "black-forest-labs/FLUX.1-dev", gated=True),
]


def convert_python(*arguments: str | Path) -> None:
    """Runs a script of this folder in the convert environment."""
    done = subprocess.run(
        [ENVIRONMENT / "bin" / "python", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    if not environment_is_ready(ENVIRONMENT):
        make_environment(ENVIRONMENT, folder / "environment.log", lambda progress: None)
    wanted = [part for case in CASES for part in (case.kind, str(folder / case.kind))]
    convert_python(HERE / "tiny.py", *wanted)
    return folder


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    machine = Machine(tmp_path, hub)
    machine.environ["CONVERT_VENV"] = str(ENVIRONMENT)
    return machine


def catalog_of(machine: Machine) -> Catalog:
    catalog = Catalog([HOME], machine.models)
    source.adopt_installed(catalog, machine.models)
    return catalog


def draws(model: Model) -> None:
    """The installed model makes pictures: the same for the same seed, others for others, with
    previews, from words, from a picture and in a part of one."""
    pipeline = load(model)

    def draw(seed: int, inputs: Inputs | None = None, **asked: Any) -> np.ndarray[Any, Any]:
        request = ImageRequest(
            prompt="a red fox in the snow", width=64, height=64, steps=2, **asked
        )
        recipe, _ = model.complete(request)
        previews: list[tuple[int, ...]] = []

        def on_step(step: int, steps: int, preview: Any = None) -> None:
            previews.append(preview().shape)

        picture = pipeline.generate(recipe, seed, inputs or Inputs(), on_step).pixels
        assert picture.shape == (64, 64, 3) and picture.std() > 5
        assert set(previews) == {(8, 8, 3)}
        return picture

    first = draw(1)
    assert (draw(1) == first).all()
    assert (draw(2) != first).any()
    if model.limits.guidance is not None:
        assert (draw(1, guidance=2.0) != first).any()
    if model.limits.negative_prompt:
        assert (draw(1, negative_prompt="a blue dog") != first).any()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    draw(1, Inputs(init_image=noise), init_image=b"given", strength=1.0)
    half = draw(
        1, Inputs(init_image=noise, mask=mask), init_image=b"given", mask=b"given", strength=1.0
    )
    assert (half[:, :32] == noise[:, :32]).all() and (half[:, 32:] != noise[:, 32:]).any()


@pytest.mark.parametrize("case", CASES, ids=[case.kind for case in CASES])
def test_a_listed_model_is_converted_and_draws(
    case: Case, machine: Machine, checkpoints: Path
) -> None:
    machine.hub.add(case.repository, checkpoints / case.kind, gated=case.gated)
    if case.gated:
        code, output = machine.run(case.model)
        assert code == 1 and case.repository in output and "HF_TOKEN" in output
    machine.install(case.model, "--weight-format", case.weight_format, HF_TOKEN=TOKEN)
    model = catalog_of(machine).get(case.model)
    facts = manifest.read(model.weights_dir)
    assert facts is not None and facts.converted
    assert facts.format == case.weight_format
    assert recognition.recognise(model.weights_dir, catalog_of(machine)) in (
        case.model,
        facts.model,
    )
    draws(model)


def test_an_unlisted_repository_is_converted_and_draws(machine: Machine, checkpoints: Path) -> None:
    machine.hub.add("someone/own-xl", checkpoints / "sdxl")
    machine.install("someone/own-xl")
    model = catalog_of(machine).get("someone/own-xl")
    assert (model.family, model.defaults.width) == ("stable-diffusion-xl", 64)
    draws(model)


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_single_file_is_converted_and_nothing_in_it_runs(
    machine: Machine, checkpoints: Path, tmp_path: Path, ending: str
) -> None:
    machine.hub.add("stable-diffusion-v1-5/stable-diffusion-v1-5", checkpoints / "sd15")
    file = tmp_path / f"v1-5-pruned-emaonly.{ending}"
    convert_python(HERE / "single_file.py", checkpoints / "sd15", file)
    machine.install(str(file))
    assert not (tmp_path / "executed").exists()
    assert not machine.hub.asked(
        "diffusion_pytorch_model"
    )  # only how it is built comes from the hub
    model = catalog_of(machine).get(str(file))
    assert model.family == "stable-diffusion-v1.5"
    draws(model)


def test_a_local_folder_is_converted_and_its_result_used_where_it_lies(
    machine: Machine, checkpoints: Path, tmp_path: Path
) -> None:
    machine.install(str(checkpoints / "sd15"), HF_HUB_OFFLINE="1")
    catalog = catalog_of(machine)
    converted = catalog.get(str(checkpoints / "sd15"))
    elsewhere = tmp_path / "my-openvino"
    converted.weights_dir.rename(elsewhere)
    (elsewhere / manifest.NAME).unlink()
    model = source.find(str(elsewhere), Catalog([HOME], machine.models))
    assert model is not None and model.weights_dir == elsewhere
    draws(model)


def test_killed_while_converting_it_goes_on_without_downloading_again(
    machine: Machine, checkpoints: Path
) -> None:
    machine.hub.add("stabilityai/sdxl-turbo", checkpoints / "sdxl-turbo")
    process = machine.start("sdxl-turbo", "--json")
    assert process.stdout is not None
    for line in process.stdout:
        if '"converting"' in line:
            break
    process.kill()
    process.communicate()
    assert not (machine.models / "sdxl-turbo").exists()
    sent = machine.hub.sent
    for _ in range(20):  # until the converter has noticed, too
        code, output = machine.run("sdxl-turbo")
        if "another process" not in output:
            break
    assert code == 0, output
    assert machine.hub.sent == sent
    draws(catalog_of(machine).get("sdxl-turbo"))


def test_too_little_memory_is_refused_before_the_download(
    machine: Machine, checkpoints: Path
) -> None:
    machine.hub.add("stabilityai/sdxl-turbo", checkpoints / "sdxl-turbo")
    code, output = machine.run(
        "sdxl-turbo", first="from app.installation import room; room._MEMORY = 1e9\n"
    )
    assert code == 1 and "of memory" in output
    assert machine.hub.sent < 10_000
