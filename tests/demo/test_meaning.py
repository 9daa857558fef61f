"""The bundled model draws what it is asked for: a broken scheduler, a swapped channel or a wrong
scale would show here. Small sets of prompts; demo/training/evaluate.py asks many more."""

import numpy as np
import pytest

from demo.training import evaluate
from demo.training.judge import Task, judge
from demo.training.shapes import COLOURS, Sheet

genai = pytest.importorskip("openvino_genai")
SETTINGS = {"num_inference_steps": evaluate.STEPS, "guidance_scale": evaluate.GUIDANCE}
SETTINGS |= {"width": evaluate.SIDE, "height": evaluate.SIDE}


@pytest.fixture(scope="module")
def draw():
    return evaluate.drawn_by(evaluate.WEIGHTS)


def drawn(shape: str, colour: str, ground: str) -> np.ndarray:
    sheet = Sheet(evaluate.SIDE, COLOURS[ground])
    sheet.shape(shape, 0.5, 0.5, 0.25, COLOURS[colour])
    return sheet.pixels()


def test_single_shapes_come_out_right(draw) -> None:
    tasks = evaluate.single_tasks(40, held_out=False, seed=11)
    wrong = [t.prompt for k, t in enumerate(tasks) if not judge(t, draw(t.prompt, seed=k)).all]
    assert len(wrong) <= 2, wrong


def test_the_same_recipe_gives_the_same_bytes(draw) -> None:
    one, again, other = (draw("a red circle on a blue background", seed=s) for s in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_picture_becomes_another() -> None:
    import openvino

    pipeline = genai.Image2ImagePipeline(evaluate.WEIGHTS, "CPU")
    source = openvino.Tensor(drawn("circle", "red", "blue")[None])
    task = Task(prompt="", ground="blue", shapes=(("yellow", "circle"),))
    right = 0
    for seed in range(5):
        prompt = "a yellow circle on a blue background"
        made = pipeline.generate(prompt, source, strength=0.7, rng_seed=seed, **SETTINGS)
        right += judge(task, made.data[0].copy()).all
    assert right >= 4


def test_only_what_is_masked_is_painted_anew() -> None:
    import openvino

    pipeline = genai.InpaintingPipeline(evaluate.WEIGHTS, "CPU")
    picture = drawn("circle", "red", "white")
    mask = np.zeros((1, evaluate.SIDE, evaluate.SIDE, 3), np.uint8)
    mask[:, 40:-40, 40:-40] = 255
    task = Task(prompt="", ground="white", shapes=(("green", "square"),))
    right = 0
    for seed in range(5):
        prompt = "a green square on a white background"
        given = openvino.Tensor(picture[None]), openvino.Tensor(mask)
        made = pipeline.generate(prompt, *given, strength=1.0, rng_seed=seed, **SETTINGS)
        made = made.data[0].copy()
        right += judge(task, made).all
        assert np.abs(made.astype(int) - picture)[mask[0] == 0].mean() < 6
    assert right >= 4
