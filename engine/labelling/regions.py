"""What a label says, as regions and polygons with scores: what every format of a labelling tool is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.int64]


class Region(NamedTuple):
    """All pixels of a class in an image."""

    label: int
    inside: NDArray[np.bool_]
    """H×W."""
    score: float
    """Mean of the class's response map there, 0..1."""


class Polygon(NamedTuple):
    """One connected part of a region: its border, through pixels that belong to it."""

    label: int
    points: Points
    """N×2 (x, y) in pixels, N of at least 3."""
    score: float


class LabelledImage(NamedTuple):
    """One image with its label."""

    id: str
    file: str
    """The picture's name, from the images' folder on."""
    height: int
    width: int
    regions: list[Region]
    picture: Path | None = None
    """Where it is; None: not known."""


def regions_of(label: NDArray[np.uint8], classes: Sequence[int], maps: NDArray[np.float32]) -> list[Region]:
    """The regions of a label H×W (0 background, c + 1 class c, 255 open), with scores of the K maps K×H×W."""
    by_class = dict(zip(classes, maps, strict=True))
    found = []
    for value in np.unique(label[(label > 0) & (label < 255)]).tolist():
        inside = label == value
        values = by_class.get(value - 1)
        found.append(Region(value - 1, inside, 1.0 if values is None else float(values[inside].mean())))
    return found


def regions_of_maps(maps: NDArray[np.float32], classes: Sequence[int], threshold: float) -> list[Region]:
    """The regions of argmax of [threshold, maps], of K maps K×H×W in 0..1: each class where it beats the others and
    the background."""
    background = np.full((1, *maps.shape[1:]), threshold, np.float32)
    best = np.concatenate([background, maps]).argmax(axis=0)
    found = []
    for k, (label, responses) in enumerate(zip(classes, maps, strict=True), start=1):
        inside = best == k
        if inside.any():
            found.append(Region(label, inside, float(responses[inside].mean())))
    return found


def polygons_of(region: Region, tolerance: float) -> list[Polygon]:
    """The connected parts of a region (by 8 neighbours), each as one polygon; holes are cut in by a seam.

    tolerance: pixels that a border may move by (0: none). Parts too small for three corners are left out.
    """
    contours, tree = cv2.findContours(region.inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    found = []
    for at, outer in enumerate(contours):
        if tree[0, at, 3] >= 0:  # a hole, of the part that it names
            continue
        points = _simpler(outer, tolerance)
        if len(points) < 3:
            continue
        hole = tree[0, at, 2]
        while hole >= 0:
            border = _simpler(contours[hole], tolerance)
            if len(border) >= 3:
                points = _cut(points, border)
            hole = tree[0, hole, 0]
        found.append(Polygon(region.label, points, region.score))
    return found


def _simpler(contour: NDArray, tolerance: float) -> Points:
    points = cv2.approxPolyDP(contour, tolerance, True) if tolerance > 0 else contour
    return np.asarray(points, np.int64).reshape(-1, 2)


def _cut(outer: Points, hole: Points) -> Points:
    """The outer border with a way to the hole, round it and back, between the two nearest corners."""
    far = np.abs(outer[:, None] - hole[None]).sum(axis=2)
    here, there = np.unravel_index(int(far.argmin()), far.shape)
    round_it = np.concatenate([hole[there:], hole[: there + 1]])
    return np.concatenate([outer[: here + 1], round_it, outer[here:]])
