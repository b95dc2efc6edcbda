"""Counting what every background threshold would decide of one image, in one pass (method/README.md §4).

For a background threshold t a pixel's label is the argmax of [t, A_0, …, A_C-1]; background wins a tie
(it stands first), and of two classes with equal activation the lower index does, as `numpy.argmax` has it.
So a pixel matters only through its true label, its winning class and how many of the thresholds
0, 0.01, …, 0.99 lie strictly below its winning activation: one joint histogram per image, from which the
counts for all hundred thresholds follow by cumulative sums.

Labels count from 0 = background; class c of the maps is label c + 1; 255 is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infercam.engine.common.errors import InputError, shown
from infercam.engine.store.record import as_float32

STEPS = 100
THRESHOLDS = (np.arange(STEPS) / STEPS).astype(np.float32)
IGNORE = 255
MAX_CLASSES = 254
GROUPS = ("0", "1", "2", "3+")  # classes in an image, by its ground truth

_UINT8_BINS = np.searchsorted(THRESHOLDS, np.arange(256, dtype=np.float32) / np.float32(255)).astype(np.uint8)


@dataclass(frozen=True, eq=False, slots=True)
class ImageCounts:
    """What one image contributes: a few kilobytes.

    Attributes:
        id: the image's name.
        labels: (P,) labels that some threshold predicts, 0 first.
        hits: (P, 100) pixels rightly given each of `labels`, per threshold.
        predicted: (P, 100) pixels given each of `labels`, per threshold.
        true_labels, true_counts: (G,) labels of the ground truth and their pixels.
        active: object pixels at which some class has an activation above 0.
    """

    id: str
    labels: np.ndarray
    hits: np.ndarray
    predicted: np.ndarray
    true_labels: np.ndarray
    true_counts: np.ndarray
    active: int

    @property
    def group(self) -> int:
        """Index into GROUPS: how many classes the ground truth has, at most 3."""
        return min(int(np.count_nonzero(self.true_labels)), 3)


def threshold_bins(activation: np.ndarray) -> np.ndarray:
    """How many of THRESHOLDS are strictly below each activation: uint8, 0..100, exact for every float32."""
    if activation.dtype == np.uint8:
        return _UINT8_BINS[activation]
    scaled = activation * np.float32(STEPS)
    guess = np.clip(scaled, 0, STEPS - 1, out=scaled).astype(np.uint8)
    # The product is off by an ulp at most, so only the guess itself is in doubt (tested at every threshold
    # and 1,000 floats to either side).
    return guess + (activation > THRESHOLDS.take(guess))


def count_image(
    maps: np.ndarray, classes: Sequence[int], mask: np.ndarray, n_classes: int, id: str = ""
) -> ImageCounts:
    """Count one image for all thresholds.

    Args:
        maps: (K, H, W) in [0, 1]: uint8 (value / 255), float16 or float32. A class that has no map counts
            as zero activation. With K = 0 the size is not looked at.
        classes: K class indices below `n_classes`.
        mask: (H, W) integers, 0 background, c + 1 class c, 255 ignored.

    Raises InputError, naming `id`, where sizes, classes or mask values do not fit.
    """
    _check(maps, classes, mask, n_classes, id)
    sizes = np.bincount(mask.ravel(), minlength=IGNORE + 1)
    if sizes[n_classes + 1 : IGNORE].any() or len(sizes) > IGNORE + 1:
        wrong = [int(v) for v in np.flatnonzero(sizes) if n_classes < v != IGNORE]
        raise InputError(f"{shown(id)}: {values_in_words(wrong, n_classes)}")
    true_labels = np.flatnonzero(sizes[:IGNORE])
    order = np.argsort(classes, kind="stable")
    labels = np.asarray(classes, dtype=np.intp)[order] + 1
    joint = _joint_histogram(maps, order, mask, true_labels)
    above = joint[:, :, ::-1].cumsum(axis=2)[:, :, ::-1][:, :, 1:]  # (G, K, 100): activation beats threshold
    true_counts = sizes[true_labels]
    row_of = {int(label): row for row, label in enumerate(true_labels)}
    none = np.zeros(STEPS, np.int64)
    hits = [above[row_of[int(label)], k] if int(label) in row_of else none for k, label in enumerate(labels)]
    wins = above.sum(axis=0)
    background = true_counts[0] - above[0].sum(axis=0) if 0 in row_of else none
    objects = true_labels > 0
    return ImageCounts(
        id=id,
        labels=np.concatenate(([0], labels)).astype(np.int32),
        hits=np.stack([background, *hits]).astype(np.uint32),
        predicted=np.vstack([true_counts.sum() - wins.sum(axis=0), wins]).astype(np.uint32),
        true_labels=true_labels.astype(np.int32),
        true_counts=true_counts.astype(np.int64),
        active=int(above[objects, :, 0].sum()),
    )


def values_in_words(wrong: Sequence[int] | np.ndarray, n_classes: int) -> str:
    """Why a mask's values `wrong` cannot be scored, and what to do."""
    some = ", ".join(str(value) for value in wrong[:3]) + (", …" if len(wrong) > 3 else "")
    return (
        f"the ground truth has value{'s' if len(wrong) > 1 else ''} {some}, but there are {n_classes} classes "
        f"(0 is background, {n_classes} the last class, {IGNORE} ignored); where values stand for something else, "
        "list them: --gt-values BACKGROUND,FIRST,…"
    )


