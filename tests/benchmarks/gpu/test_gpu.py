"""The GPU benchmark on the emulated device, so that it cannot rot while no GPU is at hand. Its times mean nothing
here; what is checked is that every part runs, records what it should, and says so where it could not."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")


from infercam.benchmarks.gpu import measure as gpu
from infercam.benchmarks.gpu import rig as gpu_rig
from infercam.benchmarks.gpu.kernels import WallClock, measure_kernels
from infercam.benchmarks.gpu.ort_cuda import ort_cuda
from infercam.benchmarks.gpu.profile import WaitingDriver, copy_rate, matmul_rate, union
from infercam.engine.common.errors import BackendError
from tests.cuda_emulator.driver import EmulatedDriver
from tests.engine import tiny

SMALLEST = dataclasses.replace(gpu_rig.DRY, sizes=((9, 12),), images=1)


def bench(plan: gpu_rig.GpuPlan = SMALLEST, off: frozenset[str] = frozenset()) -> gpu_rig.GpuBench:
    network = gpu_rig.random_network(plan)
    return gpu_rig.GpuBench(plan, EmulatedDriver, network, gpu_rig.synthetic(plan), off)


def test_every_kernel_is_measured_and_equals_its_twin() -> None:
    driver = EmulatedDriver()
    rows = measure_kernels(driver, WallClock(driver), 2, (11, 14), copy_rate=1e9)
    calls = [row["call"] for row in rows]
    assert calls == [
        "resize",
        "erase",
        "gather",
        "accumulate",
        "accumulate, located",
        "accumulate, quantile",
        "unite",
    ]
    for row in rows:
        assert row["difference_from_twin"] <= 1e-6, row
        assert row["bytes"] > 2 * 11 * 14 * 3 or row["call"] in ("gather", "unite")
        assert row["bytes_per_second"] == row["bytes"] / row["seconds"]
        assert row["share_of_copy"] == row["bytes_per_second"] / 1e9
    driver.close()


def test_a_run_counts_what_was_done() -> None:
    row = bench().run(gpu_rig.GpuSwitches(batching=True), "corrected", "baseline")
    assert row["failed"] == [] and row["tiles"] == 1 and row["iterations"] == 1
    assert row["network_pixels_per_image"] == 2 * (9 * 12 + 4 * 6 + 14 * 18 + 18 * 24)
    assert row["batches"] == 4 and row["views_per_batch"] == 2
    assert row["host_seconds_per_tile"] > 0 and 0 < row["memory_peak"] <= row["memory_budget"]


@pytest.mark.parametrize("name", gpu_rig.SWITCHES)
def test_each_saving_has_a_switch_of_its_own(name: str) -> None:
    plan = SMALLEST
    off, on = gpu_rig.GpuSwitches().options(plan), gpu_rig.GpuSwitches(**{name: True}).options(plan)
    assert sum(off[key] != on[key] for key in off) == 1
    engine, _ = bench().engine(gpu_rig.GpuSwitches(**{name: True}))
    with engine:
        runner = engine.backend.runner.describe()  # type: ignore[attr-defined]
        assert runner["channels_last"] == (name == "channels_last")
        assert runner["precision"] == ("fp16" if name == "half" else "fp32")
        assert engine.backend.depth == (3 if name == "queue" else 1)  # type: ignore[attr-defined]
        assert (engine.backend.limits.batch_pixels > 1) == (name == "batching")


def test_waiting_is_not_the_host_s_work() -> None:
    driver = WaitingDriver(EmulatedDriver(deferred=True))
    driver.enqueue(lambda: time.sleep(0.05))
    driver.record().wait()
    assert 0.05 <= driver.waited < 1 and driver.name == "emulated"


def test_union_of_intervals() -> None:
    assert union([]) == 0
    assert union([(5, 6), (0, 2), (1, 3), (1, 2), (6, 7)]) == 5


def test_rates_are_positive() -> None:
    assert copy_rate(1 << 16, "cpu") > 0 and matmul_rate(32, "cpu") > 0


def test_a_part_that_fails_or_comes_too_late_says_so() -> None:
    def broken(_: gpu_rig.GpuBench) -> None:
        raise RuntimeError("it broke\nin two lines")

    late = bench()
    late.deadline = time.monotonic() - 1
    measured = gpu.measure(late, {"more": broken})
    assert all(part == {"not measured": "out of time"} for name, part in measured.items() if name != "goals")
    assert measured["goals"] == {}


def test_what_was_measured_is_kept_after_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped loses nothing that it had."""
    kept: list[dict] = []

    def stopped(_: gpu_rig.GpuBench) -> None:
        raise KeyboardInterrupt

    for name in ("floor", "final"):
        monkeypatch.setattr(gpu, name, lambda b, name=name: {"of": name})
    with pytest.raises(KeyboardInterrupt):
        gpu.measure(bench(), {"agreement": stopped}, kept.append)
    assert [set(parts) for parts in kept] == [{"floor", "goals"}, {"floor", "final", "goals"}]
    assert kept[-1]["final"] == {"of": "final"}


