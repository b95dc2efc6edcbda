"""`infercam run --cluster ray`: the driver, which hands out images, keeps the index, and tries again what was lost.

The list is worked through in legs of bounded size. In a leg, Ray Data streams small blocks of rows to actors that
hold an engine each (worker.py); a block whose worker died simply gives no results. What then lacks a result is
done again, now alone, one image at a time on a worker, so that an image which kills its worker (a decoder's crash,
memory) takes no other with it; one that does so every time is listed as failed. Ray itself retries nothing.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from infercam.engine.common.errors import BackendError, InfercamError, InputError, StoreError
from infercam.engine.common.prefetch import prefetch
from infercam.engine.data.images import DEFAULT_MAX_PIXELS
from infercam.engine.data.sources import Item, Source
from infercam.engine.data.storage import LocalStorage, Storage, open_storage
from infercam.engine.method.recipe import Mode, Recipe
from infercam.engine.run.giving_up import Hope, spread_first
from infercam.engine.run.ray_pool import WorkerPool, first_line, quieten
from infercam.engine.run.ray_worker import ImageOutcome, ImageRow, Worker, WorkerTask, as_columns
from infercam.engine.run.run import Summary, Watcher
from infercam.engine.run.settings import EngineSpec, LabelLookup, MapSettings, Predicted
from infercam.engine.run.shards import Shard
from infercam.engine.store.failures import Failures
from infercam.engine.store.mapstore import MapStore

LEG = 100_000  # images whose rows the driver holds at once
READ_AHEAD = 4  # images that a worker has read beyond those its scheduler holds
BLOCK = 16  # images of one task at most: a worker reports them together
ALONE = 2  # times that an image is tried alone before it is given up
HOPELESS = 200  # more images than this, not one of which could be done: it is not the images
LOOKERS = 8  # threads that look what is done already
FINISHED = object()


class ClusterRun:
    """One run of a recipe over a source into a store, on a pool of workers; as run.Run, called the same way."""

    def __init__(
        self,
        pool: WorkerPool,
        engine: EngineSpec,
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
        say: Callable[[str], None] = lambda line: None,
        worker: type[Worker] = Worker,
    ) -> None:
        self.pool = pool
        self.source = shard.of(source) if shard else source
        self.labels = labels
        self.watch = watch or (lambda summary, scheduler: None)
        self.stop = threading.Event()
        """Set it to end without waiting for the images under way (SIGTERM, SIGINT)."""
        self._say = say
        self._worker = worker
        self.map_settings, images = _ask_a_worker(pool, engine, recipe, mode)
        self.in_flight = images + READ_AHEAD
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
        predict = labels.threshold if isinstance(labels, Predicted) else None
        self._task = WorkerTask(
            engine=engine,
            recipe=self.map_settings.recipe,
            mode=mode,
            source=self.source.place,
            store=_absolute(self.store.place),
            info=self.store.info,
            heatmaps=heatmaps and heatmaps.absolute(),
            max_pixels=max_pixels,
            predict=predict,
        )
        self._iterations = 0

    def __call__(self) -> Summary:
        """Do it. Raises StoreError where the store cannot be written, BackendError where no worker can work."""
        began = time.perf_counter()
        with ExitStack() as ends:  # the last is called first
            ends.callback(lambda: self._tally(time.perf_counter() - began))
            ends.callback(self.failures.close)
            ends.callback(self.store.close)
            order = spread_first(len(self.source))
            for _ in range(0, len(self.source), LEG):
                if not self.stop.is_set():
                    self._leg(islice(order, LEG))
        self.watch(self.summary, None)
        return self.summary

    # -- a leg ---------------------------------------------------------------------------------------------
    def _leg(self, places: Iterable[int]) -> None:
        left = {row.at: row for row in self._due(places)}
        for attempt in range(1 + ALONE):
            if not left or self.stop.is_set():
                return
            before = len(left)
            if attempt:
                self._say(
                    f"{before} images were lost with their workers; trying each alone ({attempt} of {ALONE})"
                )
            for outcome in self._round(list(left.values()), alone=attempt > 0):
                if left.pop(outcome.at, None) is not None:
                    self._take(outcome)
            if len(left) == before > HOPELESS and not self.stop.is_set():
                raise BackendError(
                    f"workers died at each of {before} images; not the images' fault: look at a worker's memory, "
                    "GPU and libraries with `infercam doctor`, or lower --workers"
                )
        if not self.stop.is_set():
            for row in left.values():
                self._fail(
                    row.id, BackendError(f"its worker died {1 + ALONE} times (a crash, or out of memory)")
                )

    def _due(self, places: Iterable[int]) -> Iterator[ImageRow]:
        """The images of a leg that have to be done; the others are counted here."""
        items = ((at, self.source[at]) for at in places if not self.stop.is_set())
        for id, row in prefetch(self._look, items, LOOKERS, 4 * LOOKERS):
            if isinstance(row, Exception):
                self._fail(id, row)
            elif row is None:
                self.summary.kept += 1
            else:
                yield row
        self.watch(self.summary, None)

    def _look(self, numbered: tuple[int, Item]) -> tuple[str, ImageRow | Exception | None]:
        """The image's row, None where its maps are there already, or why it has none. On several threads."""
        at, item = numbered
        try:
            classes, fingerprint = self.map_settings.of_image(self.labels, item.id)
            if self.store.done(item.id, fingerprint):
                return item.id, None
            path = str(item.path.absolute()) if self.source.place is None else item.path.as_posix()
            return item.id, ImageRow(at, item.id, path, json.dumps(classes), fingerprint)
        except Exception as e:  # whatever it is, it fails this image and not the run
            return item.id, e

    def _take(self, outcome: ImageOutcome) -> None:
        s, id = self.summary, self.source[outcome.at].id
        s.tiles += outcome.tiles
        self._iterations += outcome.iterations
        s.network_pixels += outcome.pixels
        s.views += outcome.views
        s.batches += outcome.batches
        s.enlarged += outcome.enlarged
        if outcome.fatal:
            raise StoreError(outcome.reason)
        if outcome.size < 0:
            self._fail(id, _Told(outcome.reason))
            return
        self.store.record_done(id, outcome.fingerprint, outcome.size)
        s.done += 1
        s.map_bytes += outcome.size

    # -- Ray -----------------------------------------------------------------------------------------------
    def _round(self, rows: Sequence[ImageRow], *, alone: bool) -> Iterator[ImageOutcome]:
        """What becomes of the rows; none of those whose worker died. Returns early where the run is stopped."""
        blocks: queue.Queue[Any] = queue.Queue(maxsize=64)
        threading.Thread(target=self._stream, args=(rows, alone, blocks), daemon=True).start()
        while not self.stop.is_set():
            try:
                block = blocks.get(timeout=0.25)
            except queue.Empty:
                self.watch(self.summary, None)
                continue
            if block is FINISHED:
                return
            if isinstance(block, Exception):
                raise block
            columns = [block[name].tolist() for name in ImageOutcome._fields]
            yield from map(ImageOutcome, *columns)
            self.watch(self.summary, None)

    def _stream(self, rows: Sequence[ImageRow], alone: bool, blocks: queue.Queue[Any]) -> None:
        """On a thread, for a signal is not to wait for the next block."""
        try:
            for block in self._dataset(rows, alone).iter_batches(batch_size=None, prefetch_batches=0):
                blocks.put(block)
            blocks.put(FINISHED)
        except InfercamError as e:
            blocks.put(e)
        except Exception as e:
            blocks.put(BackendError(f"Ray gave up: {first_line(e)}"))

    def _dataset(self, rows: Sequence[ImageRow], alone: bool) -> Any:
        import pyarrow
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # a block whose worker died is missing, and that is seen here
        in_flight = 1 if alone else self.in_flight
        size = 1 if alone else max(2, min(BLOCK, in_flight // 4))
        calls = -(-in_flight // size)
        tables = [pyarrow.table(as_columns(list(rows[n : n + size]))) for n in range(0, len(rows), size)]
        compute = ray.data.ActorPoolStrategy(
            size=min(self.pool.workers, len(tables)),
            max_tasks_in_flight_per_actor=1 if alone else calls + 1,
            max_concurrent_calls_per_actor=calls,
            enable_true_multi_threading=True,
        )
        quieten()
        with warnings.catch_warnings():  # Ray 2.60 to 2.63: the last two are to have other names in 2.64
            warnings.simplefilter("ignore")
            return ray.data.from_arrow(tables).map_batches(
                self._worker,
                batch_size=None,
                batch_format="numpy",
                compute=compute,
                fn_constructor_args=(self._task, in_flight),
                num_cpus=self.pool.cpus,
                num_gpus=self.pool.gpus,
                max_restarts=-1,
                max_task_retries=0,
            )

    # -- counting ------------------------------------------------------------------------------------------
    def _fail(self, name: str, error: Exception) -> None:
        self.summary.failed += 1
        self.failures.add(name, error)
        lost = self._hope.lost(name, self.summary.done + self.summary.kept, self.failures.groups)
        if lost is not None:
            self.summary.gave_up = lost
            self.stop.set()

    def _tally(self, seconds: float) -> None:
        s = self.summary
        s.ended(seconds)
        s.reasons = self.failures.groups.to_json()
        s.mean_iterations = round(self._iterations / s.tiles, 3) if s.tiles else 0.0


def _absolute(place: Storage) -> Storage:
    """As workers can find it, whose folder is another."""
    return place if place.remote else LocalStorage(place.path.absolute())


class _Told(InputError):
    """A reason that a worker has put into words."""


def _ask_a_worker(
    pool: WorkerPool, engine: EngineSpec, recipe: Recipe, mode: Mode
) -> tuple[MapSettings, int]:
    """What a worker would make: this machine may lack its GPU. Raises what the engine raises there."""
    import ray

    ask = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=1)(_asked)
    try:
        found = ray.get(ask.remote(engine, recipe, mode))
    except ray.exceptions.RayError as e:
        raise BackendError(f"a worker could not start its engine: {first_line(e)}") from None
    if isinstance(found, InfercamError):
        raise found
    return found


def _asked(engine: EngineSpec, recipe: Recipe, mode: Mode) -> tuple[MapSettings, int] | InfercamError:
    try:
        return engine.map_settings(recipe, mode)
    except InfercamError as e:  # as a value: Ray would wrap it into pages
        return e