def _check(maps: np.ndarray, classes: Sequence[int], mask: np.ndarray, n_classes: int, id: str) -> None:
    name = shown(id) or "image"
    if not 1 <= n_classes <= MAX_CLASSES:
        raise InputError(f"{n_classes} classes: masks of 8 bits allow 1 to {MAX_CLASSES}")
    if mask.ndim != 2 or mask.dtype.kind not in "iu" or (mask.size and mask.min() < 0):
        raise InputError(f"{name}: the ground truth is not one plane of labels")
    if maps.ndim != 3 or len(maps) != len(classes):
        raise InputError(f"{name}: maps of shape {maps.shape} for {len(classes)} classes")
    if len(maps) and maps.shape[1:] != mask.shape:
        (h, w), (mh, mw) = maps.shape[1:], mask.shape
        raise InputError(f"{name}: maps are {w}×{h}, the ground truth is {mw}×{mh}; they must be equal")
    if len(set(classes)) != len(classes) or any(not 0 <= c < n_classes for c in classes):
        raise InputError(f"{name}: classes {list(classes)} repeat or are not below {n_classes}")


def _joint_histogram(
    maps: np.ndarray, order: np.ndarray, mask: np.ndarray, true_labels: np.ndarray
) -> np.ndarray:
    """(G, K, 101): pixels by true label (row of `true_labels`), winning class (of `order`) and bin."""
    n_true, n_maps = len(true_labels), len(order)
    if not n_maps or not n_true:
        return np.zeros((n_true, n_maps, STEPS + 1), np.int64)
    if maps.dtype != np.uint8:
        maps = as_float32(maps)
        if np.isnan(maps.min()):
            raise InputError("a map holds NaN; make it again")
    best = maps[order[0]]
    winner: np.ndarray | None = None
    for k, index in enumerate(order[1:], start=1):
        better = maps[index] > best
        best = np.maximum(best, maps[index])
        if winner is None:
            winner = np.zeros(best.shape, np.uint8)
        winner[better] = k
    rows = np.full(IGNORE + 1, n_true, np.int32)  # ignored pixels go to a row of their own, cut off below
    rows[true_labels] = np.arange(n_true)
    index = rows.take(mask)
    if winner is not None:
        index *= n_maps
        index += winner
    index *= STEPS + 1
    index += threshold_bins(best)
    counts = np.bincount(index.ravel(), minlength=(n_true + 1) * n_maps * (STEPS + 1))
    return counts.reshape(n_true + 1, n_maps, STEPS + 1)[:n_true]
