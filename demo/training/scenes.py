"""The scenes a visitor tries first, and the endless book of pictures the model learns from."""

import random
from collections.abc import Callable

from demo.training.shapes import (
    COLOURS,
    Sheet,
    article,
    draw_single,
    draw_two,
    mix,
    shade,
)

WOOD, INK, MOONLIGHT = (120, 75, 42), (25, 20, 20), (245, 242, 215)
SKY = {
    "day": ((105, 180, 245), (205, 232, 250)),
    "night": ((12, 16, 50), (40, 48, 100)),
    "sunset": ((240, 105, 60), (252, 205, 115)),
}
GRASS = {"day": (90, 185, 80), "night": (25, 70, 50), "sunset": (110, 130, 50)}
SEA = {"day": (40, 110, 200), "night": (14, 30, 80), "sunset": (70, 80, 150)}
TIME_WORDS = {
    "day": ["", "", "in the day", "on a sunny day", "under a blue sky"],
    "night": ["at night", "in the night"],
    "sunset": ["at sunset", "in the evening"],
}
PREFIXES = [""] * 8 + [
    "a picture of",
    "an image of",
    "a drawing of",
    "an illustration of",
    "draw",
    "a painting of",
    "a simple drawing of",
    "a photo of",
]
SUFFIXES = [""] * 9 + [", flat art", ", simple", ", high quality", ", minimal", ", vector art", "."]


def _landscape(rng: random.Random, side: int, time: str):
    """A sky with its sun, moon and stars: the sheet, and the words for what is up there."""
    sheet, lights = Sheet(side, *SKY[time]), []
    x, y = rng.choice([0.2, 0.8]) + rng.uniform(-0.03, 0.03), 0.18 + rng.uniform(-0.03, 0.03)
    if time == "night":
        if rng.random() < 0.6:
            _stars(rng, sheet)
            lights.append("stars")
        lights.insert(0, _moon(rng, sheet, x, y, 0.085))
    elif rng.random() < 0.7:
        sheet.oval(x, y, 0.085, 0.085, (255, 228, 80) if time == "day" else (255, 240, 165))
        lights.append("the sun")
    return sheet, " and ".join(lights)


def _stars(rng: random.Random, sheet: Sheet, floor: float = 0.45) -> None:
    for _ in range(16):
        x, y = rng.uniform(0.04, 0.96), rng.uniform(0.04, floor)
        sheet.shape("star", x, y, rng.uniform(0.014, 0.022), MOONLIGHT)


def _moon(rng: random.Random, sheet: Sheet, x: float, y: float, r: float) -> str:
    dark = sheet.image.getpixel((int(x * sheet.n), int(y * sheet.n)))
    sheet.oval(x, y, r, r, MOONLIGHT)
    if rng.random() < 0.5:
        return "a moon"
    sheet.oval(x + r * 0.45, y - r * 0.15, r * 0.85, r * 0.85, dark)
    return "a crescent moon"


def _say(rng: random.Random, what: str, lights: str, time: str) -> str:
    if lights and rng.random() < 0.75:
        what += f" {rng.choice(['with', 'under', 'and'])} {lights}"
    return f"{what} {rng.choice(TIME_WORDS[time])}".strip()


def _time(rng: random.Random) -> str:
    return rng.choice(["day", "day", "day", "sunset", "night"])


def draw_house(rng: random.Random, side: int):
    time = _time(rng)
    sheet, lights = _landscape(rng, side, time)
    walls, roof = rng.sample(list(COLOURS), 2)
    x, floor, half = 0.5 + rng.uniform(-0.05, 0.05), 0.8, rng.uniform(0.2, 0.23)
    top = floor - rng.uniform(0.26, 0.3)
    sheet.box(0, 0.74, 1, 1, GRASS[time])
    sheet.box(x - half, top, x + half, floor, shade(walls, rng))
    sheet.polygon(
        [(x - half - 0.05, top), (x, top - 0.2), (x + half + 0.05, top)], shade(roof, rng)
    )
    sheet.box(x - 0.045, floor - 0.16, x + 0.045, floor, (90, 55, 30))
    for o in (-0.62, 0.62):
        cx, cy = x + o * half, top + 0.1
        glow = (250, 235, 120) if time == "night" else SKY["day"][1]
        sheet.box(cx - 0.045, cy - 0.045, cx + 0.045, cy + 0.045, glow)
    words = rng.choice(
        [f"{article(walls)} house with {article(roof)} roof"] * 3
        + [f"{article(walls)} house", "a house", "a house on the grass", "a home"]
    )
    return sheet, _say(rng, words, lights, time)


