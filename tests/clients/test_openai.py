"""OpenAI's images API with OpenAI's own SDK, as its users call it."""

import asyncio
import base64
import io
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from PIL import Image

from tests.clients.conftest import ENDLESS
from tests.conftest import DOUBLES
from tests.pictures import gradient, half_mask

PROMPT = "a red circle on a blue background"


def client_of(service, prefix: str = "v1", key: str = "any", **options) -> openai.OpenAI:
    options = {"max_retries": 0, "timeout": 60.0} | options
    return openai.OpenAI(base_url=f"{service.url}/{prefix}", api_key=key, **options)


@pytest.fixture
def client(service) -> Iterator[openai.OpenAI]:
    with client_of(service) as client:
        yield client


def opened(picture) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture.b64_json)))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def last_job(service):
    return service.client.get("/jobs", params={"limit": 1}).json()["jobs"][0]


def test_generate(client, default_size):
    answer = client.images.generate(prompt=PROMPT)
    [made] = answer.data
    assert (opened(made).format, opened(made).size) == ("PNG", default_size)
    assert made.url is None
    assert answer.size == f"{default_size[0]}x{default_size[1]}"
    assert answer.output_format == "png"
    assert abs(answer.created - time.time()) < 600
    usage = answer.usage
    assert usage.input_tokens > 0 and usage.output_tokens > 0
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_generate_asynchronously(service):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="any") as client:
            asks = (client.images.generate(prompt=PROMPT, size="auto") for _ in range(3))
            return await asyncio.gather(*asks)

    pictures = {answer.data[0].b64_json for answer in asyncio.run(main())}
    assert len(pictures) == 3  # three wishes at once are three pictures, not one


def test_what_means_nothing_here_is_accepted(client, service, default_size):
    answer = client.images.generate(
        prompt=PROMPT,
        model="demo",
        n=2,
        size=f"{default_size[0]}x{default_size[1]}",
        quality="hd",
        style="vivid",
        background="auto",
        moderation="low",
        user="somebody",
        response_format="b64_json",
        output_format="webp",
        output_compression=80,
    )
    assert [opened(made).format for made in answer.data] == ["WEBP", "WEBP"]
    assert not hasattr(answer, "warnings")
    recipe = last_job(service)["recipe"]
    assert (recipe["images"], recipe["format"], recipe["quality"]) == (2, "webp", 80)


@pytest.mark.parametrize("prefix", ["v1", "v3"])
@pytest.mark.parametrize(
    "extra",
    [
        {"num_inference_steps": 3, "guidance_scale": 5, "negative_prompt": "blue", "seed": 7},
        {"num_inference_steps": 3, "guidance_scale": 5.0, "negative_prompt": "blue", "rng_seed": 7},
    ],
)
def test_names_of_other_servers(service, prefix, extra):
    with client_of(service, prefix) as client:
        answer = client.images.generate(prompt=PROMPT, extra_body={**extra, "foo": 1})
    recipe = last_job(service)["recipe"]
    assert (recipe["steps"], recipe["guidance"], recipe["seed"]) == (3, 5.0, 7)
    assert recipe["negative_prompt"] == "blue"
    assert answer.data[0].seed == 7
    assert "foo" in answer.warnings[0]  # not rejected, and not silent either


def test_more_names_of_openvino_model_server(service):
    with client_of(service, "v3") as client:
        extra = {"num_images_per_prompt": 2, "num_inference_steps": 2, "max_sequence_length": 256}
        answer = client.images.generate(prompt=PROMPT, extra_body=extra)
        assert len(answer.data) == 2
        assert "max_sequence_length" in answer.warnings[0]
        edited = client.images.edit(
            image=png(gradient(128, 128)), prompt=PROMPT, extra_body={"strength": 0.4}
        )
    assert last_job(service)["recipe"]["strength"] == 0.4
    assert edited.data[0].b64_json


def test_a_url_is_absolute_and_leads_to_the_picture(client):
    answer = client.images.generate(prompt=PROMPT, n=2, response_format="url")
    assert [made.b64_json for made in answer.data] == [None, None]
    for made in answer.data:
        picture = httpx.get(made.url)
        assert picture.headers["content-type"] == "image/png"
        Image.open(io.BytesIO(picture.content)).load()


