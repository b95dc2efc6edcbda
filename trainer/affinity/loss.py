"""AffinityNet's loss on pairs of neighbouring cells (Ahn & Kwak, CVPR 2018, §3.2; engine/method/README.md §4).

A pair is a cell of the stride-8 grid and one of its forward neighbours (random_walk.search_offsets); tensors
of pairs are N×P×h×w, where [n, k, y, x] belongs to the cells (y, x) and (y, x) + offset k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infercam.engine.evaluation.histogram import IGNORE

Offsets = Sequence[tuple[int, int]]
Window = tuple[slice, slice]

IGNORED, BACKGROUND, FOREGROUND, NEGATIVE = range(4)
"""The group of a pair: a label is unknown, both are background, both the same class, two different labels."""
SHARES = {BACKGROUND: 1 / 4, FOREGROUND: 1 / 4, NEGATIVE: 1 / 2}
EPSILON = 1e-5  # psa's, inside the logarithms


def windows(offset: tuple[int, int], height: int, width: int) -> tuple[Window, Window]:
    """Where a pair's first cells are on the grid, and where its second: equal shapes, empty if it is too small."""
    dy, dx = offset
    rows, columns = max(0, height - abs(dy)), max(0, width - abs(dx))
    y, x = max(0, -dy), max(0, -dx)
    there_y, there_x = max(0, dy), max(0, dx)
    return (
        (slice(y, y + rows), slice(x, x + columns)),
        (slice(there_y, there_y + rows), slice(there_x, there_x + columns)),
    )


class _PairDistance(torch.autograd.Function):
    """Keeps the embedding alone for the backward pass: autograd would keep P differences as large as it."""

    @staticmethod
    def forward(ctx: Any, embedding: Tensor, offsets: Offsets) -> Tensor:
        ctx.save_for_backward(embedding)
        ctx.offsets = offsets
        n, _, height, width = embedding.shape
        out = embedding.new_zeros(n, len(offsets), height, width)
        for k, offset in enumerate(offsets):
            here, there = windows(offset, height, width)
            out[:, k, *here] = (embedding[..., *here] - embedding[..., *there]).abs_().mean(1)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (embedding,) = ctx.saved_tensors
        _, channels, height, width = embedding.shape
        out = torch.zeros_like(embedding)
        for k, offset in enumerate(ctx.offsets):
            here, there = windows(offset, height, width)
            part = (embedding[..., *here] - embedding[..., *there]).sign_()
            part *= gradient[:, k : k + 1, *here] / channels
            out[..., *here] += part
            out[..., *there] -= part
        return out, None


def pair_distance(embedding: Tensor, offsets: Offsets) -> Tensor:
    """mean over channels of |g_i - g_j|: N×D×h×w -> N×P×h×w, in at least float32; 0 where the second cell is
    outside the grid. The affinity of the pair is exp(-distance)."""
    if embedding.dtype in (torch.float16, torch.bfloat16):
        embedding = embedding.float()
    out: Tensor = _PairDistance.apply(embedding, tuple(offsets))  # type: ignore[no-untyped-call]
    return out


def cell_labels(label: NDArray[np.uint8], stride: int = 8) -> NDArray[np.uint8]:
    """The commonest value of each stride×stride cell: H×W -> H/stride×W/stride; both sides must divide.

    psa pools the scores of its labels over the cells and takes the largest: for labels of whole pixels, that is
    this. 255 counts like any value, and is what a tie with it becomes.
    """
    height, width = (side // stride for side in label.shape)
    if label.shape != (height * stride, width * stride):
        raise ValueError(f"label of {label.shape} does not divide into cells of {stride}")
    cells = label.reshape(height, stride, width, stride)
    values = np.unique(label)[::-1]  # 255 first: argmax takes the first of equals
    counts = np.stack([(cells == value).sum((1, 3)) for value in values])
    return np.asarray(values[counts.argmax(0)], np.uint8)


def pair_groups(labels: Tensor, offsets: Offsets) -> Tensor:
    """The group of every pair: N×h×w labels (0 background, 255 ignored) -> N×P×h×w uint8.

    As in psa, a first cell counts only where all of its forward neighbours lie on the grid, so that every
    cell has the same number of pairs; the others are IGNORED.
    """
    n, height, width = labels.shape
    out = labels.new_zeros((n, len(offsets), height, width), dtype=torch.uint8)
    bottom = height - max(dy for dy, _ in offsets)
    margin = max(dx for _, dx in offsets)
    inner = (slice(0, max(0, bottom)), slice(margin, max(margin, width - margin)))
    first = labels[:, *inner]
    for k, (dy, dx) in enumerate(offsets):
        second = labels[:, inner[0].start + dy : inner[0].stop + dy, inner[1].start + dx : inner[1].stop + dx]
        group = torch.where(first == second, torch.where(first == 0, BACKGROUND, FOREGROUND), NEGATIVE)
        out[:, k, *inner] = torch.where((first == IGNORE) | (second == IGNORE), IGNORED, group).to(
            torch.uint8
        )
    return out


def affinity_loss(distance: Tensor, groups: Tensor) -> dict[str, Tensor]:
    """Cross entropy of the affinities exp(-distance), averaged within each group of pairs (IGNORED left out).

    distance: N×P×h×w from `pair_distance`; groups: N×P×h×w uint8 from `pair_groups`.
    Returns scalars: `background`, `foreground` and `negative` (0 for a group without pairs), and
    `loss` = background/4 + foreground/4 + negative/2 (Ahn & Kwak, eq. 8).
    """
    affinity = torch.exp(-distance)
    alike, unlike = -torch.log(affinity + EPSILON), -torch.log(1 + EPSILON - affinity)
    parts = {
        "background": _mean(alike, groups == BACKGROUND),
        "foreground": _mean(alike, groups == FOREGROUND),
        "negative": _mean(unlike, groups == NEGATIVE),
    }
    first, *others = (share * part for share, part in zip(SHARES.values(), parts.values(), strict=True))
    loss = sum(others, first)
    return {"loss": loss, **parts}


@torch.no_grad()
def pair_accuracy(distance: Tensor, groups: Tensor) -> Tensor:
    """Share of pairs whose affinity is on the right side of 1/2, by groups weighted as in the loss (groups
    without pairs left out; 0 if there are no pairs at all). A scalar."""
    alike = distance < float(np.log(2))
    total = weight = distance.new_zeros(())
    for group, share in SHARES.items():
        mask = groups == group
        present = mask.any()
        right = alike != (group == NEGATIVE)
        total = total + share * present * _mean(right.to(distance.dtype), mask)
        weight = weight + share * present
    return total / weight.clamp(min=min(SHARES.values()))


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is set; 0 (with zero gradients) where it never is."""
    # where, not a product: 0 * infinity would be NaN
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)
