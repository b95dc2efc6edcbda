"""What runs on the cluster's machines: an engine that is fed by several calls at once, so that it never drains.

A row is an image to do; it is read, inferred and written here, and only its size, or why it failed, goes back.
"""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from infercam.engine.common.errors import StoreError
from infercam.engine.data.sources import read_pixels
from infercam.engine.data.storage import Storage
from infercam.engine.live import LiveEngine
from infercam.engine.method.recipe import Mode, Recipe
from infercam.engine.method.scheduler import Stats
from infercam.engine.run.run import record_of
from infercam.engine.run.settings import EngineSpec
from infercam.engine.store.failures import one_line
from infercam.engine.store.mapstore import MapStore, StoreInfo

DEAD_ENGINE = 70  # exit code of a worker whose engine has died: Ray starts another


@dataclass(frozen=True)
class WorkerTask:
    """What every worker of a run is told."""

    engine: EngineSpec
    recipe: Recipe
    mode: Mode
    source: Storage | None
    store: Storage
    info: StoreInfo
    heatmaps: Path | None
    max_pixels: int
    predict: float | None
    """Least probability of a class, where the classifier is to say them."""


class ImageRow(NamedTuple):
    """An image to do: its place in the list, names, classes as JSON (null: predict) and fingerprint."""

    at: int
    id: str
    path: str
    classes: str
    fingerprint: str


class ImageOutcome(NamedTuple):
    """What became of a row. `size`: bytes of its file, or -1 where `reason` says why there is none; `fatal`: the
    store cannot be written, so the rest would fail as well. The counters are the engine's since its last report."""

    at: int
    fingerprint: str
    size: int
    reason: str
    fatal: bool
    tiles: int
    iterations: int
    pixels: int = 0
    views: int = 0
    batches: int = 0
    enlarged: int = 0


_COUNTED = ("pixels", "views", "batches", "enlarged")
"""Of Stats, each a field of ImageOutcome."""


class Worker:
    """For Ray Data's map_batches: columns of `ImageRow` to columns of `ImageOutcome`. Calls may overlap."""

    def __init__(self, task: WorkerTask, in_flight: int) -> None:
        self.task = task
        self.engine = task.engine.load()
        self.live = LiveEngine(self.engine)
        self.store = MapStore(task.store, task.info, indexed=False)
        self._hands = ThreadPoolExecutor(in_flight, thread_name_prefix="infercam-image")
        self._counting = threading.Lock()
        self._counted = Stats()

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        columns = (rows[name].tolist() for name in ImageRow._fields)
        outcomes = list(self._hands.map(self.do, map(ImageRow, *columns)))
        if not self.live.alive:
            os._exit(DEAD_ENGINE)  # every later image would fail for nothing of its own
        return as_columns([outcomes[0]._replace(**self._counts()), *outcomes[1:]])

    def do(self, row: ImageRow) -> ImageOutcome:
        """One image, on a thread of its own: that waits most of the time."""
        try:
            pixels = read_pixels(self.task.source, row.path, self.task.max_pixels)
            classes = json.loads(row.classes)
            if classes is None:
                classes = self._predict(pixels)
            result = self.live.submit(row.id, pixels, classes, self.task.recipe, self.task.mode).result()
            del pixels
            record = record_of(result, self.engine.manifest.classes, self.task.heatmaps)
        except Exception as e:  # whatever it is, it fails this image and not the run
            return _failed(row, e, fatal=False)
        try:
            size = self.store.write_file(record, row.fingerprint)
        except StoreError as e:
            return _failed(row, e, fatal=True)
        return ImageOutcome(
            row.at, row.fingerprint, size, "", False, len(result.iterations), sum(result.iterations)
        )

    def _predict(self, pixels: np.ndarray) -> list[int]:
        assert self.task.predict is not None
        scores = self.live.scores(pixels, self.task.recipe.ladder).result()
        return [int(c) for c in np.flatnonzero(self.engine.probabilities(scores) > self.task.predict)]

    def _counts(self) -> dict[str, Any]:
        with self._counting:
            now, before = self.live.stats, self._counted
            self._counted = now
        return {name: getattr(now, name) - getattr(before, name) for name in _COUNTED}


def _failed(row: ImageRow, error: Exception, *, fatal: bool) -> ImageOutcome:
    return ImageOutcome(row.at, row.fingerprint, -1, one_line(error), fatal, 0, 0)


def as_columns(tuples: list[Any]) -> dict[str, np.ndarray]:
    """NamedTuples of one kind as arrays by field name."""
    names = tuples[0]._fields
    return {name: np.array(column) for name, column in zip(names, zip(*tuples, strict=True), strict=True)}
