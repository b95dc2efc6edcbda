"""AffinityNet's pairs and loss against hand-computed values and naive loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infercam.trainer.affinity.loss import (
    BACKGROUND,
    FOREGROUND,
    IGNORED,
    NEGATIVE,
    affinity_loss,
    cell_labels,
    pair_accuracy,
    pair_distance,
    pair_groups,
)
from infercam.trainer.affinity.random_walk import search_offsets

OFFSETS = tuple(search_offsets(5))


def naive_distance(g: torch.Tensor, offsets: tuple) -> torch.Tensor:
    n, _, h, w = g.shape
    out = torch.zeros(n, len(offsets), h, w, dtype=g.dtype)
    for k, (dy, dx) in enumerate(offsets):
        for y in range(h):
            for x in range(w):
                if 0 <= y + dy < h and 0 <= x + dx < w:
                    out[:, k, y, x] = (g[:, :, y, x] - g[:, :, y + dy, x + dx]).abs().mean(1)
    return out


@given(st.integers(1, 11), st.integers(1, 11), st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=25)
def test_distances_are_those_of_a_loop(h: int, w: int, radius: int, seed: int) -> None:
    """Odd sizes, and grids smaller than the radius."""
    g = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(seed))
    offsets = tuple(search_offsets(radius))
    torch.testing.assert_close(pair_distance(g, offsets), naive_distance(g, offsets))


def test_gradients_of_distances() -> None:
    g = torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)  # a backward pass for every pair
    assert torch.autograd.gradcheck(lambda x: pair_distance(x, OFFSETS), (g,))
    g = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, len(OFFSETS), 6, 7, dtype=torch.float64)
    (ours,) = torch.autograd.grad((pair_distance(g, OFFSETS) * weight).sum(), g)
    (theirs,) = torch.autograd.grad((naive_distance(g, OFFSETS) * weight).sum(), g)
    torch.testing.assert_close(ours, theirs)


def test_half_precision_is_compared_in_float32() -> None:
    g = (torch.randn(1, 4, 6, 6) * 100).half().requires_grad_()
    out = pair_distance(g, OFFSETS)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert g.grad is not None and g.grad.dtype == torch.float16 and torch.isfinite(g.grad).all()


def test_cell_labels_take_the_commonest() -> None:
    label = np.zeros((16, 24), np.uint8)
    label[:8, :8] = 5  # whole cell
    label[0, 8:14] = 7  # 6 of 64
    label[:5, 16:24] = 9  # 40 of 64
    label[8:12, :8] = 255  # half: a tie is ignored
    label[8:11, 8:16], label[11:13, 8:16] = 255, 3  # 24 ignored, 16 of class 3, 24 background: a tie
    label[8:11, 16:24], label[11:16, 16:24] = 1, 2
    np.testing.assert_array_equal(cell_labels(label), [[5, 0, 9], [255, 255, 2]])
    with pytest.raises(ValueError, match="does not divide"):
        cell_labels(np.zeros((16, 12), np.uint8))


def test_groups_by_hand() -> None:
    """Radius 2: offsets (0,1), (1,-1), (1,0), (1,1); first cells are row 0 and 1, columns 1 and 2."""
    offsets = tuple(search_offsets(2))
    assert offsets == ((0, 1), (1, -1), (1, 0), (1, 1))
    labels = torch.tensor([[0, 0, 5, 5], [255, 0, 5, 7], [0, 5, 5, 255]], dtype=torch.uint8)
    got = pair_groups(labels[None], offsets)[0]
    want = torch.zeros(4, 3, 4, dtype=torch.uint8)
    want[:, 0, 1] = torch.tensor([NEGATIVE, IGNORED, BACKGROUND, NEGATIVE])  # 0 with 5, 255, 0, 5
    want[:, 0, 2] = torch.tensor([FOREGROUND, NEGATIVE, FOREGROUND, NEGATIVE])  # 5 with 5, 0, 5, 7
    want[:, 1, 1] = torch.tensor([NEGATIVE, BACKGROUND, NEGATIVE, NEGATIVE])  # 0 with 5, 0, 5, 5
    want[:, 1, 2] = torch.tensor([NEGATIVE, FOREGROUND, FOREGROUND, IGNORED])  # 5 with 7, 5, 5, 255
    torch.testing.assert_close(got, want)


@given(st.integers(1, 14), st.integers(1, 14), st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=40)
def test_groups_are_psas(h: int, w: int, radius: int, seed: int) -> None:
    """psa's crop by the radius, its pairs and its three groups, as a literal loop."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (h, w))
    offsets = tuple(search_offsets(radius))
    want = np.zeros((len(offsets), h, w), np.uint8)
    r = radius - 1
    for y in range(h - r):
        for x in range(r, w - r):
            for k, (dy, dx) in enumerate(offsets):
                a, b = labels[y, x], labels[y + dy, x + dx]
                if a == 255 or b == 255:
                    continue
                want[k, y, x] = (BACKGROUND if a == 0 else FOREGROUND) if a == b else NEGATIVE
    np.testing.assert_array_equal(pair_groups(torch.from_numpy(labels)[None], offsets)[0].numpy(), want)


