"""Which shapes a plan is tuned for: those that the ladder of view sizes has, or, for a recipe of exact sizes, those
of the batches that the scheduler forms over a sample of the user's images.

For the latter the real scheduler runs on the images' sizes with a device's limits; nothing is inferred. Where tiles
are split and when they stop erasing is drawn (seeded), or replayed from a run of the CPU engine over the sample.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import ceil, floor, log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infercam.engine.api import Engine
from infercam.engine.backends.cpu import CpuBackend
from infercam.engine.backends.device import DEPTH
from infercam.engine.backends.device_limits import BATCH_PIXELS, IMAGES, PATIENCE
from infercam.engine.bundle import Bundle, Manifest
from infercam.engine.common.errors import InputError
from infercam.engine.data.images import read_image
from infercam.engine.data.sources import Item
from infercam.engine.method.backend import Limits, Preparing
from infercam.engine.method.geometry import Box, ViewSizes, ladder_sides
from infercam.engine.method.recipe import Mode, Recipe
from infercam.engine.method.scheduler import SMALL, Stats
from infercam.engine.method.task import Advance, Advanced, Done, ImageTask, Respond, Tile, Work
from infercam.engine.method.trace import Inspected
from infercam.engine.runners.plan import Profile, Shape, pick_profile, pixels

Shapes = Counter[Shape]
"""How often each (views, height, width) was a batch."""

DEVICE_LIMITS = Limits(
    batch_pixels=BATCH_PIXELS,
    batch_views=64,
    memory=1 << 40,
    images=IMAGES,
    patience=PATIENCE,
    few_batches=True,
)
"""Of the batches a plan is tuned for: about 20 views of 500x375. Device memory is not simulated."""
PROFILES = 4
MARGIN = 1 / 8
"""A profile reaches this share of a side beyond the shapes that were seen: half of a ladder's step."""
LADDER_ASPECT = 2.0
"""Aspect of the views that a ladder's profiles are tuned for; the last profile takes every other."""

_BINS = 256
_CLASS_SHARES = (0.6, 0.3, 0.1)  # images with one, two, three classes: about as in VOC
_SPREAD = 0.15  # standard deviation of a drawn centre, as a share of the side
_GOES_ON = 0.5  # probability that a tile is worth another iteration


ClassesOf = Callable[[Item], list[int]]


class ImageSize(NamedTuple):
    """What is simulated of an image; `classes`: how many it has, None: drawn."""

    id: str
    height: int
    width: int
    classes: int | None = None


class SizeStep(NamedTuple):
    """One iteration of one tile, as a recording names it."""

    image: str
    box: Box
    takes: tuple[int, ...]
    iteration: int


Recording = dict[SizeStep, Advanced]


def step_of(tile: Tile) -> SizeStep:
    return SizeStep(tile.image.id, tile.box, tile.takes, tile.iteration)


# -- which batches are formed ----------------------------------------------------------------------------------
class Simulated(NamedTuple):
    """What the scheduler did with images of some sizes."""

    shapes: Shapes
    stats: Stats
    changes: int
    """Batches of another (views, height, width) than the one before."""
    prepared: int
    """Batches of a shape that was not ready, where the backend keeps `limits.keeps` of them (0: all)."""


def simulate(
    bundle: Bundle,
    sizes: Iterable[ImageSize],
    recipe: str | Recipe,
    mode: Mode = "both",
    limits: Limits = DEVICE_LIMITS,
    recording: Mapping[SizeStep, Advanced] | None = None,
) -> Simulated:
    """The real scheduler over images of those sizes, without pixels; raises InputError where there is none.

    recording: what `record` returned for the same images, recipe and mode; without it centres and iterations
    are drawn, the same ones every time.
    """
    backend = _Simulated(bundle.manifest, limits, recording or {})
    rng = np.random.default_rng(0)
    items = [
        (s.id, _blank(s.height, s.width), range(_class_count(s, rng, len(bundle.manifest.classes))))
        for s in sizes
    ]
    engine = Engine(bundle, backend)
    for result in engine.stream(items, recipe, mode):
        if result.error is not None:
            raise result.error
    if not backend.shapes:
        raise InputError("no images to measure batches on")
    assert engine.scheduler is not None
    return Simulated(backend.shapes, engine.scheduler.stats, backend.changes, backend.prepared)


def _blank(height: int, width: int) -> NDArray[np.uint8]:
    """A picture of that size that takes no memory."""
    return np.broadcast_to(np.uint8(0), (height, width, 3))


