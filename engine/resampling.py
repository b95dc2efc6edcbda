"""Bootstrap over images: how much of a figure, or of a difference between two runs, is chance.

Images are drawn with replacement; in every resample the threshold is chosen anew, so the interval covers
that choice too. A class of one image is absent from a third of the resamples, and then is not averaged:
over all classes of a small set the interval is wide and lopsided; the frequent classes are the ones to
compare by. The counts of an image (3 KB) are all that is needed; nothing is read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .errors import InputError
from .histogram import STEPS, ImageCounts
from .scores import EvalResult, Interval, frequent_labels

_CHUNK = 64  # resamples at a time: bounds the memory, whatever the number asked for


@dataclass(frozen=True)
class Difference:
    """Best mIoU of run b minus that of run a, each at its own best threshold, on the same images.

    `interval` is that of the difference over paired resamples; `not_better` the share of resamples in
    which b is not above a (0.5: no difference).
    """

    images: int
    a: float
    b: float
    difference: float
    interval: Interval
    not_better: float


class _Curves:
    """The images' counts by label, ready to be weighted: label -> (image numbers, rows of 100)."""

    def __init__(self, images: list[ImageCounts]) -> None:
        self.true = self._gather((i, im.true_labels, im.true_counts[:, None]) for i, im in enumerate(images))
        self.hits = self._gather((i, im.labels, im.hits) for i, im in enumerate(images))
        self.predicted = self._gather((i, im.labels, im.predicted) for i, im in enumerate(images))

    @staticmethod
    def _gather(
        rows: Iterator[tuple[int, np.ndarray, np.ndarray]],
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        numbers: dict[int, list[int]] = {}
        values: dict[int, list[np.ndarray]] = {}
        for number, labels, block in rows:
            for label, row in zip(labels.tolist(), block, strict=True):
                numbers.setdefault(label, []).append(number)
                values.setdefault(label, []).append(row)
        return {k: (np.array(numbers[k]), np.stack(values[k]).astype(np.float64)) for k in numbers}

    def best(self, weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(B,) best mIoU over `labels` (bool) where image i counts `weights[b, i]` times."""
        total = np.zeros((len(weights), STEPS))
        counted = np.zeros((len(weights), 1))
        for label in np.flatnonzero(labels).tolist():
            if label not in self.true:
                continue
            true = self._weighted(self.true, label, weights)
            hits = self._weighted(self.hits, label, weights)
            union = true + self._weighted(self.predicted, label, weights) - hits
            present = true > 0  # as in a Score: labels without ground truth in this resample do not count
            total += np.where(present, hits / np.maximum(union, 1), 0)
            counted += present
        return (total / np.maximum(counted, 1)).max(axis=1)

    @staticmethod
    def _weighted(
        table: dict[int, tuple[np.ndarray, np.ndarray]], label: int, weights: np.ndarray
    ) -> np.ndarray:
        if label not in table:
            return np.zeros((1, 1))
        numbers, rows = table[label]
        return weights[:, numbers] @ rows


def _weights(n_images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """(≤ 64, n_images) counts at a time; each row sums to n_images."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        yield random.multinomial(n_images, np.full(n_images, 1 / n_images), size=size).astype(np.float64)


def add_intervals(result: EvalResult, resamples: int = 1000, seed: int = 0) -> None:
    """Fill `result.intervals` ('all', 'frequent') by resampling its images; needs their counts."""
    images = _counts(result)
    curves = _Curves(images)
    sets = _label_sets(result)
    found: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    for weights in _weights(len(images), resamples, seed):
        for name, labels in sets.items():
            found[name].append(curves.best(weights, labels))
    result.resamples = resamples
    result.intervals = {name: _interval(np.concatenate(values)) for name, values in found.items() if values}


def compare(a: EvalResult, b: EvalResult, resamples: int = 1000, seed: int = 0) -> dict[str, Difference]:
    """Paired bootstrap of b's best mIoU minus a's: {'all': …, 'frequent': …}.

    Both must have counted the same images (by id, in any order) against the same ground truth; raises
    InputError otherwise. 'frequent' is left out where no class is.
    """
    first, second = _counts(a), _counts(b)
    by_id = {image.id: image for image in second}
    if len(first) != len(second) or len(by_id) != len(second) or any(i.id not in by_id for i in first):
        raise InputError("the two runs were evaluated on different images; compare them on the same split")
    second = [by_id[image.id] for image in first]
    for one, two in zip(first, second, strict=True):
        same = np.array_equal(one.true_labels, two.true_labels)
        if not same or not np.array_equal(one.true_counts, two.true_counts):
            raise InputError(f"{one.id}: the two runs were evaluated against different ground truths")
    return _paired(a, b, _Curves(first), _Curves(second), resamples, seed)


def _paired(
    a: EvalResult, b: EvalResult, first: _Curves, second: _Curves, resamples: int, seed: int
) -> dict[str, Difference]:
    found = {}
    for name, labels in _label_sets(a).items():
        sides = [
            np.concatenate([curves.best(w, labels) for w in _weights(a.images, resamples, seed)])
            for curves in (first, second)
        ]
        gains = sides[1] - sides[0]
        one, two = (curves.best(np.ones((1, a.images)), labels)[0] for curves in (first, second))
        found[name] = Difference(
            images=a.images,
            a=float(one),
            b=float(two),
            difference=float(two - one),
            interval=_interval(gains),
            not_better=float(np.mean(np.where(gains == 0, 0.5, gains < 0))),
        )
    return found


def _counts(result: EvalResult) -> list[ImageCounts]:
    if not result.counts:
        raise InputError("resampling needs the images' counts; evaluate with keep_images")
    return result.counts


def _label_sets(result: EvalResult) -> dict[str, np.ndarray]:
    sets = {"all": np.ones(len(result.images_with), bool)}
    if result.frequent is not None:
        sets["frequent"] = frequent_labels(result.images_with, result.min_images)
    return sets


def _interval(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high), float(values.std()))
