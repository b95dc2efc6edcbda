"""How a network that takes one size sees a larger view: in windows of that size, whose responses are put together
(engine/method/README.md §1; Recipe.windows)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from infercam.engine.bundle import Manifest

Float = NDArray[np.float32]
Size = tuple[int, int]
"""Height and width."""


class Cover(NamedTuple):
    """A view, and where the windows lie that the network sees of it."""

    size: Size
    """The view's, in pixels."""
    window: Size
    """What the network sees at a time: the view's own, but for windows."""
    rows: tuple[int, ...] = (0,)
    """First cell of each row of windows."""
    columns: tuple[int, ...] = (0,)
    cell: int = 1
    """Pixels of a side of a response cell."""

    @property
    def places(self) -> list[Size]:
        """First pixel (y, x) of each window, row by row."""
        return [(y * self.cell, x * self.cell) for y in self.rows for x in self.columns]


@dataclass(frozen=True)
class Windows:
    """What is to be known of a network of one size: windows of it lie whole response cells apart, so that the cells
    of neighbours fall on each other."""

    size: Size
    """Pixels."""
    cell: int
    """Pixels of a side of a response cell."""
    cells: Size
    """Of a window's response."""

    @classmethod
    def of(cls, manifest: Manifest) -> Windows | None:
        """None where the network takes other sizes too, or the bundle does not say how many cells it answers with."""
        fixed, stride = manifest.input.fixed_size, manifest.stride
        if fixed is None or manifest.cells is None:
            return None
        return cls(fixed, stride, manifest.cells.size(*fixed, stride))

    def cover(self, height: int, width: int) -> Cover:
        """The cover of a view of about that size: its sides are those of a window and so many cells more. A side that
        is no longer than a window's is stretched to it."""
        down, across = (
            _starts(side, window, self.cell, cells)
            for side, window, cells in zip((height, width), self.size, self.cells, strict=True)
        )
        size = self.size[0] + self.cell * down[-1], self.size[1] + self.cell * across[-1]
        return Cover(size, self.size, down, across, self.cell)


@lru_cache(maxsize=1 << 12)
def _starts(side: int, window: int, cell: int, cells: int) -> tuple[int, ...]:
    """First cell of each window along an axis: as few as leave nothing out, evenly spaced, from both ends alike."""
    more = max(0, side - window) / cell
    apart = max(1, min(cells, window // cell))
    steps = round(more)
    gaps = -(-steps // apart)
    if gaps % 2 == 0 and steps % 2:  # the window in the middle would lie half a cell from there
        steps = 2 * round(more / 2)
        gaps = -(-steps // apart)
    near = [round(i * steps / gaps) for i in range((gaps + 1) // 2)]
    middle = [steps // 2] if gaps % 2 == 0 else []
    return (*near, *middle, *(steps - at for at in reversed(near)))


def put_together(responses: Sequence[Float], cover: Cover) -> Float:
    """The view's response K×h×w from its windows' (each K×h'×w', in the order of Cover.places): the mean, weighted
    towards each window's middle, of their ReLU'd cells."""
    count, height, width = responses[0].shape
    if len(responses) == 1:
        return responses[0]
    rows, columns = shares(cover.rows, height), shares(cover.columns, width)
    out = np.zeros((count, height + cover.rows[-1], width + cover.columns[-1]), np.float32)
    at = [(y, x) for y in range(len(rows)) for x in range(len(columns))]
    for (y, x), response in zip(at, responses, strict=True):
        top, left = cover.rows[y], cover.columns[x]
        part = np.maximum(response, 0) * (rows[y][:, None] * columns[x])
        out[:, top : top + height, left : left + width] += part
    return out


@lru_cache(maxsize=1 << 10)
def shares(starts: tuple[int, ...], cells: int) -> list[Float]:
    """Along an axis, the weight of each window's cells: at every cell of the view they add up to 1."""
    tent = np.minimum(np.arange(1, cells + 1), np.arange(cells, 0, -1)).astype(np.float64)
    total = np.zeros(starts[-1] + cells)
    for at in starts:
        total[at : at + cells] += tent
    return [(tent / total[at : at + cells]).astype(np.float32) for at in starts]
