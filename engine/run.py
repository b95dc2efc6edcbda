"""`infercam run`: a source of images to a map store. Resumable, bounded in memory, one bad image never stops it.

Reading, inference and writing overlap: reader threads look a few images ahead, the driver (this thread) feeds the
scheduler, a writer thread compresses and writes. What is in flight is bounded at each of the three.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .api import Engine, Result
from .failures import FAILURES, Failures
from .images import DEFAULT_MAX_PIXELS, read_image
from .mapstore import MapRecord, MapStore
from .prefetch import prefetch
from .recipe import Mode, Recipe
from .scheduler import Scheduler
from .sources import Item, Source

WRITES_WAITING = 8


class LabelLookup(Protocol):
    """Where an image's classes come from; see labels.load_labels."""

    def lookup(self, id: str) -> list[int]: ...
    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Predicted:
    """Labels predicted by the classifier itself: every class whose probability passes `threshold`."""

    threshold: float = 0.5

    def describe(self) -> dict[str, Any]:
        return {"kind": "predict", "threshold": self.threshold}


@dataclass
class Summary:
    """What a run did; `--json` writes it."""

    images: int = 0
    done: int = 0
    """Written by this run."""
    kept: int = 0
    """There already, made with the same settings."""
    failed: int = 0
    left: int = 0
    """Not finished, because the run was stopped."""
    seconds: float = 0.0
    images_per_second: float = 0.0
    tiles: int = 0
    mean_iterations: float = 0.0
    network_pixels: int = 0
    views: int = 0
    batches: int = 0
    map_bytes: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


Watcher = Callable[[Summary, Scheduler | None], None]


class _Read(NamedTuple):
    """What a reader thread found: pixels and classes, None (there already), or why it cannot be used."""

    id: str
    fingerprint: str
    outcome: tuple[NDArray[np.uint8], list[int]] | Exception | None


