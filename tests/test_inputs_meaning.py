"""What image to image and inpainting mean, in numbers, with the bundled model.

Distances are mean absolute differences of pixel values, 0 to 255. The picture to start from and the
prompt differ everywhere: a green square on yellow is to become a red circle on blue.
"""

import io

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.pictures import encoded

START = "a green square on a yellow background"
GOAL = "a red circle on a blue background"
SEEDS = (1, 2)


def draw(service, prompt=GOAL, **keys) -> Image.Image:
    return Image.open(io.BytesIO(service.picture(service.generate(prompt, **keys)))).convert("RGB")


def distance(one: Image.Image, other: Image.Image) -> float:
    means = ImageStat.Stat(ImageChops.difference(one, other)).mean
    return sum(means) / len(means)


def colour(picture: Image.Image, box: tuple[int, int, int, int] | None = None) -> list[float]:
    """The mean red, green and blue."""
    return ImageStat.Stat(picture.crop(box) if box else picture).mean


def colours_apart(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def start_picture(service) -> Image.Image:
    return draw(service, START, seed=1)


@pytest.fixture(scope="module")
def goal(service) -> Image.Image:
    """What the prompt alone gives."""
    return draw(service, seed=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_low_strength_keeps_the_picture(service, start_picture, goal, seed):
    made = draw(service, init_image=encoded(start_picture), strength=0.15, steps=20, seed=seed)
    assert distance(made, start_picture) < 16
    assert distance(goal, start_picture) > 80  # what there would be to change


@pytest.mark.parametrize("seed", SEEDS)
def test_a_high_strength_follows_the_prompt(service, start_picture, goal, seed):
    made = draw(service, init_image=encoded(start_picture), strength=0.95, steps=20, seed=seed)
    assert distance(made, start_picture) > 80
    assert colours_apart(colour(made), colour(goal)) < 40
    assert colours_apart(colour(made), colour(start_picture)) > 80


def test_more_strength_is_more_change(service, start_picture):
    init = encoded(start_picture)
    distances = [
        distance(draw(service, init_image=init, strength=s, steps=20, seed=3), start_picture)
        for s in (0.1, 0.3, 0.6)
    ]
    assert distances == sorted(distances)
    assert distances[-1] > 3 * distances[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_outside_the_mask_nothing_changes_and_inside_the_prompt_rules(
    service, start_picture, goal, seed
):
    width, height = start_picture.size
    mask = Image.new("L", (width, height), 0)
    right = (width // 2, 0, width, height)
    left = (0, 0, width // 2, height)
    mask.paste(255, right)
    made = draw(
        service,
        init_image=encoded(start_picture),
        mask=encoded(mask),
        strength=1.0,
        steps=20,
        seed=seed,
    )
    outside = ImageChops.difference(made.crop(left), start_picture.crop(left))
    assert max(high for _, high in outside.getextrema()) <= 2
    assert distance(made.crop(right), start_picture.crop(right)) > 80
    assert colours_apart(colour(made, right), colour(goal, right)) < 60


def test_inside_the_mask_strength_decides_too(service, start_picture):
    mask = encoded(Image.new("L", start_picture.size, 255))
    init = encoded(start_picture)
    low, high = (
        distance(
            draw(service, init_image=init, mask=mask, strength=s, steps=20, seed=4), start_picture
        )
        for s in (0.15, 1.0)
    )
    assert low < 16 < 80 < high


def test_a_grey_mask_blends(service, start_picture):
    """Half grey counts as repaint for the denoiser and is laid over the old picture by half."""
    init = encoded(start_picture)
    white = draw(
        service, init_image=init, mask=encoded(Image.new("L", start_picture.size, 255)),
        strength=1.0, steps=10, seed=5)  # fmt: skip
    grey = draw(
        service, init_image=init, mask=encoded(Image.new("L", start_picture.size, 128)),
        strength=1.0, steps=10, seed=5)  # fmt: skip
    assert distance(grey, Image.blend(start_picture, white, 128 / 255)) < 8


def test_the_masked_part_alone_is_redrawn_in_its_own_detail(service, start_picture, goal):
    """With mask_padding the part becomes a whole picture of the prompt, put back in its place."""
    size = start_picture.width * 2
    large = start_picture.resize((size, size))
    box = (size // 8, size // 8, size // 2, size // 2)
    mask = Image.new("L", (size, size), 0)
    mask.paste(255, box)
    made = draw(
        service,
        init_image=encoded(large),
        mask=encoded(mask),
        mask_padding=0,
        strength=1.0,
        width=goal.width,
        height=goal.height,
        steps=20,
        seed=6,
    )
    assert made.size == (size, size)
    kept = Image.composite(Image.new("RGB", made.size), made, mask)
    assert distance(kept, Image.composite(Image.new("RGB", made.size), large, mask)) == 0
    assert colours_apart(colour(made, box), colour(goal)) < 40
    middle = [(low + high) // 2 for low, high in zip(box[:2], box[2:], strict=True)]
    red, _, blue = made.getpixel((middle[0], middle[1]))
    assert red > blue  # the circle is in the middle of the part, as it is in a whole picture
