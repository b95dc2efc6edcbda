"""Pillow's bicubic, bit for bit, as products of matrices: what its own loops take some 4 ns a value for, one by one.

Pillow resizes one axis after the other, in weights of 22 binary places, and rounds what is between them to uint8.
Every partial sum is so a whole number below 2^31 over 2^22: float64 holds it exactly, in whatever order and with
whatever instructions a BLAS adds. Rows of a product that need neighbouring source rows are made together.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import PIL
from numpy.typing import NDArray

from infercam.engine.method.reference import resize_pixels

Pixels = NDArray[np.uint8]
Double = NDArray[np.float64]
Size = tuple[int, int]
"""Height and width."""

PILLOW_ORDERS = int(PIL.__version__.split(".")[0]) >= 13
_BITS = 22
_NO_TIE = 2.0 ** -(_BITS + 1)
"""Half of the last place, added before rounding: what lies between two whole numbers goes up, as in Pillow."""
_SLIVER = 8
"""A shorter side is left to Pillow: OpenCV takes an array of few values for a scalar."""
_ROWS, _COLUMNS = 24, 768
"""Of a block at most: what it reads and writes stays in the cache,"""
_ONE_THREAD = 1 << 18
"""and so many products: from there on OpenBLAS would wake threads of its own."""
_TOGETHER = 4  # blocks of a strip


def columns_first(source: Size, target: Size) -> bool:
    """Whether Pillow resizes the columns before the rows: since version 13, where the height shrinks by more than
    twice what the width does. The intermediate is rounded, so the order shows in the last bit."""
    less_height, less_width = source[0] - target[0], source[1] - target[1]
    return PILLOW_ORDERS and less_height > max(0, 2 * less_width)


class Picture:
    """A tile's picture, H×W×3 uint8, to be had at many sizes: what they have in common is made once."""

    def __init__(self, pixels: Pixels, recurs: bool = True) -> None:
        """recurs: other pictures are likely to have its size; else it is Pillow's, whose loops need no preparing."""
        self.pixels = pixels
        self._recurs = recurs
        self._columns: Pixels | None = None

    def planes(self, height: int, width: int) -> Pixels:
        """3×height×width uint8, C-contiguous: reference.resize_pixels, by planes."""
        shape = self.pixels.shape[0], self.pixels.shape[1]
        target = height, width
        ours = self._recurs and min(*shape, *target) >= _SLIVER and not columns_first(shape, target)
        if shape == target or not ours:
            return np.ascontiguousarray(resize_pixels(self.pixels, height, width).transpose(2, 0, 1))
        out = np.empty((3, height, width), np.uint8)
        for plane, rows in zip(out, self._widened(width), strict=True):
            _resample(rows, plane)
        return out

    def _widened(self, width: int) -> list[Pixels]:
        """The planes, 3 times H×width: what is between Pillow's two passes."""
        if width == self.pixels.shape[1]:
            return [cv2.extractChannel(self.pixels, c).astype(np.uint8, copy=False) for c in range(3)]
        if self._columns is None:  # two workers may both make it: the same bytes
            turned = [cv2.transpose(cv2.extractChannel(self.pixels, c)) for c in range(3)]
            self._columns = np.concatenate(turned, axis=1, dtype=np.uint8)
        columns = np.empty((width, self._columns.shape[1]), np.uint8)
        _resample(self._columns, columns)
        return [np.asarray(cv2.transpose(c), np.uint8) for c in np.split(columns, 3, axis=1)]


