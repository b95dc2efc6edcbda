"""Synthetic scenes with exact ground truth: what `infercam demo` runs on and its classifier was trained on.

A scene is a textured ground with clutter, one to three creatures of different classes (creatures.py), bodies
and fragments of no class, and things in front that hide a part of it all. It is a function of its seed: the
same seed gives the same scene with the same versions of NumPy and OpenCV.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infercam.engine.common.atomic import atomic_write
from infercam.engine.demo.creatures import CLASS_NAMES, Creature, creature, decoy
from infercam.engine.demo.paint import (
    COATS,
    Canvas,
    Colour,
    Floats,
    Points,
    Rng,
    coat,
    ellipse,
    jitter,
    limb,
    mix,
    noise,
    rotate,
)
from infercam.engine.evaluation.label_png import write_label

__all__ = ["CLASS_NAMES", "SIZE", "Scene", "scene", "scene_id", "write_voc_tree"]

SIZE = (192, 240)
"""Height and width of a scene, in pixels, unless asked otherwise."""

CLASS_COUNTS = (0.4, 0.4, 0.2)
"""Shares of scenes with one, two and three classes."""

DECOY_COUNTS = (0.5, 0.35, 0.15)
"""Shares of scenes with no, one and two bodies (or fragments of one) of no class."""

EXTENTS = ((0.70, 1.0), (0.52, 0.78), (0.44, 0.64))
"""Largest side of a creature over the square root of the scene's area, by the number of classes."""

MIN_VISIBLE = 0.5
MIN_MARK_VISIBLE = 0.7
"""Shares of a creature and of its mark that must stay visible, or the scene is drawn again: every image-level
label has its evidence in the picture."""

ATTEMPTS = 40

GROUNDS: tuple[tuple[Colour, Colour], ...] = (
    ((140, 164, 96), (98, 128, 70)),
    ((206, 186, 146), (170, 146, 106)),
    ((168, 172, 174), (126, 132, 138)),
    ((150, 122, 96), (112, 88, 70)),
    ((176, 196, 206), (136, 162, 178)),
    ((112, 140, 118), (80, 104, 92)),
    ((200, 176, 170), (160, 134, 132)),
)


