"""The random walk against its dense twin, on grids of every size; what it must keep, and its refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infercam.engine.common.errors import InputError
from infercam.trainer.affinity import random_walk
from infercam.trainer.affinity.labels import with_background
from infercam.trainer.affinity.random_walk import (
    _by_diagonals,
    _by_stencil,
    _Matrix,
    chebyshev_power,
    pairs_inside,
    search_offsets,
    walk,
    walk_scores,
)
from infercam.trainer.affinity.random_walk_ref import transition_ref, walk_ref
from infercam.trainer.affinity.settings import WalkConfig


def _affinities(rng: np.random.Generator, h: int, w: int, sharp: float = 4.0) -> np.ndarray:
    """Anything in [0, 1], many of them near 0 as at edges; pairs beyond the grid hold rubbish."""
    affinity = rng.random((34, h, w)) ** sharp
    return np.where(pairs_inside(h, w), affinity, rng.random((34, h, w)))


def test_the_order_of_the_neighbours_is_psas() -> None:
    offsets = search_offsets(5)
    assert len(offsets) == 34 == len(set(offsets))
    assert offsets[:5] == [(0, 1), (0, 2), (0, 3), (0, 4), (1, -4)]
    assert offsets[-1] == (4, 2)
    assert {(-y, -x) for y, x in offsets}.isdisjoint(offsets)
    everyone = {(y, x) for y in range(-9, 10) for x in range(-9, 10) if 0 < y * y + x * x < 25}
    assert {*offsets, *((-y, -x) for y, x in offsets)} == everyone
    assert [len(search_offsets(r)) for r in (1, 2, 3)] == [0, 4, 12]


@settings(max_examples=60)
@given(
    h=st.integers(1, 11),
    w=st.integers(1, 12),
    k=st.integers(1, 3),
    log2_steps=st.integers(0, 12),
    beta=st.sampled_from([1.0, 8.0, 10.0]),
    border=st.sampled_from(["all", "psa"]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_dense_reference(
    h: int, w: int, k: int, log2_steps: int, beta: float, border: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    affinity, maps = _affinities(rng, h, w, rng.choice([0.1, 1, 6])), rng.random((k, h, w))
    want = walk_ref(affinity, maps, beta=beta, log2_steps=log2_steps, border=border)
    found = walk(
        torch.from_numpy(affinity), torch.from_numpy(maps), beta=beta, log2_steps=log2_steps, border=border
    )
    assert found.dtype == torch.float32 and found.shape == maps.shape
    np.testing.assert_allclose(found.numpy(), want, atol=1.1e-5)


def test_equals_the_dense_reference_on_a_large_grid() -> None:
    rng = np.random.default_rng(5)
    affinity, maps = _affinities(rng, 27, 35, 0.5), rng.random((3, 27, 35))
    found = walk(torch.from_numpy(affinity), torch.from_numpy(maps))
    np.testing.assert_allclose(found.numpy(), walk_ref(affinity, maps), atol=1.1e-5)


@settings(max_examples=20)
@given(h=st.integers(1, 12), w=st.integers(1, 12), radius=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_other_radii(h: int, w: int, radius: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    affinity, maps = rng.random((len(search_offsets(radius)), h, w)), rng.random((1, h, w))
    found = walk(torch.from_numpy(affinity), torch.from_numpy(maps), radius=radius, log2_steps=4)
    np.testing.assert_allclose(
        found.numpy(), walk_ref(affinity, maps, radius=radius, log2_steps=4), atol=1.1e-5
    )


@settings(max_examples=25)
@given(h=st.integers(1, 13), w=st.integers(1, 13), batch=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_the_stencil_equals_the_diagonals(h: int, w: int, batch: int, seed: int) -> None:
    """What runs on CUDA is run here on the CPU, beside what runs on the CPU."""
    rng = np.random.default_rng(seed)
    weights = torch.from_numpy(rng.random((batch, 34, h, w)) ** 3 * pairs_inside(h, w)).flatten(2)
    weights, steps = random_walk._distinct_steps(weights, search_offsets(), h, w)
    matrix = _Matrix(weights, steps)
    maps = torch.from_numpy(rng.random((batch, 4, h * w)))
    coefficients = chebyshev_power(64, 1e-7)
    torch.testing.assert_close(
        _by_stencil(matrix, maps, coefficients), _by_diagonals(matrix, maps, coefficients), rtol=0, atol=1e-12
    )


def test_the_stencil_carries_the_whole_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    affinity, maps = _affinities(rng, 14, 19), rng.random((2, 14, 19))
    monkeypatch.setattr(random_walk, "_by_diagonals", _by_stencil)
    found = walk(torch.from_numpy(affinity), torch.from_numpy(maps))
    np.testing.assert_allclose(found.numpy(), walk_ref(affinity, maps), atol=1.1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_equals_the_dense_reference() -> None:
    rng = np.random.default_rng(1)
    affinity, maps = _affinities(rng, 24, 31), rng.random((2, 24, 31))
    found = walk(torch.from_numpy(affinity).cuda(), torch.from_numpy(maps))
    assert found.is_cuda
    np.testing.assert_allclose(found.cpu().numpy(), walk_ref(affinity, maps), atol=1.1e-5)


def test_a_batch_is_its_images_and_padding_stays_apart() -> None:
    rng = np.random.default_rng(2)
    sizes = [(9, 13), (12, 10), (6, 6)]
    images = [(_affinities(rng, h, w), rng.random((2, h, w))) for h, w in sizes]
    affinity, maps = np.zeros((3, 34, 12, 13)), np.zeros((3, 2, 12, 13))
    for b, (a, m) in enumerate(images):
        h, w = m.shape[1:]
        affinity[b, :, :h, :w], maps[b, :, :h, :w] = a * pairs_inside(h, w), m
    together = walk(torch.from_numpy(affinity), torch.from_numpy(maps)).numpy()
    for b, (a, m) in enumerate(images):
        h, w = m.shape[1:]
        alone = walk(torch.from_numpy(a), torch.from_numpy(m)).numpy()
        np.testing.assert_allclose(together[b, :, :h, :w], alone, atol=2e-5)
        assert np.abs(together[b, :, h:]).max(initial=0) == 0 == np.abs(together[b, :, :, w:]).max(initial=0)


def test_a_constant_stays_and_nothing_crosses_a_wall() -> None:
    rng = np.random.default_rng(3)
    h, w = 16, 21
    affinity = torch.from_numpy(_affinities(rng, h, w))
    torch.testing.assert_close(walk(affinity, torch.ones(1, h, w)), torch.ones(1, h, w), rtol=0, atol=1.1e-5)
    side = np.arange(w) < 9
    apart = np.ones((34, h, w))
    for p, (_, dx) in enumerate(search_offsets()):
        there = np.roll(side, -dx)
        apart[p] = (side == there)[None]
    maps = torch.from_numpy(np.tile(side.astype(np.float32), (h, 1))[None])
    torch.testing.assert_close(walk(torch.from_numpy(apart), maps), maps, rtol=0, atol=1.1e-5)


def test_alone_every_node_keeps_its_value() -> None:
    maps = torch.rand(3, 7, 9)
    torch.testing.assert_close(walk(torch.zeros(34, 7, 9), maps), maps, rtol=0, atol=1e-5)


def test_one_step_by_hand() -> None:
    """Two nodes side by side, affinity 1/2: columns of [[1, 1/2], [1/2, 1]] sum to 3/2."""
    affinity = torch.zeros(34, 1, 2)
    affinity[0, 0, 0] = 0.5
    found = walk(affinity, torch.tensor([[[3.0, 0.0]]]), beta=1, log2_steps=0)
    torch.testing.assert_close(found, torch.tensor([[[2.0, 1.0]]]))


@pytest.mark.parametrize("power", [1, 2, 4, 64, 256, 16384])
@pytest.mark.parametrize("tolerance", [0, 1e-8, 1e-3])
def test_the_series_is_the_power_to_within_its_bound(power: int, tolerance: float) -> None:
    c = chebyshev_power(power, tolerance)
    t = np.linspace(-1, 1, 4001)
    error = np.abs(np.polynomial.chebyshev.chebval(t, c) - t**power).max()
    assert error <= tolerance + 1e-10
    assert math.isclose(sum(c), 1, abs_tol=tolerance + 1e-10) and min(c) >= 0
    if power == 256 and tolerance == 1e-8:
        assert 85 < len(c) < 95  # that is the point of it


def test_pairs_inside() -> None:
    inside = pairs_inside(3, 4)
    offsets = search_offsets()
    for p, (dy, dx) in enumerate(offsets):
        for y in range(3):
            for x in range(4):
                assert inside[p, y, x] == (y + dy < 3 and 0 <= x + dx < 4)
    cropped = pairs_inside(10, 14, border="psa")
    assert cropped[:, :6, 4:10].all() and cropped.sum() == 34 * 6 * 6
    assert not pairs_inside(3, 4, border="psa").any()


def test_the_references_columns_sum_to_one() -> None:
    affinity = np.random.default_rng(0).random((34, 5, 6))
    matrix = transition_ref(affinity, beta=2)
    np.testing.assert_allclose(matrix.sum(axis=0), 1)
    sums = (matrix / matrix.diagonal()).sum(axis=0)  # T_ii = 1 / d_i
    np.testing.assert_allclose(matrix * sums, (matrix * sums).T)  # A is symmetric


@pytest.mark.parametrize(("h", "w"), [(31, 45), (32, 40), (8, 3), (1, 1)])
def test_scores_of_odd_sizes(h: int, w: int) -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((2, h, w)).astype(np.float32)
    grid = (-(-h // 8), -(-w // 8))
    scores = walk_scores(maps, torch.from_numpy(_affinities(rng, *grid)), alpha=4)
    assert scores.shape == (3, h, w) and scores.dtype == np.float32
    constant = walk_scores(np.full((1, h, w), 0.5, np.float32), torch.ones(34, *grid), alpha=3)
    np.testing.assert_allclose(constant[0], 0.125, atol=1e-5)
    np.testing.assert_allclose(constant[1], 0.5, atol=1e-4)


def test_scores_without_a_walk_are_the_pooled_maps() -> None:
    maps = np.random.default_rng(0).random((1, 11, 16)).astype(np.float32)
    scores = walk_scores(maps, torch.zeros(34, 2, 2), alpha=2)
    assert math.isclose(scores[1, 0, 0], maps[0, :8, :8].mean(), abs_tol=1e-5)
    below = maps[
        0, 8:, 8:
    ].mean()  # 3 rows, not 8; row 10 lies (10 + 1/2) / 8 - 1/2 cells from the first centre
    want = 0.8125 * below + 0.1875 * maps[0, :8, 8:].mean()
    assert math.isclose(scores[1, 10, 15], want, abs_tol=1e-5)
    assert math.isclose(scores[0, 0, 0], ((1 - maps[0, :8, :8]) ** 2).mean(), abs_tol=1e-5)


def test_background() -> None:
    maps = np.array([[[0.0, 0.25, 1.0]], [[0.5, 0.0, 1.0]]], np.float32)
    found = with_background(maps, 2)
    np.testing.assert_allclose(found[0], [[0.25, 0.5625, 0]])
    assert found.dtype == np.float32 and (found[1:] == maps).all()
    assert (with_background(np.zeros((0, 2, 3), np.float32), 4) == 1).all()


def test_refusals() -> None:
    with pytest.raises(InputError, match="not a number"):
        walk(torch.full((34, 6, 6), float("nan")), torch.ones(1, 6, 6))
    with pytest.raises(ValueError, match="does not fit"):
        walk(torch.ones(33, 6, 6), torch.ones(1, 6, 6))
    with pytest.raises(ValueError, match="grid"):
        walk_scores(np.zeros((1, 16, 17), np.float32), torch.ones(34, 2, 2))
    for bad in ({"beta": 0}, {"log2_steps": 15}, {"border": "none"}, {"logt": 8}):
        with pytest.raises(ValidationError):
            WalkConfig(**bad)