def _class_count(size: ImageSize, rng: np.random.Generator, most: int) -> int:
    drawn = 1 + int(rng.choice(len(_CLASS_SHARES), p=_CLASS_SHARES))
    return min(most, drawn if size.classes is None else size.classes)


@dataclass
class _Simulated:
    """A Backend (engine/method/backend.py) without pixels: counts the batches it is given."""

    manifest: Manifest
    device: Limits
    recording: Mapping[SizeStep, Advanced]
    shapes: Shapes = field(default_factory=Counter)
    changes: int = 0
    last: Shape | None = None
    prepared: int = 0
    ready: OrderedDict[Shape, None] = field(default_factory=OrderedDict)
    queue: deque[Work] = field(default_factory=deque)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    name: str = "simulated"
    precision: str = "fp32"

    @property
    def limits(self) -> Limits:
        if self.manifest.input.dynamic_batch:
            return self.device
        return Limits(
            self.device.batch_pixels, 1, self.device.memory, self.device.images, self.device.patience
        )

    @property
    def sizes(self) -> ViewSizes:
        return ViewSizes.of_network(self.manifest.input)

    def estimate(self, image: ImageTask) -> int:
        return 0

    def preparing(self, recipe: Recipe, mode: Mode) -> Iterator[Preparing]:
        return iter(())

    def remember(self) -> None:
        pass

    def has_room(self) -> bool:
        return len(self.queue) < DEPTH

    def submit(self, work: Work) -> None:
        if isinstance(work, Respond):
            shape = (work.slots, *work.views[0].shape)
            self.shapes[shape] += 1
            self.changes += shape != self.last
            self.last = shape
            self._run(shape)
        self.queue.append(work)

    def _run(self, shape: Shape) -> None:
        """As a runner keeps its shapes: the least recently run one goes."""
        self.prepared += shape not in self.ready
        self.ready[shape] = None
        self.ready.move_to_end(shape)
        if 0 < self.device.keeps < len(self.ready):
            self.ready.popitem(last=False)

    def collect(self) -> list[Done]:
        if not self.queue:
            return []
        work = self.queue.popleft()
        if isinstance(work, Respond):
            return [Done(work)]
        if isinstance(work, Advance):
            return [Done(work, self._advance(work.tile))]
        return [Done(work, np.zeros((0, 0, 0), np.float32))]

    def _advance(self, tile: Tile) -> Advanced:
        recorded = self.recording.get(step_of(tile))
        if recorded is not None:
            return recorded
        count = len(tile.image.classes)
        goes_on = tile.iteration <= 0 or self.rng.random() < _GOES_ON
        locates = tile.locates and tile.iteration == 0
        centres = [self._centre(tile.box) for _ in range(count)] if locates else []
        return Advanced(tile.box.area if goes_on else 0, np.ones(count, np.float32), centres)

    def _centre(self, box: Box) -> tuple[int, int]:
        sides = np.array([box.height, box.width])
        drawn = np.clip(self.rng.normal(0.5, _SPREAD, 2), 0, 1) * (sides - 1)
        return int(drawn[0]), int(drawn[1])

    def inspect(self, tile: Tile) -> Inspected:
        raise NotImplementedError("there are no maps")

    def release(self, image: ImageTask) -> None:
        pass

    def scores(self, pixels: NDArray[np.uint8], ladder: bool = False) -> NDArray[np.float32]:
        raise NotImplementedError("nothing is inferred")

    def describe(self) -> dict[str, object]:
        return {"backend": self.name}

    def close(self) -> None:
        pass


