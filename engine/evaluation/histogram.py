"""The counts of many images, summed (image_counts.py counts one)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infercam.engine.common.errors import InputError
from infercam.engine.evaluation.image_counts import (
    GROUPS,
    IGNORE,
    MAX_CLASSES,
    STEPS,
    THRESHOLDS,
    ImageCounts,
    count_image,
    threshold_bins,
)
from infercam.engine.evaluation.kept_counts import KeptCounts

__all__ = [
    "GROUPS",
    "IGNORE",
    "MAX_CLASSES",
    "STEPS",
    "THRESHOLDS",
    "ImageCounts",
    "JointHistogram",
    "count_image",
    "threshold_bins",
]


class JointHistogram:
    """Accumulates images; mergeable, so that processes can count their own share.

    Sums are kept by number of classes in the image: (4, C + 1, 100) hits and predictions, half a megabyte for
    COCO's 80 classes. With `keep_images` every image's counts are kept too, as resampling needs them, mostly on disk
    where there are many (kept_counts.py).
    """

    def __init__(self, n_classes: int, *, keep_images: bool = True) -> None:
        if not 1 <= n_classes <= MAX_CLASSES:
            raise InputError(f"{n_classes} classes: masks of 8 bits allow 1 to {MAX_CLASSES}")
        shape = (len(GROUPS), n_classes + 1)
        self.n_classes = n_classes
        self.hits = np.zeros((*shape, STEPS), np.int64)
        self.predicted = np.zeros((*shape, STEPS), np.int64)
        self.true = np.zeros(shape, np.int64)
        self.images_with = np.zeros(shape, np.int64)
        self.images = np.zeros(len(GROUPS), np.int64)
        self.active = 0
        self.ignored = 0
        """Pixels with ground truth that the predictions leave open (labels may, maps do not)."""
        self.unlisted = 0
        """Pixels whose mask value stands for nothing (mask_values.py): not scored."""
        self.kept: KeptCounts | None = KeptCounts() if keep_images else None

    def add(self, maps: np.ndarray, classes: Sequence[int], mask: np.ndarray, id: str = "") -> None:
        """Count one image; arguments and errors as `count_image`."""
        self.add_counts(count_image(maps, classes, mask, self.n_classes, id or f"image {self.images.sum()}"))

    def add_counts(self, image: ImageCounts) -> None:
        g = image.group
        self.hits[g, image.labels] += image.hits
        self.predicted[g, image.labels] += image.predicted
        self.true[g, image.true_labels] += image.true_counts
        self.images_with[g, image.true_labels] += 1
        self.images[g] += 1
        self.active += image.active
        if self.kept is not None:
            self.kept.append(image)

    def merge(self, other: JointHistogram) -> None:
        """Add another one's images after this one's; raises InputError if it counts other classes."""
        if other.n_classes != self.n_classes:
            raise InputError(f"cannot merge counts of {other.n_classes} and {self.n_classes} classes")
        for name in ("hits", "predicted", "true", "images_with", "images"):
            getattr(self, name).__iadd__(getattr(other, name))
        self.active += other.active
        self.ignored += other.ignored
        self.unlisted += other.unlisted
        if self.kept is not None:
            if other.kept is None:
                self.kept = None
            else:
                self.kept.extend(other.kept)
