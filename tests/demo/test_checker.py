"""The judge of the bundled model's pictures: it passes what was drawn, fails what was spoiled."""

import math
import random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from demo.training import evaluate
from demo.training.judge import Task, judge
from demo.training.shapes import COLOURS, SHAPES, Sheet, draw_single, draw_two

YELLOW, BLUE = COLOURS["yellow"], COLOURS["blue"]


def blue(shape: str) -> Task:
    return Task(prompt="", ground="yellow", shapes=(("blue", shape),))


def pixels(shape: str, size: float = 0.25) -> np.ndarray:
    sheet = Sheet(256, YELLOW)
    sheet.shape(shape, 0.5, 0.5, size, BLUE)
    return sheet.pixels()


def judged(shape: str, picture: np.ndarray) -> bool:
    return judge(blue(shape), picture).all


def test_drawn_single_shapes_pass() -> None:
    rng = random.Random(4)
    for held_out in (False, True):
        for task in evaluate.single_tasks(100, held_out=held_out, seed=1):
            ((colour, shape),) = task.shapes
            sheet, _ = draw_single(rng, 256, (colour, shape, task.ground))
            assert judge(task, sheet.pixels()).all, task


def test_drawn_pairs_pass() -> None:
    rng = random.Random(4)
    for task in evaluate.two_tasks(100, seed=1):
        (a, first), (b, second) = task.shapes
        plan = (a, first, task.relation, b, second, task.ground)
        assert judge(task, draw_two(rng, 256, plan)[0].pixels()).all, task


@pytest.mark.parametrize("shape", SHAPES)
def test_another_shape_colour_or_ground_fails(shape: str) -> None:
    picture = pixels(shape)
    assert judged(shape, picture)
    for other in SHAPES:
        assert judged(other, picture) == (other == shape)
    red = Task(prompt="", ground="yellow", shapes=(("red", shape),))
    assert not judge(red, picture).colour
    green = Task(prompt="", ground="green", shapes=(("blue", shape),))
    assert not judge(green, picture).ground


@pytest.mark.parametrize("shape", SHAPES)
def test_swapped_channels_fail(shape: str) -> None:
    assert not judged(shape, pixels(shape)[..., ::-1].copy())


@pytest.mark.parametrize("shape", SHAPES)
def test_damage_fails(shape: str) -> None:
    """A third cut off, cut in two, upside down, smeared, drowned in noise, or two of them."""
    whole = pixels(shape)
    cut = whole.copy()
    cut[:, :110] = YELLOW
    split = whole.copy()
    split[120:136] = YELLOW
    smeared = np.asarray(Image.fromarray(whole).filter(ImageFilter.GaussianBlur(12)))
    noise = np.random.default_rng(0).normal(0, 90, whole.shape)
    noisy = (whole + noise).clip(0, 255).astype(np.uint8)
    sheet = Sheet(256, YELLOW)
    sheet.shape(shape, 0.3, 0.5, 0.17, BLUE)
    sheet.shape(shape, 0.7, 0.5, 0.17, BLUE)
    for name, picture in {
        "cut": cut,
        "split": split,
        "smeared": smeared,
        "noisy": noisy,
        "twice": sheet.pixels(),
    }.items():
        assert not judged(shape, picture), name
    if shape not in ("circle", "square"):
        assert not judged(shape, whole[::-1].copy())


def blob(rng: random.Random, wobble: float) -> np.ndarray:
    turns = [rng.uniform(0, 2 * math.pi) for _ in range(4)]

    def point(a: float) -> tuple[float, float]:
        waves = sum(math.sin((k + 2) * a + turn) / (k + 1) for k, turn in enumerate(turns))
        r = 0.25 * (1 + wobble * waves)
        return 0.5 + r * math.cos(a), 0.5 + r * math.sin(a)

    sheet = Sheet(256, YELLOW)
    sheet.polygon([point(k * math.pi / 50) for k in range(100)], BLUE)
    return sheet.pixels()


@pytest.mark.parametrize("wobble", [0.1, 0.15, 0.2, 0.3])
def test_blobs_are_no_shape(wobble: float) -> None:
    rng = random.Random(9)
    pictures = [blob(rng, wobble) for _ in range(20)]
    assert not any(judged(shape, p) for p in pictures for shape in SHAPES)


@pytest.mark.parametrize(
    ("points", "inner"), [(5, 1), (6, 1), (4, 0.5), (6, 0.5), (7, 0.5), (5, 0.7)]
)
def test_polygons_and_other_stars_are_no_shape(points: int, inner: float) -> None:
    """Pentagon, hexagon; stars of four, six and seven points; a star grown fat."""
    corners = []
    for k in range(2 * points):
        a, r = k * math.pi / points, 0.3 * (inner if k % 2 else 1)
        r = 0.3 * math.cos(math.pi / points) if inner == 1 and k % 2 else r
        corners.append((0.5 + r * math.sin(a), 0.5 - r * math.cos(a)))
    sheet = Sheet(256, YELLOW)
    sheet.polygon(corners, BLUE)
    assert not any(judged(shape, sheet.pixels()) for shape in SHAPES)


def test_an_empty_picture_fails() -> None:
    assert not judged("circle", np.full((256, 256, 3), YELLOW, np.uint8))


def test_a_wrong_relation_fails() -> None:
    rng = random.Random(4)
    plan = ("red", "circle", "left of", "blue", "square", "white")
    picture = draw_two(rng, 256, plan)[0].pixels()
    for relation in ("left of", "right of", "above", "below", "inside"):
        task = Task(
            prompt="",
            ground="white",
            relation=relation,
            shapes=(("red", "circle"), ("blue", "square")),
        )
        assert judge(task, picture).all == (relation == "left of")
