"""From responses to maps: gather, upsample, peaks, centres, accumulate and unite against the host's twins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infercam.engine.device.descriptors import (
    Accumulate,
    Gather,
    LowResponse,
    Part,
    Patch,
    UniteCall,
    UnitePart,
)
from infercam.engine.device.ops import maps_nbytes, maps_stride, mask_nbytes, read_results, results_nbytes
from infercam.engine.device.runner import OutputShape
from infercam.engine.method import host_ops, reference
from infercam.engine.method.geometry import Box, Placed, whole_box
from infercam.engine.method.task import Advanced
from infercam.engine.method.windows import Windows, put_together, shares
from tests.cuda_emulator.driver import SANITIZED
from tests.cuda_emulator.rig import Rig

SIDES = st.sampled_from([1, 2, 3, 5, 8, 13, 31, 64, 97])
SHAPES = st.tuples(SIDES, SIDES)
SEEDS = st.integers(1, 2**32 - 1)
COUNTS = st.sampled_from([1, 2, 3, 20])
MODES = st.sampled_from(["max", "sum", "mean"])
few = settings(max_examples=4 if SANITIZED else 25)  # the sanitizer's fibers are slow


# -- gather ------------------------------------------------------------------------------------------------
@given(
    SHAPES, SEEDS, st.lists(st.sampled_from(["pair", "plain", "mirrored", "apart"]), min_size=1, max_size=4)
)
@few
def test_gathering(shape: tuple[int, int], seed: int, kinds: list[str]) -> None:
    """Both views of a tile in one batch, one of them, or one after the other: always the same sum."""
    rng = np.random.default_rng(seed)
    response = rng.normal(size=(8, 7, *shape)).astype(np.float32)
    with Rig(seed=seed) as rig:
        source = rig.put(response)
        first, second, expected, lows = [], [], [], []
        for kind in kinds:
            chosen = rng.choice(7, int(rng.integers(1, 8)), replace=False).tolist()
            plain, mirrored = (int(v) for v in rng.choice(8, 2, replace=False))
            low = rig.driver.allocate(4 * len(chosen) * shape[0] * shape[1])
            lows.append(low)
            a = np.maximum(response[plain, chosen], 0)
            b = np.maximum(response[mirrored, chosen], 0)[:, :, ::-1]
            expected.append({"plain": a, "mirrored": b}.get(kind, a + b))
            if kind == "apart":
                first.append(Gather(low, chosen, mirrored=mirrored))
                second.append(Gather(low, chosen, plain=plain, add=True))
            else:
                views = {"plain": plain, "mirrored": mirrored}
                first.append(Gather(low, chosen, **(views if kind == "pair" else {kind: views[kind]})))
        rig.ops.gather(first, source, OutputShape(7, *shape))
        rig.ops.gather(second, source, OutputShape(7, *shape))
        for low, want in zip(lows, expected, strict=True):
            np.testing.assert_array_equal(rig.get(low, want.shape, np.float32), want)


# -- patch -------------------------------------------------------------------------------------------------
@given(SHAPES, SEEDS, st.tuples(st.floats(0.5, 3), st.floats(0.5, 3)), st.booleans())
@few
def test_windows_are_put_together(
    shape: tuple[int, int], seed: int, times: tuple[float, float], mirrored: bool
) -> None:
    """As host_ops has it, in one call or in several."""
    rng = np.random.default_rng(seed)
    cover = Windows(shape, 1, shape).cover(round(shape[0] * times[0]), round(shape[1] * times[1]))
    rows, columns = shares(cover.rows, shape[0]), shares(cover.columns, shape[1])
    places = [(y, x) for y in range(len(rows)) for x in range(len(columns))]
    response = rng.normal(size=(len(places), 5, *shape)).astype(np.float32)
    chosen = rng.choice(5, int(rng.integers(1, 6)), replace=False).tolist()
    parts = [
        Part(slot, mirrored, (cover.rows[y], cover.columns[x]), rows[y], columns[x])
        for slot, (y, x) in enumerate(places)
    ]
    want = np.maximum(put_together(list(response[:, chosen]), cover), 0)
    with Rig(seed=seed) as rig:
        low, source = rig.put(np.zeros_like(want)), rig.put(response)
        cut = int(rng.integers(0, len(parts) + 1))
        for some in (parts[:cut], parts[cut:]):
            item = Patch(low, want.shape[1:], chosen, some)
            rig.ops.patch([item], source, OutputShape(5, *shape))
        found = rig.get(low, want.shape, np.float32)
    np.testing.assert_allclose(found[:, :, ::-1] if mirrored else found, want, atol=1e-5)


# -- accumulate --------------------------------------------------------------------------------------------
@dataclass
class Job:
    """One tile's iteration, on the host."""

    lows: list[np.ndarray]
    tile: tuple[int, int]
    quantile: float = 1.0
    floor: np.ndarray | None = None
    before: np.ndarray | None = None
    erased: np.ndarray | None = None
    mode: str = "max"
    threshold: float = 0.7
    accumulates: bool = True
    locate: bool = False
    compete: bool = False

    @property
    def classes(self) -> int:
        return len(self.lows[0])


