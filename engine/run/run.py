"""`infercam run` in one process: a source of images, or a shard of it, to a map store. Resumable, bounded in memory,
one bad image never stops it.

Reading, inference and writing overlap: reader threads look a few images ahead, the driver (this thread) feeds the
scheduler, a writer thread compresses and writes. What is in flight is bounded at each of the three.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infercam.engine.api import Engine, Result
from infercam.engine.common.errors import StoreError
from infercam.engine.common.in_flight import InFlight
from infercam.engine.common.prefetch import prefetch
from infercam.engine.data.images import DEFAULT_MAX_PIXELS
from infercam.engine.data.sources import Item, Source, read_pixels
from infercam.engine.data.storage import open_storage
from infercam.engine.method.recipe import Mode, Recipe
from infercam.engine.method.scheduler import Scheduler
from infercam.engine.run.giving_up import Hope, spread_first
from infercam.engine.run.isolated import IsolatedImage, Isolation, KillsItsProcess, in_flight_file
from infercam.engine.run.settings import EngineSpec, LabelLookup, MapSettings, Predicted
from infercam.engine.run.shards import Shard
from infercam.engine.run.writes import Writes, WritesInTurn
from infercam.engine.store.failures import Failures
from infercam.engine.store.mapstore import MapRecord, MapStore

__all__ = ["LabelLookup", "Predicted", "Run", "Summary", "Watcher", "record_of"]

REMEMBER_AFTER = 100  # images
REMOTE = 16  # requests to a remote place at once: it answers slowly, but many together


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
    prepared: int = 0
    """Shapes of batches that were made ready before the first one, of `to_prepare` that earlier runs met (on a
    GPU)."""
    to_prepare: int = 0
    enlarged: int = 0
    """Views of a tile that were too small for the network, and were enlarged to the least that it takes."""
    map_bytes: int = 0
    reasons: list[dict[str, Any]] = field(default_factory=list)
    """Why images failed: {"count", "reason"}, the commonest first; see store/failure_groups.py."""
    gave_up: str = ""
    """Where the run stopped by itself since all images failed alike: the commonest reason; see run/giving_up.py."""
    settings: dict[str, Any] = field(default_factory=dict)

    def ended(self, seconds: float) -> None:
        """Fill in what is known at the end."""
        self.left = self.images - self.done - self.kept - self.failed
        self.seconds = round(seconds, 3)
        self.images_per_second = round(self.done / seconds, 4) if seconds > 0 else 0.0

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
        out: str | os.PathLike[str],
        *,
        recipe: Recipe,
        mode: Mode,
        fmt: str = "npz",
        dtype: str = "uint8",
        heatmaps: Path | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        watch: Watcher | None = None,
        shard: Shard | None = None,
        overlap: bool = True,
    ) -> None:
        """overlap: read ahead of the inference and write behind it; False: in turn, to measure what that saves."""
        self.engine = engine
        self.source = shard.of(source) if shard else source
        self.labels = labels
        self.map_settings = MapSettings.of(engine, recipe, mode)
        self.heatmaps = heatmaps
        self.max_pixels = max_pixels
        self.overlap = overlap
        self.watch = watch or (lambda summary, scheduler: None)
        self.stop = threading.Event()
        """Set it to finish what is in flight and end (SIGTERM, SIGINT)."""
        settings = self.map_settings.settings(labels, source)
        self.summary = Summary(
            images=len(self.source), settings={**settings, "backend": self.map_settings.backend}
        )
        place, tag = open_storage(out), shard.tag if shard else ""
        self.store = MapStore.create_or_open(
            place, fmt=fmt, dtype=dtype, classes=self.map_settings.classes, settings=settings, shard=tag
        )
        self.failures = Failures(place, tag)
        self._hope = Hope(self.source)
        self.in_flight = InFlight(in_flight_file(place, tag))
        self._alone = frozenset(self.in_flight.suspects)
        """Ids of images during which an earlier run was killed: each is done in a process of its own."""
        self._prints: dict[str, str] = {}  # id -> fingerprint, for images in flight
        self._counting = threading.Lock()
        self._ended = 0

    def __call__(self) -> Summary:
        """Do it. Raises StoreError where the store cannot be written; what is done stays done."""
        began = time.perf_counter()
        writes: Writes | WritesInTurn
        if self.overlap:
            writes = Writes(self._write, REMOTE if self.store.place.remote else 1)
        else:
            writes = WritesInTurn(self._write)
        made = self.map_settings
        with ExitStack() as ends:  # the last is called first
            ends.callback(lambda: self._tally(time.perf_counter() - began))
            ends.callback(self.failures.close)
            ends.callback(self.store.close)
            ends.callback(self.in_flight.close)
            ends.callback(writes.close)
            if self._alone:
                self._one_at_a_time([item for item in self.source if item.id in self._alone])
            ends.callback(self.engine.remember)
            for result in self.engine.stream(self._items(), made.recipe, made.mode, self._turn):
                if result.error is not None:
                    self._fail(result.id, result.error)
                else:
                    writes.put(result)
                self._remember_in_time()
                self._turn(self.engine.scheduler)
        self._turn(self.engine.scheduler)  # the last images were written after the last turn
        return self.summary

    # -- reading -------------------------------------------------------------------------------------------
    def _items(self) -> Iterator[tuple[str, NDArray[np.uint8], list[int]]]:
        """Images that are due, as the scheduler asks for them; the rest is counted here."""
        ahead = (REMOTE, 2 * REMOTE) if self.source.place else (2, 4)
        ahead = ahead if self.overlap else (1, 1)
        ready = False
        for read in prefetch(self._read, self._until_stopped(), *ahead):
            if isinstance(read.outcome, Exception):
                self._fail(read.id, read.outcome)
            elif read.outcome is None:
                self.summary.kept += 1
            else:
                self._prints[read.id] = read.fingerprint
                if not ready:  # there is something to do; meanwhile the next images are read
                    self._get_ready()
                    ready = True
                yield read.id, *read.outcome

    def _remember_in_time(self) -> None:
        """Now and then: a run that is killed has learnt something, too."""
        self._ended += 1
        if self._ended % REMEMBER_AFTER == 0:
            self.engine.remember()

    def _get_ready(self) -> None:
        """Prepare what earlier runs met."""
        for step in self.engine.preparing(self.map_settings.recipe, self.map_settings.mode):
            self.summary.prepared, self.summary.to_prepare = step
            self._turn(None)
            if self.stop.is_set():
                return

    def _until_stopped(self) -> Iterator[Item]:
        for at in spread_first(len(self.source)):
            if self.stop.is_set():
                return
            item = self.source[at]
            if item.id not in self._alone:
                yield item

    def _read(self, item: Item) -> _Read:
        """On a reader thread."""
        made = self.map_settings.recipe
        try:
            given, fingerprint = self.map_settings.of_image(self.labels, item.id)
            if self.store.done(item.id, fingerprint):
                return _Read(item.id, fingerprint, None)
            self.in_flight.begin(item.id)
            pixels = read_pixels(self.source.place, item.path, self.max_pixels)
            if isinstance(self.labels, Predicted):
                classes = self.engine.predict(pixels, self.labels.threshold, made.ladder)
            else:
                classes = given or []
            return _Read(item.id, fingerprint, (pixels, classes))
        except Exception as e:  # whatever it is, it fails this image and not the run
            return _Read(item.id, "", e)

    # -- what may end the process ----------------------------------------------------------------------------
    def _one_at_a_time(self, items: list[Item]) -> None:
        """Images that an earlier run was killed with, each in a process that may die of it."""
        with Isolation() as isolation:
            for item in items:
                if self.stop.is_set():
                    return
                try:
                    self._by_itself(isolation, item)
                except KillsItsProcess as e:
                    self._fail(item.id, e)
                    self.in_flight.killed(item.id)  # it stays listed
                except StoreError:
                    raise
                except Exception as e:  # as in _read
                    self._fail(item.id, e)
                self._turn(None)

    def _by_itself(self, isolation: Isolation, item: Item) -> None:
        given, fingerprint = self.map_settings.of_image(self.labels, item.id)
        if self.store.done(item.id, fingerprint):
            self.summary.kept += 1
            self.in_flight.end(item.id)
            return
        self._prints[item.id] = fingerprint
        image = IsolatedImage(
            engine=EngineSpec.of(self.engine),
            recipe=self.map_settings.recipe,
            mode=self.map_settings.mode,
            place=self.source.place,
            id=item.id,
            path=item.path,
            classes=given,
            threshold=self.labels.threshold if isinstance(self.labels, Predicted) else 0.0,
            max_pixels=self.max_pixels,
        )
        self._write(isolation.do(image))

    # -- writing -------------------------------------------------------------------------------------------
    def _write(self, result: Result) -> None:
        """On a writer thread."""
        record = record_of(result, self.map_settings.classes, self.heatmaps)
        size = self.store.write(record, self._prints.pop(result.id))
        self.in_flight.end(result.id)
        with self._counting:
            self.summary.map_bytes += size
            self.summary.done += 1

    def _fail(self, name: str, error: Exception) -> None:
        self._prints.pop(name, None)
        self.in_flight.end(name)
        self.summary.failed += 1
        self.failures.add(name, error)
        lost = self._hope.lost(name, self.summary.done + self.summary.kept, self.failures.groups)
        if lost is not None:
            self.summary.gave_up = lost
            self.stop.set()

    # -- counting ------------------------------------------------------------------------------------------
    def _turn(self, scheduler: Scheduler | None) -> None:
        self.watch(self.summary, scheduler)

    def _tally(self, seconds: float) -> None:
        s = self.summary
        s.ended(seconds)
        s.reasons = self.failures.groups.to_json()
        if self.engine.scheduler is not None:
            stats = self.engine.scheduler.stats
            s.tiles, s.views, s.batches = stats.tiles, stats.views, stats.batches
            s.network_pixels, s.enlarged = stats.pixels, stats.enlarged
            s.mean_iterations = round(stats.iterations / stats.tiles, 3) if stats.tiles else 0.0


def record_of(result: Result, classes: list[str], heatmaps: Path | None = None) -> MapRecord:
    """A result as the store takes it; writes its overlay picture too, where `heatmaps` names a folder."""
    names = [classes[c] for c in result.classes]
    # Sorted: the order in which tiles end hangs on what else is in flight.
    meta = {"iterations": result.iterations}
    record = MapRecord(result.id, result.classes, names, result.maps, meta)
    if heatmaps is not None:
        from infercam.engine.store.heatmaps import write_overlay

        assert result.pixels is not None
        write_overlay(heatmaps, result.pixels, record)
    return record
