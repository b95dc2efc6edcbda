"""Pixel-adaptive refinement against its twin, and what it must and must not do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infercam.trainer.refine.par import affinities, offsets, pixel_adaptive
from infercam.trainer.refine.par_ref import pixel_adaptive_ref
from infercam.trainer.refine.settings import ParConfig

SIDES = st.integers(1, 14)


@settings(max_examples=40, deadline=None)
@given(
    SIDES,
    SIDES,
    st.integers(1, 3),
    st.sampled_from([(1,), (1, 2), (1, 2, 4, 8), (3, 24)]),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.01, 0.5]),
    st.sampled_from([2, 30, 256]),
    st.integers(0, 999),
)
@example(1, 1, 1, (1,), 1, 0.01, 2, 0)  # its neighbours are all itself
def test_as_the_twin(height, width, count, dilations, iterations, share, levels, seed):
    random = np.random.default_rng(seed)
    image = random.integers(0, levels, (height, width, 3)).astype(np.uint8)
    maps = random.random((count, height, width), np.float32)
    config = ParConfig(stride=1, dilations=dilations, iterations=iterations, distance_share=share)
    found = pixel_adaptive(image, maps, config)
    assert found.dtype == np.float32 and found.shape == maps.shape
    assert np.abs(found - pixel_adaptive_ref(image, maps, config)).max() < 2e-4


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 9), st.integers(0, 99))
def test_of_any_size_and_stride(height, width, stride, seed):
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width, 3), np.uint8)
    config = ParConfig(stride=stride, iterations=3)
    weights = affinities(image, config)
    assert (weights >= 0).all() and np.abs(weights.sum(axis=0) - 1).max() < 1e-5
    maps = random.random((2, height, width), np.float32)
    found = pixel_adaptive(image, maps, config)
    assert found.shape == maps.shape
    assert (found.min(axis=(1, 2)) >= maps.min(axis=(1, 2)) - 1e-5).all()
    assert (found.max(axis=(1, 2)) <= maps.max(axis=(1, 2)) + 1e-5).all()
    level = np.full((1, height, width), 0.25, np.float32)  # a background threshold need not come along
    assert np.abs(pixel_adaptive(image, level, config) - 0.25).max() < 1e-5


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_blurred_map_is_pulled_to_the_edge(stride):
    random = np.random.default_rng(0)
    mask = np.zeros((96, 120), bool)
    mask[24:72, 36:84] = True
    image = np.where(mask[..., None], (190, 60, 50), (60, 120, 70)) + random.integers(-8, 9, (96, 120, 3))
    y, x = np.mgrid[:96, :120]
    blurred = np.exp(-((y - 48) ** 2 + (x - 60) ** 2) / (2 * 26.0**2)).astype(np.float32)[None]
    found = pixel_adaptive(image.astype(np.uint8), blurred, ParConfig(stride=stride, iterations=20))

    def best(m: np.ndarray) -> float:
        return max(((m > t) & mask).sum() / ((m > t) | mask).sum() for t in np.arange(0.05, 1, 0.05))

    assert best(found[0]) > best(blurred[0]) + 0.05


def test_strides_share_distances():
    assert len(offsets(ParConfig(stride=1))) == 48
    assert offsets(ParConfig(stride=4, dilations=(1, 2, 4, 8)))[::8] == [(-1, -1), (-2, -2)]


def test_no_maps():
    none = np.zeros((0, 5, 6), np.float32)
    assert pixel_adaptive(np.zeros((5, 6, 3), np.uint8), none).shape == (0, 5, 6)
