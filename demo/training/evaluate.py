"""Asks the finished model for pictures, through its runtime, and has them judged.

python -m demo.training.evaluate --weights demo/weights --sheet docs/demo-contact-sheet.png
"""

import argparse
import itertools
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from demo.training.judge import Task, Verdict, judge
from demo.training.shapes import MAIN_COLOURS, RELATIONS, SHAPES, article, is_held_out

WEIGHTS = Path(__file__).parent.parent / "weights"
STEPS, GUIDANCE, SIDE = 10, 3.5, 256
SCENES = [
    "a house",
    "a red house with a blue roof",
    "a tree",
    "mountains",
    "the sea with a boat",
    "a night sky with a moon and stars",
    "a sunset over the sea",
    "a happy yellow face on a blue background",
    "a white house with a brown roof at night",
    "snowy mountains at sunset",
    "an orange tree at sunset",
    "a red boat with a yellow sail on the sea",
    "a sad face",
    "a pine tree",
    "a sunset",
    "a cat in the forest",
]


def single_tasks(count: int, *, held_out: bool, seed: int) -> list[Task]:
    """Prompts for one shape in the eight colours, the shapes evenly; wordings vary."""
    rng, tasks = random.Random(seed), []
    for shape in itertools.islice(itertools.cycle(SHAPES), count):
        pairs = [
            (c, g)
            for c, g in itertools.permutations(MAIN_COLOURS, 2)
            if is_held_out(c, shape, g) == held_out
        ]
        colour, ground = rng.choice(pairs)
        size = rng.choice(["", "", "", "small ", "large "])
        what = f"{size}{colour} {shape}"
        form = rng.choice(
            [f"{article(what)} on {article(ground)} background"] * 3
            + [f"{what}, {ground} background", f"a drawing of {article(what)} on {ground}"]
        )
        tasks.append(Task(prompt=form, ground=ground, shapes=((colour, shape),)))
    return tasks


def two_tasks(count: int, *, seed: int) -> list[Task]:
    rng, tasks = random.Random(seed), []
    for relation in itertools.islice(itertools.cycle(RELATIONS), count):
        one, other, ground = rng.sample(MAIN_COLOURS, 3)
        first, second = rng.choice(SHAPES), rng.choice(SHAPES)
        prompt = (
            f"{article(one)} {first} {relation} {article(other)} {second} "
            f"on {article(ground)} background"
        )
        tasks.append(
            Task(
                prompt=prompt,
                ground=ground,
                relation=relation,
                shapes=((one, first), (other, second)),
            )
        )
    return tasks


def sheet(pictures, columns: int) -> Image.Image:
    """Pictures in rows, as one image."""
    side = pictures[0].shape[0]
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * side, rows * side))
    for k, picture in enumerate(pictures):
        whole.paste(Image.fromarray(picture), (k % columns * side, k // columns * side))
    return whole


def drawn_by(weights: Path, threads: int = 0) -> Callable[..., np.ndarray]:
    """The shipped files in the runtime: prompt, seed and settings to uint8 [256, 256, 3]."""
    import openvino_genai

    options = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    began = time.perf_counter()
    pipeline = openvino_genai.Text2ImagePipeline(weights, "CPU", **options)
    print(f"loaded in {time.perf_counter() - began:.2f} s")

    def draw(prompt: str, seed: int = 0, steps: int = STEPS, guidance: float = GUIDANCE, **more):
        return (
            pipeline.generate(
                prompt,
                num_inference_steps=steps,
                guidance_scale=guidance,
                rng_seed=seed,
                width=SIDE,
                height=SIDE,
                **more,
            )
            .data[0]
            .copy()
        )

    return draw


def share(rights: list[bool]) -> str:
    return f"{sum(rights)} of {len(rights)} ({100 * sum(rights) / max(1, len(rights)):.1f} %)"


def report(tasks: list[Task], verdicts: list[Verdict]) -> dict[str, object]:
    """What was right, in all and by shape, colour and ground."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for task, verdict in zip(tasks, verdicts, strict=True):
        for part in ("all", "ground", "colour", "shape", "relation"):
            groups[part].append(getattr(verdict, part))
        if task.relation:
            groups[task.relation].append(verdict.all)
        else:
            ((colour, shape),) = task.shapes
            held_out = is_held_out(colour, shape, task.ground)
            groups["never seen" if held_out else "seen"].append(verdict.all)
            groups[shape].append(verdict.all)
            groups[colour].append(verdict.all)
            groups[f"on {task.ground}"].append(verdict.all)
    return {name: share(rights) for name, rights in groups.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--singles", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--sheet", type=Path, help="a contact sheet of the pictures")
    parser.add_argument("--misses", action="store_true", help="print what went wrong")
    a = parser.parse_args()
    draw = drawn_by(a.weights)
    singles = single_tasks(a.singles // 3, held_out=True, seed=1)
    singles += single_tasks(a.singles - len(singles), held_out=False, seed=2)
    some = []
    for tasks in (singles, two_tasks(a.pairs, seed=3)):
        began = time.perf_counter()
        pictures = [
            draw(task.prompt, seed=k, steps=a.steps, guidance=a.guidance)
            for k, task in enumerate(tasks)
        ]
        took = (time.perf_counter() - began) / len(tasks)
        verdicts = [judge(task, picture) for task, picture in zip(tasks, pictures, strict=True)]
        print(f"{1000 * took:.0f} ms a picture", json.dumps(report(tasks, verdicts), indent=2))
        if a.misses:
            for task, verdict in zip(tasks, verdicts, strict=True):
                if not verdict.all:
                    print(f"  {task.prompt}: {verdict.seen}")
        some += pictures[:16]
    if a.sheet:
        scenes = [draw(words, seed=k, steps=a.steps) for k, words in enumerate(SCENES)]
        whole = sheet([*some, *scenes], 8)
        whole.resize((whole.width // 2, whole.height // 2), Image.Resampling.BOX).save(a.sheet)


if __name__ == "__main__":
    main()
