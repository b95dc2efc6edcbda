"""Continuous batching of (tile, iteration) views: add, schedule, update, finish; decided anew at every turn.

Tiles of many images are in flight. Each turn, one batch is formed of views with equal network shapes; a tile
that has converged leaves at once and what it held is refilled by the next image. Nothing here touches pixels,
so the whole is tested against a simulated backend.

Order: the older image first, so that images finish and free their memory; a bucket that fills a whole batch
goes first, but the oldest view is passed over at most `patience` times, so none starves. Where a backend
cannot keep all shapes ready (Limits.keeps), a shape that is goes before one that would have to be prepared: on 300
VOC photos of exact sizes with 8 shapes kept, `released` prepares 6,604 times in place of 11,775.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.errors import BackendError
from infercam.engine.method.backend import Limits, OutOfMemory
from infercam.engine.method.geometry import ANY_SIZE, ViewSizes
from infercam.engine.method.program import Program
from infercam.engine.method.task import (
    Advance,
    Advanced,
    Done,
    ImageTask,
    Infer,
    Respond,
    Tile,
    Unite,
    View,
    Work,
    views_of,
)

SMALL = 6
"""Where a shape has two batch sizes (Limits.few_batches): the small one is this part of the full one,"""
FULL_ENOUGH = 0.7
"""and from this share of a full batch on the rest is filled up. Together: on 300 VOC photos, `released`, 4 % blank
pixels and 17 views a batch; any number of views a batch would make 2.7 times as many distinct batches."""


class Cancelled(BackendError):
    """An image that nobody waits for any more."""

    def __init__(self) -> None:
        super().__init__("cancelled")


class NotFinite(BackendError):
    """The network's response to an image is NaN or infinite: its maps would be nonsense."""

    def __init__(self) -> None:
        super().__init__("the response is not finite (half precision overflows?); try --precision fp32")


@dataclass
class Stats:
    """What the scheduler has done so far."""

    batches: int = 0
    views: int = 0
    pixels: int = 0
    """Network pixels inferred."""
    blank_pixels: int = 0
    """Those inferred beside them to fill batches up."""
    enlarged: int = 0
    """Views of a tile (mirrored ones not counted) that were too small for the network and were enlarged."""
    tiles: int = 0
    """Tiles that contribute to maps (not centre passes), finished."""
    iterations: int = 0
    """Iterations of those tiles."""
    images: int = 0
    halvings: int = 0
    retries: int = 0
    batch_sizes: Counter[int] = field(default_factory=Counter)


class Finished(NamedTuple):
    """An image that has left: its maps (K×H×W float32), or the error that ended it."""

    image: ImageTask
    maps: NDArray[np.float32] | None
    error: Exception | None


@dataclass(eq=False)
class _Waiting:
    """A view that waits in its bucket, and in the scheduler's order of all views."""

    shape: tuple[int, int]
    view: View | None
    """None once it was handed out, or its image has failed."""


Entry = tuple[int, int, _Waiting]
"""Image, order of arrival, view: the older image's views go first."""


class _Bucket:
    """Views of one shape, the oldest image's first."""

    def __init__(self) -> None:
        self.heap: list[Entry] = []

    def __len__(self) -> int:
        return len(self.heap)

    def push(self, entry: Entry) -> None:
        heapq.heappush(self.heap, entry)

    def head(self) -> tuple[int, int]:
        """(image, order) of the oldest view."""
        return self.heap[0][:2]

    def of_ladder(self) -> bool:
        """Whether the oldest view's shape is a rung and not its own."""
        view = self.heap[0][2].view
        return view is not None and view.tile.image.recipe.ladder

    def drop(self, image: ImageTask) -> None:
        for _, _, waiting in self.heap:
            if waiting.view is not None and waiting.view.tile.image is image:
                waiting.view = None
        self.heap = [entry for entry in self.heap if entry[2].view is not None]
        heapq.heapify(self.heap)

    def take(self, count: int) -> list[View]:
        out: list[View] = []
        while len(out) < count and self.heap:
            waiting = heapq.heappop(self.heap)[2]
            assert waiting.view is not None
            out.append(waiting.view)
            waiting.view = None
        return out


