"""Pillow's bicubic as products of matrices, against Pillow itself: bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infercam.engine.method import reference, resampling
from infercam.engine.method.resampling import Picture
from tests.engine import tiny

SIDES = st.one_of(st.integers(1, 40), st.sampled_from([64, 97, 128, 375, 500]))
SHAPES = st.tuples(SIDES, SIDES)


def pixels_of(kind: str, size: tuple[int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "extremes":  # bicubic overshoots on both sides and is cut
        return (rng.integers(0, 2, (*size, 3)) * 255).astype(np.uint8)
    if kind == "noise":
        return rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return tiny.picture(*size, seed)


@given(SHAPES, SHAPES, st.sampled_from(["extremes", "noise", "scene"]), st.integers(0, 2**32 - 1))
@example((1, 1), (1, 1), "noise", 0)
@example((500, 375), (960, 768), "extremes", 0)
@example((375, 500), (192, 256), "extremes", 0)
@example((500, 40), (128, 40), "noise", 0)  # Pillow goes through the columns first
@example((2, 2), (4, 4), "extremes", 0)  # halves: what lies between two whole numbers goes up
@settings(deadline=None, max_examples=150)
def test_against_pillow(source: tuple[int, int], target: tuple[int, int], kind: str, seed: int) -> None:
    pixels = pixels_of(kind, source, seed)
    before = pixels.copy()
    planes = Picture(pixels).planes(*target)
    np.testing.assert_array_equal(planes, reference.resize_pixels(pixels, *target).transpose(2, 0, 1))
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(Picture(pixels, recurs=False).planes(*target), planes)
    assert planes.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(("blocks", "columns"), [(1, 8), (5, 17), (24, 768)])
def test_however_it_is_cut(monkeypatch: pytest.MonkeyPatch, blocks: int, columns: int) -> None:
    monkeypatch.setattr(resampling, "_ROWS", blocks)
    monkeypatch.setattr(resampling, "_COLUMNS", columns)
    monkeypatch.setattr(resampling, "_TOGETHER", 2)
    resampling._strips.cache_clear()
    pixels = pixels_of("noise", (31, 53), 0)
    picture = Picture(pixels)
    for target in ((64, 128), (12, 20), (31, 60), (70, 53)):
        planes = picture.planes(*target)
        np.testing.assert_array_equal(planes, reference.resize_pixels(pixels, *target).transpose(2, 0, 1))
    resampling._strips.cache_clear()


@given(st.integers(1, 3000), st.integers(1, 3000))
@settings(deadline=None, max_examples=60)
def test_products_stay_on_the_calling_thread_and_exact(source: int, target: int) -> None:
    """Blocks cover the axis in order, below OpenBLAS's limit; sums of weights times 255 are far below 2^53."""
    at = 0
    for strip in resampling._strips(source, target, 768):
        assert strip.target.start == at and 0 <= strip.source.start < strip.source.stop <= source
        assert len(strip.blocks) <= resampling._TOGETHER
        rows = 0
        for block in strip.blocks:
            weights, read = block.weights, block.source
            assert (
                block.target == slice(rows, rows + len(weights))
                and weights.shape[1] == read.stop - read.start
            )
            assert read.start >= 0 and read.stop <= strip.source.stop - strip.source.start
            assert len(weights) == 1 or weights.size * 768 <= resampling._ONE_THREAD
            whole = weights * 2**22
            np.testing.assert_array_equal(whole, np.rint(whole))
            assert np.abs(whole).sum(axis=1).max() * 255 < 2**31
            rows += len(weights)
        at += rows
    assert at == target