@dataclass(frozen=True)
class Scene:
    """A picture with its ground truth.

    image: H×W×3 uint8, RGB. mask: H×W uint8, 0 background, class + 1 elsewhere. classes: ascending, each
    visible in the mask. marks: H×W bool, the visible pixels of the parts that tell the class.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    classes: list[int]
    marks: NDArray[np.bool_]


def scene(seed: int | Sequence[int], size: tuple[int, int] = SIZE) -> Scene:
    """The scene of that seed (an integer of 0 or more, or several), `size` = (height, width) in pixels."""
    rng = np.random.default_rng(seed)
    for _ in range(ATTEMPTS):
        drawn = _draw(rng, size)
        if drawn is not None:
            return drawn
    raise RuntimeError(f"no scene with all marks visible in {ATTEMPTS} attempts (seed {seed}, size {size})")


def _draw(rng: Rng, size: tuple[int, int]) -> Scene | None:
    """One attempt; None where something hides too much of a creature or of its mark."""
    height, width = size
    canvas = Canvas(_ground(rng, height, width))
    _clutter(rng, canvas, int(rng.integers(3, 9)))
    count = 1 + int(rng.choice(3, p=CLASS_COUNTS))
    labels = [int(c) for c in rng.choice(len(CLASS_NAMES), count, replace=False)]
    for _ in range(rng.choice(3, p=DECOY_COUNTS)):
        _place(rng, canvas, decoy(rng), rng.uniform(0.3, 0.65), _anywhere(rng, size), owner=0)
    owners = list(labels)
    if count == 1 and rng.random() < 0.25:
        owners.append(labels[0])  # two of a kind
    extents = EXTENTS[len(owners) - 1]
    placed = []
    for i, (label, spot) in enumerate(zip(owners, _spots(rng, size, len(owners)), strict=True)):
        what = creature(rng, label)
        placed.append(_place(rng, canvas, what, rng.uniform(*extents), spot, owner=i + 1))
    _foreground(rng, canvas)
    mask = np.zeros(size, np.uint8)
    marks = np.zeros(size, np.bool_)
    for i, (label, there) in enumerate(zip(owners, placed, strict=True)):
        mine = canvas.owner == i + 1
        if _hidden(mine, there):
            return None
        mask[mine] = label + 1
        marks |= mine & there.mark
    return Scene(_develop(rng, canvas.rgb), mask, sorted(labels), marks)


def _hidden(mine: NDArray[np.bool_], there: PlacedCreature) -> bool:
    """Whether too little is left of a creature, or of its mark, where the pixels `mine` are its own."""
    visible = (mine & there.whole).sum() / max(there.whole.sum(), 1)
    mark = there.mark_inside * (mine & there.mark).sum() / max(there.mark.sum(), 1)
    return bool(visible < MIN_VISIBLE or mark < MIN_MARK_VISIBLE)


# ---- ground, clutter and what stands in front -----------------------------------------------------------


def _ground(rng: Rng, height: int, width: int) -> Floats:
    """A textured ground, sometimes in two kinds with a wavy border."""
    near = _texture(rng, height, width)
    if rng.random() < 0.45:
        return near
    far = _texture(rng, height, width)
    wave = noise(rng, 1, width, width / 3)[0] * height * 0.3
    border = rng.uniform(0.15, 0.6) * height + wave
    blend = np.clip((np.arange(height)[:, None] - border) / 6, 0, 1).astype(np.float32)[..., None]
    return far + (near - far) * blend


def _texture(rng: Rng, height: int, width: int) -> Floats:
    base, second = GROUNDS[rng.integers(len(GROUNDS))]
    base, second = jitter(rng, base, 12), jitter(rng, second, 12)
    cell = rng.uniform(8, 40)
    if rng.random() < 0.3:
        return coat(rng, COATS[rng.integers(len(COATS))], height, width, cell, base, second)
    return mix(base, second, noise(rng, height, width, cell, octaves=4, stretch=rng.uniform(1, 3)))


def _clutter(rng: Rng, canvas: Canvas, count: int) -> None:
    """Stones, sticks and leaves on the ground."""
    for _ in range(count):
        spot = _anywhere(rng, canvas.size)
        size = rng.uniform(5, 20)
        outline = _thing(rng, spot, size)
        base, second = GROUNDS[rng.integers(len(GROUNDS))]
        canvas.fill(outline, jitter(rng, base if rng.random() < 0.5 else second, 22), light=0.85)


def _thing(rng: Rng, spot: Points, size: float) -> Points:
    angle = rng.uniform(0, 2 * math.pi)
    shape = rng.integers(3)
    if shape == 0:
        return ellipse(spot, (size, size * rng.uniform(0.5, 0.9)), angle)
    along = np.array([math.cos(angle), math.sin(angle)]) * size
    if shape == 1:
        return limb(np.stack([spot - 2 * along, spot, spot + 2 * along + rng.normal(0, 6, 2)]), (4, 5, 3))
    return limb(np.stack([spot - along, spot, spot + along]), (1.5, size * 0.8, 1.5))


def _foreground(rng: Rng, canvas: Canvas) -> None:
    """Blades of grass from below, a post, or a stone: they hide what is behind them."""
    height, width = canvas.size
    kind = rng.integers(4)
    if kind == 0:
        colour = jitter(rng, (104, 142, 66), 16)
        for x in rng.uniform(0, width, rng.integers(6, 16)):
            tip = np.array([x + rng.normal(0, 14), height - rng.uniform(20, 75)])
            middle = (np.array([x, height]) + tip) / 2 + (rng.normal(0, 3), 0)
            blade = np.stack([np.array([x, height + 4.0]), middle, tip])
            canvas.fill(limb(blade, (6, 4.5, 1)), jitter(rng, colour, 8))
    elif kind == 1:
        x, lean = rng.uniform(0, width), rng.normal(0, 12)
        post = np.array([(x, height + 4.0), (x + lean, -4.0)])
        canvas.fill(limb(post, (rng.uniform(8, 14),) * 2), jitter(rng, (120, 94, 70), 14))
    elif kind == 2:
        for _ in range(rng.integers(1, 4)):
            size = rng.uniform(9, 24)
            stone = ellipse(_anywhere(rng, canvas.size), (size, size * 0.7), rng.uniform(0, math.pi))
            canvas.fill(stone, jitter(rng, (138, 136, 132), 18))


# ---- creatures on the canvas ----------------------------------------------------------------------------


def _anywhere(rng: Rng, size: tuple[int, int]) -> Points:
    return rng.uniform((0, 0), (size[1], size[0]))


def _spots(rng: Rng, size: tuple[int, int], count: int) -> list[Points]:
    """Centres for `count` creatures, spread over the scene: the best spread of a few random draws."""
    height, width = size
    middle = np.array([width, height]) / 2
    if count == 1:
        return [middle + rng.normal(0, 0.06, 2) * (width, height)]
    draws = rng.uniform((0.22 * width, 0.25 * height), (0.78 * width, 0.75 * height), (12, count, 2))
    gaps = [min(math.dist(a, b) for i, a in enumerate(d) for b in d[:i]) for d in draws]
    return list(draws[int(np.argmax(gaps))])


class PlacedCreature(NamedTuple):
    """Where a creature and its mark were painted (H×W masks), and the share of the mark's outline that lies
    inside the scene."""

    whole: NDArray[np.bool_]
    mark: NDArray[np.bool_]
    mark_inside: float


def _place(
    rng: Rng, canvas: Canvas, what: Creature, extent: float, spot: Points, owner: int
) -> PlacedCreature:
    """Paint a creature with its bounding box centred at `spot`; `extent` is that box's larger side over the
    square root of the canvas's area."""
    height, width = canvas.size
    mirror = rng.choice((-1, 1))
    turn = rng.normal(0, 0.25) if what.upright else rng.uniform(0, 2 * math.pi)
    outlines = [rotate(part.outline * (mirror, 1), turn) for part in what.parts]
    every = np.concatenate(outlines)
    low, high = every.min(axis=0), every.max(axis=0)
    scale = extent * math.sqrt(height * width) / max(high - low)
    outlines = [(outline - (low + high) / 2) * scale + spot for outline in outlines]
    base, second = (jitter(rng, colour, 12) for colour in what.palette)
    hide = coat(rng, what.coat, height, width, 0.12 * scale, base, second)
    brightness = rng.uniform(0.85, 1.15)
    whole = np.zeros(canvas.size, np.bool_)
    mark = np.zeros_like(whole)
    for part, outline in zip(what.parts, outlines, strict=True):
        paint = hide if part.colour is None else jitter(rng, part.colour, 9)
        light = part.light * brightness
        drawn = canvas.fill(outline, paint, owner=owner, light=light, edge=part.edge)
        whole |= drawn
        mark = mark | drawn if part.mark else mark & ~drawn
    return PlacedCreature(
        whole, mark, _inside([o for p, o in zip(what.parts, outlines, strict=True) if p.mark], canvas)
    )