class Recorder(CpuBackend):
    """The CPU backend, which keeps what the host learned of each tile."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.recording: Recording = {}

    def collect(self) -> list[Done]:
        done = super().collect()
        for one in done:
            if isinstance(one.work, Advance) and one.error is None:
                self.recording[step_of(one.work.tile)] = one.result
        return done


def record(
    bundle: Bundle,
    items: Iterable[Item],
    recipe: str | Recipe,
    mode: Mode = "both",
    classes_of: ClassesOf | None = None,
    watch: Callable[[int], None] | None = None,
) -> tuple[list[ImageSize], Recording]:
    """Run the CPU engine over pictures and keep every tile's centres and counts, for `simulate`.

    classes_of: an image's classes; without it those that the classifier predicts. Raises what the engine raises
    for a picture that cannot be read.
    """
    sizes: list[ImageSize] = []
    recorder = Recorder(bundle)
    with Engine(bundle, recorder) as engine:
        for item in items:
            pixels = read_image(item.path)
            classes = classes_of(item) if classes_of is not None else _predicted(engine, pixels)
            sizes.append(ImageSize(item.id, pixels.shape[0], pixels.shape[1], len(classes)))
            for result in engine.stream([(item.id, pixels, classes)], recipe, mode):
                if result.error is not None:
                    raise result.error
            if watch is not None:
                watch(1)
    return sizes, recorder.recording


def _predicted(engine: Engine, pixels: NDArray[np.uint8]) -> list[int]:
    return engine.predict(pixels) or [int(engine.scores(pixels).argmax())]


# -- which shapes a ladder has ---------------------------------------------------------------------------------
def ladder_shapes(manifest: Manifest, largest: int | None = None, limits: Limits = DEVICE_LIMITS) -> Shapes:
    """Both batches, the full and the small one (scheduler.py: SMALL), of every pair of the ladder's rungs up to
    `largest` pixels and an aspect of LADDER_ASPECT, once each: every size counts by the pixels of its batches.

    largest: default the largest square view of no more than limits.batch_pixels.
    """
    spec = manifest.input
    rungs = [
        s for s in ladder_sides(spec.smallest, spec.multiple) if s <= (largest or limits.batch_pixels**0.5)
    ]
    rungs = rungs or list(ladder_sides(spec.smallest, spec.multiple)[:1])
    sizes = [(h, w) for h in rungs for w in rungs if max(h, w) <= LADDER_ASPECT * min(h, w)]
    shapes: Shapes = Counter()
    for h, w in [spec.fixed_size] if spec.fixed_size else sizes:
        full = max(1, min(limits.batch_views, limits.batch_pixels // (h * w))) if spec.dynamic_batch else 1
        batches = {1, full} if spec.fixed_size else {max(1, round(full / SMALL)), full}
        shapes.update((n, h, w) for n in batches)
    return shapes


# -- which profiles serve them ---------------------------------------------------------------------------------
class Reach(NamedTuple):
    """Sides in pixels that a plan must take although the sample has none of them."""

    smallest: int
    largest: int


def smallest_view(recipe: Recipe, sizes: ViewSizes) -> int:
    """Shortest side that a view can have: a tile split at the image's very edge, at the smallest scale."""
    views = (recipe.views, recipe.first_of_tile(), recipe.later())
    tile = max(1, min(recipe.buffer_one, recipe.buffer_two))
    return min(sizes.of(tile, tile, s)[0] for v in views for s in v.scales)


def choose_profiles(
    shapes: Shapes, manifest: Manifest, count: int = PROFILES, reach: Reach | None = None
) -> list[Profile]:
    """At most `count` profiles: each tuned for views of about one size, the last one takes the whole range.

    The sizes are parted so that the spread of log(view pixels) within a profile, weighted by the pixels inferred,
    is smallest (exact, by dynamic programming). A profile is tuned for the shape in the middle of its pixels, and
    reaches 1/8 of a side beyond what was seen, as far as the network takes it. The last one also takes the same sizes
    turned by 90 degrees and the sides of `reach`, in batches of no more pixels than the largest seen.
    """
    sizes = ViewSizes.of_network(manifest.input)
    if sizes.fixed is not None:
        return [_profile(shapes, sizes, margin=0)]
    groups = _partition(shapes, count - 1) if count > 1 else []
    return list(dict.fromkeys([*(_profile(g, sizes) for g in groups), _whole_range(shapes, sizes, reach)]))


def ladder_profiles(
    manifest: Manifest,
    count: int = PROFILES,
    largest: int | None = None,
    limits: Limits = DEVICE_LIMITS,
    smallest: int | None = None,
) -> list[Profile]:
    """At most `count` profiles of the ladder's shapes (`ladder_shapes`); the last takes every size from `smallest`
    (default: the network's smallest) to the largest rung."""
    shapes = ladder_shapes(manifest, largest, limits)
    longest = max(max(shape[1:]) for shape in shapes)
    return choose_profiles(shapes, manifest, count, Reach(smallest or manifest.input.smallest, longest))


def coverage(profiles: Sequence[Profile], shapes: Shapes) -> list[float]:
    """Share of the batches that each profile runs; what is missing to 1 fits none."""
    total = shapes.total()
    runs = Counter(pick_profile(profiles, shape) for shape in shapes.elements())
    return [runs[i] / total for i in range(len(profiles))]


