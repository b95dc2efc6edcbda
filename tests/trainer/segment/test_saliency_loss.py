"""Eq. 4 against values computed by hand, and its properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

torch = pytest.importorskip("torch")

import torch.nn.functional as F

from infercam.trainer.segment.saliency_loss import (
    conflict_temperature,
    labelled_cross_entropy,
    saliency_term,
    segmentation_loss,
)

SHAPE = (2, 5, 7)
labels = arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 1, 2, 255]))
maps = arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32))


def scores_of(seed: int = 0, classes: int = 3, shape: tuple[int, int, int] = SHAPE):
    n, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(n, classes, h, w, generator=generator)).requires_grad_()


def inside_of(shape=SHAPE):
    return torch.ones(shape, dtype=torch.bool)


def one_picture(*rows: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each cell: label 0, 1 or x (ignored), then saliency s (salient) or - (not)."""
    cells = [row.split() for row in rows]
    label = [[255 if c[0] == "x" else int(c[0]) for c in row] for row in cells]
    saliency = [[float(c[1] == "s") for c in row] for row in cells]
    return torch.tensor([label]), torch.tensor([saliency]), inside_of((1, len(rows), len(cells[0])))


# -- by hand ---------------------------------------------------------------------------------------------------
def test_tau_by_hand():
    # foreground: 1 shared of 1 + 1 + 1; background: 2 shared of 2 + 1 + 1
    label, saliency, inside = one_picture("1s 1- 0s", "0- 0- xs")
    assert conflict_temperature(label, saliency, inside).item() == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_tau_of_255_alone_and_of_padding_is_zero():
    label, saliency, inside = one_picture("xs x-")
    assert conflict_temperature(label, saliency, inside).item() == 0
    label, saliency, inside = one_picture("0- 1s")
    assert conflict_temperature(label, saliency, ~inside).item() == 0


def test_a_side_that_neither_has_is_left_out():
    label, saliency, inside = one_picture("0- 0-")
    assert conflict_temperature(label, saliency, inside).item() == 1
    label, saliency, inside = one_picture("0- 0s")  # foreground 0 of 1, background 1 of 2
    assert conflict_temperature(label, saliency, inside).item() == pytest.approx(0.25)


def test_total_by_hand():
    label, saliency, inside = one_picture("0- 1s", "1- xs")
    # background's probability at the four pixels: 1/2, 1/4, 1/4, 1/2
    background = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    foreground = torch.log(torch.tensor([[[1.0, 3.0], [3.0, 1.0]]]))
    found = segmentation_loss(torch.stack([background, foreground], 1), label, saliency, inside, alpha=0.3)
    cross_entropy = -(math.log(1 / 2) + math.log(3 / 4) + math.log(3 / 4)) / 3
    term = -(math.log(1 / 2) + math.log(3 / 4) + math.log(1 / 4) + math.log(1 / 2)) / 4
    tau = (1 / 2 + 1 / 2) / 2
    assert found.cross_entropy.item() == pytest.approx(cross_entropy)
    assert found.saliency.item() == pytest.approx(term)
    assert found.tau.item() == pytest.approx(tau)
    assert found.total.item() == pytest.approx(cross_entropy + 0.3 * (math.exp(tau) - 1) * term)


def test_soft_saliency_is_a_soft_target():
    scores = torch.tensor([[[[1.0]], [[0.0]], [[-1.0]]]])
    background = torch.softmax(scores, 1)[0, 0, 0, 0].item()
    found = saliency_term(scores, torch.tensor([[[0.25]]]), inside_of((1, 1, 1)))
    assert found.item() == pytest.approx(-(0.75 * math.log(background) + 0.25 * math.log(1 - background)))


# -- properties ------------------------------------------------------------------------------------------------
def test_agreement_gives_weight_e_minus_1():
    label = torch.tensor([[[0, 1, 2], [0, 0, 255]]])
    saliency = torch.tensor([[[0.1, 0.9, 0.7], [0.5, 0.0, 1.0]]])
    found = segmentation_loss(scores_of(shape=(1, 2, 3)), label, saliency)
    assert found.tau.item() == 1
    assert found.weight.item() == pytest.approx(math.e - 1)
    assert found.total.item() == pytest.approx(
        found.cross_entropy.item() + 0.08 * (math.e - 1) * found.saliency.item()
    )


