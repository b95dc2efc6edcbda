"""`infercam eval` of labels: a folder of PNGs of class indices against ground-truth masks.

A label is scored as maps that are 1 where the class is and 0 elsewhere: every background threshold then decides
alike, and counting, intervals and groups are those of evaluate.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infercam.engine.common.errors import StoreError, shown
from infercam.engine.data import voc
from infercam.engine.evaluation.evaluate import GroundTruth, score
from infercam.engine.evaluation.histogram import IGNORE, JointHistogram
from infercam.engine.evaluation.label_folder import INFO, LabelFolder
from infercam.engine.evaluation.label_png import PNG, read_label
from infercam.engine.evaluation.scores import EvalResult
from infercam.engine.store.mapstore import INFO as MAP_INFO


@dataclass(eq=False)
class LabelResult:
    """What `infercam eval` reports of labels; `scores` is as for maps, every threshold alike.

    pixel_accuracy: share of the scored pixels that have the right label.
    ignored_share: share of the pixels with ground truth that the labels leave open (255): not scored.
    """

    scores: EvalResult
    pixel_accuracy: float
    ignored_share: float

    def to_json(self) -> dict[str, Any]:
        """The figures of maps (scores.py) less what is about thresholds, and those of labels alone."""
        found = self.scores.to_json()
        for old, new in _RENAMED.items():
            found[new] = found.pop(old)
        del found["thresholds"]
        for name in ("all_classes", "frequent_classes"):
            found[name] = found[name] and _without_threshold(found[name])
        found["by_classes_in_image"] = {
            name: {"images": group["images"], **_without_threshold(group["best"])}
            for name, group in found["by_classes_in_image"].items()
        }
        return {**found, "pixel_accuracy": self.pixel_accuracy, "ignored_share_of_pixels": self.ignored_share}


_RENAMED = {
    "maps": "labels",
    "images_without_maps": "images_without_labels",
    "iou_at_best_threshold": "iou",
    "active_share_of_object_pixels": "object_share_of_object_pixels",
}


def _without_threshold(figures: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in figures.items() if k not in ("threshold", "curve")}


def holds_labels(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is one of labels rather than a map store; raises StoreError where it holds several."""
    root = Path(path)
    if (root / MAP_INFO).exists() or not root.is_dir():
        return False
    if (root / INFO).exists() or any(next(root.glob(f"*{suffix}"), None) for suffix in PNG):
        return True
    inside = sorted(f.parent for f in root.glob(f"*/{INFO}"))
    if inside:
        raise StoreError(f"{shown(root)}: holds folders of labels; name one: {', '.join(map(shown, inside))}")
    return any(next(root.rglob(f"*{suffix}"), None) for suffix in PNG)


def evaluate_labels(
    folder: LabelFolder,
    truth: GroundTruth,
    *,
    classes: Sequence[str] | None = None,
    missing: str = "error",
    min_images: int = 7,
    workers: int | None = 1,
    bootstrap: int = 0,
    keep_images: bool = True,
    progress: Callable[[int], None] | None = None,
) -> LabelResult:
    """Score labels against masks of the same size and the same values; see `evaluate_store` for the arguments.

    classes: names for a folder that has none of its own (default: those of the ground truth, else VOC's).
    missing: an image without a label is an 'error', left out ('skip'), or all background ('zero').

    Pixels that a label leaves open (255) are not scored; their share is told. A class that occurs only in
    such pixels does not count as one of that image. Raises InputError or StoreError naming the image where a
    label is missing, not a label PNG, of another size than the mask, or has values beyond the classes.
    """
    names = folder.info.classes if folder.info else list(classes or truth.classes or voc.CLASSES)
    labels = _Labels(folder, names)
    result = score(labels, truth, missing, min_images, workers, bootstrap, keep_images, progress)
    return LabelResult(
        result, result.right / result.pixels, result.ignored / (result.pixels + result.ignored)
    )


class _Labels:
    noun = "labels"

    def __init__(self, folder: LabelFolder, classes: list[str]) -> None:
        self.folder, self.path, self.classes = folder, folder.path, classes
        self.settings = folder.info.settings if folder.info else {}

    def __contains__(self, id: object) -> bool:
        return id in self.folder

    def ids(self) -> list[str]:
        return self.folder.ids()

    def add(self, counted: JointHistogram, id: str, mask: np.ndarray) -> None:
        """Count one image; without the pixels that its label leaves open."""
        label = read_label(self.folder.file(id), len(self.classes), mask.shape)
        left_open = (label == IGNORE) & (mask != IGNORE)
        counted.ignored += int(left_open.sum())
        found = np.setdiff1d(label, [0, IGNORE])
        maps = (label == found[:, None, None]).astype(np.uint8) * np.uint8(255)
        classes = [int(value) - 1 for value in found]
        counted.add(maps, classes, np.where(left_open, np.uint8(IGNORE), mask), id)
