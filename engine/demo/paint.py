"""Paint for the synthetic scenes: noise, coats and soft-edged, softly lit shapes, with NumPy and OpenCV only.

Colours are RGB triples in 0..255; outlines are float64 arrays (N, 2) of x, y in pixels. Everything random
comes from the generator that is passed in, so a picture is a function of its seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]
Floats = NDArray[np.float32]
Points = NDArray[np.float64]
Position = Sequence[float] | Points
Rng = np.random.Generator

SUBPIXEL_BITS = 4  # fixed-point bits that OpenCV's polygon filler takes

COATS = ("fur", "spots", "stripes", "scales", "mottled")


def noise(rng: Rng, height: int, width: int, cell: float, octaves: int = 2, stretch: float = 1.0) -> Floats:
    """Smooth noise, H×W in 0..1; `cell` is the size of its largest lumps in pixels, `stretch` their
    width over their height."""
    total = np.zeros((height, width), np.float32)
    weight = 0.0
    for octave in range(octaves):
        size = max(cell / 2**octave, 1.0)
        rows = max(2, math.ceil(height / size) + 1)
        columns = max(2, math.ceil(width / (size * stretch)) + 1)
        lumps = rng.random((rows, columns), dtype=np.float32)
        total += cv2.resize(lumps, (width, height), interpolation=cv2.INTER_CUBIC) * 0.5**octave
        weight += 0.5**octave
    return np.clip(total / weight, 0, 1)


def mix(first: Colour, second: Colour, amount: Floats) -> Floats:
    """Blend two colours by an H×W map of 0..1 into H×W×3."""
    a, b = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return a + (b - a) * amount[..., None]


def jitter(rng: Rng, colour: Colour, spread: float) -> Colour:
    """The colour with a common change of brightness and a smaller one of every channel."""
    shade = rng.normal(0, spread)
    moved = np.clip(np.asarray(colour) + shade + rng.normal(0, spread / 2, 3), 0, 255)
    return float(moved[0]), float(moved[1]), float(moved[2])


def coat(rng: Rng, kind: str, height: int, width: int, cell: float, base: Colour, second: Colour) -> Floats:
    """A coat of one of COATS, H×W×3 in 0..255; `cell` is the size of its pattern in pixels."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    lumps = noise(rng, height, width, cell * 2)
    angle = rng.uniform(0, math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    if kind == "fur":
        pattern = noise(rng, height, width, max(cell / 3, 1.5), stretch=4.0)
    elif kind == "spots":
        pattern = (noise(rng, height, width, cell, octaves=1) > 0.62).astype(np.float32)
    elif kind == "stripes":
        pattern = 0.5 + 0.5 * np.sin((along + 3 * cell * lumps) * (2 * math.pi / (1.6 * cell)))
        pattern = np.clip(pattern * 3 - 1, 0, 1)
    elif kind == "scales":
        across = -x * math.sin(angle) + y * math.cos(angle)
        pattern = np.abs(np.sin(along * math.pi / cell) * np.sin(across * math.pi / cell))
    elif kind == "mottled":
        pattern = noise(rng, height, width, cell, octaves=3)
    else:
        raise ValueError(f"no coat {kind!r}; there are {', '.join(COATS)}")
    painted = mix(base, second, pattern.astype(np.float32))
    return painted * (0.85 + 0.3 * lumps[..., None])


class Canvas:
    """A picture being painted: `size` (H, W), `rgb` H×W×3 float32, and `owner` H×W int16, the object last
    painted there (0: none)."""

    def __init__(self, rgb: Floats) -> None:
        self.rgb = rgb
        self.size: tuple[int, int] = (rgb.shape[0], rgb.shape[1])
        self.owner = np.zeros(self.size, np.int16)

    def fill(
        self,
        outline: Points,
        paint: Floats | Colour,
        *,
        owner: int = 0,
        light: float = 1.0,
        edge: float = 0.5,
    ) -> NDArray[np.bool_]:
        """Paint a polygon with a colour or with a picture of the canvas's size.

        `light` multiplies the paint; `edge` (0..1) is how much its rim darkens, which makes it look round.
        Returns the H×W mask of the pixels now covered by it.
        """
        covered = np.zeros(self.size, np.bool_)
        box = self._box(outline)
        if box is None:
            return covered
        rows, columns = box
        corner = np.array([columns.start, rows.start], np.float32)
        alpha = _soft_mask(outline - corner, rows.stop - rows.start, columns.stop - columns.start)
        under = self.rgb[rows, columns]
        colour = paint[rows, columns] if isinstance(paint, np.ndarray) else np.asarray(paint, np.float32)
        lit = np.clip(colour * (light * _shade(alpha, edge))[..., None], 0, 255)
        under += (lit - under) * alpha[..., None]
        inside = alpha > 0.5
        covered[rows, columns] = inside
        self.owner[rows, columns][inside] = owner
        return covered

    def _box(self, outline: Points) -> tuple[slice, slice] | None:
        """The outline's bounding box with a margin, inside the canvas; None where it lies outside."""
        height, width = self.size
        left, top = np.floor(outline.min(axis=0)).astype(int) - 2
        right, bottom = np.ceil(outline.max(axis=0)).astype(int) + 3
        rows = slice(max(top, 0), min(bottom, height))
        columns = slice(max(left, 0), min(right, width))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return None
        return rows, columns


def _soft_mask(outline: Points, height: int, width: int) -> Floats:
    """The polygon's coverage, H×W in 0..1, antialiased."""
    mask = np.zeros((height, width), np.uint8)
    points = np.round(outline * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(mask, [points], 255, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS)
    return np.asarray(mask, np.float32) / np.float32(255)


def _shade(alpha: Floats, edge: float) -> Floats:
    """Light from above on a rounded shape: brighter towards its top rim, darker towards the others."""
    sigma = max(min(alpha.shape) * 0.12, 0.8)
    soft = cv2.GaussianBlur(alpha, (0, 0), sigma)
    slope = cv2.Sobel(soft, cv2.CV_32F, 0, 1, ksize=3, scale=sigma / 4)
    return np.asarray(1 - edge * (1 - soft) * 0.8 + edge * np.clip(slope, -0.6, 0.6), np.float32)


def ellipse(centre: Position, radii: Sequence[float], angle: float = 0.0, points: int = 28) -> Points:
    """Outline of an ellipse, turned by `angle` radians."""
    t = np.linspace(0, 2 * math.pi, points, endpoint=False)
    return rotate(np.stack([radii[0] * np.cos(t), radii[1] * np.sin(t)], axis=1), angle) + np.asarray(centre)


def star(centre: Position, outer: float, inner: float, tips: int, angle: float = 0.0) -> Points:
    """Outline of a star: `tips` points at radius `outer` with notches at `inner` between them."""
    t = np.linspace(0, 2 * math.pi, 2 * tips, endpoint=False) + angle
    radius = np.where(np.arange(2 * tips) % 2 == 0, outer, inner)
    return np.stack([radius * np.cos(t), radius * np.sin(t)], axis=1) + np.asarray(centre)


def limb(path: Points, widths: Sequence[float]) -> Points:
    """Outline of a limb along a path (N, 2), `widths` (N) wide at its points, with a round end."""
    path = np.asarray(path, np.float64)
    half = np.asarray(widths, np.float64)[:, None] / 2
    direction = np.gradient(path, axis=0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-9
    normal = direction[:, ::-1] * (-1, 1)
    facing = math.atan2(direction[-1, 1], direction[-1, 0])
    t = np.linspace(math.pi / 2, -math.pi / 2, 7)[1:-1] + facing
    cap = path[-1] + half[-1] * np.stack([np.cos(t), np.sin(t)], axis=1)
    return np.concatenate([path + normal * half, cap, (path - normal * half)[::-1]])


def rotate(points: Points, angle: float) -> Points:
    """The points (N, 2) turned by `angle` radians about the origin."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.asarray(points) @ np.array([[cos, sin], [-sin, cos]])