def test_failures_are_findings() -> None:
    def broken(_: gpu_rig.GpuBench) -> None:
        raise RuntimeError("it broke\nin two lines")

    late = bench()
    assert gpu.attempt(broken, late) == {"error": "RuntimeError: it broke"}


def test_goals_leave_out_what_was_not_measured() -> None:
    row = {"images_per_second": 6.0, "network_pixels_per_image": 10.0}
    parts = {
        "loop": {"baseline": {"images_per_second": 3.0}, "both": {"images_per_second": 0.5}},
        "final": {"whole method": row, "fast": row},
        "floor": {"network_pixels_per_second": 100.0},
        "busy": {"error": "no profiler"},
        "kernels": {"rows": [{"call": "erase", "kernel": "erase_half", "share_of_copy": 0.8}]},
    }
    goals = gpu.goals(parts)
    assert goals["whole method over the PyTorch loop's (goal 15)"] == 12
    assert goals["fast over the PyTorch loop's plain CAM (goal 1)"] == 2
    assert goals["fast: share of the floor's rate (goal 0.5)"] == pytest.approx(0.6)
    assert goals["erase: erase_half over a copy's rate (goal 0.7)"] == 0.8
    assert len(goals) == 5
    assert gpu.goals({"loop": {"error": "x"}, "kernels": {"not measured": "y"}}) == {}


def test_an_unknown_switch_is_refused() -> None:
    with pytest.raises(BackendError, match="--off: no speed; there are: queue, batching, half"):
        gpu.main(off="half,speed")


def test_no_gpu_is_one_line() -> None:
    try:
        gpu_rig.pick_driver("cuda")()
    except BackendError as e:
        assert "\n" not in str(e)
    else:
        pytest.skip("this machine has a GPU")


@pytest.mark.slow
def test_maps_of_an_exported_classifier_agree_with_the_cpu_engine(tmp_path: Path) -> None:
    export = pytest.importorskip("infercam.export")
    module = gpu_rig.random_network(SMALLEST)
    classes = [f"c{n}" for n in range(20)]
    bundle = export.from_torch(module, tmp_path / "bundle", classes=classes, name="tiny")
    items = [("a", tiny.picture(18, 24, 1), [2]), ("b", tiny.picture(20, 15, 2), [3, 4])]
    found = gpu.agreement(bench(), module, bundle, items)
    assert found["fp32"]["compared"] == found["fp16"]["compared"] == 2
    assert found["fp32"]["largest_difference"] < 1e-3
    assert found["fp16"]["iou_at_0.3"] > 0.9


@pytest.mark.slow
def test_the_whole_command_dry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRY", SMALLEST)
    gpu.main(dry_run=True, off="graphs", results=tmp_path)
    record = json.loads((tmp_path / "gpu-dry-run.json").read_text())
    assert record["dry_run"] and record["device"]["driver"] == "emulated" and record["off"] == ["graphs"]
    for part in ("kernels", "floor", "final", "loop", "waterfall", "memory"):
        assert "error" not in record[part] and "not measured" not in record[part], record[part]
    added = [row["added"] for row in record["waterfall"]]
    assert added == ["on the device, view by view", "queue", "batching", "half", "channels_last"]
    assert record["busy"] == {"not measured": "no GPU"}
    assert record["final"]["whole method"]["recipe"] == "released, ladder"
    assert all(row["cold_images_per_second"] > 0 for row in record["final"].values())
    for row in (*record["waterfall"], *record["final"].values()):
        assert row["failed"] == [] and np.isfinite(row["images_per_second"])
    small = record["memory"]["small_budget"]
    assert small["failed"] == [] and small["memory_peak"] <= small["memory_budget"]
    assert len(record["goals"]) >= 5


def test_the_engines_own_runner_prepares_what_it_met(tmp_path: Path) -> None:
    bundle = tiny.build(tmp_path / "b", cells=True)
    plan = dataclasses.replace(SMALLEST, sizes=((40, 52), (52, 40)), images=2)
    found = ort_cuda(bench(plan), bundle)
    assert found.pop("precision") == "fp32"
    for row in found.values():
        assert row["prepared"] == row["sessions_made"] > 2 and row["sessions_made_after_preparing"] == 0
        assert min(row[f"{kind}images_per_second"] for kind in ("", "cold_", "prepared_")) > 0
        assert row["preparing_seconds"] > 0 and not row["nhwc"]


def test_preparing_is_counted_and_changes_nothing() -> None:
    one, _ = bench().engine(gpu_rig.GpuSwitches(batching=True, channels_last=True))
    with one:
        runner = one.backend.runner
        with one.backend.driver.current():
            assert runner.prepare(2, 9, 12) and runner.prepare(2, 9, 12)
        assert runner.prepared == {(2, 3, 9, 12)}
        maps = one.maps(np.full((9, 12, 3), 99, np.uint8), [0], "released", "baseline")
        assert len(runner.prepared) == 4, "one was prepared, three were met"
    two, _ = bench().engine(gpu_rig.GpuSwitches(batching=True, channels_last=True))
    with two:
        same = two.maps(np.full((9, 12, 3), 99, np.uint8), [0], "released", "baseline")
    assert np.array_equal(maps, same)