@pytest.mark.parametrize("partial", [0, 1, 3])
def test_streaming(client, default_size, partial):
    events = list(
        client.images.generate(
            prompt=PROMPT,
            stream=True,
            partial_images=partial,
            extra_body={"num_inference_steps": 30, "seed": 5},
        )
    )
    *partials, last = events
    assert last.type == "image_generation.completed"
    assert opened(last).size == default_size
    assert last.usage.output_tokens > 0
    assert {event.type for event in partials} <= {"image_generation.partial_image"}
    # The runtime may leave out a report of a step, and with it a preview.
    assert min(partial, 1) <= len(partials) <= partial
    assert [event.partial_image_index for event in partials] == list(range(len(partials)))
    for event in partials:
        assert opened(event).format == event.output_format.upper() == "JPEG"
    plain = client.images.generate(prompt=PROMPT, extra_body={"num_inference_steps": 30, "seed": 5})
    assert plain.data[0].b64_json == last.b64_json
    # Real previews of this very picture: the last one is nearer to it than to another one.
    if partial == 3:
        small = opened(partials[-1]).convert("RGB")
        other = client.images.generate(prompt=PROMPT, extra_body={"seed": 6}).data[0]
        assert distance(small, opened(last)) < distance(small, opened(other))


def distance(small: Image.Image, picture: Image.Image) -> float:
    """Mean absolute difference, 0 to 255."""
    pairs = zip(small.tobytes(), picture.convert("RGB").resize(small.size).tobytes(), strict=True)
    return sum(abs(a - b) for a, b in pairs) / len(small.tobytes())


@pytest.mark.parametrize("partial", [0, 1, 2, 3])
def test_as_many_partial_images_as_were_asked_for(brittle, partial):
    with client_of(brittle.ready()) as client:
        steps = {"num_inference_steps": 4}
        events = list(
            client.images.generate(
                prompt="well", stream=True, partial_images=partial, extra_body=steps
            )
        )
    assert [event.type.split(".")[1] for event in events] == ["partial_image"] * partial + [
        "completed"
    ]


def test_partial_images_come_while_the_denoiser_runs(brittle):
    with client_of(brittle.ready()) as client:
        stream = client.images.generate(
            prompt="slow", stream=True, partial_images=3, extra_body={"num_inference_steps": 200}
        )
        first = next(iter(stream))
        assert first.type == "image_generation.partial_image"
        job = last_job(brittle)
        assert job["state"] == "running"
        stream.close()
    brittle.client.delete(f"/jobs/{job['id']}")  # or it would run on for the retry window


def test_streaming_edits_and_errors_in_a_stream(brittle):
    with client_of(brittle.ready()) as client:
        image = png(gradient(64, 64))
        edits = list(client.images.edit(image=image, prompt="well", stream=True))
        assert edits[-1].type == "image_edit.completed"
        with pytest.raises(openai.APIError, match="asked to raise"):
            list(client.images.generate(prompt="raise", stream=True))


def test_edit_with_a_mask_by_alpha(client, service):
    """Transparent means repaint: the opaque half stays, to the bit."""
    init = gradient(128, 128)
    mask = Image.new("RGBA", init.size, "white")
    mask.putalpha(half_mask().point(lambda value: 255 - value))
    answer = client.images.edit(
        image=("init.png", png(init)), mask=("mask.png", png(mask)), prompt=PROMPT, n=1
    )
    made = opened(answer.data[0])
    left = (0, 0, 64, 128)
    assert made.crop(left).tobytes() == init.crop(left).tobytes()
    assert made.crop((64, 0, 128, 128)).tobytes() != init.crop((64, 0, 128, 128)).tobytes()
    white = client.images.edit(
        image=[png(init)], mask=png(half_mask()), prompt=PROMPT
    )  # without transparency, as OpenVINO Model Server's clients have it
    assert opened(white.data[0]).crop(left).tobytes() == init.crop(left).tobytes()


def test_edit_without_a_mask_starts_from_the_picture(client, service):
    client.images.edit(image=png(gradient()), prompt=PROMPT, size="128x64", extra_body={"seed": 3})
    recipe = last_job(service)["recipe"]
    assert recipe["strength"] is not None
    assert (recipe["width"], recipe["height"], recipe["seed"]) == (128, 64, 3)


