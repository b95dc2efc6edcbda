"""The creatures of the synthetic scenes: four articulated body plans, two classes on each.

What tells a class is one small part, its mark (a mane, a beak, a lamp, ...). Everything else is shared: both
classes of a plan have the same body, limbs and tail, any coat can be on any class (each class merely wears
its favourite more often), and a creature without a mark belongs to no class at all. So a classifier trained
on image-level labels leans on the marks and finds only weak evidence in the rest of the object: the partial
response that split-and-erase inference is meant to complete (engine/method/README.md §2, §3).

Creatures are drawn about the origin in units of their body's length, x to the right and y down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from infercam.engine.demo.paint import COATS, Colour, Points, Rng, ellipse, limb, rotate, star

CLASS_NAMES = ("lion", "badger", "toucan", "rooster", "frilled lizard", "gecko", "stag beetle", "firefly")
"""The eight classes; class c of a scene is value c + 1 of its mask."""

FAVOURITE_SHARE = 0.7
"""How often a creature wears its class's favourite coat; otherwise any coat in any colours."""

PALETTES: tuple[tuple[Colour, Colour], ...] = (
    ((150, 110, 70), (90, 62, 40)),
    ((172, 148, 112), (120, 98, 70)),
    ((120, 120, 116), (72, 74, 78)),
    ((96, 112, 78), (58, 74, 52)),
    ((104, 116, 134), (64, 74, 92)),
    ((140, 104, 104), (92, 62, 66)),
    ((128, 120, 84), (80, 74, 48)),
    ((88, 98, 98), (50, 58, 60)),
)


@dataclass(frozen=True)
class BodyPart:
    """One painted shape: its outline (N, 2), its colour (None: the creature's coat), whether it belongs to
    the mark that tells the class, and how bright it is (limbs on the far side are darker)."""

    name: str
    outline: Points
    colour: Colour | None = None
    mark: bool = False
    light: float = 1.0
    edge: float = 0.55


@dataclass(frozen=True)
class Creature:
    """Parts from back to front, what its coat is, and whether it stands upright (else seen from above)."""

    parts: tuple[BodyPart, ...]
    coat: str
    palette: tuple[Colour, Colour]
    upright: bool


def creature(rng: Rng, label: int) -> Creature:
    """A creature of class `label` in a random pose."""
    plan, mark = label // 2, label % 2
    kind, palette = _clothes(rng, label)
    return Creature(tuple(PLANS[plan](rng, mark)), kind, palette, plan < UPRIGHT_PLANS)


def decoy(rng: Rng) -> Creature:
    """A body of any plan without a mark, or some parts of one: of no class."""
    kind, palette = _clothes(rng, None)
    plan = int(rng.integers(len(PLANS)))
    parts = PLANS[plan](rng, None)
    if rng.random() < 0.6:
        keep = rng.random(len(parts)) < 0.5
        keep[rng.integers(len(parts))] = True
        parts = [part for part, kept in zip(parts, keep, strict=True) if kept]
    return Creature(tuple(parts), kind, palette, plan < UPRIGHT_PLANS)


def _clothes(rng: Rng, label: int | None) -> tuple[str, tuple[Colour, Colour]]:
    if label is not None and rng.random() < FAVOURITE_SHARE:
        return COATS[label % len(COATS)], PALETTES[label % len(PALETTES)]
    return COATS[rng.integers(len(COATS))], PALETTES[rng.integers(len(PALETTES))]


# ---- body plans: mark 0 or 1 for the plan's two classes, None for a decoy -------------------------------


