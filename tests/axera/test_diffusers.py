"""The loop and the whole pipeline against diffusers, on a tiny Stable Diffusion of random weights.

Its networks are exported as the hub's were: the UNet cut behind its time embedding, the VAE without
its scaling, every tensor by its name. Needs the convert environment.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.models.catalog import HOME, Catalog
from app.request import ImageRequest
from app.runtime import Inputs, load
from app.runtime.family import load_family
from app.runtime.protocol import Pipeline

torch = pytest.importorskip("torch", reason="needs the convert environment")
diffusers = pytest.importorskip("diffusers", reason="needs the convert environment")
transformers = pytest.importorskip("transformers", reason="needs the convert environment")
pytestmark = pytest.mark.convert

MODEL = Catalog([HOME], Path("weights")).get("axera-sd15-lcm")
FAMILY: Any = load_family(MODEL)
STRENGTHS = [0.25, 0.5, 0.75, 1.0]


def scheduler() -> Any:
    return diffusers.LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )


class Noise:
    """The pipeline's stream of noise, given to diffusers wherever it asks for some."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.RandomState(seed)

    def __call__(self, shape: Any, **_: Any) -> Any:
        return torch.from_numpy(self._random.standard_normal(tuple(shape)).astype(np.float32))


@pytest.mark.parametrize("strength", [None, *STRENGTHS])
def test_the_loop_equals_the_lcm_scheduler(
    strength: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = scheduler()
    theirs.set_timesteps(4)
    count = 4 if strength is None else FAMILY.steps_for(strength)
    timesteps = theirs.timesteps[4 - count :]
    steps = FAMILY.schedule(FAMILY.TIMESTEPS)[-count:]
    assert [step.timestep for step in steps] == timesteps.tolist()

    module = "diffusers.schedulers.scheduling_lcm.randn_tensor"
    monkeypatch.setattr(module, Noise(1))
    ours_noise = Noise(1)
    start = Noise(2)((1, 4, 64, 64))
    latent, ours = start, start.numpy()
    if strength is not None:
        latent = theirs.add_noise(start, Noise(3)(start.shape), timesteps[:1])
        ours = steps[0].noised(ours, Noise(3)(start.shape).numpy())
        assert np.abs(latent.numpy() - ours).max() <= 1e-5
        theirs.set_begin_index(4 - count)
    for n, timestep in enumerate(timesteps):
        predicted = torch.tanh(latent) * 0.9
        latent, clean = theirs.step(predicted, timestep, latent, return_dict=False)
        mine = steps[n].cleaned(ours, np.tanh(ours) * np.float32(0.9))
        last = n == count - 1
        ours = mine if last else steps[n + 1].noised(mine, ours_noise(ours.shape).numpy())
        scale = np.abs(clean.numpy()).max()
        assert np.abs(clean.numpy() - mine).max() <= 1e-5 * scale
        assert np.abs(latent.numpy() - ours).max() <= 1e-5 * scale


def test_the_schedule_has_the_published_values() -> None:
    signals = [float(step.signal) ** 2 for step in FAMILY.schedule(FAMILY.TIMESTEPS)]
    assert np.allclose(signals, [0.00466010, 0.05221293, 0.27766965, 0.65897553], rtol=1e-5)


class Tiny:
    """One set of weights twice: as diffusers' networks, and exported for the double."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        torch.manual_seed(0)
        self.tokenizer = transformers.CLIPTokenizer(
            *_vocabulary(tokenizer), model_max_length=77, pad_token="<|endoftext|>"
        )
        config = transformers.CLIPTextConfig(
            vocab_size=514,
            hidden_size=768,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            bos_token_id=512,
            eos_token_id=513,
        )
        self.text_encoder = transformers.CLIPTextModel(config).eval()
        self.unet = diffusers.UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=768,
            block_out_channels=(16, 32),
            norm_num_groups=8,
            layers_per_block=1,
            attention_head_dim=4,
            time_embedding_dim=1280,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ).eval()
        self.vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            norm_num_groups=4,
            layers_per_block=1,
            latent_channels=4,
            sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ).eval()
        for network in (self.text_encoder, self.unet, self.vae):
            network.requires_grad_(False)
        _export_all(self, folder)

    def pipe(self, kind: Any) -> Any:
        made = kind(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        made.set_progress_bar_config(disable=True)
        return made


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json

    return json.loads((folder / "vocab.json").read_text()), []


def _export_all(tiny: Tiny, folder: Path) -> None:
    """The four graphs and the time inputs, as they lie in the hub's repository."""
    latent, image = torch.randn(1, 4, 64, 64), torch.randn(1, 3, 512, 512)
    ids, text = torch.zeros(1, 77, dtype=torch.int32), torch.randn(1, 77, 768)
    unet = tiny.unet
    with torch.no_grad():
        times = [unet.time_proj(torch.tensor([float(t)])) for t in FAMILY.TIMESTEPS]
        embedded = torch.cat([torch.nn.functional.silu(unet.time_embedding(t)) for t in times])
    np.save(folder / "time_input_txt2img.npy", embedded.numpy())
    (folder / "text_encoder").mkdir()
    cut = _cut(unet)
    # The causal mask is given, because the exporter stumbles over how the network would make it.
    causal = torch.full((1, 1, 77, 77), -torch.inf).triu(1)
    _export(
        lambda ids: tiny.text_encoder(ids, attention_mask=causal).last_hidden_state,
        folder / "text_encoder" / "sd15_text_encoder_sim.axmodel",
        {"input_ids": ids},
    )
    _export(
        lambda sample, time, states: cut(sample, time, states, return_dict=False)[0],
        folder / "unet.axmodel",
        {"sample": latent, FAMILY.TIME_INPUT: embedded[:1], "encoder_hidden_states": text},
    )
    vae = tiny.vae
    _export(
        lambda x: vae.decoder(vae.post_quant_conv(x)), folder / "vae_decoder.axmodel", {"x": latent}
    )
    _export(
        lambda x: vae.quant_conv(vae.encoder(x)),
        folder / "vae_encoder.axmodel",
        {"image_sample": image},
    )


def _cut(unet: Any) -> Any:
    """The UNet with the activated time embedding as an input, where the hub's was cut."""
    cut = copy.deepcopy(unet)
    for module in cut.modules():
        if isinstance(module, diffusers.models.resnet.ResnetBlock2D):
            module.skip_time_act = True  # it was done before

    class Passed(torch.nn.Module):
        def forward(self, embedding: Any, condition: Any = None) -> Any:
            return embedding

    cut.time_embedding = Passed()
    cut.get_time_embed = lambda sample, timestep: timestep
    return cut


def _export(call: Callable[..., Any], path: Path, inputs: dict[str, Any]) -> None:
    class Module(torch.nn.Module):
        def forward(self, *arguments: Any) -> Any:
            return call(*arguments)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter has many
        torch.onnx.export(
            Module(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            opset_version=17,
            dynamo=False,
        )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> Iterator[tuple[Tiny, Path]]:
    folder = tmp_path_factory.mktemp("exported")
    (folder / "tokenizer").symlink_to(tiny_set / "tokenizer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Tiny(folder, tiny_set / "tokenizer"), folder


@pytest.fixture(scope="module")
def ours(tiny: tuple[Tiny, Path]) -> Pipeline:
    return load(replace(MODEL, weights_dir=tiny[1]), "AXERA")


def test_text_to_image_equals_diffusers(
    tiny: tuple[Tiny, Path], ours: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _ = MODEL.complete(ImageRequest(prompt="a red fox in the snow"))
    mine = ours.generate(recipe, 11, Inputs(), lambda *_, **__: None).pixels
    noise = Noise(11)
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", noise)
    theirs = tiny[0].pipe(diffusers.StableDiffusionPipeline)(
        recipe.prompt,
        latents=noise((1, 4, 64, 64)),
        num_inference_steps=4,
        guidance_scale=1.0,
        output_type="pil",
    )
    difference = np.abs(np.asarray(theirs.images[0]).astype(int) - mine)
    assert mine.std() > 1 and difference.max() <= 2


@pytest.mark.parametrize("strength", STRENGTHS)
def test_image_to_image_equals_diffusers(
    tiny: tuple[Tiny, Path], ours: Pipeline, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    image = np.random.RandomState(5).randint(0, 256, (8, 8, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(image).resize((512, 512)))
    recipe, _ = MODEL.complete(
        ImageRequest(prompt="a red fox in the snow", init_image=b"-", strength=strength)
    )
    mine = ours.generate(recipe, 12, Inputs(init_image=image), lambda *_, **__: None).pixels
    noise = Noise(12)
    for module in (
        "diffusers.schedulers.scheduling_lcm",
        "diffusers.models.autoencoders.vae",
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img",
    ):
        monkeypatch.setattr(f"{module}.randn_tensor", noise)
    theirs = tiny[0].pipe(diffusers.StableDiffusionImg2ImgPipeline)(
        recipe.prompt,
        image=Image.fromarray(image),
        strength=strength,
        num_inference_steps=4,
        guidance_scale=1.0,
        output_type="pil",
    )
    difference = np.abs(np.asarray(theirs.images[0]).astype(int) - mine)
    assert mine.std() > 1 and difference.max() <= 2
