"""Regions and polygons against pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercam.engine.labelling.regions import Polygon, Region, polygons_of, regions_of, regions_of_maps


def painted(polygons: list[Polygon], size: tuple[int, int]) -> np.ndarray:
    out = np.zeros(size, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(out, [polygon.points.astype(np.int32)], 1)
    return out > 0


def test_regions_of_maps_by_hand():
    maps = np.array([[[0.1, 0.8, 0.3]], [[0.5, 0.7, 0.2]], [[0, 0.1, 0.1]]], np.float32)
    horse, big = regions_of_maps(maps, [7, 900, 3], 0.3)
    assert (horse.label, horse.inside.tolist(), horse.score) == (
        7,
        [[False, True, False]],
        pytest.approx(0.8),
    )
    assert (big.label, big.inside.tolist(), big.score) == (900, [[True, False, False]], pytest.approx(0.5))
    assert regions_of_maps(maps[:0], [], 0.3) == []


def test_regions_by_hand():
    label = np.array([[0, 3, 3], [255, 1, 0]], np.uint8)
    maps = np.array([[[0.1, 0.8, 0.6], [0, 0, 0]], [[0, 0, 0], [0, 0.3, 0]]], np.float32)
    cat, cow = regions_of(label, [2, 0], maps)
    assert (cat.label, cat.inside.tolist()) == (0, [[False] * 3, [False, True, False]])
    assert (cow.label, cow.score, cat.score) == (2, pytest.approx(0.7), pytest.approx(0.3))


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.integers(3, 40), st.integers(0, 999))
def test_polygons_without_tolerance_are_the_region(height, width, seed):
    """Pixel by pixel, holes too; but for parts without three corners, which are left out."""
    rough = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    inside = cv2.resize(rough[::4, ::4], (width, height), interpolation=cv2.INTER_NEAREST) < 0.6
    count, parts = cv2.connectedComponents(inside.astype(np.uint8), connectivity=8)
    for part in range(1, count):
        outer, _ = cv2.findContours(
            (parts == part).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        if len(outer[0]) < 3:
            inside[parts == part] = False
    found = polygons_of(Region(1, inside, 0.5), 0)
    assert np.array_equal(painted(found, inside.shape), inside)
    for polygon in found:
        assert polygon.label == 1 and polygon.points.shape[1] == 2 and len(polygon.points) >= 3


def test_a_ring_keeps_its_hole_and_tolerance_saves_corners():
    y, x = np.mgrid[:80, :80]
    r = np.hypot(y - 40, x - 40)
    ring = Region(0, (r < 35) & (r > 15), 1.0)
    exact, near = polygons_of(ring, 0), polygons_of(ring, 1.5)
    assert len(exact) == len(near) == 1 and len(near[0].points) < len(exact[0].points) / 2
    for polygons, least in ((exact, 0.99), (near, 0.93)):
        back = painted(polygons, ring.inside.shape)
        assert (back & ring.inside).sum() / (back | ring.inside).sum() > least and not back[40, 40]