def draw_tree(rng: random.Random, side: int):
    time = _time(rng)
    sheet, lights = _landscape(rng, side, time)
    leaf = rng.choice(["green"] * 5 + ["orange", "red", "pink", "yellow", "purple"])
    x, floor, colour = 0.5 + rng.uniform(-0.06, 0.06), 0.82, shade(leaf, rng)
    sheet.box(0, 0.76, 1, 1, GRASS[time])
    sheet.box(x - 0.04, floor - 0.3, x + 0.04, floor, WOOD)
    if rng.random() < 0.35:
        for k in range(3):
            wide, low = 0.14 + 0.035 * k, 0.4 + 0.1 * k
            sheet.polygon([(x, low - 0.22), (x - wide, low), (x + wide, low)], colour)
        kind = "pine tree"
    else:
        for dx, dy, r in ((-0.12, 0, 0.12), (0.12, 0, 0.12), (0, -0.09, 0.16)):
            sheet.oval(x + dx, 0.45 + dy, r, r, colour)
        kind = "tree"
    plain = [article(kind)] * 2 if leaf == "green" else []
    words = rng.choice([f"{article(leaf)} {kind}", f"{article(kind)} with {leaf} leaves", *plain])
    return sheet, _say(rng, words + rng.choice(["", " on the grass"]), lights, time)


def draw_mountains(rng: random.Random, side: int):
    time = _time(rng)
    sheet, lights = _landscape(rng, side, time)
    name, snow = rng.choice(["gray", "gray", "blue", "purple", "brown"]), rng.random() < 0.6
    rock = mix(shade(name, rng), (10, 12, 40), 0.4 if time == "night" else 0)
    for k, (x, y, wide) in enumerate(((0.27, 0.4, 0.34), (0.74, 0.36, 0.36), (0.5, 0.52, 0.28))):
        x, y = x + rng.uniform(-0.04, 0.04), y + rng.uniform(-0.03, 0.03)
        high = 0.85 - y
        sheet.polygon([(x, y), (x - wide, 0.85), (x + wide, 0.85)], mix(rock, INK, 0.14 * k))
        if snow:
            w, h = wide * 0.27, high * 0.27
            sheet.polygon(
                [
                    (x, y),
                    (x - w, y + h),
                    (x - w * 0.35, y + h * 0.75),
                    (x, y + h * 1.1),
                    (x + w * 0.35, y + h * 0.75),
                    (x + w, y + h),
                ],
                (245, 248, 252),
            )
    sheet.box(0, 0.83, 1, 1, GRASS[time])
    words = rng.choice([f"{name} mountains", "mountains", "the mountains", "a mountain landscape"])
    if snow:
        snowy = [f"snowy {name} mountains", "snowy mountains", "mountains with snow"]
        words = rng.choice([*snowy, words])
    return sheet, _say(rng, words, lights, time)


def _sea(rng: random.Random, sheet: Sheet, time: str, level: float) -> None:
    sheet.box(0, level, 1, 1, SEA[time])
    foam = mix(SEA[time], (255, 255, 255), 0.3)
    for _ in range(6):
        x, y = rng.uniform(0.03, 0.85), rng.uniform(level + 0.16, 0.97)
        sheet.box(x, y, x + rng.uniform(0.07, 0.13), y + 0.014, foam)


def draw_boat(rng: random.Random, side: int):
    time = _time(rng)
    sheet, lights = _landscape(rng, side, time)
    _sea(rng, sheet, time, 0.62)
    hull, sail = rng.choice([("brown", "white"), rng.sample(list(COLOURS), 2)])
    x, y, cloth = 0.5 + rng.uniform(-0.08, 0.08), 0.64, shade(sail, rng)
    sheet.polygon(
        [(x - 0.21, y), (x + 0.21, y), (x + 0.14, y + 0.12), (x - 0.14, y + 0.12)], shade(hull, rng)
    )
    sheet.box(x - 0.01, y - 0.36, x + 0.01, y, (80, 50, 30))
    sheet.polygon([(x + 0.02, y - 0.35), (x + 0.02, y - 0.04), (x + 0.2, y - 0.04)], cloth)
    sheet.polygon([(x - 0.02, y - 0.29), (x - 0.02, y - 0.04), (x - 0.15, y - 0.04)], cloth)
    boat = rng.choice(
        [
            f"{article(hull)} boat with {article(sail)} sail",
            f"{article(hull)} sailboat with {article(sail)} sail",
        ]
    )
    if (hull, sail) == ("brown", "white"):
        boat = rng.choice(["a boat", "a boat", "a sailboat", "a ship", boat])
    form = rng.choice(
        [
            f"{boat} on the sea",
            f"{boat} on the water",
            f"the sea with {boat}",
            f"the ocean with {boat}",
            boat,
        ]
    )
    return sheet, _say(rng, form, lights, time)


