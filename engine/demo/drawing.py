"""Drawing for the demo's pictures: heat overlays, split lines, captions and grids, with Pillow and OpenCV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import StoreError
from infercam.engine.common.paths import os_reason
from infercam.engine.method.geometry import Box

Pixels = NDArray[np.uint8]
Rgb = tuple[int, int, int]

COLOURS: tuple[Rgb, ...] = (
    (255, 88, 64),
    (64, 150, 255),
    (255, 190, 30),
    (240, 60, 140),
    (190, 110, 255),
    (30, 210, 200),
    (255, 130, 200),
    (130, 220, 50),
)
"""One colour a class, told apart on photos and by most readers."""

PAPER: Rgb = (255, 255, 255)
INK: Rgb = (34, 36, 40)
FAINT: Rgb = (112, 116, 122)


def colour(c: int) -> Rgb:
    return COLOURS[c % len(COLOURS)]


def heat(pixels: Pixels, maps: NDArray[np.float32], classes: Sequence[int]) -> Pixels:
    """The picture, dimmed and grey, with each class's map K×H×W (0..1) glowing in its colour."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None] * (0.55, 0.56, 0.6)
    out = grey.astype(np.float32)
    for strength, c in zip(maps, classes, strict=True):
        alpha = np.clip(strength, 0, 1)[..., None] * 0.85
        out += (np.asarray(colour(c), np.float32) - out) * alpha
    return np.clip(out, 0, 255).astype(np.uint8)


def labels(pixels: Pixels, mask: NDArray[np.uint8]) -> Pixels:
    """The picture dimmed, each class of the mask (c + 1; 0 background) flat in its colour."""
    classes = [int(v) - 1 for v in np.unique(mask) if 0 < v < 255]
    return heat(pixels, np.stack([mask == c + 1 for c in classes]).astype(np.float32), classes)


def contours(picture: Pixels, regions: NDArray[np.bool_]) -> None:
    """Draw the outline of every region K×H×W onto the picture, in white."""
    for region in regions:
        found, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(picture, found, -1, PAPER, 1, cv2.LINE_AA)


def tile_edges(picture: Pixels, boxes: Iterable[Box], dash: int = 5) -> None:
    """Draw the tiles' inner edges as dashed lines; edges that lie on each other dash together."""
    height, width = picture.shape[:2]
    down, right = (np.arange(n) // dash % 2 == 0 for n in (height, width))
    for box in boxes:
        for x in {box.x0, box.x1 - 1} - {0, width - 1}:
            picture[box.y0 : box.y1, x][down[box.y0 : box.y1]] = PAPER
        for y in {box.y0, box.y1 - 1} - {0, height - 1}:
            picture[y, box.x0 : box.x1][right[box.x0 : box.x1]] = PAPER


def cross(picture: Pixels, centre: tuple[int, int], paint: Rgb, size: int = 7) -> None:
    """Mark a centre of mass (y, x): a cross in a colour, rimmed in white."""
    y, x = centre
    for thickness, drawn in ((5, PAPER), (3, paint)):
        cv2.line(picture, (x - size, y), (x + size, y), drawn, thickness, cv2.LINE_AA)
        cv2.line(picture, (x, y - size), (x, y + size), drawn, thickness, cv2.LINE_AA)


class Page:
    """A white page to put pictures and words on."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def picture(self, pixels: Pixels, x: int, y: int) -> None:
        self.image.paste(Image.fromarray(pixels), (x, y))

    def words(
        self, text: str, x: int, y: int, size: int = 15, paint: Rgb = INK, align: Literal["l", "m"] = "l"
    ) -> int:
        """Write one line with its top at y, from x (or about x: `m`); returns its width."""
        font = ImageFont.load_default(size)
        self._draw.text((x, y), text, paint, font, anchor=f"{align}a")
        return round(self._draw.textlength(text, font))

    def swatches(self, entries: Sequence[tuple[str, Rgb]], x: int, y: int, size: int = 14) -> None:
        """A line of names, each behind a square of its colour."""
        for name, paint in entries:
            self._draw.rectangle((x, y + 2, x + size - 3, y + size - 1), paint)
            x += size + 4
            x += self.words(name, x, y, size) + size

    def arrow(self, x: int, y: int, length: int) -> None:
        """An arrow to the right, its tip at x + length."""
        self._draw.line((x, y, x + length - 6, y), FAINT, 3)
        self._draw.polygon([(x + length, y), (x + length - 9, y - 6), (x + length - 9, y + 6)], FAINT)

    def save(self, file: Path) -> None:
        """Write a PNG; raises StoreError."""
        try:
            with atomic_write(file) as f:
                self.image.save(f, "PNG", optimize=True)
        except OSError as e:
            raise StoreError(f"{file}: cannot be written: {os_reason(e)}") from None