def _quadruped(rng: Rng, mark: int | None) -> list[BodyPart]:
    """Lion (0) and badger (1): four jointed legs, a tail, a neck and a head, from the side."""
    girth = rng.uniform(0.17, 0.23)
    parts = [
        BodyPart("tail", _curve(rng, (-0.46, -0.05), math.pi * rng.uniform(0.85, 1.25), 0.4, (0.06, 0.03)))
    ]
    for x, side in ((-0.34, 0.72), (0.34, 0.72), (-0.40, 1.0), (0.28, 1.0)):
        upper = math.pi / 2 + rng.uniform(-0.5, 0.5)
        lower = upper + rng.uniform(-0.6, 0.6)
        leg = _joints((x, 0.06), (upper, lower), (0.22, 0.22))
        parts.append(BodyPart("leg", limb(leg, (0.15, 0.1, 0.07)), light=side))
    parts.insert(3, BodyPart("body", ellipse((0, 0), (0.52, girth), rng.uniform(-0.08, 0.08))))
    head = np.array([0.62, -0.26]) + rng.uniform(-0.05, 0.05, 2)
    parts.append(BodyPart("neck", limb(np.array([(0.36, -0.04), head]), (0.26, 0.17))))
    tilt = rng.uniform(-0.2, 0.5)
    return parts + _quadruped_head(rng, mark, head, tilt)


def _quadruped_head(rng: Rng, mark: int | None, head: Points, tilt: float) -> list[BodyPart]:
    def at(x: float, y: float) -> Points:
        return head + rotate(np.array([(x, y)]), tilt)[0]

    skull = ellipse(head, (0.16, 0.12), tilt)
    snout = ellipse(at(0.13, 0.03), (0.09, 0.065), tilt)
    eye = BodyPart("eye", ellipse(at(0.05, -0.04), (0.02, 0.02)), (20, 16, 14))
    if mark is None:
        return [BodyPart("head", skull), BodyPart("head", snout), eye]
    if mark == 0:
        mane = star(at(-0.03, 0.0), 0.24, 0.17, 11, rng.uniform(0, 1))
        return [
            BodyPart("mane", mane, (176, 62, 22), mark=True),
            BodyPart("face", skull, (236, 190, 96), mark=True),
            BodyPart("face", snout, (246, 214, 140), mark=True),
            eye,
        ]
    white = [
        BodyPart("face", skull, (238, 236, 226), mark=True),
        BodyPart("face", snout, (238, 236, 226), mark=True),
    ]
    bands = [
        limb(np.array([at(-0.15, y), at(0.0, y - 0.01), at(0.17, 0.03)]), (0.05, 0.055, 0.03))
        for y in (-0.06, 0.06)
    ]
    return [*white, *(BodyPart("band", b, (22, 20, 24), mark=True, edge=0.2) for b in bands)]


def _bird(rng: Rng, mark: int | None) -> list[BodyPart]:
    """Toucan (0) and rooster (1): two thin legs, a tail fan, a wing, a neck and a small head."""
    lean = rng.uniform(-0.35, 0.1)
    parts: list[BodyPart] = []
    for angle in np.linspace(-0.35, 0.35, 4) + math.pi + lean + rng.uniform(-0.2, 0.3):
        feather = _joints((-0.3, -0.02), (angle, angle + 0.15), (0.22, 0.2))
        parts.append(BodyPart("tail", limb(feather, (0.1, 0.12, 0.08)), light=0.85))
    for x, side in ((0.06, 0.8), (-0.04, 1.0)):
        upper = math.pi / 2 + rng.uniform(-0.4, 0.4)
        shin = _joints((x, 0.18), (upper, upper + rng.uniform(-0.3, 0.5)), (0.2, 0.24))
        parts.append(BodyPart("leg", limb(shin, (0.09, 0.045, 0.035)), (150, 126, 84), light=side))
        foot = _joints(shin[-1], (rng.uniform(-0.2, 0.3),), (0.14,))
        parts.append(BodyPart("foot", limb(foot, (0.05, 0.03)), (150, 126, 84), light=side))
    parts.append(BodyPart("body", ellipse((0, 0), (0.42, rng.uniform(0.24, 0.29)), lean)))
    wing = ellipse((-0.07, -0.01), (0.27, 0.14), lean + rng.uniform(-0.3, 0.2))
    parts.append(BodyPart("wing", wing, light=0.78))
    head = np.array([0.42, -0.42]) + rng.uniform(-0.07, 0.07, 2)
    parts.append(BodyPart("neck", limb(np.array([(0.24, -0.1), (0.36, -0.26), head]), (0.28, 0.18, 0.16))))
    parts.append(BodyPart("head", ellipse(head, (0.13, 0.12))))
    return parts + _bird_head(rng, mark, head)


