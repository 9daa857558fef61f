"""Text-to-image checkpoints of every architecture, tiny and with random weights, as the hub would
hold them.

Runs in the convert environment:  python tests/models/tiny.py KIND FOLDER
They draw noise; what they show is that a real checkpoint of this architecture is converted and run.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PLAIN = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def sd15() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1, **BETAS),
        **PLAIN,
    )


def sd21() -> StableDiffusionPipeline:
    """v-prediction, a text encoder in the manner of OpenCLIP."""
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(hidden_act="gelu", num_hidden_layers=3, pad_token_id=0),
        tokenizer=clip_tokenizer(pad="!"),
        unet=unet(use_linear_projection=True, attention_head_dim=(2, 4)),
        scheduler=DDIMScheduler(
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            **BETAS,
        ),
        **PLAIN,
    )


def lcm() -> LatentConsistencyModelPipeline:
    return LatentConsistencyModelPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=unet(time_cond_proj_dim=32),
        scheduler=LCMScheduler(**BETAS),
        **PLAIN,
    )


def sdxl() -> StableDiffusionXLPipeline:
    return _xl(EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **BETAS))


def sdxl_turbo() -> StableDiffusionXLPipeline:
    return _xl(EulerAncestralDiscreteScheduler(timestep_spacing="trailing", **BETAS))


def _xl(scheduler: Any) -> StableDiffusionXLPipeline:
    first, second = 32, 48  # widths of the two text encoders; the UNet sees them side by side
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=clip(hidden_size=first),
        text_encoder_2=clip(
            CLIPTextModelWithProjection, hidden_size=second, hidden_act="gelu", pad_token_id=0
        ),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad="!"),
        unet=unet(
            cross_attention_dim=first + second,
            use_linear_projection=True,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=second
            + 6 * 8,  # the pooled text and six size figures
        ),
        scheduler=scheduler,
    )


def sd3() -> StableDiffusion3Pipeline:
    return _sd3()


def sd35() -> StableDiffusion3Pipeline:
    return _sd3(qk_norm="rms_norm", dual_attention_layers=(0,))


def _sd3(**differences: Any) -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=96,
        **differences,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=wide_vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(CLIPTextModelWithProjection, hidden_act="gelu", pad_token_id=0),
        tokenizer_2=clip_tokenizer(pad="!"),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
    )


def flux_schnell() -> FluxPipeline:
    return _flux(FlowMatchEulerDiscreteScheduler(shift=1.0), guidance_embeds=False)


def flux_dev() -> FluxPipeline:
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    return _flux(scheduler, guidance_embeds=True)


def _flux(scheduler: Any, *, guidance_embeds: bool) -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        scheduler=scheduler,
        vae=wide_vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer.eval(),
    )


def unet(**differences: Any) -> UNet2DConditionModel:
    settings = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 32,
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DConditionModel(**settings | differences).eval()


def vae(latent_channels: int = 4, **differences: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=8,
        layers_per_block=1,
        latent_channels=latent_channels,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        **differences,
    ).eval()


def wide_vae(**differences: Any) -> AutoencoderKL:
    return vae(16, use_quant_conv=False, use_post_quant_conv=False, **differences)


def clip(kind: Any = CLIPTextModel, **differences: Any) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": 514,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu",
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
    } | differences
    width = settings["hidden_size"]
    return kind(
        CLIPTextConfig(intermediate_size=2 * width, projection_dim=width, **settings)
    ).eval()


def t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=128,
            d_model=64,
            d_kv=8,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    ).eval()


def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's byte alphabet without any merges: 512 letters, start 512 and end 513."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({word: n for n, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77, pad_token=pad)


def t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    pieces += [("▁" + word, -4.0) for word in ("a", "red", "fox", "in", "the", "snow")]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


KINDS = {
    "sd15": sd15,
    "sd21": sd21,
    "lcm": lcm,
    "sdxl": sdxl,
    "sdxl-turbo": sdxl_turbo,
    "sd3": sd3,
    "sd35": sd35,
    "flux-schnell": flux_schnell,
    "flux-dev": flux_dev,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    for kind, folder in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        KINDS[kind]().save_pretrained(folder)