def draw_night(rng: random.Random, side: int):
    sheet = Sheet(side, *SKY["night"])
    _stars(rng, sheet, floor=0.95)
    x, y = 0.5 + rng.uniform(-0.05, 0.05), 0.42 + rng.uniform(-0.05, 0.05)
    moon = _moon(rng, sheet, x, y, rng.uniform(0.17, 0.21))
    return sheet, rng.choice(
        [
            f"a night sky with {moon} and stars",
            f"the night sky with {moon} and stars",
            "a night sky",
            f"{moon} and stars",
            f"{moon} in the night sky",
            "a starry night",
            "the moon and stars",
        ]
    )


def draw_sunset(rng: random.Random, side: int):
    sheet, sea = Sheet(side, *SKY["sunset"]), rng.random() < 0.6
    x = 0.5 + rng.uniform(-0.08, 0.08)
    sheet.oval(x, 0.6, 0.17, 0.17, (255, 238, 150))
    if sea:
        _sea(rng, sheet, "sunset", 0.62)
        return sheet, rng.choice(
            [
                "a sunset over the sea",
                "sunset over the sea",
                "a sunset",
                "the sea at sunset",
                "a beautiful sunset",
            ]
        )
    hill = (75, 55, 60)
    sheet.oval(0.2, 1.0, 0.6, 0.36, hill)
    sheet.oval(0.85, 1.05, 0.55, 0.36, mix(hill, INK, 0.4))
    return sheet, rng.choice(
        ["a sunset over the hills", "sunset over hills", "a sunset", "a beautiful sunset", "sunset"]
    )


def draw_face(rng: random.Random, side: int):
    skin = rng.choice(["yellow"] * 5 + [c for c in COLOURS if c != "black"])
    ground = rng.choice([c for c in COLOURS if c != skin])
    mood = rng.choice(["happy", "smiling", "sad", "surprised"])
    sheet = Sheet(side, shade(ground, rng))
    x, y, r = 0.5 + rng.uniform(-0.04, 0.04), 0.5 + rng.uniform(-0.04, 0.04), rng.uniform(0.3, 0.35)
    sheet.oval(x, y, r, r, shade(skin, rng))
    for o in (-0.36, 0.36):
        sheet.oval(x + o * r, y - r * 0.22, r * 0.11, r * 0.17, INK)
    if mood == "surprised":
        sheet.oval(x, y + r * 0.42, r * 0.16, r * 0.2, INK)
    else:
        mid, wide, high = (0.6, 0.45, 0.35) if mood == "sad" else (0.15, 0.55, 0.5)
        box = [
            (x - wide * r) * sheet.n,
            (y + (mid - high) * r) * sheet.n,
            (x + wide * r) * sheet.n,
            (y + (mid + high) * r) * sheet.n,
        ]
        if mood == "sad":
            sheet.pen.arc(box, 180, 360, fill=INK, width=int(0.12 * r * sheet.n))
        else:
            sheet.pen.chord(box, 0, 180, fill=INK)
    words = rng.choice(
        [
            f"{article(mood)} {skin} face",
            f"{article(skin)} {mood} face",
            f"{article(mood)} face" if skin == "yellow" else f"{article(skin)} face",
        ]
    )
    return sheet, f"{words} on {article(ground)} background" if rng.random() < 0.8 else words


SCENES: list[Callable] = [
    draw_house,
    draw_tree,
    draw_mountains,
    draw_boat,
    draw_night,
    draw_sunset,
    draw_face,
]
DEFAULT_SHARES = (0.5, 0.3)  # single shapes, two shapes; the scenes share the rest


def draw(seed: int, index: int, side: int, shares: tuple[float, float] = DEFAULT_SHARES):
    """Picture `index` of the endless book that `seed` names: uint8 [side, side, 3], its words."""
    rng = random.Random(f"{seed}/{index}")
    dice = rng.random()
    if dice < shares[0]:
        sheet, words = draw_single(rng, side)
    elif dice < sum(shares):
        sheet, words = draw_two(rng, side)
    else:
        sheet, words = rng.choice(SCENES)(rng, side)
    words = f"{rng.choice(PREFIXES)} {words}{rng.choice(SUFFIXES)}".strip()
    return sheet.pixels(), words.replace("gray", "grey") if rng.random() < 0.3 else words
