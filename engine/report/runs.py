"""The runs that a report compares: map stores and folders of labels, read alike and scored."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.errors import InputError, shown
from infercam.engine.data import voc
from infercam.engine.data.class_names import read_classes
from infercam.engine.evaluation.evaluate import (
    Difference,
    EvalResult,
    GroundTruth,
    ImageCounts,
    compare,
    evaluate_store,
)
from infercam.engine.evaluation.evaluate_labels import evaluate_labels, holds_labels
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.evaluation.label_png import read_label
from infercam.engine.store.formats.npz import quantise
from infercam.engine.store.mapstore import MapStore
from infercam.engine.store.open_maps import open_maps


@dataclass(frozen=True)
class Planes:
    """What a run says of one image: K maps (K, H, W) uint8 (value / 255), classes ascending; or of labels
    one plane (1, H, W) of values 0, class + 1, 255."""

    classes: list[int]
    levels: NDArray[np.uint8]


@dataclass(frozen=True)
class ShownRun:
    """One run; may be sent to other processes."""

    name: str
    folder: MapStore | LabelFolder
    classes: list[str]

    @property
    def kind(self) -> Literal["maps", "labels"]:
        return "maps" if isinstance(self.folder, MapStore) else "labels"

    @property
    def settings(self) -> dict[str, Any]:
        return self.folder.info.settings if self.folder.info else {}

    def __contains__(self, id: object) -> bool:
        return id in self.folder

    def file(self, id: str) -> Path:
        return self.folder.file(id)

    def read(self, id: str, size: tuple[int, int]) -> Planes:
        """Maps or labels of an image of that (height, width); raises InputError or StoreError naming it."""
        if isinstance(self.folder, LabelFolder):
            label = read_label(self.folder.file(id), len(self.classes), size)
            present = np.setdiff1d(label, [0, 255])
            return Planes([int(v) - 1 for v in present], label[None])
        found = self.folder.read_stored(id)
        if len(found.maps) and found.maps.shape[1:] != size:
            (h, w), (want_h, want_w) = found.maps.shape[1:], size
            raise InputError(
                f"{shown(id)}: its maps in {self.name} are {w}×{h}, the photo is {want_w}×{want_h}; "
                "name the images that the maps were made from"
            )
        order = np.argsort(found.classes, kind="stable")
        maps = (
            found.maps if found.maps.dtype == np.uint8 else quantise(found.maps.astype(np.float32), "uint8")
        )
        return Planes([found.classes[k] for k in order], maps[order])


def open_runs(paths: Sequence[Path], fmt: str | None = None, classes: Path | None = None) -> list[ShownRun]:
    """The runs at `paths`, named by their folders; `fmt` and `classes` as of `infercam eval`.

    Raises InputError where two runs have other classes, or one is named twice; StoreError where a path is
    neither a map store nor a folder of labels.
    """
    runs: list[ShownRun] = []
    for path, name in zip(paths, run_names(paths), strict=True):
        if fmt is None and holds_labels(path):
            labels = LabelFolder.open(path)
            names = labels.info.classes if labels.info else read_classes(classes) if classes else voc.CLASSES
            runs.append(ShownRun(name, labels, list(names)))
        else:
            store = open_maps(path, fmt, classes)
            runs.append(ShownRun(name, store, store.info.classes))
        if runs[-1].classes != runs[0].classes:
            raise InputError(f"{shown(path)}: has other classes than {shown(paths[0])}; report them apart")
    return runs


def run_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The shortest ends of the paths that tell them apart; raises InputError where a path comes twice."""
    parts = [Path(path).absolute().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise InputError("a run is named twice; name each once")
    names = []
    for one in parts:
        length = 1
        while length < len(one) and sum(other[-length:] == one[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(one[-length:]))
    return names


@dataclass(frozen=True, eq=False)
class Scored:
    """A run's figures, and per image (by id) the mean IoU at the run's best threshold."""

    result: EvalResult
    per_image: dict[str, float]


def score_run(
    run: ShownRun,
    truth: GroundTruth,
    *,
    min_images: int,
    workers: int | None,
    bootstrap: int,
    progress: Callable[[int], None] | None = None,
) -> Scored:
    """Score a run on images that it has; arguments and errors as `evaluate_store`."""
    if isinstance(run.folder, MapStore):
        result = evaluate_store(
            run.folder,
            truth,
            min_images=min_images,
            workers=workers,
            bootstrap=bootstrap,
            progress=progress,
        )
    else:
        result = evaluate_labels(
            run.folder,
            truth,
            classes=run.classes,
            min_images=min_images,
            workers=workers,
            bootstrap=bootstrap,
            progress=progress,
        ).scores
    step = result.all.step
    return Scored(result, {image.id: image_iou(image, step) for image in result.counts or []})


def image_iou(image: ImageCounts, step: int) -> float:
    """Mean IoU, in [0, 1], of the labels that the image's ground truth holds (background among them) at
    threshold `step` / 100; NaN without any. What is predicted beyond them counts by what it takes away."""
    rows = {int(label): row for row, label in enumerate(image.labels)}
    found = []
    for label, true in zip(image.true_labels.tolist(), image.true_counts.tolist(), strict=True):
        row = rows.get(label)
        hits = int(image.hits[row, step]) if row is not None else 0
        predicted = int(image.predicted[row, step]) if row is not None else 0
        found.append(hits / (true + predicted - hits))
    return float(np.mean(found)) if found else float("nan")


def differences(scored: Sequence[Scored], resamples: int) -> tuple[list[dict[str, Difference]], list[str]]:
    """Every further run against the first, by `compare`, and notes on those that cannot be compared.

    Labels that leave pixels open are scored on fewer pixels than maps are: no fair difference.
    """
    found, notes = [], []
    for other in scored[1:]:
        try:
            found.append(compare(scored[0].result, other.result, max(resamples, 1)))
        except InputError as e:
            found.append({})
            notes.append(f"{other.result.maps} is not compared: {e}")
    return found, notes