def test_variations(client, service):
    with pytest.warns(DeprecationWarning):  # the SDK's own opinion of its method
        answer = client.images.create_variation(image=png(gradient()), n=2, size="128x128")
    assert len({made.b64_json for made in answer.data}) == 2
    assert last_job(service)["recipe"]["prompt"] == ""


def test_models(client):
    assert "demo" in [model.id for model in client.models.list()]
    assert client.models.retrieve("demo").owned_by == "easel"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"size": "1024x1023"}, "size"),
        ({"size": "large"}, "size"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"background": "transparent"}, "background"),
        ({"output_format": "svg"}, "output_format"),
        ({"output_compression": 101}, "output_compression"),
        ({"extra_body": {"num_inference_steps": 0}}, "num_inference_steps"),
        ({"extra_body": {"guidance_scale": 1000}}, "guidance_scale"),
        ({"extra_body": {"seed": -1}}, "seed"),
        ({"extra_body": {"strength": 0.5}}, "strength"),
    ],
)
def test_what_cannot_be_honoured_is_refused(client, change, param):
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.images.generate(**{"prompt": PROMPT} | change)
    error = caught.value
    assert (error.type, error.param) == ("invalid_request_error", param)
    assert error.request_id
    assert error.message


def test_a_bad_edit_is_refused(client):
    image = png(gradient())
    with pytest.raises(openai.UnprocessableEntityError, match="not a picture") as caught:
        client.images.edit(image=b"nonsense", prompt=PROMPT)
    assert caught.value.param == "image"
    with pytest.raises(openai.UnprocessableEntityError, match="One image"):
        client.images.edit(image=[image, image], prompt=PROMPT)
    with pytest.raises(openai.UnprocessableEntityError):
        client.images.edit(image=image, prompt=PROMPT, input_fidelity="high")
    with pytest.raises(openai.UnprocessableEntityError, match="of one size"):
        client.images.edit(image=image, mask=png(half_mask(64, 64)), prompt=PROMPT)


def test_an_unknown_model_is_404_and_never_another_one(client):
    for name in ("gpt-image-1", "dall-e-3", "demo2"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.images.generate(prompt=PROMPT, model=name)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_other_names_for_models_when_they_are_set(two_models):
    with client_of(two_models, key="second-key") as client:
        names = [model.id for model in client.models.list()]
        assert {"demo", "dall-e-3", "gpt-image-1"} <= set(names)
        gpt = client.images.generate(prompt=PROMPT, model="gpt-image-1")
        assert gpt.data[0].b64_json  # as its own service answers
        dalle = client.images.generate(prompt=PROMPT, model="dall-e-3")
        assert dalle.data[0].b64_json is None
        assert dalle.data[0].url.startswith(two_models.url)
        asked = client.images.generate(prompt=PROMPT, model="dall-e-3", response_format="b64_json")
        assert asked.data[0].url is None
    assert last_job(two_models)["model"] == "demo"


def test_a_wrong_key_in_openais_shape(two_models):
    with (
        client_of(two_models, key="wrong") as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.images.generate(prompt=PROMPT)
    assert caught.value.code == "invalid_api_key"


def test_a_full_queue_says_when_to_come_back(start):
    full = start(MODEL="brittle", MODELS_PATH=str(DOUBLES), QUEUE_LIMIT="1").ready()
    first = full.submit(**ENDLESS)
    full.running(first)
    full.submit("well")
    with client_of(full) as client, pytest.raises(openai.RateLimitError) as caught:
        client.images.generate(prompt=PROMPT)
    assert caught.value.type == "rate_limit_error"
    headers = caught.value.response.headers
    assert int(headers["retry-after"]) >= 1
    assert headers["x-should-retry"] == "true"
    full.client.delete(f"/jobs/{first}")


def test_the_sdk_does_not_repeat_what_failed_for_good(brittle):
    brittle.ready()
    with (
        client_of(brittle, max_retries=2) as client,
        pytest.raises(openai.InternalServerError, match="asked to raise"),
    ):
        client.images.generate(prompt="raise once only")
    jobs = brittle.client.get("/jobs").json()["jobs"]
    assert [job["recipe"]["prompt"] for job in jobs].count("raise once only") == 1
