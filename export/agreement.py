"""How well two networks agree, measured on what they are used for: the response maps, not the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from infercam.engine.method.recipe import EPSILON
from infercam.export.writing.verify import relative_error

THRESHOLD = 0.3
"""Of the normalised map: what counts as the object when the overlap is taken."""


@dataclass(frozen=True)
class Agreement:
    """Of some images' maps with the reference's (1 is perfect, but for `error`, where 0 is)."""

    images: int
    error: float
    """Largest difference of the responses relative to the largest response, mean over images."""
    iou: float
    """Intersection over union of the maps above THRESHOLD, mean over (image, class)."""
    worst_iou: float
    overlap: float
    """Sum of the smaller over sum of the larger map value, mean: the smooth form of `iou`, for searching."""


def present_classes(scores: np.ndarray, multi_label: bool = True) -> list[int]:
    """The classes that a picture's maps are compared for: those predicted, at least the best one.

    scores: logits (C,). Positive logits are probabilities above a half; a single-label classifier has one class.
    """
    best = int(scores.argmax())
    return sorted({best, *np.flatnonzero(scores > 0).tolist()}) if multi_label else [best]


def maps_of(response: np.ndarray, classes: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Maps of one view (method/README.md §1): float32 C×h×w before ReLU -> K×H×W in 0..1 at `size` (H, W)."""
    low = np.maximum(response[list(classes)], 0)
    full = np.stack([cv2.resize(m, size[::-1], interpolation=cv2.INTER_LINEAR) for m in low])
    return full / (full.max(axis=(1, 2), keepdims=True) + np.float32(EPSILON))


class Comparison:
    """Gathers the agreement over images, one `add` each."""

    def __init__(self) -> None:
        self._errors: list[float] = []
        self._ious: list[float] = []
        self._overlaps: list[float] = []

    def add(
        self, reference: np.ndarray, other: np.ndarray, classes: Sequence[int], size: tuple[int, int]
    ) -> None:
        """Both responses C×h×w of one image of `size` (H, W), and the classes whose maps count."""
        if not np.isfinite(other).all():  # an overflow: nothing agrees
            self._errors.append(float("inf"))
            self._ious += [0.0] * len(classes)
            self._overlaps += [0.0] * len(classes)
            return
        self._errors.append(relative_error(reference, other))
        for a, b in zip(maps_of(reference, classes, size), maps_of(other, classes, size), strict=True):
            self._ious.append(iou(a > THRESHOLD, b > THRESHOLD))
            larger = float(np.maximum(a, b).sum())
            self._overlaps.append(float(np.minimum(a, b).sum()) / larger if larger else 1.0)

    def result(self) -> Agreement:
        if not self._errors:
            raise ValueError("nothing was compared")
        return Agreement(
            images=len(self._errors),
            error=float(np.mean(self._errors)),
            iou=float(np.mean(self._ious)),
            worst_iou=min(self._ious),
            overlap=float(np.mean(self._overlaps)),
        )


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    union = int(np.count_nonzero(a | b))
    return float(np.count_nonzero(a & b) / union) if union else 1.0