class Scheduler:
    """Holds the images in flight, each under its own recipe and mode, and says what to do next. Not thread-safe:
    one driver calls it."""

    def __init__(self, limits: Limits, sizes: ViewSizes = ANY_SIZE) -> None:
        self.limits = limits
        self.stats = Stats()
        self._sizes = sizes
        self._batch_pixels = limits.batch_pixels
        self._batch_views = limits.batch_views
        self._buckets: dict[tuple[int, int], _Bucket] = {}
        # Both below spare a look at every bucket at every turn: split tiles make hundreds, nearly all different.
        self._by_age: list[Entry] = []  # of all buckets; those handed out are dropped when they come up
        self._full: set[tuple[int, int]] = set()  # shapes with at least one whole batch
        self._ready: OrderedDict[tuple[int, tuple[int, int]], None] = OrderedDict()
        """Views in a batch and their size, of those that the backend keeps ready (Limits.keeps)."""
        self._urgent: deque[Work] = deque()  # Advance, Unite and single retries: they unblock or free
        self._live: dict[ImageTask, int] = {}  # image -> bytes
        self._bytes = 0
        self._order = 0
        self._passed_over = 0
        self._finished: deque[Finished] = deque()

    # -- add ---------------------------------------------------------------------------------------------
    def wants(self) -> bool:
        """True while another image may be added (its size still unknown: the budget may be passed by one)."""
        return not self._live or (self._bytes < self.limits.memory and len(self._live) < self.limits.images)

    def add(self, image: ImageTask, nbytes: int) -> None:
        """Take an image in; `nbytes`: what it is expected to hold while in flight."""
        image.seq = self._order
        self._order += 1
        self._live[image] = nbytes
        self._bytes += nbytes
        self._open(image, self._program(image).start(image))

    def cancel(self, image: ImageTask) -> None:
        """Drop what is queued for an image; it leaves, as `Cancelled`, once nothing of it is in flight."""
        if image in self._live:
            self._fail(image, Cancelled())
            self._leave(image, None, image.failed)

    # -- schedule ----------------------------------------------------------------------------------------
    def next(self) -> Work | None:
        """The next unit of work, or None if all that is known is in flight."""
        while self._urgent:
            work = self._urgent.popleft()
            if any(not image.failed for image in _images(work)):
                return self._hand_out(work)
        shape = self._choose()
        if shape is None:
            return None
        bucket = self._buckets[shape]
        count, slots = self._batch(shape, bucket)
        self._run(slots, shape)
        work = Respond(bucket.take(count), slots - count)
        self._note(shape, bucket)
        return self._hand_out(work)

    def _choose(self) -> tuple[int, int] | None:
        """The shape to serve: the oldest full bucket's, or else the oldest view's; where the backend cannot keep all
        shapes ready, those that are go before."""
        while self._by_age and self._by_age[0][2].view is None:
            heapq.heappop(self._by_age)
        if not self._by_age:
            return None
        oldest = self._by_age[0][2].shape
        costly = 0 < self.limits.keeps <= len(self._ready)  # until then nothing that was ready is lost
        rank = self._readiness_and_age if costly else self._age
        chosen = min(self._full, key=rank, default=None) or (self._ready_or(oldest) if costly else oldest)
        if chosen != oldest and self._passed_over >= self.limits.patience:
            chosen = oldest
        self._passed_over = 0 if chosen == oldest else self._passed_over + 1
        return chosen

    def _readiness_and_age(self, shape: tuple[int, int]) -> tuple[bool, tuple[int, int]]:
        """What is ready goes first, and then the older image."""
        return self._key(shape) not in self._ready, self._buckets[shape].head()

    def _age(self, shape: tuple[int, int]) -> tuple[bool, tuple[int, int]]:
        return False, self._buckets[shape].head()

    def _key(self, shape: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """A batch of that bucket as the network runs it."""
        return self._batch(shape, self._buckets[shape])[1], shape

    def _ready_or(self, oldest: tuple[int, int]) -> tuple[int, int]:
        """Where no batch is full: the oldest view's, or if that is not ready one that is, the oldest among those."""
        if self._key(oldest) in self._ready:
            return oldest
        waiting = [s for slots, s in self._ready if s in self._buckets and self._key(s) == (slots, s)]
        return min(waiting, key=lambda s: self._buckets[s].head(), default=oldest)

    def _run(self, slots: int, shape: tuple[int, int]) -> None:
        """Note that a batch of that shape is run, and so ready from now on, as long as the backend keeps it."""
        self._ready[slots, shape] = None
        self._ready.move_to_end((slots, shape))
        while len(self._ready) > self.limits.keeps:
            self._ready.popitem(last=False)

    def _note(self, shape: tuple[int, int], bucket: _Bucket) -> None:
        """Keep the index of buckets after one has changed."""
        if len(bucket) >= self._fit(shape):
            self._full.add(shape)
        else:
            self._full.discard(shape)
        if not bucket.heap:
            del self._buckets[shape]

    def _fit(self, shape: tuple[int, int]) -> int:
        return max(1, min(self._batch_views, self._batch_pixels // (shape[0] * shape[1])))

    def _batch(self, shape: tuple[int, int], bucket: _Bucket) -> tuple[int, int]:
        """How many views to take, and as how many the network is to run them: the rest is blank."""
        full = self._fit(shape)
        count = min(len(bucket), full)
        if not (self.limits.few_batches and bucket.of_ladder()):
            return count, count
        if count >= FULL_ENOUGH * full:
            return count, full
        small = max(1, round(full / SMALL))
        return min(count, small), small

    def _hand_out(self, work: Work) -> Work:
        for image in _images(work):
            image.in_flight += 1
        return work

    # -- update ------------------------------------------------------------------------------------------
    def update(self, done: Done) -> None:
        """Take in the outcome of a unit of work."""
        for image in _images(done.work):
            image.in_flight -= 1
        if done.error is not None:
            self._recover(done.work, done.error)
        elif isinstance(done.work, Respond):
            self._count(done.work)
            for view in done.work.views:
                self._responded(view)
        elif isinstance(done.work, Advance):
            if np.isfinite(done.result.peak).all():
                self._advanced(done.work.tile, done.result)
            else:
                self._recover(done.work, NotFinite())
        elif isinstance(done.work, Unite):
            self._leave(done.work.image, done.result, None)
        for image in _images(done.work):
            if image.failed:
                self._leave(image, None, image.failed)

    def _count(self, work: Respond) -> None:
        """Only what was inferred: a batch that failed is tried again, and counted then."""
        views = work.views
        self.stats.batches += 1
        self.stats.views += len(views)
        self.stats.pixels += sum(view.pixels for view in views)
        self.stats.blank_pixels += work.blank * views[0].pixels
        self.stats.batch_sizes[len(views)] += 1

    def _responded(self, view: View) -> None:
        view.tile.pending -= 1
        if not view.tile.pending:
            self._urgent.append(Advance(view.tile))

    def _advanced(self, tile: Tile, result: Advanced) -> None:
        goes_on, opened = self._program(tile.image).after(tile, result)
        self._open(tile.image, opened)
        if goes_on:
            self._queue(tile)
            return
        if tile.takes:
            self.stats.tiles += 1
            self.stats.iterations += tile.iteration
            tile.image.iterations.append(tile.iteration)
        tile.image.open_tiles -= 1
        if not tile.image.open_tiles:
            self._urgent.append(Unite(tile.image))

    def _open(self, image: ImageTask, tiles: list[Tile]) -> None:
        image.tiles += tiles
        image.open_tiles += len(tiles)
        for tile in tiles:
            self._queue(tile)

    def _program(self, image: ImageTask) -> Program:
        return Program(image.recipe, image.mode, self._sizes.smallest)

    def _queue(self, tile: Tile) -> None:
        views = views_of(tile, self._sizes)
        box = tile.box
        self.stats.enlarged += sum(self._sizes.enlarges(box.height, box.width, s) for s in tile.views.scales)
        tile.pending = len(views)
        for view in views:
            self._push(view)

    def _push(self, view: View) -> None:
        if view.tile.image.failed:
            return
        self._order += 1
        entry = (view.tile.image.seq, self._order, _Waiting(view.shape, view))
        bucket = self._buckets.setdefault(view.shape, _Bucket())
        bucket.push(entry)
        heapq.heappush(self._by_age, entry)
        self._note(view.shape, bucket)

    def _recover(self, work: Work, error: Exception) -> None:
        """Out of memory: halve the batch and try again. Another error in a batch of several images: try each
        alone, so that one bad image does not take the others with it. Else the image fails."""
        views = work.views if isinstance(work, Respond) else []
        if isinstance(error, OutOfMemory) and len(views) > 1:
            self.stats.halvings += 1
            # never up again: a larger batch of before the last halving may still be in flight
            self._batch_views = min(self._batch_views, max(1, len(views) // 2))
            self._batch_pixels = min(self._batch_pixels, max(1, sum(v.pixels for v in views) // 2))
            for shape, bucket in list(self._buckets.items()):
                self._note(shape, bucket)
            for view in views:
                self._push(view)
        elif len({id(v.tile.image) for v in views}) > 1:
            self.stats.retries += 1
            self._urgent.extend(Respond([view]) for view in views)
        else:
            for image in _images(work):
                self._fail(image, error)

    def _fail(self, image: ImageTask, error: Exception) -> None:
        image.failed = image.failed or error
        self._drop(image)

    # -- finish ------------------------------------------------------------------------------------------
    def _leave(self, image: ImageTask, maps: NDArray[np.float32] | None, error: Exception | None) -> None:
        """The image leaves, once nothing of it is in flight."""
        if image.in_flight or image not in self._live:
            return
        self._bytes -= self._live.pop(image)
        self.stats.images += error is None
        image.tiles.clear()
        self._finished.append(Finished(image, maps, error))

    def _drop(self, image: ImageTask) -> None:
        """Let go of a failed image's queued work now: it holds the tiles, and so their pixels and maps."""
        self._urgent = deque(work for work in self._urgent if _images(work) != [image])
        for shape, bucket in list(self._buckets.items()):
            bucket.drop(image)
            self._note(shape, bucket)

    def finished(self) -> list[Finished]:
        """Images that have left since the last call."""
        out = list(self._finished)
        self._finished.clear()
        return out

    @property
    def idle(self) -> bool:
        return not self._live

    @property
    def in_flight(self) -> list[ImageTask]:
        """Images that have not left."""
        return list(self._live)

    @property
    def tiles_in_flight(self) -> int:
        return sum(image.open_tiles for image in self._live)


def _images(work: Work) -> list[ImageTask]:
    """The distinct images of a unit of work, in a fixed order."""
    if isinstance(work, Respond):
        return list(dict.fromkeys(view.tile.image for view in work.views))
    if isinstance(work, Infer):
        return []
    return [work.tile.image if isinstance(work, Advance) else work.image]
