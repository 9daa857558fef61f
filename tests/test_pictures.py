"""The pictures: reproducible to the byte, started from pictures, and carrying their recipe."""

import io
import re

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageChops

from tests.pictures import encoded, gradient, half_mask

PROMPT = "a red circle on a blue background"


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def difference(one: Image.Image, other: Image.Image) -> float:
    """The mean absolute difference of two pictures, 0 to 255."""
    histogram = ImageChops.difference(one.convert("RGB"), other.convert("RGB")).histogram()
    return sum(value % 256 * count for value, count in enumerate(histogram)) / (
        3 * one.width * one.height
    )


def test_a_tiny_first_picture_spoils_none_after_it(start):
    """The runtime's first shape decides how it computes: after 64x64, larger ones were black."""
    service = start().ready()
    assert opened(service.picture(service.generate(PROMPT, width=64, height=64)))
    after = opened(service.picture(service.generate(PROMPT, seed=3)))
    assert difference(after, Image.new("RGB", after.size)) > 20
    assert service.client.delete("/models/demo/load").is_success
    again = opened(service.picture(service.generate(PROMPT, seed=3)))
    assert difference(after, again) == 0


def test_the_picture_has_the_asked_size_and_something_on_it(service):
    image = opened(service.picture(service.generate(PROMPT, width=192, height=64, seed=3)))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (192, 64))
    assert len(image.getcolors(192 * 64)) > 100


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "ddim"])
@pytest.mark.parametrize("steps", [1, 9, 11])
def test_no_sampler_gives_a_flat_picture_at_any_count_of_steps(service, sampler, steps):
    """The runtime makes black pictures of NaN at some counts; they must not reach anybody."""
    image = opened(service.picture(service.generate(PROMPT, sampler=sampler, steps=steps, seed=1)))
    assert len(image.getcolors(image.width * image.height)) > 100


def test_the_same_recipe_gives_the_same_bytes(service):
    recipe = {"prompt": PROMPT, "seed": 7, "steps": 4, "sampler": "euler_ancestral"}
    assert service.picture(service.generate(**recipe)) == service.picture(
        service.generate(**recipe)
    )


def test_the_seed_the_prompt_and_the_guidance_each_matter(service):
    keys = {"prompt": PROMPT, "seed": 7, "steps": 4, "guidance": 4.0}
    pictures = [
        opened(service.picture(service.generate(**{**keys, **other})))
        for other in ({}, {"seed": 8}, {"prompt": "a green house"}, {"guidance": 1.0})
    ]
    for picture in pictures[1:]:
        assert difference(pictures[0], picture) > 1


def test_picture_n_is_what_its_seed_alone_gives(service):
    keys = {"prompt": PROMPT, "steps": 4}
    several = service.generate(**keys, seed=40, images=3)
    assert [image["seed"] for image in several["images"]] == [40, 41, 42]
    assert several["progress"]["steps"] == 12
    for n in range(3):
        alone = service.generate(**keys, seed=40 + n)
        assert service.picture(alone) == service.picture(several, n)


def test_a_recipe_posted_again_as_it_stands_gives_the_same_picture(service):
    job = service.generate(PROMPT, steps=3)
    again = service.generate(**job["recipe"])
    assert again["recipe"] == job["recipe"]
    assert service.picture(again) == service.picture(job)


# From pictures


def test_an_init_image_is_kept_to_the_degree_of_its_strength(service):
    keys = {"prompt": PROMPT, "seed": 5, "init_image": encoded(gradient())}
    near, far = (
        difference(
            gradient(),
            opened(service.picture(service.generate(**keys, strength=strength, steps=10))),
        )
        for strength in (0.1, 1.0)
    )
    assert near < far


def test_without_a_size_the_picture_takes_the_init_images(service):
    job = service.generate(PROMPT, init_image=encoded(gradient(90, 190)), steps=2)
    assert opened(service.picture(job)).size == (96, 192)
    job = service.generate(PROMPT, init_image=encoded(gradient(90, 190)), width=64, height=96)
    assert opened(service.picture(job)).size == (64, 96)


def test_inpainting_changes_nothing_where_the_mask_is_black(service):
    job = service.generate(
        PROMPT, init_image=encoded(gradient()), mask=encoded(half_mask()), seed=5, strength=1.0
    )
    assert job["state"] == "succeeded"
    before, after = gradient(), opened(service.picture(job))
    left, right = (0, 0, 64, 128), (64, 0, 128, 128)
    assert after.crop(left).tobytes() == before.crop(left).tobytes()
    assert difference(after.crop(right), before.crop(right)) > 10