@settings(max_examples=30)
@given(labels)
def test_full_conflict_is_exactly_cross_entropy(label):
    """Saliency that contradicts every pixel: tau 0, no weight, no gradient."""
    label = torch.from_numpy(label)
    saliency = (label == 0).float()
    one, two = scores_of(), scores_of()
    found = segmentation_loss(one, label, saliency, alpha=7.0)
    alone = labelled_cross_entropy(two, label)
    assert found.tau.tolist() == [0, 0] and found.total.item() == alone.item()
    found.total.backward()
    alone.backward()
    assert torch.equal(one.grad, two.grad)


@settings(max_examples=30)
@given(labels)
def test_cross_entropy_is_pytorchs(label):
    label = torch.from_numpy(label)
    scores = scores_of()
    ours = labelled_cross_entropy(scores, label)
    if (label == 255).all():
        assert ours.item() == 0
        ours.backward()
        assert not scores.grad.any()
    else:
        assert ours.item() == pytest.approx(
            F.cross_entropy(scores, label.long(), ignore_index=255).item(), rel=1e-5
        )


@settings(max_examples=30)
@given(labels, maps)
def test_tau_is_a_share_without_gradient(label, saliency):
    saliency = torch.from_numpy(saliency).requires_grad_()
    found = segmentation_loss(scores_of(), torch.from_numpy(label), saliency)
    assert not found.tau.requires_grad and not found.weight.requires_grad
    assert ((found.tau >= 0) & (found.tau <= 1)).all()
    assert torch.isfinite(found.total) and found.total >= found.cross_entropy
    weights = found.weight.detach()
    found.total.backward()
    # the gradient of a sum with constant weights: none came through tau
    other = saliency.detach().clone().requires_grad_()
    scores = scores_of()
    (0.08 * (weights * saliency_term(scores, other, inside_of())).mean()).backward()
    assert torch.allclose(saliency.grad, other.grad)


@settings(max_examples=30)
@given(labels, maps, st.permutations(range(2)))
def test_weights_are_each_pictures_own(label, saliency, order):
    label, saliency = torch.from_numpy(label), torch.from_numpy(saliency)
    both = segmentation_loss(scores_of(), label, saliency)
    again = segmentation_loss(scores_of()[order], label[order], saliency[order])
    assert torch.equal(both.tau[order], again.tau)
    assert both.total.item() == pytest.approx(again.total.item(), rel=1e-5)
    for i in range(2):
        alone = conflict_temperature(label[i : i + 1], saliency[i : i + 1], inside_of()[:1])
        assert alone.item() == both.tau[i].item()


def test_padding_and_missing_maps_change_nothing():
    label, saliency, inside = one_picture("0- 1s 1-", "1s 0s xs")
    padded = [F.pad(x, (0, 2, 1, 0), value=v) for x, v in ((label, 255), (saliency, 0.0))]
    scores = scores_of(shape=(1, 2, 3))
    wide = F.pad(scores, (0, 2, 1, 0), value=4.2)
    one = segmentation_loss(scores, label, saliency, inside)
    two = segmentation_loss(wide, padded[0], padded[1], F.pad(inside, (0, 2, 1, 0)))
    assert one.total.item() == pytest.approx(two.total.item(), rel=1e-6)
    without = segmentation_loss(scores, label, saliency, ~inside)
    assert without.total.item() == without.cross_entropy.item()


@pytest.mark.parametrize("options", [{"saliency": None}, {"saliency": torch.ones(SHAPE), "alpha": 0}])
def test_without_saliency_or_alpha_it_is_cross_entropy(options):
    label = torch.zeros(SHAPE, dtype=torch.uint8)
    found = segmentation_loss(scores_of(), label, **options)
    assert found.total is found.cross_entropy and not found.tau.any()


def test_half_precision_scores_are_summed_in_single():
    label = torch.zeros((1, 1, 2), dtype=torch.uint8)
    scores = torch.tensor([[[[11000.0, 0]], [[-11000.0, 0]]]], dtype=torch.float16)
    found = segmentation_loss(scores, label, torch.ones((1, 1, 2)))
    assert found.total.dtype == torch.float32 and torch.isfinite(found.total)
