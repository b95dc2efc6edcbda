"""`infercam eval`: the maps of a store against ground-truth masks, in one pass, over several processes.

The counting is in image_counts.py and histogram.py, the figures in scores.py, the bootstrap in resampling.py; their
public names can be imported from here. Labels instead of maps: evaluate_labels.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.paths import spellings
from infercam.engine.common.processes import chosen_workers, map_in_processes
from infercam.engine.evaluation.coverage import coverage
from infercam.engine.evaluation.ground_truth import GroundTruth, folder_ground_truth, voc_ground_truth
from infercam.engine.evaluation.histogram import THRESHOLDS, ImageCounts, JointHistogram, count_image
from infercam.engine.evaluation.label_png import read_mask
from infercam.engine.evaluation.mask_values import ValueTable
from infercam.engine.evaluation.resampling import Difference, add_intervals, compare
from infercam.engine.evaluation.scores import EvalResult, GroupScore, Interval, Score, evaluate, summarise
from infercam.engine.store.mapstore import MapStore

__all__ = [
    "THRESHOLDS",
    "Difference",
    "EvalResult",
    "GroundTruth",
    "GroupScore",
    "ImageCounts",
    "Interval",
    "JointHistogram",
    "Predictions",
    "Score",
    "add_intervals",
    "compare",
    "count_image",
    "evaluate",
    "evaluate_store",
    "folder_ground_truth",
    "read_mask",
    "score",
    "summarise",
    "voc_ground_truth",
]

_CHUNK = 32  # images a task
_INLINE = 500  # fewer images than this are counted before new processes have started
MISSING = ("error", "skip", "zero")


def evaluate_store(
    store: MapStore,
    truth: GroundTruth,
    *,
    missing: str = "error",
    min_images: int = 7,
    workers: int | None = 1,
    bootstrap: int = 0,
    keep_images: bool = True,
    progress: Callable[[int], None] | None = None,
) -> EvalResult:
    """Score a store's maps against masks; class c of the store is mask value c + 1, or the one of its name where the
    ground truth names its values.

    Args:
        missing: what an image of `truth` without maps means: 'error', 'skip' it, or 'zero' activation.
        min_images: the 'frequent' mean takes classes in the ground truth of at least so many images.
        workers: processes (spawned: a script needs its `if __name__ == "__main__"`); None: one per core.
        bootstrap: resamples for the intervals; 0: none.
        keep_images: whether the result has the images' own `counts`, for `compare` and reports; with a bootstrap it
            always has. Kept on disk where they are many.
        progress: called with the number of images each time some are counted.

    Raises InputError or StoreError naming the image where maps are missing, corrupt or of another size
    than the mask, where a mask has values beyond the classes, or no mask has any class. Memory: the ids, and one
    image a process.
    """
    return score(_Maps(store), truth, missing, min_images, workers, bootstrap, keep_images, progress)


class Predictions(Protocol):
    """What is scored, maps or labels, by the images' ids; sent to the processes that count."""

    noun: str
    path: Path
    classes: list[str]
    settings: dict[str, Any]

    def __contains__(self, id: object) -> bool: ...

    def ids(self) -> list[str]: ...

    def add(self, counted: JointHistogram, id: str, mask: np.ndarray) -> None:
        """Count one image."""


def score(
    predictions: Predictions,
    truth: GroundTruth,
    missing: str,
    min_images: int,
    workers: int | None,
    bootstrap: int,
    keep_images: bool,
    progress: Callable[[int], None] | None,
) -> EvalResult:
    """As `evaluate_store`, of any predictions."""
    if missing not in MISSING:
        raise InputError(f"missing is one of {', '.join(MISSING)}, not {missing!r}")
    table = truth.table(predictions.classes)
    present, absent = _present(predictions, truth, missing)
    chunks = [present[i : i + _CHUNK] for i in range(0, len(present), _CHUNK)]
    keep = keep_images or bootstrap > 0
    task = _Task(predictions, truth.read, table, missing == "zero", keep)
    total = JointHistogram(len(predictions.classes), keep_images=keep)
    processes = min(chosen_workers(workers, len(present), _INLINE), max(len(chunks), 1))
    for part in map_in_processes(task, chunks, processes):
        total.merge(part)
        if progress:
            progress(int(part.images.sum()))
    result = summarise(total, min_images=min_images, class_names=predictions.classes, name=truth.masks)
    result.ground_truth, result.split = truth.masks, truth.split
    result.maps, result.settings, result.missing = str(predictions.path), predictions.settings, absent
    if bootstrap:
        add_intervals(result, bootstrap)
    return result


class _Maps:
    """The maps of a store; pickled without its index, which is not loaded."""

    noun = "maps"

    def __init__(self, store: MapStore) -> None:
        self.store, self.path = store, store.path
        self.classes, self.settings = store.info.classes, store.info.settings

    def __contains__(self, id: object) -> bool:
        return id in self.store

    def ids(self) -> list[str]:
        return self.store.ids()

    def add(self, counted: JointHistogram, id: str, mask: np.ndarray) -> None:
        found = self.store.read_stored(id)
        counted.add(found.maps, found.classes, mask, id)


def _present(
    predictions: Predictions, truth: GroundTruth, missing: str
) -> tuple[Sequence[tuple[str, Path]], int]:
    """The pairs to score, and how many of all have nothing to score."""
    pairs = truth.pairs
    absent = {id for id, _ in pairs if id not in predictions}
    named = {id: name for id in absent if (name := _spelled(predictions, id)) is not None}
    if named:
        pairs = [(named.get(id, id), file) for id, file in pairs]
        absent -= named.keys()
    if not absent:
        return pairs, 0
    if missing == "error" or len(absent) == len(truth.pairs):
        wanted = [id for id, _ in pairs]
        has = predictions.ids()
        words = coverage(predictions.noun, wanted, absent, truth.split, has, predictions.settings)
        raise InputError(f"{shown(predictions.path)}: {words}")
    if missing == "zero":
        return pairs, len(absent)
    return [pair for pair in pairs if pair[0] not in absent], len(absent)


def _spelled(predictions: Predictions, id: str) -> str | None:
    """The name under which an image is there, where that is another Unicode form of its id."""
    return next((name for name in spellings(id)[1:] if name in predictions), None)


@dataclass(frozen=True)
class _Task:
    """What one process does with a chunk."""

    predictions: Predictions
    read: Callable[[str, Path], np.ndarray]
    table: ValueTable | None
    zero: bool
    keep_images: bool

    def __call__(self, pairs: Sequence[tuple[str, Path]]) -> JointHistogram:
        counted = JointHistogram(len(self.predictions.classes), keep_images=self.keep_images)
        for id, mask_file in pairs:
            mask = self.read(id, mask_file)
            if self.table is not None:
                mask, unlisted = self.table.apply(mask, id)
                counted.unlisted += unlisted
            if self.zero and id not in self.predictions:
                counted.add(np.zeros((0, *mask.shape), np.uint8), [], mask, id)
            else:
                self.predictions.add(counted, id, mask)
        return counted
