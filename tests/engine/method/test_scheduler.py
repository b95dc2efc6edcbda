"""The scheduler on its own: a simulated backend that does no numerics and answers in any order.

Whatever arrives, converges or fails, and in whatever order units end: every image finishes exactly once, no
view is lost or repeated, and the limits hold. The simulation checks most of it while it runs.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercam.engine.method.backend import Limits, OutOfMemory
from infercam.engine.method.geometry import ViewSizes
from infercam.engine.method.recipe import MODES, RECIPES, Mode, Recipe, Views
from infercam.engine.method.scheduler import Cancelled, NotFinite, Scheduler
from infercam.engine.method.task import (
    Advance,
    Advanced,
    Done,
    ImageTask,
    Respond,
    Tile,
    Unite,
    Work,
    views_of,
)

thorough = settings(deadline=None, max_examples=60)
PIXELS = np.zeros((1, 1, 1), np.uint8)
Fault = Callable[[Work], Exception | None]


def image(name: str, height: int, width: int, classes: int, recipe: Recipe, mode: Mode = "both") -> ImageTask:
    pixels = np.broadcast_to(PIXELS, (height, width, 3))  # takes no memory
    return ImageTask(name, pixels, list(range(classes)), recipe, mode)


@dataclass
class Simulation:
    """Drives a scheduler as Engine.stream does, with up to `depth` units in flight, and checks every step."""

    scheduler: Scheduler
    arrivals: Iterator[tuple[ImageTask, int]]
    rng: random.Random
    depth: int = 3
    fault: Fault = lambda work: None
    converge: float = 0.5
    """Chance that a tile erases next to nothing."""
    flying: list[Work] = field(default_factory=list)
    finished: dict[str, object] = field(default_factory=dict)
    """id -> maps or error."""
    added: dict[str, ImageTask] = field(default_factory=dict)
    live_bytes: dict[str, int] = field(default_factory=dict)
    delivered: Counter = field(default_factory=Counter)
    """(tile, iteration, scale, mirrored) -> responses that came back."""
    advanced: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)
    """Batch size -> batches that succeeded."""
    pixels: int = 0
    tiles: list[Tile] = field(default_factory=list)
    """Finished, as the scheduler reports them in `iterations`."""
    peak_depth: int = 0

    def run(self) -> dict[str, object]:
        more = True
        for _ in range(200_000):
            while more and self.scheduler.wants():
                more = self.arrive()
            while len(self.flying) < self.depth and (work := self.scheduler.next()) is not None:
                self.check(work)
                self.flying.append(work)
            self.peak_depth = max(self.peak_depth, len(self.flying))
            if self.scheduler.idle and not more:
                assert not self.flying, "idle means that nothing is in flight"
                return self.finished
            assert self.flying, "nothing to do, nothing in flight, and yet not idle: stuck"
            for _ in range(self.rng.randint(1, len(self.flying))):
                self.complete(self.flying.pop(self.rng.randrange(len(self.flying))))
            for name, maps, error in ((f.image.id, f.maps, f.error) for f in self.scheduler.finished()):
                assert name not in self.finished, "an image finishes once"
                assert (maps is None) != (error is None)
                self.finished[name] = error if maps is None else maps
                del self.live_bytes[name]
        raise AssertionError("does not end")

    def arrive(self) -> bool:
        item = next(self.arrivals, None)
        if item is None:
            return False
        task, nbytes = item
        limits = self.scheduler.limits
        assert not self.live_bytes or (
            sum(self.live_bytes.values()) < limits.memory and len(self.live_bytes) < limits.images
        ), "wants() said yes beyond the budget"
        self.added[task.id] = task
        self.live_bytes[task.id] = nbytes
        self.scheduler.add(task, nbytes)
        return True

    def check(self, work: Work) -> None:
        if isinstance(work, Respond):
            shapes = {view.shape for view in work.views}
            assert len(shapes) == 1, "one shape in a batch"
            limits, (height, width) = self.scheduler.limits, shapes.pop()
            assert 1 <= len(work.views) <= limits.batch_views
            assert len(work.views) == 1 or len(work.views) * height * width <= limits.batch_pixels
            assert any(not view.tile.image.failed for view in work.views)
        elif isinstance(work, Advance):
            tile = work.tile
            key = (id(tile), tile.iteration)
            assert not self.advanced[key], "an iteration is ended once"
            self.advanced[key] += 1
            for view in views_of(tile):
                got = self.delivered[id(tile), tile.iteration, view.scale, view.mirrored]
                assert got == 1, "every view of the iteration is there, exactly once"
        else:
            task = work.image
            assert task.open_tiles == 0 and all(tile.pending == 0 for tile in task.tiles)

    def complete(self, work: Work) -> None:
        error = self.fault(work)
        if error is not None:
            self.scheduler.update(Done(work, error=error))
            return
        result: object = None
        if isinstance(work, Respond):
            for view in work.views:
                self.delivered[id(view.tile), view.tile.iteration, view.scale, view.mirrored] += 1
            self.sizes[len(work.views)] += 1
            self.pixels += sum(view.pixels for view in work.views)
            self.keep(work)
        elif isinstance(work, Advance):
            result = self.advance(work.tile)
        else:
            result = np.zeros((len(work.image.classes), 1, 1), np.float32)
        self.scheduler.update(Done(work, result))

    def keep(self, work: Respond) -> None:
        """Ids are compared, so the tiles must stay alive."""
        self.tiles.extend(view.tile for view in work.views)

    def advance(self, tile: Tile) -> Advanced:
        count, (height, width) = len(tile.image.classes), (tile.image.height, tile.image.width)
        erased = 0 if self.rng.random() < self.converge else tile.box.area
        peak = np.array([self.rng.random() for _ in range(count)], np.float32) * tile.views.count
        centres = [(self.rng.randrange(height), self.rng.randrange(width)) for _ in range(count)]
        return Advanced(erased, peak, centres if tile.locates else [])

    def check_stats(self) -> None:
        stats = self.scheduler.stats
        assert stats.views == sum(self.delivered.values()) == sum(n * k for n, k in self.sizes.items())
        assert stats.batches == sum(self.sizes.values())
        assert stats.batch_sizes == self.sizes
        assert stats.pixels == self.pixels
        good = [task for name, task in self.added.items() if not isinstance(self.finished[name], Exception)]
        assert stats.images == len(good)
        assert self.scheduler.tiles_in_flight == 0


recipes = st.sampled_from(
    [
        *RECIPES.values(),
        Recipe(whole="mean", whole_iterations=2, probe=0.5),
        Recipe(
            split="paper", centre_views=Views(scales=(0.5,)), later_views=Views(scales=(1.0,), mirror=False)
        ),
        Recipe(whole="max", centre_views=Views(scales=(0.5,), mirror=False), iterations=3),
    ]
)
modes = st.sampled_from(MODES)
# Few sizes, so that images meet in one batch.
SIZES = [(16, 16), (16, 16), (16, 30), (1, 1), (7, 2)]
specs = st.lists(
    st.tuples(st.sampled_from(SIZES), st.integers(1, 4)).map(lambda t: (*t[0], t[1])), max_size=12
)
limits = st.builds(
    Limits,
    batch_pixels=st.sampled_from([1, 200, 1_000, 10_000]),
    batch_views=st.sampled_from([1, 2, 8, 64]),
    memory=st.sampled_from([1 << 40, 10_000, 1]),
    images=st.sampled_from([64, 3, 1]),
    patience=st.sampled_from([0, 1, 8]),
    keeps=st.sampled_from([0, 1, 3, 16]),
)


def simulate(
    specs: Iterable[tuple[int, int, int]],
    recipe: Recipe,
    mode: str,
    limits: Limits,
    seed: int,
    fault: Fault = lambda work: None,
    depth: int = 3,
) -> Simulation:
    rng = random.Random(seed)
    tasks = [image(f"i{n}", h, w, k, recipe) for n, (h, w, k) in enumerate(specs)]
    arrivals = iter([(task, task.height * task.width * rng.randint(1, 20)) for task in tasks])
    scheduler = Scheduler(limits)
    simulation = Simulation(scheduler, arrivals, rng, depth, fault, converge=rng.choice([0.1, 0.5, 0.9]))
    simulation.run()
    assert list(simulation.added) == [task.id for task in tasks]
    assert simulation.finished.keys() == simulation.added.keys(), "every image finishes"
    return simulation


@given(specs, recipes, modes, limits, st.integers(0, 2**32), st.integers(1, 6))
@thorough
def test_every_image_finishes_once_and_no_view_is_lost_or_repeated(
    specs: list, recipe: Recipe, mode: str, limits: Limits, seed: int, depth: int
) -> None:
    simulation = simulate(specs, recipe, mode, limits, seed, depth=depth)
    assert not [m for m in simulation.finished.values() if isinstance(m, Exception)]
    assert not simulation.delivered or max(simulation.delivered.values()) == 1
    assert simulation.peak_depth <= depth
    simulation.check_stats()
    stats = simulation.scheduler.stats
    assert (stats.halvings, stats.retries) == (0, 0)
    converged = [n for task in simulation.added.values() for n in task.iterations]
    assert (stats.tiles, stats.iterations) == (len(converged), sum(converged))
    assert all(0 <= n <= recipe.iterations for n in converged)


@given(specs, recipes, modes, limits, st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 6))
@thorough
def test_out_of_memory_halves_the_batch_and_nothing_is_lost(
    specs: list, recipe: Recipe, mode: str, limits: Limits, seed: int, fits: int, depth: int
) -> None:
    largest: list[int] = []

    def fault(work: Work) -> Exception | None:
        views = len(work.views) if isinstance(work, Respond) else 0
        largest.append(views)
        return OutOfMemory("too much") if views > fits else None

    simulation = simulate(specs, recipe, mode, limits, seed, fault, depth)
    assert not [m for m in simulation.finished.values() if isinstance(m, Exception)]
    simulation.check_stats()
    stats = simulation.scheduler.stats
    assert stats.halvings == sum(n > fits for n in largest)
    if stats.halvings:  # it learns: no more than what was in flight fails at each size
        assert stats.halvings <= depth * max(largest).bit_length()
        assert max(simulation.sizes) <= fits


def test_what_was_in_flight_does_not_undo_a_halving() -> None:
    """Two large batches are in flight; the one that fails last must not raise the limit again."""
    recipe = Recipe(views=Views(scales=(1.0,), mirror=False))
    scheduler = Scheduler(Limits(batch_pixels=1 << 30, batch_views=16))
    for n in range(40):
        scheduler.add(image(f"i{n}", 8, 8, 1, recipe), 1)
    first, second = scheduler.next(), scheduler.next()
    assert [len(w.views) for w in (first, second)] == [16, 16]  # type: ignore[union-attr]
    error = OutOfMemory("too much")
    scheduler.update(Done(first, error=error))
    third = scheduler.next()
    assert len(third.views) == 8  # type: ignore[union-attr]
    scheduler.update(Done(third, error=error))
    scheduler.update(Done(second, error=error))
    assert len(scheduler.next().views) == 4  # type: ignore[union-attr]


def test_a_single_view_that_does_not_fit_fails_its_image_alone() -> None:
    def fault(work: Work) -> Exception | None:
        if isinstance(work, Respond) and any(view.tile.image.id == "i1" for view in work.views):
            return OutOfMemory("too much")
        return None

    simulation = simulate(
        [(16, 16, 1), (16, 16, 1), (16, 16, 2)], RECIPES["released"], "both", Limits(10_000), 3, fault
    )
    assert isinstance(simulation.finished["i1"], OutOfMemory)
    assert isinstance(simulation.finished["i0"], np.ndarray)
    assert isinstance(simulation.finished["i2"], np.ndarray)


@given(specs, recipes, modes, limits, st.integers(0, 2**32), st.sets(st.integers(0, 11)), st.integers(1, 6))
@thorough
def test_only_the_images_at_fault_fail(
    specs: list, recipe: Recipe, mode: str, limits: Limits, seed: int, bad: set[int], depth: int
) -> None:
    """An image whose views break whatever batch they are in: the others of the batch are tried alone."""
    culprits = {f"i{n}" for n in bad if n < len(specs)}

    def fault(work: Work) -> Exception | None:
        if isinstance(work, Respond):
            found = [v.tile.image.id for v in work.views if v.tile.image.id in culprits]
            return ValueError(found[0]) if found else None
        return None

    simulation = simulate(specs, recipe, mode, limits, seed, fault, depth)
    failed = {name for name, m in simulation.finished.items() if isinstance(m, Exception)}
    assert failed == culprits
    simulation.check_stats()


@pytest.mark.parametrize("bad", [{0}, {5}, {2, 3}, {0, 1, 2, 3, 4, 5}])
def test_a_shared_batch_is_tried_again_view_by_view(bad: set[int]) -> None:
    """Six equal images in one batch; the good ones lose nothing and nothing is inferred twice."""
    culprits = {f"i{n}" for n in bad}

    def fault(work: Work) -> Exception | None:
        views = work.views if isinstance(work, Respond) else []
        return ValueError("broken") if any(v.tile.image.id in culprits for v in views) else None

    simulation = simulate([(16, 16, 1)] * 6, RECIPES["released"], "both", Limits(1 << 30), 7, fault, depth=2)
    failed = {name for name, m in simulation.finished.items() if isinstance(m, Exception)}
    assert failed == culprits
    assert simulation.scheduler.stats.retries > 0
    assert max(simulation.delivered.values(), default=1) == 1
    simulation.check_stats()


@given(specs, recipes, modes, limits, st.integers(0, 2**32), st.sampled_from([0.01, 0.2]), st.integers(1, 6))
@thorough
def test_random_errors_anywhere(
    specs: list, recipe: Recipe, mode: str, limits: Limits, seed: int, chance: float, depth: int
) -> None:
    """Any unit may fail, by memory or otherwise; it still ends, with each image finished or failed once."""
    dice = random.Random(seed + 1)

    def fault(work: Work) -> Exception | None:
        if dice.random() >= chance:
            return None
        return dice.choice([OutOfMemory("too much"), RuntimeError("broken")])

    simulation = simulate(specs, recipe, mode, limits, seed, fault, depth)
    simulation.check_stats()
    for name, outcome in simulation.finished.items():
        task = simulation.added[name]
        assert (task.failed is not None) == isinstance(outcome, Exception)
        assert not task.tiles, "a finished image lets go of its tiles"


@pytest.mark.parametrize("kind", [Advance, Unite])
def test_an_error_in_other_work_fails_its_image_only(kind: type) -> None:
    def fault(work: Work) -> Exception | None:
        if isinstance(work, kind):
            task = work.tile.image if isinstance(work, Advance) else work.image
            return RuntimeError("broken") if task.id == "i1" else None
        return None

    simulation = simulate([(9, 9, 1)] * 3, RECIPES["released"], "both", Limits(10_000), 3, fault)
    assert [isinstance(simulation.finished[f"i{n}"], Exception) for n in range(3)] == [False, True, False]


def test_a_failed_image_s_queued_work_and_memory_go_at_once() -> None:
    """While others are still in flight nothing in the scheduler holds the failed image any more."""
    recipe = RECIPES["released"]
    scheduler = Scheduler(Limits(batch_pixels=1, memory=100, images=64))
    scheduler.add(image("old", 16, 16, 1, recipe), 40)
    scheduler.add(image("bad", 16, 16, 1, recipe), 60)
    assert not scheduler.wants(), "the budget is spent"
    flying: list[Work] = []
    while True:
        work = scheduler.next()
        assert isinstance(work, Respond)
        if work.views[0].tile.image.id == "bad":
            break
        flying.append(work)
    gone = weakref.ref(work.views[0].tile)
    scheduler.update(Done(work, error=ValueError("broken")))
    (finished,) = scheduler.finished()
    assert finished.image.id == "bad" and str(finished.error) == "broken"
    assert scheduler.wants()
    del work, finished
    gc.collect()
    assert gone() is None
    assert flying and not scheduler.idle
    while (work := scheduler.next()) is not None:
        assert work.views[0].tile.image.id == "old"  # type: ignore[union-attr]


def test_a_failed_image_waits_for_what_is_in_flight() -> None:
    """Its pixels may be in use by a worker: it leaves when the last unit has ended."""
    recipe = RECIPES["released"]
    scheduler = Scheduler(Limits(batch_pixels=1))
    scheduler.add(image("bad", 16, 16, 1, recipe), 1)
    first, second = scheduler.next(), scheduler.next()
    assert first is not None and second is not None
    scheduler.update(Done(first, error=ValueError("broken")))
    assert not scheduler.finished() and not scheduler.idle
    assert scheduler.next() is None, "its queued views are dropped"
    scheduler.update(Done(second))
    assert [f.image.id for f in scheduler.finished()] == ["bad"]
    assert scheduler.idle


@given(
    st.lists(st.tuples(st.sampled_from(SIZES), st.integers(1, 4), recipes, modes), max_size=12),
    limits,
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.1, 0.5]),
)
@thorough
def test_each_image_goes_its_own_way_and_may_be_cancelled_at_any_moment(
    specs: list, limits: Limits, seed: int, chance: float
) -> None:
    """Recipes and modes are mixed in one scheduler; whoever is cancelled leaves, and nobody else."""
    cancelled: set[str] = set()

    class Impatient(Simulation):
        def complete(self, work: Work) -> None:
            super().complete(work)
            for name in list(self.live_bytes):
                if self.rng.random() < chance / len(self.live_bytes):
                    self.scheduler.cancel(self.added[name])
                    cancelled.add(name)

    tasks = [
        image(f"i{n}", *size, classes, recipe, mode) for n, (size, classes, recipe, mode) in enumerate(specs)
    ]
    scheduler = Scheduler(limits)
    simulation = Impatient(scheduler, iter([(task, 1) for task in tasks]), random.Random(seed))
    simulation.run()
    assert simulation.finished.keys() == {task.id for task in tasks}
    gone = {name for name, outcome in simulation.finished.items() if isinstance(outcome, Cancelled)}
    assert gone <= cancelled and scheduler.stats.images == len(tasks) - len(gone)
    for task in tasks:
        if task.id not in gone:
            assert len(task.iterations) > 0 and max(task.iterations) <= task.recipe.iterations
            assert task.mode not in ("baseline", "split") or max(task.iterations) == 1
    assert not scheduler._live and not scheduler._bytes and not scheduler._urgent


# -- order -------------------------------------------------------------------------------------------------


def oldest_queued(scheduler: Scheduler) -> tuple[int, int] | None:
    heads = [bucket.head() for bucket in scheduler._buckets.values()]
    return min((head for head in heads if head is not None), default=None)


@given(specs, recipes, limits, st.integers(0, 2**32))
@thorough
def test_the_oldest_view_is_passed_over_at_most_patience_times(
    specs: list, recipe: Recipe, limits: Limits, seed: int
) -> None:
    passed, last = 0, None
    simulation_next = Scheduler.next

    class Watched(Scheduler):
        def next(self) -> Work | None:
            nonlocal passed, last
            urgent, before = bool(self._urgent), oldest_queued(self)
            work = simulation_next(self)
            if isinstance(work, Respond) and not urgent and before is not None:
                served = oldest_queued(self) != before
                passed = 0 if served else (passed + 1 if before == last else 1)
                last = before
                assert passed <= self.limits.patience
            return work

    rng = random.Random(seed)
    tasks = [image(f"i{n}", h, w, k, recipe) for n, (h, w, k) in enumerate(specs)]
    scheduler = Watched(limits)
    simulation = Simulation(scheduler, iter([(t, 1) for t in tasks]), rng)
    simulation.run()
    assert len(simulation.finished) == len(specs)


@pytest.mark.parametrize("patience", [0, 1, 5])
def test_a_rare_shape_is_served_while_a_common_one_keeps_filling_batches(patience: int) -> None:
    """Endless arrivals of one shape; the rare image is served exactly when patience runs out."""
    recipe = Recipe(views=Views(scales=(1.0,), mirror=False))
    scheduler = Scheduler(Limits(batch_pixels=1 << 30, batch_views=2, patience=patience))
    scheduler.add(image("rare", 31, 17, 1, recipe), 1)
    for turn in range(patience + 1):
        for n in range(4):
            scheduler.add(image(f"common{turn}{n}", 8, 8, 1, recipe), 1)
        work = scheduler.next()
        assert isinstance(work, Respond)
        names = [view.tile.image.id for view in work.views]
        assert (names == ["rare"]) == (turn == patience), turn


def test_full_batches_go_first_and_the_older_image_first_among_them() -> None:
    recipe = Recipe(views=Views(scales=(1.0,), mirror=False))
    scheduler = Scheduler(Limits(batch_pixels=1 << 30, batch_views=2))
    for name, side in [("a", 9), ("b", 8), ("c", 7), ("d", 7), ("e", 8), ("f", 8)]:
        scheduler.add(image(name, side, side, 1, recipe), 1)
    order = []
    while (work := scheduler.next()) is not None:
        assert isinstance(work, Respond)
        order.append("".join(view.tile.image.id for view in work.views))
    assert order == ["be", "cd", "a", "f"]


def test_images_leave_before_all_have_arrived() -> None:
    """Continuous batching: with room for 3 the first have left before the last is drawn."""
    recipe, drawn = RECIPES["released"], []

    def arrivals() -> Iterator[tuple[ImageTask, int]]:
        for n in range(20):
            drawn.append((n, len(simulation.finished)))
            yield image(f"i{n}", 16, 16, 1, recipe), 1

    simulation = Simulation(Scheduler(Limits(1000, images=3)), arrivals(), random.Random(0))
    simulation.run()
    assert all(left >= n - 3 for n, left in drawn)


@given(specs, modes, st.integers(0, 2**32))
@thorough
def test_a_bundle_of_one_size_batches_everything_together(specs: list, mode: str, seed: int) -> None:
    recipe = Recipe(views=Views(scales=(1.0,)))
    rng = random.Random(seed)
    scheduler = Scheduler(Limits(1 << 30, batch_views=8), ViewSizes(fixed=(24, 32)))
    tasks = [image(f"i{n}", h, w, k, recipe) for n, (h, w, k) in enumerate(specs)]
    seen = set()

    class Fixed(Simulation):
        def check(self, work: Work) -> None:
            super().check(work)
            if isinstance(work, Respond):
                seen.update(view.shape for view in work.views)

    Fixed(scheduler, iter([(t, 1) for t in tasks]), rng).run()
    assert seen <= {(24, 32)} and scheduler.stats.images == len(specs)


def test_nothing_at_all() -> None:
    scheduler = Scheduler(Limits(1))
    assert scheduler.idle and scheduler.wants() and scheduler.next() is None and not scheduler.finished()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_image_whose_response_is_not_finite_fails_alone(bad: float) -> None:
    scheduler = Scheduler(Limits(batch_pixels=10**6))
    good, ill = (image(name, 40, 50, 2, RECIPES["corrected"]) for name in ("good", "ill"))
    for task in (ill, good):
        scheduler.add(task, 1)
    while (work := scheduler.next()) is not None:
        if isinstance(work, Advance):
            peak = np.array([1, bad if work.tile.image is ill else 1], np.float32)
            result = Advanced(0, peak, [(20, 20), (30, 30)] if work.tile.locates else [])
            scheduler.update(Done(work, result))
        else:
            scheduler.update(Done(work, np.ones(1) if isinstance(work, Unite) else None))
    left = {f.image.id: f.error for f in scheduler.finished()}
    assert scheduler.idle and left["good"] is None
    assert isinstance(left["ill"], NotFinite) and "--precision fp32" in str(left["ill"])
