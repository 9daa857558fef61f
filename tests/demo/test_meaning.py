"""The bundled model draws what it is asked for: a broken scheduler, a swapped channel or a wrong
scale would show here. A small set of prompts; demo/training/evaluate.py asks many more."""

import numpy as np
import pytest

from demo.training import evaluate
from demo.training.judge import judge

pytest.importorskip("openvino_genai")


@pytest.fixture(scope="module")
def draw():
    return evaluate.drawn_by(evaluate.WEIGHTS)


def test_single_shapes_come_out_right(draw) -> None:
    tasks = evaluate.single_tasks(40, held_out=False, seed=11)
    wrong = [t.prompt for k, t in enumerate(tasks) if not judge(t, draw(t.prompt, seed=k)).all]
    assert len(wrong) <= 2, wrong


def test_the_same_recipe_gives_the_same_bytes(draw) -> None:
    one, again, other = (draw("a red circle on a blue background", seed=s) for s in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
