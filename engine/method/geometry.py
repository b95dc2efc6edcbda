"""Where an image is split and what each view's size is (engine/method/README.md §2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from infercam.engine.method.recipe import Recipe


class Box(NamedTuple):
    """A tile's place in its image: rows y0..y1, columns x0..x1, ends excluded."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def area(self) -> int:
        return self.height * self.width


class Placed(NamedTuple):
    """A box and the classes (positions in the image's class list) whose maps are taken from it."""

    box: Box
    takes: tuple[int, ...]


def whole_box(height: int, width: int) -> Box:
    return Box(0, 0, height, width)


def view_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Size in pixels of a tile at a scale: round(side * scale), at least 1 (Python's rounding, as the paper's
    code and Pillow's callers have it)."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def split_boxes(height: int, width: int, centres: Sequence[tuple[int, int]], recipe: Recipe) -> list[Placed]:
    """Tiles of an image from the centre of mass (y, x) of each of its classes.

    One class: four corner-anchored tiles that meet at the centre. Two: each tile reaches to the far side of
    the rectangle that the centres span. Three or more: the whole image (`released`) or each class's own four
    tiles (`paper`). Every tile reaches a buffer past the split line. Equal boxes are merged, so that each is
    inferred once.
    """
    every = tuple(range(len(centres)))
    if recipe.split == "none" or (recipe.split == "released" and len(centres) > 2):
        return [Placed(whole_box(height, width), every)]
    groups: list[tuple[tuple[int, ...], list[tuple[int, int]], int]]
    if len(centres) > 2:
        groups = [((c,), [centres[c]], recipe.buffer_one) for c in every]
    else:
        groups = [(every, list(centres), recipe.buffer_one if len(centres) == 1 else recipe.buffer_two)]
    takes: dict[Box, tuple[int, ...]] = {}
    for classes, points, buffer in groups:
        for box in _four(height, width, points, buffer, recipe):
            takes[box] = tuple(sorted({*takes.get(box, ()), *classes}))
    return [Placed(box, classes) for box, classes in takes.items()]


def _four(height: int, width: int, points: list[tuple[int, int]], buffer: int, recipe: Recipe) -> list[Box]:
    top, bottom = _sides([p[0] for p in points], height, buffer, recipe)
    left, right = _sides([p[1] for p in points], width, buffer, recipe)
    return [Box(y0, x0, y1, x1) for y0, y1 in (top, bottom) for x0, x1 in (left, right)]


def _sides(at: list[int], side: int, buffer: int, recipe: Recipe) -> tuple[tuple[int, int], tuple[int, int]]:
    """The near part [0, end) and the far part [start, side) of one axis, snapped outward to the grid."""
    reach = max(buffer, round(recipe.overlap * side))
    end = min(side, -(-(max(at) + reach) // recipe.snap) * recipe.snap)
    start = max(0, (min(at) - reach) // recipe.snap * recipe.snap)
    return (0, max(1, end)), (min(start, side - 1), side)