def _profile(shapes: Shapes, sizes: ViewSizes, margin: float = MARGIN) -> Profile:
    best = _tuned_for(shapes)
    highest = max(s[0] for s in shapes)
    sides = [[s[axis] for s in shapes] for axis in (1, 2)]
    step = sizes.multiple
    # no side that the network does not take: the builder tries the ends
    low = [
        max(min(sizes.smallest, min(side)), ceil(floor(min(side) * (1 - margin)) / step) * step)
        for side in sides
    ]
    high = [ceil(max(side) * (1 + margin)) // step * step for side in sides]
    lowest = 1 if margin else min(s[0] for s in shapes)
    return Profile(
        smallest=(lowest, low[0], low[1]),
        best=best,
        largest=(highest, high[0], high[1]),
    )


def _whole_range(shapes: Shapes, sizes: ViewSizes, reach: Reach | None) -> Profile:
    """From the smallest to the largest side on both axes; the batch such that its largest is no more pixels
    than the largest batch seen."""
    seen = _profile(shapes, sizes)
    low, high = min(seen.smallest[1:]), max(seen.largest[1:])
    if reach is not None:
        low = min(low, reach.smallest)
        high = max(high, ceil(reach.largest / sizes.multiple) * sizes.multiple)
    most = max(map(pixels, shapes))
    batch = max(1, min(seen.largest[0], most // (high * high)))
    best = (min(seen.best[0], batch), seen.best[1], seen.best[2])
    return Profile(smallest=(1, low, low), best=best, largest=(batch, high, high))


def _tuned_for(shapes: Shapes) -> Shape:
    """The shape nearest to the middle of the pixels on every axis: one that was seen, so no larger than a batch."""
    middle = [_middle(shapes, axis) for axis in range(3)]
    return min(shapes, key=lambda s: sum(abs(log(side / m)) for side, m in zip(s, middle, strict=True)))


def _middle(shapes: Shapes, axis: int) -> int:
    """The value in the middle of the pixels inferred (weighted median)."""
    values = sorted((shape[axis], pixels(shape) * n) for shape, n in shapes.items())
    below = np.cumsum([weight for _, weight in values])
    return values[int(np.searchsorted(below, below[-1] / 2))][0]


def _partition(shapes: Shapes, count: int) -> list[Shapes]:
    """The shapes in at most `count` groups of neighbouring view sizes, of least weighted squared spread."""
    ordered = sorted(shapes, key=lambda s: s[1] * s[2])
    bins = [Counter({s: shapes[s] for s in part}) for part in _bins(ordered)]
    x = np.array([_mean_log(b) for b in bins])
    w = np.array([float(sum(pixels(s) * n for s, n in b.items())) for b in bins])
    groups = []
    for start, stop in _least_spread(x, w / w.sum(), min(count, len(bins))):
        merged: Shapes = Counter()
        for b in bins[start:stop]:
            merged += b
        groups.append(merged)
    return groups


def _bins(ordered: list[Shape]) -> list[list[Shape]]:
    """Equal view sizes together, and at most _BINS parts, so that the search stays short."""
    sizes: list[list[Shape]] = []
    for shape in ordered:
        if sizes and sizes[-1][0][1] * sizes[-1][0][2] == shape[1] * shape[2]:
            sizes[-1].append(shape)
        else:
            sizes.append([shape])
    step = ceil(len(sizes) / _BINS)
    return [list(chain.from_iterable(sizes[i : i + step])) for i in range(0, len(sizes), step)]


def _mean_log(shapes: Shapes) -> float:
    return float(np.mean([np.log(s[1] * s[2]) for s in shapes]))


def _least_spread(x: NDArray[np.float64], w: NDArray[np.float64], count: int) -> list[tuple[int, int]]:
    """Part the sorted points x of weights w into `count` runs [start, stop) of least sum of w (x - mean)²."""
    n = len(x)
    s0, s1, s2 = (np.concatenate(([0.0], np.cumsum(v))) for v in (w, w * x, w * x * x))

    def cost(start: NDArray[np.intp], stop: int) -> NDArray[np.float64]:
        weight, first = s0[stop] - s0[start], s1[stop] - s1[start]
        return np.maximum(s2[stop] - s2[start] - first * first / np.maximum(weight, 1e-300), 0)

    best = np.full((count + 1, n + 1), np.inf)
    cut = np.zeros((count + 1, n + 1), np.intp)
    best[0, 0] = 0
    for k in range(1, count + 1):
        for stop in range(k, n + 1):
            starts = np.arange(k - 1, stop)
            total = best[k - 1, starts] + cost(starts, stop)
            at = int(total.argmin())
            best[k, stop], cut[k, stop] = total[at], starts[at]
    runs, stop = [], n
    for k in range(count, 0, -1):
        start = int(cut[k, stop])
        runs.append((start, stop))
        stop = start
    return runs[::-1]
