"""From counts to figures: mIoU curves, the best threshold, groups, and their JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infercam.engine.common.errors import InputError
from infercam.engine.evaluation.histogram import GROUPS, STEPS, JointHistogram
from infercam.engine.evaluation.kept_counts import KeptCounts


@dataclass(frozen=True)
class Score:
    """Best mIoU of a set of labels (background among them) over the thresholds.

    Attributes:
        miou: the highest mean IoU, in [0, 1].
        threshold: the lowest background threshold that reaches it.
        labels: the labels averaged: those of the set that the ground truth of these images contains, so
            that two runs on the same images are averaged over the same labels.
        curve: (100,) mean IoU at thresholds 0, 0.01, …, 0.99.
    """

    miou: float
    threshold: float
    labels: list[int]
    curve: np.ndarray

    @property
    def step(self) -> int:
        return round(self.threshold * STEPS)


@dataclass(frozen=True)
class GroupScore:
    """Images with one number of classes: mIoU at the whole set's best threshold, and at their own best."""

    images: int
    at_overall_threshold: float
    own: Score


@dataclass(frozen=True)
class Interval:
    """Bootstrap over images: the middle 95 % of the resampled values, and their standard deviation."""

    low: float
    high: float
    std: float


@dataclass(eq=False)
class EvalResult:
    """What `infercam eval` reports; shares and IoUs in [0, 1].

    `all` averages background and every class with ground truth; `frequent` only background and the
    classes that occur in the ground truth of at least `min_images` images (None if there is no such
    class). `iou` is per label at `all`'s best threshold, NaN for labels without ground truth. `groups`
    are keyed '1', '2', '3+' by the classes in the ground truth, averaged as `all`; empty ones are absent.
    `active_share` is the share of object pixels at which any class has an activation above 0; `pixels` and
    `ignored` are the pixels scored, and those with ground truth that the predictions leave open; `right` are
    those of the scored pixels that get their true label at the highest threshold (labels: at any); `unlisted`
    have a mask value that stands for nothing (mask_values.py).
    `counts` are the images' own, a sequence of `ImageCounts` (image_counts.py) that may lie on disk: go through it
    rather than copy it. None where they were not kept.
    """

    images: int
    min_images: int
    class_names: list[str]
    all: Score
    frequent: Score | None
    iou: np.ndarray
    images_with: np.ndarray
    groups: dict[str, GroupScore]
    active_share: float
    pixels: int = 0
    ignored: int = 0
    unlisted: int = 0
    right: int = 0
    ground_truth: str = ""
    split: str = ""
    maps: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    resamples: int = 0
    intervals: dict[str, Interval] = field(default_factory=dict)
    missing: int = 0
    counts: KeptCounts | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything but the images' counts, as plain JSON values."""
        return {
            "images": self.images,
            "images_without_maps": self.missing,
            "maps": self.maps,
            "split": self.split,
            "ground_truth": self.ground_truth,
            "settings": self.settings,
            "min_images": self.min_images,
            "all_classes": _score_json(self.all, self.intervals.get("all")),
            "frequent_classes": self.frequent and _score_json(self.frequent, self.intervals.get("frequent")),
            "bootstrap_resamples": self.resamples,
            "thresholds": [i / STEPS for i in range(STEPS)],
            "iou_at_best_threshold": self._per_label(self.iou),
            "images_with_class": {n: int(v) for n, v in zip(self.label_names, self.images_with, strict=True)},
            "by_classes_in_image": {
                name: {
                    "images": g.images,
                    "miou_at_overall_threshold": g.at_overall_threshold,
                    "best": _score_json(g.own, None),
                }
                for name, g in self.groups.items()
            },
            "active_share_of_object_pixels": self.active_share,
            **({"pixels_of_unlisted_values": self.unlisted} if self.unlisted else {}),
        }

    @property
    def label_names(self) -> list[str]:
        return ["background", *self.class_names]

    def _per_label(self, values: np.ndarray) -> dict[str, float | None]:
        pairs = zip(self.label_names, values.tolist(), strict=True)
        return {name: None if np.isnan(value) else value for name, value in pairs}


