"""The Axera family's pipeline over the axengine double: pictures, steps, cancel, what can go
wrong."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import runtime
from app.errors import GenerationFailed, LoadFailed
from app.models.catalog import HOME, Catalog
from app.models.model import Model
from app.request import ImageRequest, Recipe
from app.runtime.protocol import Canceled, Inputs, Pipeline

CATALOG = Catalog([HOME], Path("weights"))
MODEL = CATALOG.get("axera-sd15-lcm")
PORTRAIT = CATALOG.get("axera-sd15-lcm-1024x768")


def load(weights: Path, model: Model = MODEL, **places: str) -> Pipeline:
    named = {variable: Path(place) for variable, place in places.items()}
    return runtime.load(replace(model, weights_dir=weights, places=named), "AXERA")


@pytest.fixture(scope="module")
def pipeline(tiny_set: Path) -> Pipeline:
    return load(tiny_set)


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AXENGINE_DOUBLE_FAULTS", str(tmp_path / "faults"))
    return tmp_path / "faults"


def recipe(prompt: str = "a red fox", strength: float | None = None) -> Recipe:
    made, _ = MODEL.complete(ImageRequest(prompt=prompt))
    return replace(made, strength=strength)


def draw(pipeline: Pipeline, seed: int = 1, inputs: Inputs = Inputs(), **request: Any) -> Any:  # noqa: B008
    return pipeline.generate(recipe(**request), seed, inputs, ignore).pixels


def ignore(step: int, steps: int, preview: Any = None) -> None:
    pass


def test_a_picture_depends_on_seed_and_prompt_and_nothing_else(pipeline: Pipeline) -> None:
    first = draw(pipeline)
    assert first.shape == (512, 512, 3) and first.dtype == np.uint8 and first.std() > 10
    assert np.array_equal(draw(pipeline), first)
    assert not np.array_equal(draw(pipeline, seed=2), first)
    assert not np.array_equal(draw(pipeline, prompt="a blue cat"), first)


def test_the_picture_of_a_seed_stays(pipeline: Pipeline) -> None:
    """Should it change, with the noise or the loop, then every seed has lost its picture."""
    corner = draw(pipeline, seed=7)[:64:16, :64:32].reshape(-1)
    assert np.abs(corner.astype(int) - PICTURE_7).max() <= 1  # processors round differently


PICTURE_7 = np.array(
    [
        66,
        187,
        255,
        160,
        64,
        255,
        26,
        221,
        222,
        23,
        255,
        96,
        0,
        129,
        255,
        61,
        67,
        255,
        162,
        49,
        255,
        123,
        76,
        255,
    ]
)


def test_every_step_is_reported_with_a_preview(pipeline: Pipeline) -> None:
    reported: list[tuple[int, int]] = []

    def on_step(step: int, steps: int, preview: Any = None) -> None:
        reported.append((step, steps))
        assert preview().shape == (64, 64, 3) and preview().dtype == np.uint8

    generated = pipeline.generate(recipe(), 1, Inputs(), on_step)
    assert reported == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert set(generated.timings_ms) == {"text", "denoise", "decode"}
    assert generated.warnings == ()


@pytest.mark.parametrize(
    ("strength", "steps"),
    [
        (0.01, 1),
        (0.35, 1),
        (0.36, 2),
        (0.6, 2),
        (0.61, 3),
        (0.85, 3),
        (0.86, 4),
        (1.0, 4),
        (None, 4),
    ],
)
def test_strength_says_how_many_steps_an_image_to_image_run_takes(
    pipeline: Pipeline, strength: float | None, steps: int
) -> None:
    reported: list[int] = []
    image = Inputs(init_image=np.full((512, 512, 3), 200, np.uint8))
    pipeline.generate(
        recipe(strength=strength), 1, image, lambda n, of, preview=None: reported.append(of)
    )
    assert reported == [steps] * steps


def test_an_image_to_image_run_starts_from_the_picture(pipeline: Pipeline) -> None:
    images = np.zeros((2, 512, 512, 3), np.uint8)
    images[1, :, 256:] = 255
    plain, split = (
        draw(pipeline, inputs=Inputs(init_image=image), strength=0.3).astype(int)
        for image in images
    )
    change = np.abs(plain - split)
    assert change[:, :256].max() == 0, "what is the same on the left stays the same"
    assert change[:, 256:].mean() > 5, "and the right half is another one"


def test_a_cancel_ends_the_run_and_leaves_the_pipeline_as_it_was(pipeline: Pipeline) -> None:
    before = draw(pipeline)
    reported: list[int] = []

    def on_step(step: int, steps: int, preview: Any = None) -> None:
        reported.append(step)
        if step == 2:
            raise Canceled

    with pytest.raises(Canceled):
        pipeline.generate(recipe(), 5, Inputs(), on_step)
    assert reported == [1, 2]
    assert np.array_equal(draw(pipeline), before)


@pytest.mark.parametrize(
    ("part", "fault", "words"),
    [
        ("unet", "nan", r"The UNet answered with values that are no numbers \(NaN\)"),
        ("vae_decoder", "nan", "The VAE decoder answered"),
        ("sd15_text_encoder_sim", "nan", "The text encoder answered"),
        ("unet", "raise", "The UNet failed on the NPU: axclrtEngineExecute failed 0x8006008a."),
    ],
)
def test_a_failing_graph_fails_the_run_in_words(
    pipeline: Pipeline, faults: Path, part: str, fault: str, words: str
) -> None:
    before = draw(pipeline)
    faults.write_text(f"{part} {fault}")
    with pytest.raises(GenerationFailed, match=words):
        draw(pipeline)
    faults.unlink()
    assert np.array_equal(draw(pipeline), before)


def test_a_long_prompt_is_cut_with_a_warning(pipeline: Pipeline) -> None:
    just, over = "x " * 75, "x " * 76
    assert pipeline.generate(recipe(just), 1, Inputs(), ignore).warnings == ()
    generated = pipeline.generate(recipe(over), 1, Inputs(), ignore)
    assert generated.warnings == (
        "prompt has 78 tokens; the model reads 77, the rest was cut off.",
    )
    assert np.array_equal(generated.pixels, draw(pipeline, prompt=just))


def test_the_portrait_set_has_no_encoder(
    tmp_path: Path, write_tiny_set: Callable[[Path, int, int], Path]
) -> None:
    weights = write_tiny_set(tmp_path / "portrait", 768, 1024)
    for name in ("vae_encoder.axmodel", "time_input_img2img.npy"):
        (weights / name).unlink()
    pipeline = load(weights, PORTRAIT)
    assert draw(pipeline).shape == (1024, 768, 3)
    with pytest.raises(GenerationFailed, match="no VAE encoder"):
        draw(pipeline, inputs=Inputs(init_image=np.zeros((1024, 768, 3), np.uint8)))
    with pytest.raises(LoadFailed, match="make pictures of 768x1024; the model's are 512x512"):
        load(weights, MODEL)


def test_files_may_lie_elsewhere(tiny_set: Path, tmp_path: Path, pipeline: Pipeline) -> None:
    moved = shutil.copytree(tiny_set, tmp_path / "moved")
    places = {
        "UNET_MODEL": (moved / "unet.axmodel").rename(tmp_path / "u.axmodel"),
        "VAE_DECODER_MODEL": (moved / "vae_decoder.axmodel").rename(tmp_path / "d.axmodel"),
        "VAE_ENCODER_MODEL": (moved / "vae_encoder.axmodel").rename(tmp_path / "e.axmodel"),
        "TIME_INPUT_TXT2IMG": (moved / "time_input_txt2img.npy").rename(tmp_path / "t.npy"),
        "TIME_INPUT_IMG2IMG": (moved / "time_input_img2img.npy").rename(tmp_path / "i.npy"),
    }
    elsewhere = load(moved, **{key: str(path) for key, path in places.items()})
    assert np.array_equal(draw(elsewhere), draw(pipeline))
    start = Inputs(init_image=np.full((512, 512, 3), 90, np.uint8))
    assert np.array_equal(
        draw(elsewhere, inputs=start, strength=0.5), draw(pipeline, inputs=start, strength=0.5)
    )


@pytest.mark.parametrize("name", ["unet.axmodel", "tokenizer", "time_input_txt2img.npy"])
def test_a_missing_file_is_named(tiny_set: Path, tmp_path: Path, name: str) -> None:
    weights = shutil.copytree(tiny_set, tmp_path / "weights")
    (weights / name).rename(tmp_path / "gone")
    with pytest.raises(LoadFailed, match=name):
        load(weights)


def test_a_place_that_was_named_must_exist(tiny_set: Path) -> None:
    with pytest.raises(LoadFailed, match=r"nowhere is missing.*VAE_ENCODER_MODEL"):
        load(tiny_set, VAE_ENCODER_MODEL="nowhere")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("unet.axmodel", b"", r"UNet \(unet.axmodel\) cannot be opened on AXERA"),
        ("time_input_txt2img.npy", b"\x93NUMPY", "cannot be read as a NumPy file"),
        ("tokenizer/vocab.json", b"{", "tokenizer in .* cannot be read"),
        ("tokenizer/vocab.json", b"{}", "has no <.startoftext"),
    ],
)
def test_a_damaged_file_is_reported(
    tiny_set: Path, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    weights = shutil.copytree(tiny_set, tmp_path / "weights")
    (weights / name).write_bytes(content)
    with pytest.raises(LoadFailed, match=words):
        load(weights)


def test_time_inputs_of_another_shape_are_refused(tiny_set: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "times.npy", np.zeros((4, 320), np.float32))
    with pytest.raises(LoadFailed, match=r"\(4, 320\); time embeddings are \(4, 1280\)"):
        load(tiny_set, TIME_INPUT_TXT2IMG=str(tmp_path / "times.npy"))


def test_graphs_of_another_pipeline_are_refused(tiny_set: Path) -> None:
    with pytest.raises(LoadFailed, match="The UNet takes"):
        load(tiny_set, UNET_MODEL=str(tiny_set / "vae_decoder.axmodel"))


def test_the_portrait_unet_does_not_fit_the_square_vae(
    tiny_set: Path, tmp_path: Path, write_tiny_set: Callable[[Path, int, int], Path]
) -> None:
    other = write_tiny_set(tmp_path / "portrait", 768, 1024)
    with pytest.raises(LoadFailed, match="two sets mixed"):
        load(tiny_set, UNET_MODEL=str(other / "unet.axmodel"))
