"""The hand and the ear: a UNet that turns noise into latents, and the text encoder it listens to.

The pictures are drawn and encoded once into a pool; each caption of a batch is used at several
noise levels at once, because on a CPU reading 77 positions costs as much as drawing.

    python -m demo.training.denoiser --minutes 60
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.training import evaluate, tokenizer, vae
from demo.training.judge import judge
from demo.training.run import (
    RUNS,
    Average,
    Budget,
    place,
    progress,
    save,
    say,
    share_gradients,
    together,
)
from demo.training.scenes import draw

WIDTH, CHANNELS, SIDE = 128, (64, 128), 256
POOL, BATCH, LEVELS, RATE = 32_000, 64, 4, 6e-4  # LEVELS: noise levels a caption in a batch
BETAS = {"beta_start": 0.00085, "beta_end": 0.02, "beta_schedule": "scaled_linear"}


class PlainAttention:
    """Attention written out: under bfloat16 on a CPU its backward pass is four times as fast as the
    fused one's. For training only; the weights are the same."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_: object):
        told = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q(hidden_states), attn.to_k(told), attn.to_v(told))
        )
        weight = torch.softmax(q @ k.transpose(-1, -2) * attn.scale, -1).to(v.dtype)
        return attn.to_out[0]((weight @ v).transpose(1, 2).flatten(2))


def build(words: CLIPTokenizer) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.POSITIONS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    n = len(CHANNELS)
    unet = UNet2DConditionModel(
        sample_size=SIDE // 32,
        in_channels=vae.LATENT,
        out_channels=vae.LATENT,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
        down_block_types=("CrossAttnDownBlock2D",) * n,
        up_block_types=("CrossAttnUpBlock2D",) * n,
    )
    return text, unet


@torch.no_grad()
def adopt(start: Path, text: CLIPTextModel, unet: UNet2DConditionModel, words: CLIPTokenizer):
    """Goes on from an earlier model's weights: tokens are matched by their letters, and positions
    it did not have begin as its last one."""
    earlier = torch.load(start, map_location="cpu")
    unet.load_state_dict(earlier["unet"])
    tokens, places = (f"text_model.embeddings.{k}_embedding.weight" for k in ("token", "position"))
    mine = text.state_dict()
    for name, value in earlier["text"].items():
        if name == tokens:
            for token, row in words.get_vocab().items():
                if token in earlier["vocab"]:
                    mine[name][row] = value[earlier["vocab"][token]]
        elif name == places:
            mine[name].copy_(value[torch.arange(len(mine[name])).clamp(max=len(value) - 1)])
        else:
            mine[name].copy_(value)


def scheduler() -> EulerDiscreteScheduler:
    """linspace: with trailing the runtime takes a step too many for some counts."""
    return EulerDiscreteScheduler(
        prediction_type="v_prediction", timestep_spacing="linspace", **BETAS
    )


