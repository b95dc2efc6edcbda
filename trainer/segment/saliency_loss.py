"""The activation-aware mask refinement loss (eq. 4): L = L_ce + alpha * (e^tau - 1) * L_sal.

Where the paper leaves room, this is what is done, per picture as the network sees it (its crop):
- L_ce: mean over all pixels of the batch whose label is not 255.
- tau: mean IoU of background and foreground between the pseudo label and the saliency map cut at 0.5, over the
  pixels whose label is not 255. A side that neither has is left out of the mean; no such pixel at all: 0.
- L_sal: mean over all pixels of the picture, those with label 255 included (there, saliency is all that is
  known), padding excluded. Saliency is a soft target: background's probability should be 1 - saliency.
- The picture's weight e^tau - 1 multiplies its own L_sal; the mean is over the pictures of the batch, one
  without a saliency map counting as weight 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from infercam.engine.evaluation.histogram import IGNORE
from infercam.trainer.segment.settings import ALPHA

THRESHOLD = 0.5


class SegmentationLoss(NamedTuple):
    """Scalars, but for tau and weight: one a picture, without gradient."""

    total: Tensor
    cross_entropy: Tensor
    saliency: Tensor
    """Mean over the pictures of L_sal, not weighted: what eq. 4 weighs."""
    tau: Tensor
    weight: Tensor


def segmentation_loss(
    scores: Tensor,
    label: Tensor,
    saliency: Tensor | None = None,
    inside: Tensor | None = None,
    *,
    alpha: float = ALPHA,
) -> SegmentationLoss:
    """Eq. 4.

    scores: N×C×H×W, before softmax, class 0 background. label: N×H×W integers, 255 ignored.
    saliency: N×H×W, 0..1; None, or alpha 0: cross entropy alone.
    inside: N×H×W bool, where there is a picture with a saliency map (None: everywhere).
    """
    scores = scores.float()  # eq. 4 is not for half precision
    cross_entropy = labelled_cross_entropy(scores, label)
    none = scores.new_zeros(len(scores))
    if saliency is None or alpha == 0:
        return SegmentationLoss(cross_entropy, cross_entropy, none.sum(), none, none)
    if inside is None:
        inside = torch.ones_like(label, dtype=torch.bool)
    per_image = saliency_term(scores, saliency, inside)
    tau = conflict_temperature(label, saliency, inside)
    weight = torch.expm1(tau)
    total = cross_entropy + alpha * (weight * per_image).mean()
    return SegmentationLoss(total, cross_entropy, per_image.mean(), tau, weight)


def labelled_cross_entropy(scores: Tensor, label: Tensor) -> Tensor:
    """Mean over the labelled pixels; 0, with gradient 0, where there are none."""
    known = (label != IGNORE).sum().clamp(min=1)
    return F.cross_entropy(scores, label.long(), ignore_index=IGNORE, reduction="sum") / known


def saliency_term(scores: Tensor, saliency: Tensor, inside: Tensor) -> Tensor:
    """L_sal of each picture: binary cross entropy of background's probability against 1 - saliency; (N,)."""
    every = scores.logsumexp(1)
    background = scores[:, 0] - every
    foreground = scores[:, 1:].logsumexp(1) - every
    entropy = -((1 - saliency) * background + saliency * foreground)
    pixels = inside.flatten(1).sum(1).clamp(min=1)
    return torch.where(inside, entropy, 0).flatten(1).sum(1) / pixels


@torch.no_grad()
def conflict_temperature(
    label: Tensor, saliency: Tensor, inside: Tensor, threshold: float = THRESHOLD
) -> Tensor:
    """tau of each picture, (N,) in 0..1, without gradient: 1 where label and saliency agree everywhere."""
    known = (inside & (label != IGNORE)).flatten(1)
    ours = ((label != 0).flatten(1) & known, (label == 0).flatten(1) & known)
    theirs = ((saliency > threshold).flatten(1) & known, (saliency <= threshold).flatten(1) & known)
    total = saliency.new_zeros(len(label))
    sides = torch.zeros_like(total)
    for a, b in zip(ours, theirs, strict=True):
        union = (a | b).sum(1)
        total += (a & b).sum(1) / union.clamp(min=1)
        sides += union > 0
    return total / sides.clamp(min=1)
