"""The eye: 256x256 pixels to 8x8 latents of 16 numbers, and back.

A small AutoencoderKL that grows: it learns pictures of 32 pixels first, then of 64, 128 and 256,
and keeps its deep levels each time. That is what makes f = 32 learnable in half an hour. At 128
the latents are settled, so the denoiser can start; at 256 it learns to draw the same latents sharp.

    python -m demo.training.vae --minutes 30
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from demo.training.run import (
    RUNS,
    Average,
    Budget,
    agree,
    place,
    progress,
    save,
    say,
    share_gradients,
    together,
)
from demo.training.scenes import draw

CHANNELS, LATENT = (16, 16, 32, 64, 96, 96), 16
# side of the pictures, its share of the budget, pixels a step, learning rate
STAGES = (
    (32, 0.1, 16 * 32**2, 2e-3),
    (64, 0.26, 12 * 64**2, 1.5e-3),
    (128, 0.24, 16 * 64**2, 1e-3),
    (256, 0.4, 8 * 128**2, 1e-3),
)
WINDOWED = 128  # from this side on pictures are mostly seen through windows of half their side
SETTLED = 128  # from this side on the latents stay what they are
NOISE = 0.05  # what the decoder must forgive: the denoiser is never exact
SHARES = (0.45, 0.35)  # small shapes in pairs have the most edges


def build(side: int) -> AutoencoderKL:
    """An autoencoder for pictures of this side. Two norm groups a level: with groups of fewer than
    eight channels a flat colour is normalised away."""
    channels = CHANNELS[-int(math.log2(side // 8)) - 1 :]
    n = len(channels)
    vae = AutoencoderKL(
        block_out_channels=channels,
        latent_channels=LATENT,
        layers_per_block=1,
        sample_size=side,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
    )
    with torch.no_grad():  # quant_conv: pass the mean through, variance e^-8 whatever comes
        eye = torch.eye(2 * LATENT)[:, :, None, None]
        eye[LATENT:] = 0
        vae.quant_conv.weight.copy_(eye)
        vae.quant_conv.bias.zero_()[LATENT:] = -8
        vae.post_quant_conv.weight.copy_(eye[:LATENT, :LATENT])
        vae.post_quant_conv.bias.zero_()
    vae.quant_conv.requires_grad_(False)
    return vae.to(memory_format=torch.channels_last)


def grow(small: AutoencoderKL, side: int) -> tuple[AutoencoderKL, set[str]]:
    """The next larger autoencoder with the learned levels in it, and the names of those weights.

    Where widths allow, the new level begins by only halving and doubling: a blurred good picture.
    """
    large = build(side)
    mine, kept = large.state_dict(), set()
    for name, value in small.state_dict().items():
        if name.startswith("encoder.down_blocks."):  # the encoder grows at its front
            _, _, level, rest = name.split(".", 3)
            name = f"encoder.down_blocks.{int(level) + 1}.{rest}"
        if name in mine and mine[name].shape == value.shape:
            mine[name].copy_(value)
            kept.add(name)
    widths = CHANNELS[-len(large.encoder.down_blocks) :]
    if widths[0] == widths[1]:
        begin_plain(large)
    return large, kept


@torch.no_grad()
def begin_plain(vae: AutoencoderKL) -> None:
    first, last = vae.encoder.down_blocks[0], vae.decoder.up_blocks[-1]
    for block in (*first.resnets, *last.resnets):
        block.conv2.weight.zero_()
    halve, double = first.downsamplers[0].conv, vae.decoder.up_blocks[-2].upsamplers[0].conv
    for conv, taps in ((halve, [(0, 0), (0, 1), (1, 0), (1, 1)]), (double, [(1, 1)])):
        conv.weight.zero_()
        conv.bias.zero_()
        for y, x in taps:
            conv.weight[:, :, y, x] = torch.eye(len(conv.weight)) / len(taps)


def batch(seed: int, index: int, count: int, side: int, window: int = 0) -> torch.Tensor:
    """float [count, 3, side, side] in -1..1; with a window, cuts of that side where most is seen:
    a flat ground teaches little."""
    pictures = []
    for k in range(count):
        picture = draw(seed, index + k, side, SHARES)[0]
        if 0 < window < side:
            spots = np.random.default_rng(index + k).integers(0, side - window + 1, (4, 2))
            cuts = [picture[y : y + window, x : x + window] for y, x in spots]
            picture = max(cuts, key=lambda cut: cut.std())
        pictures.append(picture)
    return pixels_to_values(np.stack(pictures))


def pixels_to_values(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w, 3] to float [n, 3, h, w] in -1..1"""
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return values.contiguous(memory_format=torch.channels_last)