def _bird_head(rng: Rng, mark: int | None, head: Points) -> list[BodyPart]:
    eye = BodyPart("eye", ellipse(np.add(head, (0.04, -0.03)), (0.022, 0.022)), (16, 14, 12))
    droop = rng.uniform(0.0, 0.4)
    if mark == 0:
        path = head + rotate(np.array([(0.08, 0.0), (0.2, -0.01), (0.32, 0.03), (0.43, 0.11)]), droop)
        widths = (0.2, 0.19, 0.15, 0.06)
        bands: tuple[Colour, ...] = ((250, 206, 40), (244, 122, 20), (24, 20, 24))
        beak = [
            BodyPart("beak", limb(path[i : i + 2], widths[i : i + 2]), colour, mark=True)
            for i, colour in enumerate(bands)
        ]
        return [*reversed(beak), eye]
    small = BodyPart(
        "beak", limb(head + rotate(np.array([(0.1, 0.0), (0.21, 0.03)]), droop), (0.08, 0.02)), (176, 148, 92)
    )
    if mark is None:
        return [small, eye]
    lobes = [(-0.1, -0.1), (-0.03, -0.15), (0.05, -0.15), (0.12, -0.1)]
    comb = [
        BodyPart("comb", ellipse(np.add(head, lobe), (0.06, 0.085)), (214, 24, 38), mark=True)
        for lobe in lobes
    ]
    wattle = BodyPart("wattle", ellipse(np.add(head, (0.1, 0.14)), (0.05, 0.09)), (214, 24, 38), mark=True)
    return [*comb, small, wattle, eye]


def _lizard(rng: Rng, mark: int | None) -> list[BodyPart]:
    """Frilled lizard (0) and gecko (1): sprawling legs with toes and a long bending tail, from above."""
    bend = rng.uniform(-0.5, 0.5)
    parts = [BodyPart("tail", _curve(rng, (-0.34, 0.0), math.pi + bend / 2, 0.75, (0.17, 0.03)))]
    for x, forward in ((-0.26, -1), (0.24, 1)):
        for side in (-1, 1):
            upper = side * (math.pi / 2 - forward * rng.uniform(0.0, 0.6))
            lower = upper + side * forward * rng.uniform(-0.9, 0.5)
            leg = _joints((x, side * 0.08), (upper, lower), (0.2, 0.18))
            parts.append(BodyPart("leg", limb(leg, (0.11, 0.08, 0.06))))
            for toe in (-0.6, 0.0, 0.6):
                parts.append(BodyPart("toe", limb(_joints(leg[-1], (lower + toe,), (0.08,)), (0.04, 0.025))))
    parts.append(BodyPart("body", ellipse((0, 0), (0.44, rng.uniform(0.14, 0.18)))))
    head = np.array([0.5, rng.uniform(-0.06, 0.06)])
    return parts + _lizard_head(mark, head, rng.uniform(-0.3, 0.3))


def _lizard_head(mark: int | None, head: Points, turn: float) -> list[BodyPart]:
    def at(x: float, y: float) -> Points:
        return head + rotate(np.array([(x, y)]), turn)[0]

    skull = ellipse(at(0.04, 0), (0.17, 0.11), turn)
    eyes = [BodyPart("eye", ellipse(at(0.08, y), (0.025, 0.025)), (18, 18, 14)) for y in (-0.07, 0.07)]
    if mark is None:
        return [BodyPart("head", skull), *eyes]
    if mark == 0:
        rim = star(at(-0.05, 0), 0.27, 0.22, 12, turn)
        return [
            BodyPart("frill", rim, (198, 36, 120), mark=True),
            BodyPart("frill", ellipse(at(-0.04, 0), (0.18, 0.18)), (250, 150, 50), mark=True),
            BodyPart("head", skull),
            *eyes,
        ]
    spots = [(-0.07, 0.0), (0.0, -0.055), (0.0, 0.055), (0.12, 0.0)]
    return [
        BodyPart("head", skull, (30, 178, 186), mark=True),
        *(
            BodyPart("spot", ellipse(at(*s), (0.032, 0.032)), (250, 226, 60), mark=True, edge=0.2)
            for s in spots
        ),
        *eyes,
    ]


