"""SLIC superpixels (Achanta et al. 2012) on NumPy, without the step that enforces connectedness."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Index = NDArray[np.int32]


def lab(image: NDArray[np.uint8]) -> Float:
    """H×W×3 uint8 RGB -> CIE Lab float32, L in 0..100."""
    return cv2.cvtColor(image.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2Lab)  # type: ignore[return-value]


def slic(colour: Float, count: int, compactness: float = 20.0, rounds: int = 5) -> Index:
    """About `count` superpixels of a Lab picture H×W×3: index of each pixel, H×W, 0..n-1 without gaps.

    Every pixel chooses among the 3×3 cells of the seeds' grid around its own, so the cost does not grow with
    their number.
    """
    height, width = colour.shape[:2]
    step = max(1.0, np.sqrt(height * width / count))
    rows, columns = max(1, round(height / step)), max(1, round(width / step))
    if rows == 1 or columns == 1:  # a strip narrower than a step: its length alone has them all
        rows, columns = min(rows, count), min(columns, count)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    points = np.dstack([colour, y * (compactness / step), x * (compactness / step)]).astype(np.float32)
    row = np.minimum((np.arange(height) * rows) // height, rows - 1)
    column = np.minimum((np.arange(width) * columns) // width, columns - 1)
    own = (row[:, None] * columns + column[None, :]).astype(np.int32)
    candidates = _around(row, column, rows, columns)
    index = own
    for _ in range(rounds):
        centres = means(points, index, rows * columns)
        best = np.full((height, width), np.inf, np.float32)
        for candidate in candidates:
            away = points - centres[candidate]
            distance = np.einsum("hwc,hwc->hw", away, away)
            closer = distance < best
            best = np.where(closer, distance, best)
            index = np.where(closer, candidate, index)
    return np.unique(index, return_inverse=True)[1].reshape(height, width).astype(np.int32)


def _around(row: NDArray, column: NDArray, rows: int, columns: int) -> list[Index]:
    """The nine grid cells around each pixel's own, H×W each (clamped at the picture's edge)."""
    out = []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            r, c = np.clip(row + dy, 0, rows - 1), np.clip(column + dx, 0, columns - 1)
            out.append((r[:, None] * columns + c[None, :]).astype(np.int32))
    return out


def means(values: Float, index: Index, count: int) -> Float:
    """Mean of H×W×K values over each superpixel: count×K (an empty one: far from everything)."""
    flat, at = values.reshape(-1, values.shape[-1]), index.ravel()
    pixels = np.bincount(at, minlength=count)
    sums = np.stack([np.bincount(at, flat[:, k], count) for k in range(flat.shape[1])], 1)
    out = np.full(sums.shape, 1e6, np.float32)
    out[pixels > 0] = sums[pixels > 0] / pixels[pixels > 0, None]
    return out


def neighbours(index: Index) -> NDArray[np.int64]:
    """Pairs (i, j), i < j, of superpixels that touch: P×2, each once, in order."""
    across = np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], 1)
    down = np.stack([index[:-1].ravel(), index[1:].ravel()], 1)
    pairs = np.sort(np.concatenate([across, down]), 1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).astype(np.int64)


def border(index: Index) -> NDArray[np.int64]:
    """Superpixels that reach the picture's edge, ascending."""
    return np.unique(np.concatenate([index[0], index[-1], index[:, 0], index[:, -1]])).astype(np.int64)