class Run:
    """One run of a recipe over a source into a store."""

    def __init__(
        self,
        engine: Engine,
        source: Source,
        labels: LabelLookup | Predicted,
        out: Path,
        *,
        recipe: Recipe,
        mode: Mode,
        fmt: str = "npz",
        dtype: str = "uint8",
        heatmaps: Path | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        watch: Watcher | None = None,
    ) -> None:
        self.engine = engine
        self.source = source
        self.labels = labels
        self.recipe = engine.recipe(recipe)
        self.mode: Mode = mode
        self.heatmaps = heatmaps
        self.max_pixels = max_pixels
        self.watch = watch or (lambda summary, scheduler: None)
        self.stop = threading.Event()
        """Set it to finish what is in flight and end (SIGTERM, SIGINT)."""
        self.summary = Summary(images=len(source), settings=self._settings())
        classes = engine.manifest.classes
        self.store = MapStore.create_or_open(
            out, fmt=fmt, dtype=dtype, classes=classes, settings=self.summary.settings
        )
        self.failures = Failures(out / FAILURES)
        self._prints: dict[str, str] = {}  # id -> fingerprint, for images in flight
        self._base = self._base_fingerprint()

    def _settings(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "mode": self.mode,
            "labels": self.labels.describe(),
            "source": self.source.describe(),
            "bundle": {"name": self.engine.manifest.name, "hash": self.engine.bundle.hash},
            "backend": self.engine.backend.describe(),
            "infercam": version("infercam"),
        }

    def _base_fingerprint(self) -> str:
        key = [self.recipe.fingerprint(self.mode), self.engine.bundle.hash]
        if (precision := self.engine.backend.precision) not in ("fp32", "tf32"):
            key.append(precision)
        if isinstance(self.labels, Predicted):
            key.append(f"predict {self.labels.threshold}")
        return " ".join(key)

    def fingerprint(self, classes: list[int] | None) -> str:
        """What decides one image's maps: recipe, mode, bundle and its classes (or how they are predicted)."""
        return hashlib.sha256(f"{self._base} {classes}".encode()).hexdigest()[:16]

    def __call__(self) -> Summary:
        """Do it. Raises StoreError where the store cannot be written; what is done stays done."""
        began = time.perf_counter()
        writes = _Writes(self._write)
        try:
            for result in self.engine.stream(self._items(), self.recipe, self.mode, self._turn):
                if result.error is not None:
                    self._fail(result.id, result.error)
                else:
                    writes.put(result)
                self._turn(self.engine.scheduler)
        finally:
            try:
                writes.close()
            finally:
                self._tally(time.perf_counter() - began)
        self._turn(self.engine.scheduler)  # the last images were written after the last turn
        return self.summary

    # -- reading -------------------------------------------------------------------------------------------
    def _items(self) -> Iterator[tuple[str, NDArray[np.uint8], list[int]]]:
        """Images that are due, as the scheduler asks for them; the rest is counted here."""
        for read in prefetch(self._read, self._until_stopped()):
            if isinstance(read.outcome, Exception):
                self._fail(read.id, read.outcome)
            elif read.outcome is None:
                self.summary.kept += 1
            else:
                self._prints[read.id] = read.fingerprint
                yield read.id, *read.outcome

    def _until_stopped(self) -> Iterator[Item]:
        for item in self.source:
            if self.stop.is_set():
                return
            yield item

    def _read(self, item: Item) -> _Read:
        """On a reader thread."""
        try:
            given = None if isinstance(self.labels, Predicted) else self.labels.lookup(item.id)
            fingerprint = self.fingerprint(given)
            if self.store.done(item.id, fingerprint):
                return _Read(item.id, fingerprint, None)
            pixels = read_image(item.path, self.max_pixels)
            if isinstance(self.labels, Predicted):
                classes = self.engine.predict(pixels, self.labels.threshold)
            else:
                classes = given or []
            return _Read(item.id, fingerprint, (pixels, classes))
        except Exception as e:  # whatever it is, it fails this image and not the run
            return _Read(item.id, "", e)

    # -- writing -------------------------------------------------------------------------------------------
    def _write(self, result: Result) -> None:
        """On the writer thread."""
        names = [self.engine.manifest.classes[c] for c in result.classes]
        meta = {"iterations": result.iterations}
        record = MapRecord(result.id, result.classes, names, result.maps, meta)
        if self.heatmaps is not None:
            self._overlay(record, result)
        size = self.store.write(record, self._prints.pop(result.id))
        self.summary.map_bytes += size
        self.summary.done += 1

    def _overlay(self, record: MapRecord, result: Result) -> None:
        from .heatmaps import write_overlay

        assert self.heatmaps is not None and result.pixels is not None
        write_overlay(self.heatmaps, result.pixels, record)

    def _fail(self, name: str, error: Exception) -> None:
        self._prints.pop(name, None)
        self.summary.failed += 1
        self.failures.add(name, error)

    # -- counting ------------------------------------------------------------------------------------------
    def _turn(self, scheduler: Scheduler | None) -> None:
        self.watch(self.summary, scheduler)

    def _tally(self, seconds: float) -> None:
        s = self.summary
        s.left = s.images - s.done - s.kept - s.failed
        s.seconds = round(seconds, 3)
        s.images_per_second = round(s.done / seconds, 4) if seconds > 0 else 0.0
        if self.engine.scheduler is not None:
            stats = self.engine.scheduler.stats
            s.tiles, s.views, s.batches = stats.tiles, stats.views, stats.batches
            s.network_pixels = stats.pixels
            s.mean_iterations = round(stats.iterations / stats.tiles, 3) if stats.tiles else 0.0


class _Writes:
    """One writer thread behind a bounded queue; its first error is raised by the next `put`, or by `close`."""

    def __init__(self, write: Callable[[Result], None]) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="infercam-write")
        self._room = threading.Semaphore(WRITES_WAITING)
        self._error: BaseException | None = None

    def put(self, result: Result) -> None:
        self._room.acquire()
        if self._error is not None:
            raise self._error
        self._pool.submit(self._write, result).add_done_callback(self._ended)

    def _ended(self, future: Future[None]) -> None:
        self._error = self._error or future.exception()
        self._room.release()

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        if self._error is not None:
            raise self._error
