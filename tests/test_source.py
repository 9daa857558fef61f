"""What a repository, folder or file is, told by its files."""

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from app.errors import InstallFailed, UnknownModel
from app.models import checkpoint, recognition, source
from app.models.catalog import HOME, Catalog, CatalogError

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SMALL = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
]
# As stable-diffusion-v1-5 is on the hub: everything twice, and for other tools besides.
FULL = [
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.bin",
]
HALF = [
    "text_encoder/model.fp16.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
]
NEVER = [
    "v1-5-pruned-emaonly.ckpt",
    "README.md",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "feature_extractor/preprocessor_config.json",
    "unet/flax_model.msgpack",
    "vae_decoder/model.onnx",
]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog([HOME], Path("nowhere"))


def folder(at: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text(json.dumps(content))
    return at


@pytest.mark.parametrize(
    ("there", "expected", "variant"),
    [
        (FULL + HALF, HALF, "fp16"),
        (FULL, [path for path in FULL if ".safetensors" in path and "ema" not in path], None),
        ([path for path in FULL if path.endswith(".bin")],) * 2 + (None,),
        (FULL + HALF[:2], [FULL[0], FULL[2], FULL[5]], None),  # not 16 bits for every part
    ],
    ids=["16-bit", "32-bit", "bin", "partly-16-bit"],
)
def test_one_of_each_is_taken(there: list[str], expected: list[str], variant: str | None) -> None:
    chosen, found = checkpoint.needed([*SMALL, *there, *NEVER], INDEX)
    assert (sorted(chosen), found) == (sorted([*SMALL, *expected]), variant)


def test_weights_in_several_files_are_all_taken() -> None:
    shards = [f"transformer/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    half = [f"text_encoder_3/model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    late = [f"text_encoder_3/model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {"transformer": ["diffusers", "X"], "text_encoder_3": ["transformers", "Y"]}
    chosen, variant = checkpoint.needed([*shards, *half, *late], index)
    assert (set(chosen), variant) == ({"model_index.json", *shards, *late}, None)


def test_a_part_without_usable_weights_is_named() -> None:
    with pytest.raises(InstallFailed, match="vae"):
        checkpoint.needed([*SMALL, *FULL[:5], "vae/flax_model.msgpack"], INDEX)


@pytest.mark.parametrize(
    ("files", "like"),
    [
        (
            {
                "model_index.json": {"_class_name": "StableDiffusionPipeline"},
                "unet/config.json": {"in_channels": 4},
            },
            "stable-diffusion-v1.5",
        ),
        (
            {
                "model_index.json": {"_class_name": "OVStableDiffusionPipeline"},
                "unet/config.json": {"in_channels": 4, "use_linear_projection": True},
            },
            "stable-diffusion-v2.1",
        ),
        (
            {
                "model_index.json": {"_class_name": "LatentConsistencyModelPipeline"},
                "unet/config.json": {"in_channels": 4},
            },
            "lcm-dreamshaper-v7",
        ),
        ({"model_index.json": {"_class_name": "StableDiffusionXLPipeline"}}, "stable-diffusion-xl"),
        (
            {
                "model_index.json": {"_class_name": "FluxPipeline"},
                "transformer/config.json": {"guidance_embeds": True},
            },
            "flux-dev",
        ),
        ({"model_index.json": {"_class_name": "FluxPipeline"}}, "flux-schnell"),
    ],
)
def test_the_family_is_found_by_what_the_files_say(
    tmp_path: Path, catalog: Catalog, files: dict[str, Any], like: str
) -> None:
    misleading = tmp_path / "flux-schnell-sdxl-lcm"
    assert recognition.recognise(folder(misleading, files), catalog) == like


@pytest.mark.parametrize("index", [{"_class_name": "StableDiffusionInpaintPipeline"}, {}, [1]])
def test_a_pipeline_that_no_family_runs_is_refused_with_what_can_be(
    tmp_path: Path, catalog: Catalog, index: Any
) -> None:
    with pytest.raises(InstallFailed, match="FluxPipeline"):
        recognition.recognise(folder(tmp_path, {"model_index.json": index}), catalog)


def safetensors(path: Path, names: list[str]) -> Path:
    header = json.dumps(
        {name: {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]} for name in names}
    )
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + b"\0\0")
    return path


def ckpt(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": dict.fromkeys(names, 0)}))
    return path


UNET = "model.diffusion_model.input_blocks.0.0.weight"
VAE = "first_stage_model.decoder.conv_in.weight"
TEXT = {
    "stable-diffusion-v1.5": "cond_stage_model.transformer.text_model.embeddings.",
    "stable-diffusion-v2.1": "cond_stage_model.model.",
    "stable-diffusion-xl": "conditioner.embedders.1.model.",
}


@pytest.mark.parametrize("like", TEXT)
@pytest.mark.parametrize("write", [safetensors, ckpt])
def test_a_single_file_is_told_by_its_tensors(
    tmp_path: Path, catalog: Catalog, like: str, write: Any
) -> None:
    file = write(
        tmp_path / f"some.{write.__name__}", [UNET, VAE, TEXT[like] + "token_embedding.weight"]
    )
    assert recognition.recognise(file, catalog) == like


@pytest.mark.parametrize("write", [safetensors, ckpt])
def test_a_part_of_a_model_is_refused(tmp_path: Path, catalog: Catalog, write: Any) -> None:
    file = write(tmp_path / f"lora.{write.__name__}", ["lora_unet_down_blocks_0.lora_down.weight"])
    with pytest.raises(InstallFailed, match="LoRA"):
        recognition.recognise(file, catalog)


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\xff" * 100, b"PK\x03\x04"])
def test_rubbish_is_refused(tmp_path: Path, catalog: Catalog, ending: str, content: bytes) -> None:
    file = tmp_path / f"rubbish.{ending}"
    file.write_bytes(content)
    with pytest.raises(InstallFailed, match="cannot be read"):
        recognition.recognise(file, catalog)


@pytest.mark.parametrize("name", ["", "no-such-model", "a/b/c", "a b/c", "a/..", "sdxl\n"])
def test_a_name_that_means_nothing_is_unknown(catalog: Catalog, name: str) -> None:
    with pytest.raises(UnknownModel):
        source.find(name, catalog)


@pytest.mark.parametrize("path", ["/", "..", "/no/such/model.ckpt", "~/nothing-here"])
def test_a_path_without_a_pipeline_is_said_at_once(catalog: Catalog, path: str) -> None:
    with pytest.raises(InstallFailed, match=r"no file or folder|no model_index\.json"):
        source.find(path, catalog)


def test_a_repository_may_be_installed_first(catalog: Catalog) -> None:
    assert source.find("owner/name", catalog) is None


def test_a_wrong_accepts_is_told_with_its_file(tmp_path: Path) -> None:
    family = tmp_path / "odd"
    family.mkdir()
    good = (HOME / "demo" / "model.toml").read_text()
    for wrong in ('like = "demo"\ncolour = 1', 'like = "nobody"', 'pipeline = "X"'):
        (family / "model.toml").write_text(f"{good}\n[[accepts]]\n{wrong}\n")
        with pytest.raises(CatalogError, match=r"odd/model\.toml: accepts"):
            list(recognition.accepted(Catalog([tmp_path], Path("nowhere"))))


def test_files_of_one_name_in_two_folders_are_two_models(tmp_path):
    one, other = (tmp_path / folder / "model.safetensors" for folder in ("one", "other"))
    assert source.name_of(str(one)) != source.name_of(str(other))
    assert source.name_of(str(one)) == source.name_of(str(one))