@dataclass
class Outcome:
    result: Advanced
    accumulated: np.ndarray | None
    erased: np.ndarray | None


def planes(rig: Rig, maps: np.ndarray) -> int:
    """Maps on the device, each plane at its stride; what lies between is not a number."""
    stride = maps_stride(maps.shape[1:])
    padded = np.full((len(maps), stride), np.nan, np.float32)
    padded[:, : maps[0].size] = maps.reshape(len(maps), -1)
    return rig.put(padded)


def fetch(rig: Rig, pointer: int, count: int, tile: tuple[int, int]) -> np.ndarray:
    padded = rig.get(pointer, (count, maps_stride(tile)), np.float32)
    return padded[:, : tile[0] * tile[1]].reshape(count, *tile)


def mask(rig: Rig, erased: np.ndarray | None, tile: tuple[int, int]) -> int:
    out = np.full(mask_nbytes(tile), 0xFF, np.uint8)
    if erased is not None:
        out[: erased.size] = erased.reshape(-1)
        out[erased.size :] = 0
    return rig.put(out)


def run(jobs: list[Job], seed: int) -> list[Outcome]:
    """All jobs in one call."""
    with Rig(seed=seed) as rig:
        items = []
        for job in jobs:
            lows = [LowResponse(rig.put(m), m.shape[1:]) for m in job.lows]
            accumulated = erased = 0
            if job.accumulates:
                erased = mask(rig, job.erased, job.tile)
                nbytes = maps_nbytes(job.classes, job.tile)
                accumulated = (
                    rig.driver.allocate(max(4, nbytes)) if job.before is None else planes(rig, job.before)
                )
            items.append(
                Accumulate(
                    job.tile, job.classes, lows, job.quantile, job.floor, accumulated, erased,
                    job.before is None, job.mode, job.threshold, job.locate, job.compete,
                )
            )  # fmt: skip
        results = rig.driver.allocate(results_nbytes(items))
        rig.ops.accumulate(items, results)
        advanced = read_results(items, rig.get(results, (results_nbytes(items),), np.uint8))
        out = []
        for job, item, result in zip(jobs, items, advanced, strict=True):
            maps = erased = None
            if job.accumulates:
                maps = fetch(rig, item.accumulated, job.classes, job.tile)
                bits = rig.get(item.erased, job.tile, np.uint8)
                assert set(np.unique(bits)) <= {0, 1}
                erased = bits.astype(bool)
            out.append(Outcome(result, maps, erased))
        assert rig.held == {rig.ops._normalisation}, "the workspace is given back"
    return out


def expected_total(job: Job) -> np.ndarray:
    total = np.zeros((job.classes, *job.tile), np.float32)
    for low in job.lows:
        total += reference.resize_bilinear(low, *job.tile)
    return total


def check(job: Job, got: Outcome) -> None:
    """Against reference.py, the sums to rounding; what follows from them exactly."""
    total = expected_total(job)
    scale = float(total.max(initial=0)) or 1.0
    peak = reference.peaks(total, job.quantile)
    np.testing.assert_allclose(got.result.peak, peak, rtol=0, atol=2e-6 * scale)
    floor = np.float32(0) if job.floor is None else job.floor
    by = np.maximum(got.result.peak, floor) + np.float32(1e-5)
    n = np.minimum(total / by[:, None, None], 1)
    atol = 2e-6 * max(1.0, float((scale / by).max()))
    if not job.accumulates:
        assert got.result.erased == 0
        return
    before = np.zeros_like(n) if job.before is None else job.before
    counted = reference.where_highest(n, before) if job.compete and job.before is not None else n
    want = np.maximum(before, counted) if job.mode == "max" else before + counted
    np.testing.assert_allclose(got.accumulated, want, rtol=0, atol=atol)
    was = np.zeros(job.tile, bool) if job.erased is None else job.erased
    reached = n.max(axis=0) >= np.float32(job.threshold)
    unsure = np.abs(n.max(axis=0) - np.float32(job.threshold)) <= atol
    np.testing.assert_array_equal((got.erased | unsure), (was | reached | unsure))
    assert not (was & ~got.erased).any()
    assert got.result.erased == int(got.erased.sum()) - int(was.sum())


