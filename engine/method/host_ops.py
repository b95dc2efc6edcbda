"""The method's kernels on the host: what the CPU engine runs. Each has its plain twin in `reference.py`.

The savings are exact: ReLU, mirroring and upsampling commute, so a mirrored pair is summed before it is upsampled;
pixels are normalised through a table of 256 values; the fill is the table's mean under the picture's histogram.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from infercam.engine.bundle import InputSpec
from infercam.engine.method.recipe import EPSILON
from infercam.engine.method.reference import nearest_index, quantile_index
from infercam.engine.method.resampling import Picture

_EXACT = 1 << 24  # OpenCV counts in float32
_SAMPLE = 37  # every so manieth pixel is looked at to guess a quantile
Float = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def normalise_table(spec: InputSpec) -> Float:
    """3×256 float32: what each 0..255 value becomes, per channel of the network's input."""
    values = np.arange(256, dtype=np.float32)[None] * np.float32(spec.scale)
    table = (values - np.asarray(spec.mean, np.float32)[:, None]) / np.asarray(spec.std, np.float32)[:, None]
    return np.ascontiguousarray(table[::-1] if spec.colour == "BGR" else table)


class Resized:
    """A tile's picture at one network size: planes as uint8, and the fill value of each channel."""

    def __init__(self, tile: Pixels | Picture, shape: tuple[int, int], table: Float, colour: str) -> None:
        planes = (tile if isinstance(tile, Picture) else Picture(tile)).planes(*shape)
        self.planes = np.ascontiguousarray(planes[::-1] if colour == "BGR" else planes)  # 3×h×w uint8
        self._table = table
        self._fill: Float | None = None

    @property
    def nbytes(self) -> int:
        return self.planes.nbytes

    def fill(self) -> Float:
        """Per-channel mean of the normalised picture (3,), from its histogram; made when first needed."""
        if self._fill is None:
            counts = np.stack([_histogram(p) for p in self.planes])
            mean = (counts * self._table.astype(np.float64)).sum(axis=1) / self.planes[0].size
            self._fill = mean.astype(np.float32)
        return self._fill

    def write(self, out: Float, mirrored: bool, erased: Mask | None, at: tuple[int, int] = (0, 0)) -> None:
        """Write the network's input (3×h×w) into `out`: normalised, mirrored, erased pixels filled.

        erased: of the whole picture, already in the orientation of the output. at: first pixel (y, x) of what is
        written, in that orientation; the picture's where the output is smaller.
        """
        (y, x), (height, width) = at, out.shape[1:]
        left = self.planes.shape[2] - x - width if mirrored else x
        for plane, table, target in zip(self.planes, self._table, out, strict=True):
            part = plane[y : y + height, left : left + width]
            cv2.LUT(cv2.flip(part, 1) if mirrored else part, table, dst=target)
        if erased is not None:
            for target, value in zip(out, self.fill(), strict=True):
                np.copyto(target, value, where=erased[y : y + height, x : x + width])


def _histogram(plane: Pixels) -> NDArray[np.float64]:
    """How often each value occurs (256,)."""
    if plane.size >= _EXACT:
        return np.bincount(plane.ravel(), minlength=256).astype(np.float64)
    return np.asarray(cv2.calcHist([plane], [0], None, [256], [0, 256]), np.float64).ravel()


def resize_mask(mask: Mask, height: int, width: int) -> Mask:
    """Nearest neighbour; see reference.nearest_index."""
    h, w = mask.shape
    if (h, w) == (height, width):
        return mask
    # columns first: then the rows, by far the most pixels of an enlarged mask, are copied whole
    return mask.take(nearest_index(w, width), axis=1).take(nearest_index(h, height), axis=0)


def masks_at(mask: Mask, shapes: Sequence[tuple[int, int]], cascade: bool) -> list[Mask]:
    """The mask at each view size; `cascade`: each from the previous one (the released code's quirk)."""
    out: list[Mask] = []
    for height, width in shapes:
        out.append(resize_mask(out[-1] if cascade and out else mask, height, width))
    return out


def sum_views(pairs: Sequence[tuple[Float, Float | None]], count: int, height: int, width: int) -> Float:
    """Sum of all views' ReLU'd responses at tile size (count×H×W), in the order of the scales.

    pairs: per scale, the response count×h×w and that of the mirrored input (None without mirrors).
    """
    total = np.zeros((count, height, width), np.float32)
    up = np.empty((height, width), np.float32)
    for plain, mirrored in pairs:
        low = np.maximum(plain, 0)
        if mirrored is not None:
            low += np.maximum(mirrored, 0)[:, :, ::-1]
        for source, target in zip(low, total, strict=True):
            cv2.resize(source, (width, height), dst=up, interpolation=cv2.INTER_LINEAR)
            target += up
    return total


def refined(response: Float, affinity: Float, steps: int) -> Float:
    """A view's ReLU'd response K×h×w after `steps` products with its patches' affinity P×P (method/README.md §1)."""
    total = affinity.sum(axis=1)
    weights = affinity / np.where(total > 0, total, 1)[:, None]
    flat = np.maximum(response, 0).reshape(len(response), len(affinity))
    for _ in range(steps):
        flat = flat @ weights.T
    return flat.reshape(response.shape)


def peaks(total: Float, quantile: float = 1.0) -> Float:
    """Maximum of each class over the tile, or the value at that quantile of its pixels (K,)."""
    flat = total.reshape(len(total), -1)
    if quantile == 1.0:
        return flat.max(axis=1)
    at = quantile_index(flat.shape[1], quantile)
    return np.array([_ordered(values, at) for values in flat], np.float32)


def _ordered(values: Float, at: int) -> np.float32:
    """What would be at that position if the values were sorted."""
    behind = len(values) - at
    if behind < len(values) // 8:  # only what may be among the last is put in order
        sample = np.sort(values[::_SAMPLE])
        high = values[~(values < sample[max(0, len(sample) - 1 - 2 * behind // _SAMPLE)])]  # and what is NaN
        if len(high) >= behind:
            return np.float32(np.partition(high, len(high) - behind)[len(high) - behind])
    return np.float32(np.partition(values, at)[at])


def normalise_in_place(total: Float, floor: Float | float, peak: Float) -> Float:
    """Each class divided by (max(its own peak, floor) + 1e-5) and cut at 1, in place."""
    total /= (np.maximum(peak, floor).astype(np.float32) + np.float32(EPSILON))[:, None, None]
    return np.minimum(total, 1, out=total)


def compete_in_place(maps: Float, before: Float) -> Float:
    """Each class's map K×h×w is 0 where another's was higher before (Recipe.compete)."""
    if len(maps) > 1:
        maps *= before == before.max(axis=0)
    return maps


def finish_in_place(maps: Float, accumulate: str, iterations: int) -> Float:
    """A tile's maps K×h×w as they are united (method/README.md §3 step 3): a sum divided by its own maximum, a
    mean by the iterations, a maximum as it is; in place."""
    if accumulate == "sum":
        return normalise_in_place(maps, 0.0, peaks(maps))
    if accumulate == "mean":
        maps /= np.float32(iterations)
    return maps


def centre_of_mass(m: Float) -> tuple[int, int]:
    """(y, x) of one H×W map, truncated; an all-zero map falls back to the image's centre (method/README.md §2)."""
    rows = m.sum(axis=1, dtype=np.float64)
    total = rows.sum()
    if not total > 0:
        return m.shape[0] // 2, m.shape[1] // 2
    columns = m.sum(axis=0, dtype=np.float64)
    return int(rows @ np.arange(m.shape[0]) / total), int(columns @ np.arange(m.shape[1]) / total)
