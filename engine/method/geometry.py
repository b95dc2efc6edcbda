"""Where an image is split and what each view's size is (engine/method/README.md §2)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import lcm, log
from typing import TYPE_CHECKING, NamedTuple

from infercam.engine.method.recipe import Recipe
from infercam.engine.method.windows import Cover, Windows

if TYPE_CHECKING:
    from infercam.engine.bundle import InputSpec, Manifest


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


@dataclass(frozen=True, slots=True)
class ViewSizes:
    """Which sizes a network takes: one, or every one from `smallest` up. The one place where a view's is decided."""

    fixed: tuple[int, int] | None = None
    smallest: int = 1
    """Pixels of a side: less leaves the network's last layers nothing to look at, or ends the runtime's process."""
    multiple: int = 1
    """Sides are multiples of it."""
    windows: Windows | None = None
    """Of a network of one size: how it sees larger views (Recipe.windows)."""

    @classmethod
    def of_bundle(cls, manifest: Manifest) -> ViewSizes:
        return replace(cls.of_network(manifest.input), windows=Windows.of(manifest))

    @classmethod
    def of_network(cls, spec: InputSpec) -> ViewSizes:
        return cls(spec.fixed_size, spec.smallest, spec.multiple)

    def of(self, height: int, width: int, scale: float = 1.0, ladder: bool = False) -> tuple[int, int]:
        """Network height and width for a tile at a scale; a side that is too short is enlarged to `smallest`.

        ladder: of few sizes, so that views of many tiles share one (see ladder_size).
        """
        if self.fixed is not None:
            return self.fixed
        h, w = view_size(height, width, scale)
        if ladder:
            return ladder_size(h, w, self.smallest, self.multiple)
        return self._side(h), self._side(w)

    def cover(self, height: int, width: int, scale: float, recipe: Recipe) -> Cover:
        """A tile's view at a scale, and where in it the network looks: everywhere at once, but for windows."""
        if recipe.windows and self.windows is not None:
            return self.windows.cover(*view_size(height, width, scale))
        size = self.of(height, width, scale, recipe.ladder)
        return Cover(size, size)

    def _side(self, side: int) -> int:
        if self.multiple > 1:
            side = round(side / self.multiple) * self.multiple
        return max(self.smallest, side)

    def enlarges(self, height: int, width: int, scale: float = 1.0) -> bool:
        """Whether a side of that view is enlarged, since the network takes nothing smaller."""
        return self.fixed is None and min(view_size(height, width, scale)) < self.smallest

    def __str__(self) -> str:
        if self.fixed is not None:
            return f"{self.fixed[0]}×{self.fixed[1]} pixels only"
        multiples = f" in multiples of {self.multiple}" if self.multiple > 1 else ""
        return f"sides of {self.smallest} pixels and more{multiples}"


ANY_SIZE = ViewSizes()
_STEP, _RATIO = 64, 1.25
_LONGEST_SIDE = 1 << 16
ASPECT = 1.2
"""A ladder changes a view's aspect by no more than this factor, where its rungs allow that."""


@lru_cache(maxsize=64)
def ladder_sides(smallest: int = 1, multiple: int = 1) -> tuple[int, ...]:
    """The rungs: multiples of 64 (and of `multiple`), at least `smallest`, each about a quarter above the last."""
    step = lcm(_STEP, multiple)
    sides = [step * -(-smallest // step)]
    while sides[-1] < _LONGEST_SIDE:
        sides.append(max(sides[-1] + step, round(sides[-1] * _RATIO / step) * step))
    return tuple(sides)


@lru_cache(maxsize=1 << 16)
def ladder_size(height: int, width: int, smallest: int = 1, multiple: int = 1) -> tuple[int, int]:
    """The pair of rungs that a view is inferred at: of those that keep its aspect to ASPECT the nearest in area, or
    else (a sliver of a tile) the one that changes it least."""
    rungs = ladder_sides(smallest, multiple)

    def near(side: int) -> tuple[int, ...]:
        above = bisect_left(rungs, side)
        return rungs[max(0, above - 2) : above + 2] or rungs[-1:]

    def cost(size: tuple[int, int]) -> tuple[bool, float]:
        aspect = abs(log(size[0] * width / (size[1] * height)))
        area = abs(log(size[0] * size[1] / (height * width)))
        bent = aspect > log(ASPECT) + 1e-9
        return bent, aspect if bent else area

    return min(product(near(height), near(width)), key=cost)


def split_boxes(
    height: int, width: int, centres: Sequence[tuple[int, int]], recipe: Recipe, smallest: int = 1
) -> list[Placed]:
    """Tiles of an image from the centre of mass (y, x) of each of its classes.

    One class: four corner-anchored tiles that meet at the centre. Two: each tile reaches to the far side of
    the rectangle that the centres span. Three or more: the whole image (`released`) or each class's own four
    tiles (`paper`). Every tile reaches a buffer past the split line, and further where a side would be below
    `smallest` pixels (the network's, see ViewSizes). Equal boxes are merged, so that each is inferred once.
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
        for box in _four(height, width, points, buffer, recipe, smallest):
            takes[box] = tuple(sorted({*takes.get(box, ()), *classes}))
    return [Placed(box, classes) for box, classes in takes.items()]


def _four(
    height: int, width: int, points: list[tuple[int, int]], buffer: int, recipe: Recipe, smallest: int
) -> list[Box]:
    top, bottom = _sides([p[0] for p in points], height, buffer, recipe, smallest)
    left, right = _sides([p[1] for p in points], width, buffer, recipe, smallest)
    return [Box(y0, x0, y1, x1) for y0, y1 in (top, bottom) for x0, x1 in (left, right)]


def _sides(
    at: list[int], side: int, buffer: int, recipe: Recipe, smallest: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The near part [0, end) and the far part [start, side) of one axis, snapped outward to the grid."""
    reach = max(buffer, round(recipe.overlap * side))
    end = min(side, -(-(max(at) + reach) // recipe.snap) * recipe.snap)
    start = max(0, (min(at) - reach) // recipe.snap * recipe.snap)
    return (0, min(side, max(smallest, end))), (max(0, min(start, side - smallest)), side)
