"""The region of an annotation: polygons or run lengths, checked before pycocotools sees them.

Its C code trusts what it is given: a coordinate that is not a number, or is huge, takes all memory; run lengths that
do not fill the image leave the rest of the mask as whatever was in memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.errors import MissingExtra


class RegionError(ValueError):
    """A segmentation that says no region; the text is the reason, to stand after the annotation's name."""


def tools() -> Any:
    """pycocotools.mask; raises MissingExtra."""
    try:
        from pycocotools import mask
    except ImportError:
        raise MissingExtra("pycocotools", "coco", "reading COCO's annotations") from None
    return mask


def encode(segmentation: Any, height: int, width: int) -> bytes:
    """COCO's compressed run lengths of a segmentation in any of its forms, as pycocotools' `annToRLE` has it.

    segmentation: polygons [[x, y, …], …] in pixels, {'counts': [ints], 'size'}, or {'counts': text, 'size'}.
    Polygons of one or two points enclose nothing and are passed over.
    Raises RegionError for anything else, and for run lengths that do not add up to the image.
    """
    if isinstance(segmentation, list):
        polygons = [_checked(points, height, width) for points in segmentation]
        polygons = [points for points in polygons if len(points) >= 6]
        if not polygons:
            raise RegionError("has no polygon of three points or more")
        found = tools().merge(tools().frPyObjects(polygons, height, width))
        return bytes(found["counts"])
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise RegionError("has neither polygons nor run lengths")
    if segmentation.get("size") != [height, width]:
        size = str(segmentation.get("size"))[:40]
        raise RegionError(f"has run lengths for size {size}, but its image is [{height}, {width}]")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        _check_runs(_runs(counts), height * width)
        return counts.encode("ascii")
    if not isinstance(counts, list) or not all(type(n) is int for n in counts):
        raise RegionError("has run lengths that are not whole numbers")
    _check_runs(counts, height * width)
    found = tools().frPyObjects({"counts": counts, "size": [height, width]}, height, width)
    return bytes(found["counts"])


def decode(counts: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """(height, width) bool, in Fortran order, of what `encode` gave."""
    mask: NDArray[np.uint8] = tools().decode({"size": [height, width], "counts": counts})
    return mask.view(np.bool_)


def pixels(counts: bytes, height: int, width: int) -> int:
    """How many pixels a region has."""
    return int(tools().area({"size": [height, width], "counts": counts}))


def _checked(points: Any, height: int, width: int) -> list[float]:
    if not isinstance(points, list) or not all(type(v) in (int, float) for v in points):
        raise RegionError("has a polygon that is no list of numbers")
    if len(points) % 2:
        raise RegionError(f"has a polygon of {len(points)} numbers, which are no pairs")
    for values, size in ((points[::2], width), (points[1::2], height)):
        if not all(map(math.isfinite, values)):
            raise RegionError("has a coordinate that is not a number")
        if values and (min(values) < -size or max(values) > 2 * size):
            raise RegionError(f"has a polygon far outside its image of {width}×{height}")
    return points


def _check_runs(counts: list[int], size: int) -> None:
    if any(n < 0 for n in counts) or sum(counts) != size:
        raise RegionError(f"has run lengths that do not add up to its image's {size} pixels")


def _runs(text: str) -> list[int]:
    """The run lengths of COCO's compressed text: 5 bits a character, from the third but one on as differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise RegionError("has compressed run lengths that cannot be read")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise RegionError("has compressed run lengths that break off")
    return runs


def paint(objects: list[tuple[int, bytes]], height: int, width: int) -> NDArray[np.uint8]:
    """(height, width) uint8: 0 where nothing is; of overlapping (value, region) pairs the last one is on top."""
    mask = np.zeros((height, width), np.uint8, order="F")  # as decoded regions are
    for value, counts in objects:
        np.copyto(mask, np.uint8(value), where=decode(counts, height, width))
    return np.ascontiguousarray(mask)