def test_loss_by_hand() -> None:
    distance = torch.tensor([0.1, 0.3, 0.5, 2.0, 1.0, 9.0]).reshape(1, 6, 1, 1)
    groups = torch.tensor(
        [BACKGROUND, BACKGROUND, FOREGROUND, NEGATIVE, NEGATIVE, IGNORED], dtype=torch.uint8
    )
    got = affinity_loss(distance, groups.reshape(1, 6, 1, 1))
    negative = -(math.log(1 - math.exp(-2)) + math.log(1 - math.exp(-1))) / 2
    assert got["background"].item() == pytest.approx(0.2, abs=1e-4)
    assert got["foreground"].item() == pytest.approx(0.5, abs=1e-4)
    assert got["negative"].item() == pytest.approx(negative, abs=1e-4)
    assert got["loss"].item() == pytest.approx(0.2 / 4 + 0.5 / 4 + negative / 2, abs=1e-4)


@pytest.mark.parametrize("group", [IGNORED, BACKGROUND, FOREGROUND, NEGATIVE])
def test_groups_without_pairs_add_nothing(group: int) -> None:
    distance = torch.tensor([0.0, 1.0, 200.0]).reshape(1, 3, 1, 1).requires_grad_()
    groups = torch.full((1, 3, 1, 1), group, dtype=torch.uint8)
    got = affinity_loss(distance, groups)
    got["loss"].backward()
    assert all(torch.isfinite(v) for v in got.values()) and torch.isfinite(distance.grad).all()
    names = {BACKGROUND: "background", FOREGROUND: "foreground", NEGATIVE: "negative"}
    for other, name in names.items():
        assert (got[name].item() > 0) == (other == group)
    if group == IGNORED:
        assert got["loss"].item() == 0 and not distance.grad.any()


@given(st.integers(0, 999))
@settings(max_examples=25)
def test_ignored_pairs_do_not_matter(seed: int) -> None:
    torch.manual_seed(seed)
    distance, groups = torch.rand(1, 4, 5, 5) * 3, torch.randint(0, 4, (1, 4, 5, 5), dtype=torch.uint8)
    changed = torch.where(groups == IGNORED, torch.rand_like(distance) * 50, distance)
    for name, value in affinity_loss(distance, groups).items():
        assert value == affinity_loss(changed, groups)[name], name
    assert pair_accuracy(distance, groups) == pair_accuracy(changed, groups)


def test_loss_falls_towards_the_right_side() -> None:
    distance = torch.tensor([0.7, 0.7, 0.7]).reshape(1, 3, 1, 1).requires_grad_()
    groups = torch.tensor([BACKGROUND, FOREGROUND, NEGATIVE], dtype=torch.uint8).reshape(1, 3, 1, 1)
    affinity_loss(distance, groups)["loss"].backward()
    up = distance.grad.flatten() > 0
    assert up.tolist() == [True, True, False]


def test_accuracy_weighs_groups_as_the_loss_does() -> None:
    distance = torch.tensor([0.1, 0.9, 0.1, 2.0]).reshape(1, 4, 1, 1)  # ln 2 = 0.69 divides

    def accuracy(*groups: int) -> float:
        return pair_accuracy(distance, torch.tensor(groups, dtype=torch.uint8).reshape(1, 4, 1, 1)).item()

    assert accuracy(BACKGROUND, BACKGROUND, FOREGROUND, NEGATIVE) == pytest.approx(0.5 / 4 + 1 / 4 + 1 / 2)
    assert accuracy(BACKGROUND, BACKGROUND, IGNORED, IGNORED) == pytest.approx(0.5)
    assert accuracy(NEGATIVE, NEGATIVE, NEGATIVE, NEGATIVE) == pytest.approx(0.5)
    assert accuracy(IGNORED, IGNORED, IGNORED, IGNORED) == 0