def read(words: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """int64 [captions, 77]"""
    many = words(captions, padding="max_length", truncation=True, return_tensors="pt")
    return many.input_ids


@torch.no_grad()
def fill_pool(runs: Path, seed: int, count: int, device: str) -> None:
    """Draws and encodes this process's part of the pictures: latents as the denoiser sees them."""
    rank, workers = place()
    file = runs / f"pool-{rank}.pt"
    if file.exists():
        return
    words, eye = tokenizer.load(runs / "tokenizer"), vae.load(runs).to(device)
    side = eye.config.sample_size
    latents, captions, began = [], [], time.monotonic()
    for start in range(rank * 32, count, workers * 32):
        pages = [draw(seed, start + k, side) for k in range(32)]
        x = vae.pixels_to_values(np.stack([p for p, _ in pages])).to(device)
        with torch.autocast(device, torch.bfloat16):
            z = eye.encode(x).latent_dist.mean
        latents.append((z.float() * eye.config.scaling_factor).half().cpu())
        captions += [c for _, c in pages]
        if len(latents) % 50 == 0:
            speed = len(captions) / (time.monotonic() - began)
            say(runs / "pool.jsonl", pool=len(captions), pictures_a_second=workers * speed)
    made = {"latents": torch.cat(latents), "ids": read(words, captions).short()}
    torch.save(made, file.with_suffix(".part"))
    file.with_suffix(".part").rename(file)


def noise_levels(count: int, chance: torch.Generator) -> torch.Tensor:
    """Timesteps, mostly from the middle: words are understood early, precision is won there."""
    normal, flat = torch.randn(count, generator=chance), torch.rand(count, generator=chance)
    middle = torch.rand(count, generator=chance) < 0.7
    part = torch.where(middle, torch.sigmoid(0.8 * normal - 0.1), flat)
    return (part * 1000).long().clamp(0, 999)


@torch.no_grad()
def sample(text, unet, eye, words, prompts: list[str], steps=10, guidance=3.5, seed=0):
    """uint8 [prompts, side, side, 3], as the shipped pipeline would."""
    plan = scheduler()
    plan.set_timesteps(steps)
    device = next(unet.parameters()).device
    chance = torch.Generator().manual_seed(seed)
    shape = (len(prompts), vae.LATENT, SIDE // 32, SIDE // 32)
    x = (torch.randn(shape, generator=chance) * plan.init_noise_sigma).to(device)
    hidden = text(read(words, [*prompts, *[""] * len(prompts)]).to(device))[0]
    for t in plan.timesteps:
        seen = plan.scale_model_input(x, t)
        said, unsaid = unet(torch.cat([seen, seen]), t, hidden).sample.chunk(2)
        x = plan.step(unsaid + guidance * (said - unsaid), t, x).prev_sample
    y = [eye.decode(z / eye.config.scaling_factor).sample for z in x.split(8)]
    pixels = ((torch.cat(y).clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def train(
    minutes: float,
    seed: int,
    device: str,
    runs: Path,
    pool_size: int,
    look_every: float,
    start: Path | None,
) -> None:
    rank, workers = place()
    fill_pool(runs, seed, pool_size, device)
    pool = torch.load(runs / f"pool-{rank}.pt")
    latents, ids = pool["latents"], pool["ids"]
    words, eye = tokenizer.load(runs / "tokenizer"), vae.load(runs).to(device)
    torch.manual_seed(seed)
    text, unet = (m.to(device) for m in build(words))
    if start:
        adopt(start, text, unet, words)
    text.set_attn_implementation("eager")
    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock):
            block.attn1.set_processor(PlainAttention())
            block.attn2.set_processor(PlainAttention())
    every = [*text.parameters(), *unet.parameters()]
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in every if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0},
        ],
        RATE,
        betas=(0.9, 0.99),
        fused=True,
    )
    average, step, used = Average(text, unet, decay=0.998), 0, 0.0
    state_file, log = runs / "denoiser.pt", runs / "denoiser.jsonl"
    if state_file.exists():
        state = torch.load(state_file, map_location=device)
        step, used = state["step"], state["used"]
        text.load_state_dict(state["text"])
        unet.load_state_dict(state["unet"])
        average.load_state_dict(state["average"])
        adam.load_state_dict(state["adam"])
    chance = torch.Generator().manual_seed(1000 * (seed + step) + rank)
    betas = torch.linspace(BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5, 1000) ** 2
    kept = torch.cumprod(1 - betas, 0)
    signal, noise = kept.sqrt(), (1 - kept).sqrt()
    empty, mine = read(words, [""]), BATCH // workers // LEVELS * LEVELS or LEVELS
    budget, losses = Budget(minutes, used), []
    told = saved = looked = used

    def keep() -> None:
        parts = {"text": text, "unet": unet, "average": average, "adam": adam}
        state = {name: part.state_dict() for name, part in parts.items()}
        save(state_file, {"step": step, "used": budget.used, **state})

    while (part := budget.tick()) < 1:
        rate = RATE * min(1, (step + 1) / 100)
        if part > 0.3:
            rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (part - 0.3) / 0.7))
        for group in adam.param_groups:
            group["lr"] = rate
        pick = torch.randint(len(latents), (mine // LEVELS,), generator=chance)
        said = ids[pick].long()
        said[torch.rand(len(pick), generator=chance) < 0.1] = empty
        x = latents[pick].float().repeat_interleave(LEVELS, 0)
        t = noise_levels(mine, chance)
        e = torch.randn(x.shape, generator=chance)
        a, s = signal[t].view(-1, 1, 1, 1), noise[t].view(-1, 1, 1, 1)
        with torch.autocast(device, torch.bfloat16):
            hidden = text(said.to(device))[0].repeat_interleave(LEVELS, 0)
            guess = unet((a * x + s * e).to(device), t.to(device), hidden).sample
        loss = F.mse_loss(guess.float(), (a * e - s * x).to(device))
        adam.zero_grad()
        loss.backward()
        share_gradients(every)
        torch.nn.utils.clip_grad_norm_(every, 1.0)
        adam.step()
        average.update()
        losses.append(loss.item())
        step += 1
        if budget.used - told > 30:
            say(
                log,
                step=step,
                samples=step * BATCH,
                loss=float(np.mean(losses)),
                rate=rate,
                samples_a_second=len(losses) * BATCH / (budget.used - told),
                budget=progress(part, budget.total - budget.used),
            )
            told, losses = budget.used, []
        if budget.used - saved > budget.save_every:
            saved = budget.used
            keep()
        if budget.used - looked > 60 * look_every:
            looked = budget.used
            look(log, step, text, unet, eye, words, average)
    keep()
    with average:
        save(runs / "denoiser-final.pt", {"text": text.state_dict(), "unet": unet.state_dict()})
    look(log, step, text, unet, eye, words, average)


def look(log: Path, step: int, text, unet, eye, words, average) -> None:
    """The accuracy on held-out prompts so far, and a sheet of the pictures."""
    if place()[0]:
        return
    tasks, began = evaluate.single_tasks(30, held_out=True, seed=5), time.monotonic()
    tasks += evaluate.two_tasks(10, seed=5)
    with average:
        text.eval(), unet.eval()
        pictures = sample(text, unet, eye, words, [t.prompt for t in tasks] + evaluate.SCENES[:8])
        text.train(), unet.train()
    right = [judge(t, p) for t, p in zip(tasks, pictures[:40], strict=True)]
    evaluate.sheet(pictures, 12).save(log.parent / f"look-{step:06}.png")
    ones = np.array([[r.ground, r.colour, r.shape, r.all] for r in right[:30]]).mean(0).round(2)
    say(
        log,
        step=step,
        samples=step * BATCH,
        ground=ones[0],
        colour=ones[1],
        shape=ones[2],
        single=ones[3],
        two=np.mean([r.all for r in right[30:]]),
        took_s=time.monotonic() - began,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pool", type=int, default=POOL, help="pictures to learn from")
    parser.add_argument("--start", type=Path, help="weights of an earlier model to go on from")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--look-every", type=float, default=5, help="minutes between two looks")
    parser.add_argument("--runs", type=Path, default=RUNS)
    a = parser.parse_args()
    if not (a.runs / "tokenizer").exists():
        tokenizer.build(a.runs / "tokenizer", a.seed)
    together(train, a.workers, a.minutes, a.seed, a.device, a.runs, a.pool, a.look_every, a.start)
