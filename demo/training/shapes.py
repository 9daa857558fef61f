"""Flat shapes on flat grounds and the words for them: one shape, or two and how they lie.

Needs NumPy and Pillow. Places and sizes are parts of the picture's side (0 to 1), so a picture can
be drawn at any size.
"""

import hashlib
import math
import random

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (220, 40, 40), "orange": (245, 140, 30), "yellow": (250, 220, 50),
    "green": (50, 165, 70), "blue": (45, 90, 215), "purple": (130, 60, 180),
    "black": (22, 22, 26), "white": (248, 248, 248),
    "pink": (250, 150, 190), "brown": (125, 75, 40), "gray": (140, 142, 146),
}  # fmt: skip
MAIN_COLOURS = list(COLOURS)[:8]  # the eight that the accuracy is promised for
SHAPES = ["circle", "square", "triangle", "star", "heart"]
RELATIONS = ["left of", "right of", "above", "below", "inside"]


def is_held_out(colour: str, shape: str, ground: str) -> bool:
    """Whether this triple is kept out of training (one in ten), to judge what was understood."""
    digest = hashlib.md5(f"{colour}|{shape}|{ground}".encode()).hexdigest()
    return int(digest, 16) % 10 == 0


def article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def shade(name: str, rng: random.Random, spread: int = 6) -> Colour:
    """A colour by name, never twice quite the same."""
    r, g, b = (min(255, max(0, v + rng.randint(-spread, spread))) for v in COLOURS[name])
    return r, g, b


def mix(a: Colour, b: Colour, part: float) -> Colour:
    r, g, b_ = (round(u + (v - u) * part) for u, v in zip(a, b, strict=True))
    return r, g, b_


class Sheet:
    """A picture in the making, drawn larger and reduced, so that its edges are smooth."""

    def __init__(self, side: int, ground: Colour, horizon: Colour | None = None) -> None:
        self.factor = 2 if side >= 128 else 4
        self.n = self.factor * side
        if horizon is None:
            self.image = Image.new("RGB", (self.n, self.n), ground)
        else:
            t = np.linspace(0, 1, self.n)[:, None]
            column = np.array(ground) * (1 - t) + np.array(horizon) * t
            rows = np.broadcast_to(column[:, None].astype(np.uint8), (self.n, self.n, 3))
            self.image = Image.fromarray(np.ascontiguousarray(rows))
        self.pen = ImageDraw.Draw(self.image)

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self.pen.polygon([(x * self.n, y * self.n) for x, y in points], fill=colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        n = self.n
        self.pen.rectangle([x0 * n, y0 * n, x1 * n - 1, y1 * n - 1], fill=colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        n = self.n
        self.pen.ellipse([(x - rx) * n, (y - ry) * n, (x + rx) * n, (y + ry) * n], fill=colour)

    def shape(self, name: str, x: float, y: float, r: float, colour: Colour) -> None:
        """One of SHAPES around (x, y); r is about half its width."""
        if name == "circle":
            self.oval(x, y, r, r, colour)
        elif name == "square":
            self.box(x - r * 0.88, y - r * 0.88, x + r * 0.88, y + r * 0.88, colour)
        elif name == "triangle":
            self.polygon(
                [(x, y - r), (x - r * 1.05, y + r * 0.8), (x + r * 1.05, y + r * 0.8)], colour
            )
        elif name == "star":
            tips = [(k * math.pi / 5, r * (0.46 if k % 2 else 1.1)) for k in range(10)]
            self.polygon([(x + q * math.sin(a), y - q * math.cos(a)) for a, q in tips], colour)
        elif name == "heart":
            turns = [k * math.pi / 32 for k in range(64)]
            self.polygon(
                [(x + r * math.sin(a) ** 3, y - r / 16 * _heart(a)) for a in turns], colour
            )
        else:
            raise ValueError(f"no such shape: {name}")

    def pixels(self) -> np.ndarray:
        """uint8 [side, side, 3]"""
        return np.asarray(self.image.reduce(self.factor))


def _heart(a: float) -> float:
    wave = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
    return wave + 2.5


SIZES = {"": (0.22, 0.28), "small": (0.15, 0.18), "large": (0.32, 0.37)}
SIZE_WORDS = {
    "": [""],
    "small": ["small", "small", "little", "tiny"],
    "large": ["large", "big", "huge"],
}


def draw_single(rng: random.Random, side: int, triple: tuple[str, str, str] | None = None):
    """One shape; without a triple, one that is not held out."""
    while triple is None:
        names = MAIN_COLOURS if rng.random() < 0.75 else list(COLOURS)
        triple = rng.choice(names), rng.choice(SHAPES), rng.choice(names)
        if triple[0] == triple[2] or is_held_out(*triple):
            triple = None
    colour, shape, ground = triple
    size = rng.choice(["", "", "", "small", "large"])
    r, (x, y) = rng.uniform(*SIZES[size]), (0.5 + rng.uniform(-0.06, 0.06) for _ in "xy")
    sheet = Sheet(side, shade(ground, rng))
    sheet.shape(shape, x, y, r, shade(colour, rng))
    words = f"{rng.choice(SIZE_WORDS[size])} {colour} {shape}".strip()
    if ground == ("black" if colour == "white" else "white") and rng.random() < 0.4:
        return sheet, article(words)
    forms = [f"{article(words)} on {article(ground)} background"] * 4 + [
        f"{words} on {ground} background",
        f"{words}, {ground} background",
        f"{article(words)} on {ground}",
        f"{article(ground)} background with {article(words)}",
        f"{article(words)} in front of {article(ground)} background",
    ]
    return sheet, rng.choice(forms)


def draw_two(rng: random.Random, side: int, plan: tuple[str, ...] | None = None):
    """Two shapes and how they lie: plan is colour, shape, relation, colour, shape, ground."""
    if plan is None:
        one, other, ground = rng.sample(MAIN_COLOURS, 3)
        plan = (
            one,
            rng.choice(SHAPES),
            rng.choice([*RELATIONS, "and"]),
            other,
            rng.choice(SHAPES),
            ground,
        )
    one, first, relation, other, second, ground = plan
    sheet = Sheet(side, shade(ground, rng))
    near = [0.5 + rng.uniform(-0.03, 0.03) for _ in range(4)]
    if relation == "inside":
        sheet.shape(second, near[0], near[1], rng.uniform(0.36, 0.4), shade(other, rng))
        drop = 0.05 if second == "triangle" else 0
        sheet.shape(first, near[0], near[1] + drop, rng.uniform(0.13, 0.15), shade(one, rng))
    else:
        away = rng.uniform(0.22, 0.25) * (-1 if relation in ("left of", "above", "and") else 1)
        dx, dy = (0.0, away) if relation in ("above", "below") else (away, 0.0)
        sheet.shape(first, near[0] + dx, near[1] + dy, rng.uniform(0.17, 0.2), shade(one, rng))
        sheet.shape(second, near[2] - dx, near[3] - dy, rng.uniform(0.17, 0.2), shade(other, rng))
    a, b = article(f"{one} {first}"), article(f"{other} {second}")
    ways = {
        "left of": [f"{a} left of {b}", f"{a} to the left of {b}"],
        "right of": [f"{a} right of {b}", f"{a} to the right of {b}"],
        "above": [f"{a} above {b}"],
        "below": [f"{a} below {b}", f"{a} under {b}"],
        "inside": [f"{a} inside {b}"],
        "and": [f"{a} and {b}", f"{a} next to {b}"],
    }
    return sheet, f"{rng.choice(ways[relation])} on {article(ground)} background"
