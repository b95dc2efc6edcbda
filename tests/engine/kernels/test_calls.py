"""What a caller of ops.py relies on beside the numbers: out of memory leaves nothing half done, work may be late,
and the bytes that a benchmark divides by."""

from __future__ import annotations

import numpy as np
import pytest

from infercam.engine.device import traffic
from infercam.engine.device.descriptors import (
    Accumulate,
    Cut,
    Gather,
    LowResponse,
    Part,
    Patch,
    Resize,
    Slot,
    UniteCall,
    UnitePart,
)
from infercam.engine.device.driver import DeviceOutOfMemory
from infercam.engine.device.ops import (
    maps_nbytes,
    mask_nbytes,
    picture_nbytes,
    read_results,
    results_nbytes,
)
from infercam.engine.device.runner import OutputShape
from infercam.engine.method.geometry import Box, whole_box
from infercam.engine.method.resampling import columns_first
from tests.cuda_emulator.rig import Rig
from tests.engine import tiny

TILE = (21, 34)


def tile_job(rig: Rig, maps: np.ndarray, **changes: object) -> Accumulate:
    lows = [LowResponse(rig.put(maps), maps.shape[1:])]
    accumulated = rig.put(np.zeros(maps_nbytes(len(maps), TILE), np.uint8))
    erased = rig.put(np.zeros(mask_nbytes(TILE), np.uint8))
    return Accumulate(TILE, len(maps), lows, accumulated=accumulated, erased=erased, **changes)


def calls(rig: Rig) -> dict[str, tuple[object, int]]:
    """Every call that needs workspace, and what it writes."""
    maps = np.random.default_rng(0).random((2, 5, 6), np.float32)
    image = rig.put(tiny.picture(*TILE, 1))
    picture = rig.driver.allocate(picture_nbytes((9, 9)))
    job = tile_job(rig, maps, first=False, quantile=0.5)
    results = rig.driver.allocate(results_nbytes([job]))
    low = rig.driver.allocate(maps[:1].nbytes)
    out = rig.driver.allocate(8 * TILE[0] * TILE[1] * 4)
    part = UnitePart(job.accumulated, whole_box(*TILE), (0, 1), 1)
    response = rig.put(maps)
    return {
        "resize": (
            lambda: rig.ops.resize([Resize(image, TILE[1], whole_box(*TILE), (9, 9), picture)]),
            picture,
        ),
        "erase": (lambda: rig.ops.erase([Slot(picture)], (9, 9), out, "float32"), out),
        "gather": (lambda: rig.ops.gather([Gather(low, [1], plain=0)], response, OutputShape(2, 5, 6)), low),
        "cut": (lambda: rig.ops.cut([Cut(image, (9, 9), (1, 2))], (4, 5), out, "float32"), out),
        "patch": (
            lambda: rig.ops.patch(
                [Patch(low, (5, 6), [1], [Part(0, False, (0, 0), maps[0, :, 0], maps[0, 0])])],
                response,
                OutputShape(2, 5, 6),
            ),
            low,
        ),
        "accumulate": (lambda: rig.ops.accumulate([job], results), job.accumulated),
        "unite": (lambda: rig.ops.unite(UniteCall(TILE, 2, [part], mode="sum"), out), out),
    }


@pytest.mark.parametrize("call", ["resize", "erase", "gather", "cut", "patch", "accumulate", "unite"])
def test_out_of_memory_launches_and_writes_nothing(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig() as rig:
        do, written = calls(rig)[call]
        before = rig.get(written, (64,), np.uint8)
        held, real, allowed = set(rig.held), rig.allocate, 0

        def allocate(nbytes: int) -> int:
            if len(rig.held) - len(held) >= allowed:
                raise DeviceOutOfMemory("none left")
            return real(nbytes)

        monkeypatch.setattr(rig, "allocate", allocate)
        for allowed in range(10):  # noqa: B007  the function above reads it
            try:
                do()
                break
            except DeviceOutOfMemory:
                assert not rig.driver.launches and rig.held == held
                np.testing.assert_array_equal(rig.get(written, (64,), np.uint8), before)
        assert allowed > 0 and rig.driver.launches and rig.held == held


def test_late_work_gives_the_same() -> None:
    """Everything enqueued before anything runs: descriptors are staged, not read when it is too late."""
    maps = [np.random.default_rng(n).random((2, 5, 6), np.float32) for n in range(3)]
    seen = []
    for deferred in (False, True):
        with Rig(deferred=deferred) as rig:
            jobs = [tile_job(rig, m, locate=True) for m in maps]
            results = [rig.driver.allocate(results_nbytes([job])) for job in jobs]
            for job, result in zip(jobs, results, strict=True):
                rig.ops.accumulate([job], result)
            data = [rig.get(r, (results_nbytes([j]),), np.uint8) for r, j in zip(results, jobs, strict=True)]
            seen.append([read_results([job], d)[0] for job, d in zip(jobs, data, strict=True)])
    for now, late in zip(*seen, strict=True):
        assert now.erased == late.erased and now.centres == late.centres
        np.testing.assert_array_equal(now.peak, late.peak)


def test_the_order_of_pillow_s_passes() -> None:
    """Columns first only where the height shrinks by more than twice what the width does."""
    assert not columns_first((375, 500), (188, 250)) and not columns_first((500, 375), (250, 188))
    assert columns_first((500, 100), (250, 50)) and columns_first((60, 40), (59, 41))
    assert not columns_first((60, 40), (61, 80)) and not columns_first((60, 40), (60, 80))


def test_bytes_moved() -> None:
    """By hand: H×W = 10×20."""
    items = [Resize(0, 20, Box(0, 0, 10, 20), (5, 8), 0)]
    assert traffic.resize(items) == {"resize_first": 3 * (200 + 80), "resize_second": 3 * (80 + 40)}
    slots = [Slot(0), Slot(0, erased=1, tile=(10, 20))]
    assert traffic.erase(slots, (5, 8), "float32") == {"erase_words_float": 2 * 3 * 40 * 5 + 200}
    assert traffic.erase(slots[:1], (5, 8), "float16") == {"erase_words_half": 3 * 40 * 3}
    assert traffic.erase(slots[:1], (8, 5), "float16") == {"erase_half": 3 * 40 * 3}
    shape = OutputShape(20, 2, 3)
    assert traffic.gather([Gather(0, [1, 2], 0, 1), Gather(0, [3], 0, add=True)], shape) == {
        "gather": 24 * 2 * 3 + 24 * 3
    }
    low = [LowResponse(0, (2, 3))]
    first = Accumulate((10, 20), 2, low, accumulated=8, erased=8, locate=True)
    later = first._replace(first=False, locate=False, quantile=0.9)
    assert traffic.accumulate([first]) == {
        "upsample": 1600 + 48, "centre_of_mass": 1600, "accumulate": 3200 + 200,
    }  # fmt: skip
    assert traffic.accumulate([later]) == {
        "upsample": 1600 + 48, "rank_histogram": 4800, "accumulate": 4800 + 400,
    }  # fmt: skip
    part = UnitePart(0, Box(0, 0, 10, 10), (1,), 1)
    assert traffic.unite(UniteCall((10, 20), 2, [part])) == {"unite": 1600 + 400}
    assert traffic.unite(UniteCall((10, 20), 2, [part], mode="sum")) == {"unite": 2000, "plane_peaks": 800}
