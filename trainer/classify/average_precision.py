"""How well scores rank images: average precision, class by class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def average_precision(scores: NDArray[np.floating], labels: NDArray[np.floating]) -> NDArray[np.float64]:
    """Average precision of each class: scores and labels (N×C, labels 0 or 1) to C; NaN for a class that no
    image has.

    The sum over distinct scores, from high to low, of precision times the recall gained there, not
    interpolated: images of one score come together, so that their order is of no consequence.
    """
    return np.array([_one(s, y) for s, y in zip(scores.T, labels.T, strict=True)])


def _one(scores: NDArray[np.floating], labels: NDArray[np.floating]) -> float:
    if not labels.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of those of one score
    found = np.cumsum(labels[order])[last]
    precision = found / (np.flatnonzero(last) + 1)
    return float((precision * np.diff(found, prepend=0)).sum() / found[-1])