def random_job(rng: np.random.Generator, tile: tuple[int, int]) -> Job:
    count = int(rng.choice([1, 2, 3, 20]))
    sizes = [(int(rng.integers(1, 14)), int(rng.integers(1, 14))) for _ in range(int(rng.integers(1, 8)))]
    lows = [np.maximum(rng.normal(size=(count, *s)), 0).astype(np.float32) for s in sizes]
    if rng.integers(2):
        for low in lows:
            low[-1] = 0  # a class that nothing responds to
    job = Job(lows, tile, mode=str(rng.choice(["max", "sum", "mean"])), accumulates=bool(rng.integers(5)))
    job.quantile = float(rng.choice([1.0, 1.0, 0.99, 0.5, 1e-9]))
    job.locate, job.compete = bool(rng.integers(2)), bool(rng.integers(2))
    job.threshold = float(rng.choice([0.7, 0.3, 1.0]))
    if rng.integers(2):
        job.floor = rng.random(count).astype(np.float32) * 3
    if rng.integers(2) and job.accumulates:
        job.before = rng.random((count, *tile), np.float32).round(int(rng.choice([1, 7])))  # ties, or none
        job.erased = rng.random(tile) < 0.3
    return job


@given(st.lists(SHAPES, min_size=1, max_size=4), SEEDS)
@example([(1, 1)], 1)
@example([(97, 130), (3, 2)], 2)  # several blocks beside one pixel or so
@few
def test_accumulating(tiles: list[tuple[int, int]], seed: int) -> None:
    """Tiles of several sizes, class counts, modes, floors and quantiles in one call."""
    rng = np.random.default_rng(seed)
    jobs = [random_job(rng, tile) for tile in tiles]
    for job, got in zip(jobs, run(jobs, seed), strict=True):
        check(job, got)


def test_many_pixels() -> None:
    """More than 65536 pixels: many blocks per tile, and a quantile among them."""
    rng = np.random.default_rng(0)
    jobs = [random_job(rng, (301, 223)) for _ in range(2)]
    jobs[0].quantile, jobs[0].locate = 0.99, True
    for job, got in zip(jobs, run(jobs, 5), strict=True):
        check(job, got)