def _beetle(rng: Rng, mark: int | None) -> list[BodyPart]:
    """Stag beetle (0) and firefly (1): six bent legs, feelers, a thorax and two wing cases, from above."""
    parts: list[BodyPart] = []
    for x, lean in ((-0.1, 0.6), (0.1, 0.1), (0.26, -0.5)):
        for side in (-1, 1):
            upper = side * (math.pi / 2 + lean + rng.uniform(-0.25, 0.25))
            lower = upper + side * (lean + rng.uniform(-0.3, 0.3))
            leg = _joints((x, side * 0.18), (upper, lower), (0.2, 0.2))
            parts.append(BodyPart("leg", limb(leg, (0.07, 0.05, 0.03)), light=0.7))
    for side in (-1, 1):
        feeler = _joints((0.52, side * 0.04), (side * 0.6, side * rng.uniform(0.6, 1.2)), (0.14, 0.14))
        parts.append(BodyPart("feeler", limb(feeler, (0.035, 0.03, 0.02)), light=0.6))
    width = rng.uniform(0.25, 0.3)
    lamp = mark == 1
    if lamp:
        parts.append(BodyPart("lamp", ellipse((-0.4, 0), (0.2, 0.17)), (214, 250, 60), mark=True, edge=0.3))
        parts.append(BodyPart("lamp", ellipse((-0.46, 0), (0.09, 0.1)), (252, 255, 196), mark=True, edge=0.1))
    for side in (-1, 1):
        case = ellipse((-0.08, side * width * 0.46), (0.34, width * 0.58), side * rng.uniform(-0.02, 0.12))
        parts.append(BodyPart("wing case", case))
    parts.append(BodyPart("thorax", ellipse((0.28, 0), (0.15, 0.21)), light=0.85))
    parts.append(BodyPart("head", ellipse((0.45, 0), (0.1, 0.12)), light=0.75))
    if mark == 0:
        for side in (-1, 1):
            jaw = np.array([(0.5, 0.07), (0.64, 0.17), (0.78, 0.14), (0.86, 0.04)]) * (1, side)
            parts.append(
                BodyPart("jaw", limb(jaw, (0.1, 0.1, 0.08, 0.03)), (150, 18, 44), mark=True, light=1.1)
            )
    return parts


PLANS: tuple[Callable[[Rng, int | None], list[BodyPart]], ...] = (_quadruped, _bird, _lizard, _beetle)
UPRIGHT_PLANS = 2  # the first two are seen from the side, the others from above


# ---- joints ---------------------------------------------------------------------------------------------


def _joints(
    start: Points | tuple[float, float], angles: tuple[float, ...], lengths: tuple[float, ...]
) -> Points:
    """Points of a jointed limb: from `start`, one segment per angle (radians) and length."""
    points = [np.asarray(start, np.float64)]
    for angle, length in zip(angles, lengths, strict=True):
        points.append(points[-1] + length * np.array([math.cos(angle), math.sin(angle)]))
    return np.stack(points)


def _curve(
    rng: Rng, start: tuple[float, float], angle: float, length: float, widths: tuple[float, float]
) -> Points:
    """Outline of a tail: six segments that bend steadily, from the first width to the second."""
    steps = 6
    bend = rng.uniform(-0.35, 0.35)
    angles = tuple(angle + bend * i for i in range(steps))
    path = _joints(start, angles, (length / steps,) * steps)
    return limb(path, tuple(np.linspace(*widths, steps + 1)))
