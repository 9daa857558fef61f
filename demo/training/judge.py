"""Judges a picture by its pixels: ground, colours, shapes, and how two shapes lie.

Needs NumPy and Pillow only and knows nothing of the model. It is itself tested: drawn pictures must
pass, damaged ones and blobs must fail.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from demo.training.shapes import COLOURS, SHAPES, Sheet

GRID = 40  # templates and masks are compared at this size


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prompt and what its picture must show: one shape, or two and a relation."""

    prompt: str
    ground: str
    shapes: tuple[tuple[str, str], ...]  # colour, shape
    relation: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    ground: bool
    colour: bool
    shape: bool
    relation: bool = True
    seen: str = ""

    @property
    def all(self) -> bool:
        return self.ground and self.colour and self.shape and self.relation


TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))


def lab(pixels: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB 0..255, last axis; distances there are as the eye sees them."""
    v = np.asarray(pixels, float) / 255
    v = np.where(v > 0.04045, ((v + 0.055) / 1.055) ** 2.4, v / 12.92)
    xyz = v @ np.array(TO_XYZ).T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


PALETTE = lab(np.array(list(COLOURS.values())))


def nearest(values: np.ndarray) -> np.ndarray:
    """Index of the nearest named colour for each L*a*b* value, -1 where none is near."""
    far = np.linalg.norm(values[..., None, :] - PALETTE, axis=-1)
    return np.where(far.min(-1) < 32, far.argmin(-1), -1)


def pieces(mask: np.ndarray) -> list[np.ndarray]:
    """Connected parts of a mask, largest first (the largest label spreads until nothing moves)."""
    label = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        wide = np.pad(label, 1)
        near = [wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:], label]
        spread = np.where(mask, np.max(near, 0), 0)
        if (spread == label).all():
            break
        label = spread
    names, sizes = np.unique(label[label > 0], return_counts=True)
    return [label == names[k] for k in np.argsort(-sizes)]


def outline(mask: np.ndarray) -> np.ndarray:
    """The mask cut to its bounds, centred in a square, GRID x GRID, 0..1."""
    ys, xs = np.nonzero(mask)
    part = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    h, w = part.shape
    k = max(h, w)
    square = np.zeros((k, k), np.uint8)
    square[(k - h) // 2 : (k - h) // 2 + h, (k - w) // 2 : (k - w) // 2 + w] = part * 255
    return np.asarray(Image.fromarray(square).resize((GRID, GRID), Image.Resampling.BOX)) / 255


def _template(shape: str) -> np.ndarray:
    sheet = Sheet(128, (0, 0, 0))
    sheet.shape(shape, 0.5, 0.5, 0.35, (255, 255, 255))
    return outline(sheet.pixels()[..., 0] > 127)


TEMPLATES = {shape: _template(shape) for shape in SHAPES}
# How much of shape and template together must be shared: less for a thin shape, which a soft rim
# costs more, and always more than what the wrong shapes of the tests share (a hexagon and a circle
# 0.86, stars of four and of five points 0.61).
LIKENESS = {"circle": 0.88, "square": 0.82, "triangle": 0.74, "star": 0.62, "heart": 0.76}


def shape_of(mask: np.ndarray) -> tuple[str, float]:
    """The shape that overlaps most, or "" if it overlaps too little, and the overlap."""
    if mask.sum() < 40:
        return "", 0.0
    seen = outline(mask)
    overlap = {
        s: np.minimum(seen, t).sum() / np.maximum(seen, t).sum() for s, t in TEMPLATES.items()
    }
    best = max(overlap, key=overlap.__getitem__)
    return (best if overlap[best] >= LIKENESS[best] else ""), float(overlap[best])


def ground_of(values: np.ndarray) -> tuple[str, np.ndarray]:
    """The colour along the border (or "" if it is not one colour), and its L*a*b* value."""
    b = max(2, len(values) // 32)
    ring = np.concatenate(
        [
            values[:b].reshape(-1, 3),
            values[-b:].reshape(-1, 3),
            values[:, :b].reshape(-1, 3),
            values[:, -b:].reshape(-1, 3),
        ]
    )
    middle = np.median(ring, 0)
    even = (np.linalg.norm(ring - middle, axis=-1) < 15).mean() > 0.9
    name = nearest(middle[None])[0]
    return (list(COLOURS)[name] if even and name >= 0 else ""), middle


def judge(task: Task, picture: np.ndarray) -> Verdict:
    """Whether the picture (uint8 [h, w, 3]) shows what the task asks for, part by part."""
    values = lab(np.asarray(Image.fromarray(picture).resize((128, 128), Image.Resampling.BOX)))
    ground, middle = ground_of(values)
    far = np.linalg.norm(values - middle, axis=-1)
    if far.max() < 12:
        return Verdict(ground=ground == task.ground, colour=False, shape=False, relation=False)
    if len(task.shapes) == 1:
        return _judge_one(task, values, ground, far)
    return _judge_two(task, values, ground)


def _judge_one(task: Task, values: np.ndarray, ground: str, far: np.ndarray) -> Verdict:
    mask = far > max(9, 0.5 * np.percentile(far[far > 9], 80))
    parts = pieces(mask)
    whole = parts[0].sum() >= 0.93 * mask.sum() and 0.01 < parts[0].mean() < 0.6
    core = values[parts[0]]
    middle = np.median(core, 0)
    one_colour = (np.linalg.norm(core - middle, axis=-1) < 22).mean() > 0.75
    name = nearest(middle[None])[0]
    colour = list(COLOURS)[name] if name >= 0 else ""
    shape, overlap = shape_of(parts[0])
    wanted, form = task.shapes[0]
    return Verdict(
        ground=ground == task.ground,
        colour=bool(one_colour) and colour == wanted,
        shape=bool(whole) and shape == form,
        seen=f"{colour} {shape or '?'} ({overlap:.2f}, {len(parts)} parts) on {ground or '?'}",
    )


def _judge_two(task: Task, values: np.ndarray, ground: str) -> Verdict:
    names = nearest(values)
    where = []
    for colour, _ in task.shapes:
        parts = pieces(names == list(COLOURS).index(colour))
        where.append(parts[0] if parts else np.zeros(names.shape, bool))
    if not all(0.008 < part.mean() < 0.6 for part in where):
        return Verdict(ground=ground == task.ground, colour=False, shape=False, relation=False)
    if task.relation == "inside":
        outside = np.pad(~where[1], 1, constant_values=True)
        where[1] = ~pieces(outside)[0][1:-1, 1:-1]  # with its hole filled
    found = [shape_of(part) for part in where]
    (y0, x0), (y1, x1) = (np.argwhere(part).mean(0) / len(names) for part in where)
    dx, dy = x0 - x1, y0 - y1
    beside, stacked = abs(dx) > 2 * abs(dy), abs(dy) > 2 * abs(dx)
    relation = {
        "left of": beside and dx < -0.1,
        "right of": beside and dx > 0.1,
        "above": stacked and dy < -0.1,
        "below": stacked and dy > 0.1,
        "inside": (where[0] & ~where[1]).sum() < 0.05 * where[0].sum(),
    }[task.relation]
    known = {list(COLOURS).index(c) for c in (ground or task.ground, *(c for c, _ in task.shapes))}
    stray = np.isin(names, [k for k in range(-1, len(COLOURS)) if k not in known]).mean()
    return Verdict(
        ground=ground == task.ground,
        colour=stray < 0.12,
        shape=[shape for shape, _ in found] == [shape for _, shape in task.shapes],
        relation=bool(relation),
        seen=f"{found}, {dx:.2f} right, {dy:.2f} down, {stray:.0%} stray",
    )