def _resample(source: Pixels, target: Pixels) -> None:
    """Resize the first axis: `source` n×m uint8, `target` n'×m, written; as one pass of Pillow's, rounded."""
    if len(source) == len(target):
        target[:] = source
        return
    columns = source.shape[1]
    parts = -(-columns // _COLUMNS)
    strips = _strips(len(source), len(target), -(-columns // parts))
    for part in range(parts):
        across = slice(columns * part // parts, columns * (part + 1) // parts)
        _resample_part(source[:, across], target[:, across], strips)


def _resample_part(source: Pixels, target: Pixels, strips: list[_Strip]) -> None:
    taps = np.empty((max(s.source.stop - s.source.start for s in strips), source.shape[1]))
    sums = np.empty((max(s.target.stop - s.target.start for s in strips), source.shape[1]))
    for strip in strips:
        np.copyto(taps[: strip.source.stop - strip.source.start], source[strip.source])
        for block in strip.blocks:
            np.matmul(block.weights, taps[block.source], out=sums[block.target])
        rows = sums[: strip.target.stop - strip.target.start]
        # in one pass: rounded, and cut to 0..255
        cv2.add(rows, _NO_TIE, target[strip.target], dtype=cv2.CV_8U)  # type: ignore[call-overload]


class _Block(NamedTuple):
    """Some neighbouring rows of a resized axis, made in one product; both slices count from the strip's first."""

    source: slice
    target: slice
    weights: Double
    """target × source."""


class _Strip(NamedTuple):
    """Several blocks that are read and rounded together: as much as stays in the cache."""

    source: slice
    target: slice
    blocks: tuple[_Block, ...]


@lru_cache(maxsize=256)
def _strips(source: int, target: int, columns: int) -> list[_Strip]:
    """An axis of `source` pixels resized to `target`, in order."""
    axis = axis_weights(source, target)
    pairs = list(pairwise(_cuts(axis, columns)))
    out = []
    for at in range(0, len(pairs), _TOGETHER):
        part = pairs[at : at + _TOGETHER]
        start, stop = part[0][0], part[-1][1]
        low = int(axis.first[start])
        blocks = tuple(_block(axis, begin, end, low, start) for begin, end in part)
        out.append(_Strip(slice(low, int(axis.last[stop - 1])), slice(start, stop), blocks))
    return out


def _cuts(axis: ResizedAxis, columns: int) -> list[int]:
    """Where blocks begin, and the end: as many rows each as may be."""
    target = len(axis.first)
    out = [0]
    while out[-1] < target:
        at = out[-1]
        rows = min(_ROWS, target - at)
        while rows > 1 and rows * int(axis.last[at + rows - 1] - axis.first[at]) * columns > _ONE_THREAD:
            rows -= 1
        out.append(at + rows)
    return out


def _block(axis: ResizedAxis, begin: int, end: int, low: int, start: int) -> _Block:
    """Rows [begin, end) of a strip whose source rows begin at `low` and whose target rows at `start`."""
    first, last = int(axis.first[begin]), int(axis.last[end - 1])
    most = axis.weights.shape[1]
    matrix = np.zeros(
        (end - begin, last - first + most)
    )  # wider: zeros behind a pixel's last weight fall there
    at = (axis.first[begin:end] - first)[:, None] + np.arange(most)
    np.put_along_axis(matrix, at, axis.weights[begin:end] / (1 << _BITS), axis=1)
    weights = np.ascontiguousarray(matrix[:, : last - first])
    return _Block(slice(first - low, last - low), slice(begin - start, end - start), weights)


class ResizedAxis(NamedTuple):
    """How the pixels of a resized axis are made."""

    first: NDArray[np.intp]
    last: NDArray[np.intp]
    """Source pixels [first, last) of each."""
    weights: Double
    """Whole numbers, the unit is 2^22: target × most taps, 0 behind a pixel's last."""


def axis_weights(source: int, target: int) -> ResizedAxis:
    """Pillow's precompute_coeffs and normalize_coeffs_8bpc, in its order of operations."""
    scale = source / target
    widened = max(scale, 1.0)
    support, shrink = 2.0 * widened, 1.0 / widened
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.intp), 0)
    count = np.minimum((centre + support + 0.5).astype(np.intp), source) - first
    taps = np.arange(int(count.max()))
    weights = _bicubic((taps + first[:, None] - centre[:, None] + 0.5) * shrink)
    weights[taps >= count[:, None]] = 0
    total = np.cumsum(weights, axis=1)[:, -1:]  # one by one: a sum of NumPy's own adds in pairs
    weights = np.divide(weights, total, out=weights, where=total != 0) * (1 << _BITS)
    return ResizedAxis(first, first + count, np.trunc(weights + np.where(weights < 0, -0.5, 0.5)))


def _bicubic(x: Double) -> Double:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