def _inside(outlines: Sequence[Points], canvas: Canvas) -> float:
    """The share of the outlines' points that lie inside the canvas; 0 without any."""
    if not outlines:
        return 0.0
    points = np.concatenate(outlines)
    height, width = canvas.size
    return float(((points >= 0) & (points < (width, height))).all(axis=1).mean())


def _develop(rng: Rng, rgb: Floats) -> NDArray[np.uint8]:
    """The camera: a slight blur, exposure and tint, noise."""
    blurred = cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.3, 0.7))
    tint = rng.normal(1, 0.03, 3) * rng.uniform(0.88, 1.1)
    grain = rng.normal(0, rng.uniform(1, 5), rgb.shape)
    return np.clip(np.round(blurred * tint + grain), 0, 255).astype(np.uint8)


# ---- a VOC tree -----------------------------------------------------------------------------------------


def scene_id(index: int) -> str:
    """The id of a scene in a tree that `write_voc_tree` makes."""
    return f"scene_{index:05d}"


def write_voc_tree(
    root: str | Path,
    n: int,
    seed: int,
    size: tuple[int, int] = SIZE,
    train: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Write `n` scenes in VOC layout under `root` and return their ids.

    JPEGImages/ID.jpg (quality 95), SegmentationClass/ID.png (palette: 0 background, class + 1),
    ImageSets/Segmentation/train.txt (the first `train` ids) and val.txt (the others), and labels.json
    (`{"classes": [...], "labels": {id: [names]}}`). Scene i has the seed (seed, i), so that trees of one
    seed agree in their common part, and different seeds share nothing.
    """
    root = Path(root)
    ids, labels = [], {}
    for i in range(n):
        drawn = scene((seed, i), size)
        ids.append(scene_id(i))
        labels[ids[-1]] = [CLASS_NAMES[c] for c in drawn.classes]
        with atomic_write(root / "JPEGImages" / f"{ids[-1]}.jpg") as f:
            Image.fromarray(drawn.image).save(f, "JPEG", quality=95)
        write_label(root / "SegmentationClass" / f"{ids[-1]}.png", drawn.mask)
        progress(i + 1)
    for split, members in (("train", ids[:train]), ("val", ids[train:])):
        with atomic_write(root / "ImageSets" / "Segmentation" / f"{split}.txt", "w") as f:
            f.write("".join(f"{name}\n" for name in members))
    with atomic_write(root / "labels.json", "w") as f:
        json.dump({"classes": list(CLASS_NAMES), "labels": labels}, f, indent=1)
    return ids