def loss_of(vae: AutoencoderKL, x: torch.Tensor, settled: AutoencoderKL | None) -> torch.Tensor:
    """Absolute and square error and that of the edges; what is small or pointed weighs more.

    With a settled smaller autoencoder, its latents are what to encode to and to decode from; the
    encoder has little to learn then, and a quarter of the pictures teach it.
    """
    with torch.autocast(x.device.type, torch.bfloat16):
        if settled:
            with torch.no_grad():
                z = settled.encode(F.avg_pool2d(x, 2)).latent_dist.mean
            some = len(x) // 4 or 1
            mine = vae.encode(x[:some]).latent_dist.mean
            apart = F.mse_loss(mine.float(), z[:some].float())
        else:
            z = vae.encode(x).latent_dist.mean
            apart = 1e-3 * z.float().pow(2).mean()
        d = vae.decode(z + NOISE * torch.randn_like(z)).sample
    d = d.float() - x
    block = max(1, x.shape[-1] // 32)
    high, low = F.max_pool2d(x, block), -F.max_pool2d(-x, block)
    reach = F.max_pool2d(high, 3, 1, 1) + F.max_pool2d(-low, 3, 1, 1)
    weight = 1 + 1.5 * F.interpolate(reach.amax(1, keepdim=True).clamp(0, 1), x.shape[2:])
    flat = (weight * (d.abs() + d * d)).mean()
    edges = (d.diff(dim=-1).abs()).mean() + (d.diff(dim=-2).abs()).mean()
    return flat + 0.5 * edges + apart


@torch.no_grad()
def psnr(vae: AutoencoderKL, x: torch.Tensor) -> float:
    """Mean PSNR in dB of pictures that went through latents and back."""
    back = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    return (-10 * torch.log10(((back - x) / 2).pow(2).mean((1, 2, 3)))).mean().item()


def settled_side(runs: Path) -> int:
    """Of the autoencoder whose latents the denoiser learns: the finished one where weights were
    restored from shipped files."""
    return SETTLED if (runs / f"vae-{SETTLED}.pt").exists() else STAGES[-1][0]


def load(runs: Path, side: int = 0) -> AutoencoderKL:
    """The trained autoencoder for pictures of this side, or the settled one; its scaling factor
    brings latents to a standard deviation of 1."""
    settled = settled_side(runs)
    vae = build(side or settled)
    vae.load_state_dict(torch.load(runs / f"vae-{side or settled}.pt", map_location="cpu"))
    if side in (0, settled):
        with torch.no_grad():
            factor = 1 / vae.encode(batch(7, 0, 64, settled)).latent_dist.mean.std().item()
    else:
        factor = load(runs).config.scaling_factor
    vae.register_to_config(scaling_factor=factor)
    return vae.eval().requires_grad_(False)


def train(
    minutes: float, seed: int, device: str, runs: Path, until: int, start: Path | None
) -> None:
    rank, workers = place()
    state_file, log = runs / "vae.pt", runs / "vae.jsonl"
    state = torch.load(state_file, map_location=device) if state_file.exists() else None
    first, drawn = (state["stage"], state["drawn"]) if state else (0, 0)
    ends = [float(end) for end in np.cumsum([share for _, share, _, _ in STAGES])]
    sides = [side for side, *_ in STAGES]
    used = state["used"] if state else 0.0
    if start:  # an autoencoder of settled size exists: the stages below are done
        first = max(first, sides.index(SETTLED))
    while first < len(STAGES) and (runs / f"vae-{sides[first]}.pt").exists():
        first += 1
    if first:
        used = max(used, 60 * minutes * ends[first - 1])
    budget = Budget(minutes, used)
    for stage, (side, share, pixels, rate) in enumerate(STAGES):
        if stage < first or side > until:
            continue
        torch.manual_seed(seed + stage)  # every process starts with the same weights
        vae, old, settled = build(side).to(device), set(), None
        if start and side == SETTLED:
            vae.load_state_dict(torch.load(start, map_location=device))
        elif stage:
            small = build(side // 2).to(device)
            small.load_state_dict(torch.load(runs / f"vae-{side // 2}.pt", map_location=device))
            vae, old = grow(small, side)
            settled = small if side > SETTLED else None
        if settled:
            for name, p in vae.named_parameters():
                p.requires_grad_(p.requires_grad and not (name in old and name[:3] == "enc"))
        learning = [(n in old, p) for n, p in vae.named_parameters() if p.requires_grad]
        every = [p for _, p in learning]
        groups = [{"params": [p for known, p in learning if known == k]} for k in (False, True)]
        average, step = Average(vae, decay=0.995), 0
        adam = torch.optim.AdamW(groups, rate, betas=(0.9, 0.95), weight_decay=1e-4)
        if state and stage == state["stage"]:
            step = state["step"]
            vae.load_state_dict(state["live"])
            average.load_state_dict(state["average"])
            adam.load_state_dict(state["adam"])
        torch.manual_seed(1000 * (seed + stage) + step * workers + rank)
        told, saved, losses = budget.used, budget.used, []
        looks = batch(seed + 1, 0, 24, side).to(device)
        while (part := budget.tick()) < ends[stage]:
            inside = (part - ends[stage] + share) / share
            fall = 0.5 * (1 + math.cos(math.pi * inside))
            now = rate * min(1, (step + 1) / 50) * (0.02 + 0.98 * fall)
            adam.param_groups[0]["lr"] = now
            # The new levels first learn to speak with the old ones: those then follow.
            adam.param_groups[1]["lr"] = now * min(1, max(0, (inside - 0.08) / 0.2))
            window = side // 2 if side >= WINDOWED and inside < 0.8 else side
            count = pixels // window**2
            mine = count // workers or 1
            x = batch(seed, drawn + rank * mine, mine, side, window).to(device)
            loss = loss_of(vae, x, settled)
            adam.zero_grad()
            loss.backward()
            share_gradients(every)
            torch.nn.utils.clip_grad_norm_(every, 1.0)
            adam.step()
            average.update()
            losses.append(loss.item())
            step, drawn = step + 1, drawn + count
            if budget.used - told > 60:
                with average:
                    quality = psnr(vae, looks)
                say(
                    log,
                    side=side,
                    step=step,
                    loss=float(np.mean(losses)),
                    psnr=quality,
                    steps_a_second=len(losses) / (budget.used - told),
                    budget=progress(part, budget.total - budget.used),
                )
                told, losses = budget.used, []
            if budget.used - saved > budget.save_every:
                saved = budget.used
                parts = {"live": vae, "average": average, "adam": adam}
                facts = {"stage": stage, "step": step, "drawn": drawn, "used": budget.used}
                learned = {name: part.state_dict() for name, part in parts.items()}
                save(state_file, {**facts, **learned})
        with average:
            say(log, side=side, step=step, drawn=drawn, final_psnr=psnr(vae, looks))
            save(runs / f"vae-{side}.pt", vae.state_dict())
        agree(0)  # none goes on before the file is there


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--until", type=int, default=256, help="side of the last stage")
    parser.add_argument("--start", type=Path, help="weights for 128 pixels to go on from")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--runs", type=Path, default=RUNS)
    a = parser.parse_args()
    together(train, a.workers, a.minutes, a.seed, a.device, a.runs, a.until, a.start)
