"""Bootstrap over images: how much of a figure, or of a difference between two runs, is chance.

Images are drawn with replacement; in every resample the threshold is chosen anew, so the interval covers
that choice too. A class of one image is absent from a third of the resamples, and then is not averaged:
over all classes of a small set the interval is wide and lopsided; the frequent classes are the ones to
compare by. The counts of the images are all that is needed (kept_counts.py); no map is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from infercam.engine.common.errors import InputError
from infercam.engine.evaluation.histogram import STEPS
from infercam.engine.evaluation.kept_counts import KeptCounts
from infercam.engine.evaluation.scores import EvalResult, Interval, frequent_labels

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


class _Sums:
    """Counts of resamples by label: what `scores` computes from a histogram, for (B, …) resamples at once.

    Integers below 2^53 throughout, so sums in float64 are exact in whatever order blocks of images are added.
    """

    def __init__(self, images: KeptCounts, n_labels: int, weights: np.ndarray, order: np.ndarray) -> None:
        """Where image i counts `weights[b, order[i]]` times."""
        resamples = len(weights)
        self.true = np.zeros((n_labels, resamples))
        self.curves = np.zeros((n_labels, resamples, 2, STEPS))
        for block in images.blocks():
            own = weights[:, order[block.first : block.first + len(block.active)]].T.astype(np.float64)
            for label, rows in _runs(block.true_labels):
                self.true[label] += own[block.true_images[rows]].T @ block.true_counts[rows]
            for label, rows in _runs(block.labels):
                curves = block.curves[rows].reshape(-1, 2 * STEPS)
                self.curves[label] += (own[block.images[rows]].T @ curves).reshape(resamples, 2, STEPS)

    def best(self, labels: np.ndarray) -> np.ndarray:
        """(B,) best mIoU over `labels` (bool)."""
        resamples = self.true.shape[1]
        total, counted = np.zeros((resamples, STEPS)), np.zeros((resamples, 1))
        for label in np.flatnonzero(labels):
            true, hits, predicted = (
                self.true[label][:, None],
                self.curves[label, :, 0],
                self.curves[label, :, 1],
            )
            union = true + predicted - hits
            present = true > 0  # as in a Score: labels without ground truth in this resample do not count
            total += np.where(present, hits / np.maximum(union, 1), 0)
            counted += present
        best: np.ndarray = (total / np.maximum(counted, 1)).max(axis=1)
        return best


def _runs(labels: np.ndarray) -> Iterator[tuple[int, slice]]:
    """(label, its rows) for each label of a sorted array."""
    found, starts = np.unique(labels, return_index=True)
    ends = [*starts[1:].tolist(), len(labels)]
    for label, start, end in zip(found.tolist(), starts.tolist(), ends, strict=True):
        yield label, slice(start, end)


def _weights(n_images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """(≤ 64, n_images) counts at a time; each row sums to n_images."""
    random = np.random.default_rng(seed)
    shares = np.full(n_images, 1 / n_images)
    for start in range(0, resamples, _CHUNK):
        rows = (random.multinomial(n_images, shares) for _ in range(min(_CHUNK, resamples - start)))
        yield np.stack([row.astype(np.int32) for row in rows])


def add_intervals(
    result: EvalResult, resamples: int = 1000, seed: int = 0, progress: Callable[[int], None] | None = None
) -> None:
    """Fill `result.intervals` ('all', 'frequent') by resampling its images; needs their counts.

    progress: called with the number of resamples each time some are done.
    """
    images = _counts(result)
    found = _resampled(images, np.arange(len(images)), _label_sets(result), resamples, seed, progress)
    result.resamples = resamples
    result.intervals = {name: _interval(values) for name, values in found.items()}


def compare(a: EvalResult, b: EvalResult, resamples: int = 1000, seed: int = 0) -> dict[str, Difference]:
    """Paired bootstrap of b's best mIoU minus a's: {'all': …, 'frequent': …}.

    Both must have counted the same images (by id, in any order) against the same ground truth; raises
    InputError otherwise. 'frequent' is left out where no class is.
    """
    first, second = _counts(a), _counts(b)
    if len(a.images_with) != len(b.images_with):
        raise InputError("the two runs have different numbers of classes")
    number = {id: at for at, id in enumerate(first.ids)}
    if len(first) != len(second) or number.keys() != set(second.ids):
        raise InputError("the two runs were evaluated on different images; compare them on the same split")
    order = np.array([number[id] for id in second.ids])
    for at, place in enumerate(order.tolist()):
        if second.truth(at) != first.truth(place):
            raise InputError(f"{second.ids[at]}: the two runs were evaluated against different ground truths")
    return _paired(a, b, np.arange(len(first)), order, resamples, seed)


def _paired(
    a: EvalResult, b: EvalResult, first: np.ndarray, second: np.ndarray, resamples: int, seed: int
) -> dict[str, Difference]:
    sets = _label_sets(a)
    sides = [
        _resampled(_counts(run), order, sets, resamples, seed) for run, order in ((a, first), (b, second))
    ]
    found = {}
    for name, labels in sets.items():
        gains = sides[1][name] - sides[0][name]
        once = np.ones((1, a.images), np.int32)
        one, two = (
            _Sums(_counts(run), len(labels), once, order).best(labels)[0]
            for run, order in ((a, first), (b, second))
        )
        found[name] = Difference(
            images=a.images,
            a=float(one),
            b=float(two),
            difference=float(two - one),
            interval=_interval(gains),
            not_better=float(np.mean(np.where(gains == 0, 0.5, gains < 0))),
        )
    return found


def _resampled(
    images: KeptCounts,
    order: np.ndarray,
    sets: dict[str, np.ndarray],
    resamples: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """For each set of labels the best mIoU of every resample; image i of `images` is number `order[i]`."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    n_labels = len(next(iter(sets.values())))
    for weights in _weights(len(images), resamples, seed):
        sums = _Sums(images, n_labels, weights, order)
        for name, labels in sets.items():
            found[name].append(sums.best(labels))
        if progress:
            progress(len(weights))
    return {name: np.concatenate(values) for name, values in found.items() if values}


def _counts(result: EvalResult) -> KeptCounts:
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
