"""Confusion of predicted labels with ground truth, for validation while training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infercam.trainer.photos.label_png import IGNORE


def confusion(predicted: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Pixels of each (truth, predicted) pair, classes×classes; truth 255 is left out.

    classes: background counted. Both H×W; predicted holds no 255.
    """
    known = truth != IGNORE
    pairs = truth[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_iou(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU of each class, NaN for one that is neither in the truth nor predicted."""
    hits = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(matrix: NDArray[np.int64]) -> float:
    """Mean over the classes that are in the truth (a class the truth lacks has no IoU of its own, though its
    wrong pixels lower the others'); 0 without any."""
    present = matrix.sum(1) > 0
    return float(class_iou(matrix)[present].mean()) if present.any() else 0.0
