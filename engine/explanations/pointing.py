"""How well maps point at objects, without a threshold: the pointing game and the energy inside, by masks or boxes.

Pointing game (Zhang et al., IJCV 2018): the share of maps whose highest pixel lies in an object of their class; of
several highest pixels any will do, as in OpenVINO XAI. Energy inside (energy-based pointing game, Wang et al., CVPRW
2020): the share of a map's sum that lies there. A map that is nowhere above 0 points at nothing: 0 in both.
Classes that the ground truth does not have are not scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class ClassBox(NamedTuple):
    """An object's box in pixels, its borders included, and its class."""

    label: int
    x0: int
    y0: int
    x1: int
    y1: int


class Pointed(NamedTuple):
    """One map's figures."""

    hit: float
    energy: float


def pointed(values: NDArray[np.float32], inside: NDArray[np.bool_]) -> Pointed:
    """Of one map H×W, not negative, and where objects of its class are."""
    total, highest = float(values.sum(dtype=np.float64)), values.max(initial=0)
    if not total > 0:
        return Pointed(0.0, 0.0)
    hit = bool((values[inside] == highest).any())
    return Pointed(float(hit), float(values[inside].sum(dtype=np.float64)) / total)


def region_of_mask(mask: NDArray[np.uint8], label: int) -> NDArray[np.bool_] | None:
    """Where a mask H×W has class `label` (value label + 1), or None: the image has it nowhere."""
    inside = mask == label + 1
    return inside if inside.any() else None


def region_of_boxes(boxes: Sequence[ClassBox], label: int, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """The pixels of a picture (height, width) that the boxes of a class cover, or None: it has none."""
    inside = np.zeros(size, bool)
    for box in boxes:
        if box.label == label:
            inside[max(0, box.y0) : box.y1 + 1, max(0, box.x0) : box.x1 + 1] = True
    return inside if inside.any() else None
