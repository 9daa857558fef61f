"""POST /hf/{model} with huggingface_hub's own client."""

import base64
import io

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from tests.pictures import encoded, gradient


@pytest.fixture
def client(service) -> InferenceClient:
    return InferenceClient(model=f"{service.url}/hf/demo")


def last_recipe(service):
    return service.client.get("/jobs", params={"limit": 1}).json()["jobs"][0]["recipe"]


def test_text_to_image(client, service, default_size, small):
    assert client.text_to_image("a red circle").size == default_size
    picture = client.text_to_image(
        "a red circle on a blue background",
        negative_prompt="green",
        width=small,
        height=small,
        num_inference_steps=5,
        guidance_scale=3,
        scheduler="EulerAncestralDiscreteScheduler",
        seed=3,
    )
    assert (picture.format, picture.size) == ("PNG", (small, small))
    recipe = last_recipe(service)
    assert (recipe["steps"], recipe["guidance"], recipe["seed"]) == (5, 3.0, 3)
    assert (recipe["sampler"], recipe["negative_prompt"]) == ("euler_ancestral", "green")


async def _asynchronously(url: str) -> Image.Image:
    async with AsyncInferenceClient(model=url) as client:
        return await client.text_to_image("a red circle", num_inference_steps=2)


def test_text_to_image_asynchronously(service, default_size):
    import asyncio

    picture = asyncio.run(_asynchronously(f"{service.url}/hf/demo"))
    assert picture.size == default_size


def test_image_to_image(client, service, small):
    init = io.BytesIO()
    gradient(128, 128).save(init, "PNG")
    picture = client.image_to_image(
        init.getvalue(),
        prompt="a red circle",
        negative_prompt="green",
        num_inference_steps=6,
        guidance_scale=2.5,
        target_size={"width": small, "height": small},
        strength=0.5,
    )
    assert picture.size == (small, small)
    recipe = last_recipe(service)
    assert (recipe["prompt"], recipe["strength"], recipe["steps"]) == ("a red circle", 0.5, 6)


def test_image_to_image_without_a_prompt(client, service):
    """A picture in base64 beside other parameters, and the raw bytes when there are none."""
    init = io.BytesIO()
    gradient(128, 128).save(init, "JPEG")
    assert client.image_to_image(init.getvalue(), num_inference_steps=4).size == (128, 128)
    assert last_recipe(service)["prompt"] == ""
    assert last_recipe(service)["init_image"] is not None
    assert client.image_to_image(init.getvalue()).size == (128, 128)
    assert last_recipe(service)["init_image"] is not None


def test_accept_says_the_format(service):
    for kind in ("image/jpeg", "image/webp", "image/*"):
        answer = service.client.post(
            "/hf/demo",
            json={"inputs": "a red circle", "parameters": {"seed": 9}},
            headers={"Accept": kind},
        )
        assert answer.headers["content-type"] == kind.replace("*", "png")
        assert answer.headers["x-seed"] == "9"
        Image.open(io.BytesIO(answer.content)).load()


def test_errors_reach_the_clients_user(client, service):
    with pytest.raises(HfHubHTTPError, match="multiple of") as caught:
        client.text_to_image("a red circle", width=511)
    assert caught.value.response.status_code == 422
    with pytest.raises(HfHubHTTPError, match="There is no model 'runwayml/stable'") as caught:
        client.text_to_image("a", model=f"{service.url}/hf/runwayml/stable")
    assert caught.value.response.status_code == 404
    with pytest.raises(HfHubHTTPError, match="foo"):
        client.text_to_image("a", extra_body={"foo": 1})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"{",
        b'{"inputs": 5}',
        b'{"inputs": ""}',
        b'{"inputs": "a", "parameters": {"seed": -1}}',
        b'{"inputs": "a", "parameters": {"strength": 0.5}}',
        b'{"inputs": "a", "parameters": {"scheduler": "UniPCMultistepScheduler"}}',
        b'{"inputs": "not a picture", "parameters": {"prompt": "a"}}',
    ],
)
def test_what_cannot_be_honoured_is_refused(service, body):
    answer = service.client.post("/hf/demo", content=body)
    assert answer.status_code == 422
    assert isinstance(answer.json()["error"], str)


def test_a_key_as_the_client_shows_it(two_models):
    body = {"inputs": "well"}
    good = InferenceClient(model=f"{two_models.url}/hf/brittle", token="first-key")
    assert good.text_to_image("well").size == (64, 64)
    answer = httpx.post(f"{two_models.url}/hf/brittle", json=body)
    assert (answer.status_code, list(answer.json())) == (401, ["error", "error_type"])


def test_a_prompt_that_looks_like_base64_is_a_prompt(service):
    for prompt in ("deadbeef", "abcd", base64.b64encode(b"a fine day").decode()):
        body = {"inputs": prompt, "parameters": {"num_inference_steps": 1}}
        assert service.client.post("/hf/demo", json=body).status_code == 200
        assert last_recipe(service)["prompt"] == prompt
    body = {"inputs": encoded(gradient()), "parameters": {}}
    assert service.client.post("/hf/demo", json=body).status_code == 200
    assert last_recipe(service)["prompt"] == ""