@given(SEEDS)
@settings(max_examples=2 if SANITIZED else 8)
def test_neither_batch_nor_order_changes_a_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = [random_job(rng, (int(rng.integers(1, 80)), int(rng.integers(1, 80)))) for _ in range(3)]
    together = run(jobs, seed)
    for job, one in zip(jobs, together, strict=True):
        (alone,) = run([job], seed // 2 + 1)
        assert alone.result.erased == one.result.erased and alone.result.centres == one.result.centres
        np.testing.assert_array_equal(alone.result.peak, one.result.peak)
        if job.accumulates:
            np.testing.assert_array_equal(alone.accumulated, one.accumulated)
            np.testing.assert_array_equal(alone.erased, one.erased)


def summed(job: Job) -> np.ndarray:
    """The kernel's sum of the low maps, in its order: the columns' taps, then the rows', scale by scale."""
    total = np.zeros((job.classes, *job.tile), np.float32)
    for low in job.lows:
        (y0, y1, down), (x0, x1, across) = (
            taps(n, source) for n, source in zip(job.tile, low.shape[1:], strict=True)
        )
        rows = low[:, :, x0] * (1 - across) + low[:, :, x1] * across
        total += rows[:, y0] * (1 - down)[:, None] + rows[:, y1] * down[:, None]
    return total


def taps(target: int, source: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each place the source's neighbours, and the share of the second, float32."""
    numerator = np.maximum((2 * np.arange(target) + 1) * source - target, 0)
    low = np.minimum(numerator // (2 * target), source - 1)
    share = (numerator - low * 2 * target).astype(np.float32) / np.float32(2 * target)
    return low, np.minimum(low + 1, source - 1), share


@given(st.tuples(st.integers(1, 300), st.integers(1, 300)), SEEDS)
@example((129, 128), 1)  # a row more than a block has
@example((128, 129), 2)
@example((1, 300), 3)
@settings(max_examples=3 if SANITIZED else 12, deadline=None)
def test_sums_are_numpy_s_to_the_bit(tile: tuple[int, int], seed: int) -> None:
    """Maps smaller and larger than the tile, up to 7 of them: whole rows are passed over, or seen many times."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 4))
    sizes = [(int(rng.integers(1, 40)), int(rng.integers(1, 40))) for _ in range(int(rng.integers(1, 8)))]
    lows = [np.maximum(rng.normal(size=(count, *s)), 0).astype(np.float32) for s in sizes]
    job = Job(lows, tile, mode="sum")
    (got,) = run([job], seed)
    want = summed(job)
    np.testing.assert_array_equal(got.result.peak, host_ops.peaks(want))
    want = host_ops.normalise_in_place(want, 0.0, host_ops.peaks(want))
    np.testing.assert_array_equal(got.accumulated, want)


def exact(maps: np.ndarray, **changes: object) -> Job:
    """A job whose only low map is at tile size already: its sum is the map, bit for bit."""
    return Job([maps], maps.shape[1:], **changes)


@given(SHAPES, COUNTS, SEEDS, st.sampled_from([1.0, 0.999, 0.99, 0.5, 1e-9]))
@few
def test_peaks_are_values_of_the_map(shape: tuple[int, int], count: int, seed: int, quantile: float) -> None:
    """Equal values, zeros, tiny and huge ones included."""
    rng = np.random.default_rng(seed)
    maps = rng.choice([0, 1e-40, 1e-3, 0.5, 0.5000001, 3, 1e30], (count, *shape)).astype(np.float32)
    (got,) = run([exact(maps, quantile=quantile, accumulates=False)], seed)
    np.testing.assert_array_equal(got.result.peak, host_ops.peaks(maps, quantile))


@given(SHAPES, COUNTS, SEEDS, st.booleans())
@few
def test_given_the_sums_all_else_is_exact(
    shape: tuple[int, int], count: int, seed: int, floored: bool
) -> None:
    """Normalised as the host does, to the bit; what is just at the threshold is erased."""
    rng = np.random.default_rng(seed)
    maps = rng.choice([0, 0.3, 0.69999, 0.7, 0.70001, 1], (count, *shape)).astype(np.float32)
    maps *= np.float32(1 + 1e-5)
    floor = rng.choice([0, 1, 4], count).astype(np.float32) if floored else None
    (got,) = run([exact(maps, floor=floor, locate=True)], seed)
    want = host_ops.normalise_in_place(maps.copy(), 0.0 if floor is None else floor, host_ops.peaks(maps))
    np.testing.assert_array_equal(got.accumulated, want)
    np.testing.assert_array_equal(got.erased, want.max(axis=0) >= np.float32(0.7))
    for m, centre in zip(want, got.result.centres, strict=True):
        near = [reference.centre_of_mass(m), host_ops.centre_of_mass(m)]
        assert centre in near


def test_ties_at_the_threshold() -> None:
    value = np.float32(0.7)
    maps = np.array(
        [[[1.0, 0.0, value, np.nextafter(value, np.float32(0)), np.nextafter(value, np.float32(1))]]]
    )
    maps = maps.astype(np.float32) * np.float32(1)
    floor = np.array([1 - 1e-5], np.float32)
    by = np.maximum(np.float32(1), floor) + np.float32(1e-5)
    n = np.minimum(maps / by, 1)
    (got,) = run([exact(maps, floor=floor)], 3)
    np.testing.assert_array_equal(got.erased, (n >= value)[0])
    thresholded = float(n[0, 0, 2])
    (got,) = run([exact(maps, floor=floor, threshold=thresholded)], 3)
    assert got.erased.tolist() == [[True, False, True, False, True]]


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 1), (4, 5), (101, 58)])
def test_centre_of_nothing_is_the_middle(size: tuple[int, int]) -> None:
    (got,) = run([exact(np.zeros((2, *size), np.float32), locate=True, accumulates=False)], 1)
    assert got.result.centres == [(size[0] // 2, size[1] // 2)] * 2
    assert got.result.peak.tolist() == [0, 0]


@pytest.mark.parametrize("at", [(0, 0), (3, 2), (6, 4)])
def test_centre_of_one_pixel_is_that_pixel(at: tuple[int, int]) -> None:
    maps = np.zeros((1, 7, 5), np.float32)
    maps[0, at[0], at[1]] = 0.3
    (got,) = run([exact(maps, locate=True)], 1)
    assert got.result.centres == [at]


def test_centre_of_a_constant_map_is_the_host_s() -> None:
    """It lies exactly on an integer at odd sides: rounding must not push it below."""
    heights = range(1, 64, 16 if SANITIZED else 2)
    maps = [np.full((1, h, 5), v, np.float32) for h in heights for v in (1.0, 0.1, 1 / 3)]
    for m, got in zip(maps, run([exact(m, locate=True) for m in maps], 1), strict=True):
        n = host_ops.normalise_in_place(m.copy(), 0.0, host_ops.peaks(m))
        assert got.result.centres == [host_ops.centre_of_mass(n[0])]


@pytest.mark.parametrize("quantile", [1.0, 0.999])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_a_network_that_overflows_shows_in_the_peak(value: float, quantile: float) -> None:
    """Through gather and accumulate; the other class is as it was."""
    response = np.ones((1, 2, 9, 7), np.float32)
    response[0, 1, 4] = value
    with Rig() as rig:
        source, low = rig.put(response), rig.driver.allocate(response.nbytes)
        rig.ops.gather([Gather(low, [0, 1], plain=0, mirrored=0)], source, OutputShape(2, 9, 7))
        item = Accumulate((9, 7), 2, [LowResponse(low, (9, 7))], quantile)
        results = rig.driver.allocate(results_nbytes([item]))
        rig.ops.accumulate([item], results)
        (got,) = read_results([item], rig.get(results, (results_nbytes([item]),), np.uint8))
    assert got.peak[0] == 2 and not np.isfinite(got.peak[1])


def test_no_classes() -> None:
    (got,) = run([Job([np.zeros((0, 3, 3), np.float32)], (6, 7))], 1)
    assert got.result.erased == 0 and got.result.peak.size == 0 and not got.erased.any()


# -- unite -------------------------------------------------------------------------------------------------
def final(maps: np.ndarray, mode: str, iterations: int) -> np.ndarray:
    if mode == "sum":
        return reference.normalised(maps)
    return maps / np.float32(iterations) if mode == "mean" else maps


@given(SHAPES, COUNTS, SEEDS, MODES, st.sampled_from(["none", "only", "max", "mean"]), st.integers(0, 5))
@example((1, 1), 1, 1, "sum", "none", 0)
@few
def test_uniting(shape: tuple[int, int], count: int, seed: int, mode: str, join: str, parts: int) -> None:
    rng = np.random.default_rng(seed)
    placed, maps, rounds = [], [], []
    for _ in range(parts):
        y0, x0 = int(rng.integers(shape[0])), int(rng.integers(shape[1]))
        box = Box(y0, x0, int(rng.integers(y0 + 1, shape[0] + 1)), int(rng.integers(x0 + 1, shape[1] + 1)))
        takes = np.flatnonzero(rng.random(count) < 0.7).tolist()
        placed.append(Placed(box, tuple(takes)))
        maps.append(rng.random((count, box.height, box.width), np.float32) * np.float32(rng.integers(3)))
        rounds.append(int(rng.integers(1, 6)))
    whole = rng.random((count, *shape), np.float32)
    weight = np.float32(rng.random())
    want = reference.unite(
        *shape, placed, [final(m, mode, i) for m, i in zip(maps, rounds, strict=True)], count
    )
    own = final(whole, mode, 3)
    if join != "none":
        want = {"only": own, "max": np.maximum(want, own), "mean": want * (1 - weight) + weight * own}[join]
    with Rig(seed=seed) as rig:
        tiles = [
            UnitePart(planes(rig, m), p.box, p.takes, i) for m, p, i in zip(maps, placed, rounds, strict=True)
        ]
        all_of_it = (
            UnitePart(planes(rig, whole), whole_box(*shape), range(count), 3) if join != "none" else None
        )
        out = rig.driver.allocate(4 * count * shape[0] * shape[1])
        item = UniteCall(
            shape, count, tiles, all_of_it, "only" if join == "none" else join, float(weight), mode
        )
        rig.ops.unite(item, out)
        np.testing.assert_array_equal(rig.get(out, want.shape, np.float32), want)