@pytest.mark.parametrize("mask", [None, encoded(half_mask(100, 80))], ids=["image", "inpainting"])
def test_a_recipe_with_pictures_can_be_posted_again_too(service, mask):
    keys = {"init_image": encoded(gradient(100, 80)), "strength": 0.6, "steps": 5}
    job = service.generate(PROMPT, **keys, mask=mask)
    again = service.generate(**job["recipe"])
    assert service.picture(again) == service.picture(job)
    assert again["recipe"]["init_image"] != job["recipe"]["init_image"]
    # and so still, when the job it came from is gone
    service.client.delete(f"/jobs/{job['id']}")
    assert service.picture(service.generate(**again["recipe"])) == service.picture(again)


def test_a_picture_made_here_can_be_the_start_of_the_next(service):
    job = service.generate(PROMPT, steps=2)
    url = job["images"][0]["url"]
    by_path = service.generate(PROMPT, init_image=url, seed=1, steps=3)
    by_bytes = service.generate(
        PROMPT, init_image=encoded(opened(service.picture(job))), seed=1, steps=3
    )
    assert service.picture(by_path) == service.picture(by_bytes)


@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (100, 0.01), (3, 0.34), (149, 0.01)])
def test_the_least_strength_that_is_let_in_can_be_run(service, steps, strength):
    """The runtime runs floor(steps * strength) steps, and none at all breaks it."""
    body = {"prompt": PROMPT, "init_image": encoded(gradient(64, 64))}
    answer = service.client.post(
        "/jobs",
        json={**body, "steps": steps, "strength": strength},
        headers={"Prefer": "wait=60"},
    )
    assert answer.status_code == 200
    assert answer.json()["state"] == "succeeded", answer.json()["error"]


# What the files carry


def parameters_of(image: Image.Image) -> str:
    """The recipe text, read as other programs read it: PNG text, or the EXIF user comment."""
    if image.format == "PNG":
        return image.text["parameters"]
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment.startswith(b"UNICODE\0")
    return comment[8:].decode("utf-16-be")


FORMATS = [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")]


@pytest.mark.parametrize(("name", "form"), FORMATS)
def test_every_format_carries_the_recipe_as_automatic1111_writes_it(service, name, form):
    prompt = 'a cat, "fancy": 画 ünï 🎈'
    job = service.generate(
        prompt,
        negative_prompt="rain, fog",
        seed=9,
        steps=2,
        guidance=2.5,
        format=name,
        width=64,
        height=96,
        images=2,
    )
    for n in range(2):
        image = opened(service.picture(job, n))
        assert (image.format, image.size) == (form, (64, 96))
        assert job["images"][n]["media_type"] == f"image/{name}"
        lines = parameters_of(image).split("\n")
        assert lines[:2] == [prompt, "Negative prompt: rain, fog"]
        pairs = dict(re.findall(r"([A-Z][\w ]*): ([^,]+)(?:, |$)", lines[2]))
        assert pairs.pop("Version").startswith("Easel ")
        assert pairs == {
            "Steps": "2",
            "Sampler": "Euler",
            "CFG scale": "2.5",
            "Seed": str(9 + n),
            "Size": "64x96",
            "Model": "demo",
        }


def test_a_png_is_sound_and_holds_every_pixel_as_it_was_drawn(brittle):
    """The double draws noise of the seed, the hardest there is to pack."""
    data = brittle.picture(brittle.generate("well", width=128, height=64, seed=6))
    Image.open(io.BytesIO(data)).verify()  # every chunk against its checksum
    drawn = np.random.default_rng(6).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(opened(data)), drawn)


def test_a_picture_from_a_picture_names_its_strength(service):
    job = service.generate(PROMPT, init_image=encoded(gradient()), strength=0.5, steps=4)
    assert "Denoising strength: 0.5" in parameters_of(opened(service.picture(job)))


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_quality_is_honoured(service, name):
    sizes = [
        service.generate(PROMPT, seed=2, steps=2, format=name, quality=quality)["images"][0][
            "bytes"
        ]
        for quality in (1, 50, 100)
    ]
    assert sizes == sorted(set(sizes))


def test_a_picture_says_nothing_of_the_machine_that_made_it(service):
    data = service.picture(service.generate(PROMPT, steps=1))
    assert set(opened(data).info) == {"parameters"}
    assert str(service.folder).encode() not in data


def test_a_jpeg_carries_what_fits_of_very_long_prompts(service):
    """64 KiB is what EXIF holds; the recipe's figures are there all the same."""
    long = "\N{ARTIST PALETTE}" * 10_000
    job = service.generate(long, negative_prompt=long, format="jpeg", steps=1, seed=5)
    assert job["state"] == "succeeded", job["error"]
    assert "Seed: 5" in parameters_of(opened(service.picture(job)))