def _score_json(score: Score, interval: Interval | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "miou": score.miou,
        "threshold": score.threshold,
        "labels": score.labels,
        "curve": [round(v, 6) for v in score.curve.tolist()],
    }
    if interval is not None:
        found["interval_95"] = [interval.low, interval.high]
        found["std"] = interval.std
    return found


def summarise(
    histogram: JointHistogram,
    *,
    min_images: int = 7,
    class_names: list[str] | None = None,
    name: str = "the ground truth",
) -> EvalResult:
    """The figures of what a histogram has counted.

    Raises InputError, naming the ground truth by `name`, where that is nothing, or nothing but background: its 100 %
    would say nothing of the maps.
    """
    if not histogram.images.sum():
        raise InputError("no images to evaluate")
    names = class_names or [f"class {c}" for c in range(histogram.n_classes)]
    everyone = np.ones(histogram.n_classes + 1, bool)
    iou, true = _iou(histogram, slice(None))
    overall = _score(iou, everyone & (true > 0))
    if overall is None:
        raise InputError(f"{name}: has no pixel that is not ignored")
    if not true[1:].any():
        raise InputError(f"{name}: {_no_class(histogram)}")
    images_with = histogram.images_with.sum(axis=0)
    frequent = frequent_labels(images_with, min_images)
    return EvalResult(
        images=int(histogram.images.sum()),
        min_images=min_images,
        class_names=names,
        all=overall,
        frequent=_score(iou, frequent & (true > 0)) if frequent[1:].any() else None,
        iou=np.where(true > 0, iou[:, overall.step], np.nan),
        images_with=images_with,
        groups=_groups(histogram, overall),
        active_share=histogram.active / int(true[1:].sum()),
        pixels=int(true.sum()),
        ignored=histogram.ignored,
        unlisted=histogram.unlisted,
        right=int(histogram.hits[:, :, -1].sum()),
        counts=histogram.kept,
    )


def _no_class(histogram: JointHistogram) -> str:
    if histogram.ignored:  # by labels: the masks may have classes there
        return "no pixel of a class is scored: the labels leave all of them open (255)"
    return (
        "holds no class at all, only background (0) and ignored pixels (255); where 255 is the object, say so: "
        "--gt-values 0,255 (the value of background, then that of each class)"
    )


def frequent_labels(images_with: np.ndarray, min_images: int) -> np.ndarray:
    """(C + 1,) bool: background, and the classes in the ground truth of at least `min_images` images."""
    found = images_with >= max(min_images, 1)
    found[0] = True
    return found


def _groups(histogram: JointHistogram, overall: Score) -> dict[str, GroupScore]:
    found = {}
    for g, name in enumerate(GROUPS):
        if g == 0 or not histogram.images[g]:
            continue
        iou, true = _iou(histogram, slice(g, g + 1))
        own = _score(iou, true > 0)
        if own is not None:
            at = float(own.curve[overall.step])
            found[name] = GroupScore(int(histogram.images[g]), at, own)
    return found


def _iou(histogram: JointHistogram, groups: slice) -> tuple[np.ndarray, np.ndarray]:
    """(C + 1, 100) IoU and (C + 1,) true pixels of some groups; IoU 0 where there is no ground truth."""
    true = histogram.true[groups].sum(axis=0)
    hits = histogram.hits[groups].sum(axis=0)
    union = true[:, None] + histogram.predicted[groups].sum(axis=0) - hits
    return hits / np.maximum(union, 1), true


def _score(iou: np.ndarray, labels: np.ndarray) -> Score | None:
    if not labels.any():
        return None
    curve = iou[labels].mean(axis=0)
    step = int(curve.argmax())
    return Score(float(curve[step]), step / STEPS, np.flatnonzero(labels).tolist(), curve)


def evaluate(
    records: Iterable[tuple[np.ndarray, list[int], np.ndarray]],
    n_classes: int,
    *,
    min_images: int = 7,
    class_names: list[str] | None = None,
) -> EvalResult:
    """Best mIoU of maps in memory: an iterable of (maps (K,H,W), K class indices, mask (H,W)).

    Maps and masks as in `histogram.count_image`; one image at a time is held.
    """
    histogram = JointHistogram(n_classes)
    for maps, classes, mask in records:
        histogram.add(maps, classes, mask)
    return summarise(histogram, min_images=min_images, class_names=class_names)
