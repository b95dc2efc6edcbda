"""TensorRT-RTX plans over the stand-in: results, compiled kernels kept from run to run, switches, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from infercam.engine.bundle import Bundle
from infercam.engine.common.cache import read_entry, write_entry
from infercam.engine.common.errors import BackendError, MissingExtra
from infercam.engine.method.backend import OutOfMemory
from infercam.engine.runners import plan as plans
from infercam.engine.runners import rtx as rtx_runner
from infercam.engine.runners.host import HostNetwork
from infercam.engine.runners.options import CUDA_GRAPHS, RTX_KERNELS, RuntimeSwitches
from infercam.engine.runners.plan import Plan, PlanError
from infercam.engine.runners.rtx import card_obstacle, kept_kernels
from infercam.engine.runners.tensorrt import TensorRTRunner, load_runner
from tests.engine import tiny
from tests.engine.runners.test_tensorrt import RTX, inputs, write_plan


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    return Bundle.load(tmp_path / "bundle")


@pytest.fixture
def driver(rtx: ModuleType):
    with rtx.state.driver.current():
        yield rtx.state.driver


@pytest.fixture
def plan(bundle: Bundle, rtx: ModuleType) -> Plan:
    return write_plan(bundle, rtx, bundle.path / "plans" / "a", **RTX)


def run(plan: Plan, bundle: Bundle, driver, *shapes: tuple[int, int, int], **how) -> dict:
    """Runs shapes on a runner of its own; checks what comes out and that nothing is left; what it said of itself."""
    before = driver.held
    runner = TensorRTRunner(plan, bundle, driver, **how)
    network = HostNetwork(runner, driver)
    for shape in shapes:
        x = inputs(*shape)
        np.testing.assert_allclose(network(x), tiny.network(bundle)(x), atol=1e-5)
    runner.close()
    assert driver.held == before
    return runner.describe()


def entry() -> Path:
    (file,) = rtx_runner.cache_folder(rtx_runner.CACHE).iterdir()
    return file


def test_responses_are_the_networks(plan, bundle, driver) -> None:
    said = run(plan, bundle, driver, (1, 8, 8), (3, 33, 41), (2, 128, 128), (3, 33, 41))
    assert (said["runner"], said["runtime"], said["kernels"], said["cuda_graphs"]) == (
        *("tensorrt-rtx", "tensorrt-rtx"),
        *("lazy", False),
    )


def test_it_is_loaded_by_its_name(plan, bundle, driver, rtx) -> None:
    write_plan(bundle, rtx, bundle.path / "plans" / "full", created="2999")  # TensorRT's, for another GPU
    runner = load_runner(bundle, driver, runtime="tensorrt-rtx")
    assert runner.name == "tensorrt-rtx" and runner.plan == plan
    runner.close()


# -- compiled kernels ------------------------------------------------------------------------------------------
def test_kernels_are_compiled_once_per_machine(plan, bundle, driver, rtx) -> None:
    run(plan, bundle, driver, (1, 20, 20), (2, 24, 20))
    assert rtx.state.compiled == [(1, 3, 20, 20), (2, 3, 24, 20)]
    before = entry().stat()
    run(plan, bundle, driver, (2, 24, 20), (1, 20, 20))
    assert len(rtx.state.compiled) == 2
    assert entry().stat() == before, "nothing new: not written again"
    run(plan, bundle, driver, (1, 30, 30))
    run(plan, bundle, driver, (1, 20, 20), (1, 30, 30))
    assert rtx.state.compiled[2:] == [(1, 3, 30, 30)]
    assert kept_kernels() == (1, entry().stat().st_size)


def test_a_kill_loses_half_of_it_at_most(plan, bundle, driver, rtx) -> None:
    runner = TensorRTRunner(plan, bundle, driver)  # never closed
    network = HostNetwork(runner, driver)
    for side in range(20, 29):
        network(inputs(1, side, side))
    rtx.state.compiled.clear()
    run(plan, bundle, driver, *[(1, side, side) for side in range(20, 28)])
    assert rtx.state.compiled == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign"])
def test_what_is_damaged_or_foreign_is_thrown_away_with_a_line(
    damage, plan, bundle, driver, rtx, capsys
) -> None:
    run(plan, bundle, driver, (1, 20, 20))
    file = entry()
    data = file.read_bytes()
    if damage == "foreign":
        write_entry(file, read_entry(file).replace(b"1.7.1.116", b"1.7.0.000"))
    else:
        file.write_bytes({"flipped": data[:-3] + b"xyz", "cut": data[:40], "empty": b""}[damage])
    rtx.state.compiled.clear()
    capsys.readouterr()
    run(plan, bundle, driver, (1, 20, 20))
    said = capsys.readouterr().err
    assert said.startswith(f"note: {file}: compiled kernels are ") and said.count("\n") == 1
    assert ("damaged" in said) == (damage != "foreign")
    assert rtx.state.compiled == [(1, 3, 20, 20)] and file.read_bytes() == data


def test_each_machine_has_its_own(plan, bundle, driver, rtx) -> None:
    run(plan, bundle, driver, (1, 20, 20))
    driver.gpu = "RTX 4080"  # a plan for both, in one home folder
    run(plan, bundle, driver, (1, 20, 20))
    assert kept_kernels()[0] == 2 and len(rtx.state.compiled) == 2


def test_a_cache_that_cannot_be_written_only_costs_time(
    plan, bundle, driver, rtx, monkeypatch, tmp_path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    run(plan, bundle, driver, (1, 20, 20))
    run(plan, bundle, driver, (1, 20, 20))
    assert len(rtx.state.compiled) == 2


def test_getting_ready_compiles(plan, bundle, driver, rtx) -> None:
    runner = TensorRTRunner(plan, bundle, driver)
    assert runner.prepare(2, 24, 20)
    assert rtx.state.compiled == [(2, 3, 24, 20)] == rtx.state.runs
    assert read_entry(entry()) is not None
    runner.close()


# -- switches --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kernels", ["lazy", "eager", "none"])
@pytest.mark.parametrize("graphs", [False, True])
def test_switches_reach_the_contexts(kernels, graphs, plan, bundle, driver, rtx) -> None:
    runner = TensorRTRunner(plan, bundle, driver, switches=RuntimeSwitches(graphs, kernels))
    HostNetwork(runner, driver)(inputs(1, 20, 20))
    (slot,) = runner.slots._slots.values()
    config = slot.context._config
    assert config.dynamic_shapes_kernel_specialization_strategy.name == kernels.upper()
    assert config.cuda_graph_strategy.name == ("WHOLE_GRAPH_CAPTURE" if graphs else "DISABLED")
    assert runner.describe()["cuda_graphs"] == graphs and runner.describe()["kernels"] == kernels
    assert slot.replay is None, "it captures by itself"
    runner.close()


@pytest.mark.parametrize(
    ("environment", "switches"),
    [
        ({}, RuntimeSwitches(False, "lazy")),
        ({CUDA_GRAPHS: "1", RTX_KERNELS: "eager"}, RuntimeSwitches(True, "eager")),
        ({CUDA_GRAPHS: "off", RTX_KERNELS: ""}, RuntimeSwitches(False, "lazy")),
        ({CUDA_GRAPHS: "on", RTX_KERNELS: "none"}, RuntimeSwitches(True, "none")),
    ],
)
def test_switches_come_from_the_environment(environment, switches) -> None:
    assert RuntimeSwitches.of(environment) == switches


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({CUDA_GRAPHS: "yes please"}, "INFERCAM_CUDA_GRAPHS=yes please: takes on"),
        ({RTX_KERNELS: "LAZY"}, "INFERCAM_RTX_KERNELS=LAZY: takes lazy, eager, none"),
    ],
)
def test_a_switch_that_is_none_is_one_line(environment, words, plan, bundle, driver, monkeypatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BackendError, match=words):
        load_runner(bundle, driver, runtime="tensorrt-rtx")


# -- what is refused -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("capability", "words"),
    [
        *[
            ((major, minor), None)
            for major, minor in [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1), (13, 0)]
        ],
        *[
            ((major, minor), "use --backend tensorrt or ort-cuda")
            for major, minor in [(8, 7), (9, 0), (10, 3)]
        ],
        *[((major, minor), "older than 7.5") for major, minor in [(7, 0), (6, 1)]],
    ],
)
def test_the_cards_that_it_takes(capability, words) -> None:
    said = card_obstacle("Card", capability)
    assert said is None if words is None else words in str(said)


def test_an_h100_is_one_clear_line(plan, bundle, driver) -> None:
    driver.gpu, driver.compute_capability = "NVIDIA H100", (9, 0)
    with pytest.raises(BackendError, match=r"does not run on NVIDIA H100 \(compute 9\.0\).*ort-cuda$"):
        load_runner(bundle, driver, runtime="tensorrt-rtx")


def test_without_the_package_the_extra_is_named(plan, bundle, driver, monkeypatch) -> None:
    monkeypatch.setitem(rtx_runner.sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtra, match=r"tensorrt-rtx-cu13: pip install 'infercam\[rtx\]'"):
        load_runner(bundle, driver, runtime="tensorrt-rtx")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (1, "is of another TensorRT-RTX"),
        (2, "was not built for this GPU: build it again with this GPU among --targets"),
        (4, "needs a newer NVIDIA driver: update it"),
        (8, "needs a newer CUDA runtime"),
        (32 | 1, "is no TensorRT-RTX plan"),
        (64, "cannot run: CUDA's driver or runtime does not work here; see: infercam doctor"),
        (0, "is invalid here: Error reading CUDA GPU properties"),
    ],
)
def test_a_plan_that_is_not_valid_here_is_not_loaded(found, words, plan, bundle, driver, rtx) -> None:
    rtx.state.invalid = (found, "Error reading CUDA GPU properties")
    rtx.state.deserialise_error = "it was loaded"
    with pytest.raises(PlanError, match=rf"^{plan.folder}: the plan {words}"):
        TensorRTRunner(plan, bundle, driver)


def test_a_plan_that_could_be_better_is_a_line(plan, bundle, driver, rtx, capsys) -> None:
    run(plan, bundle, driver, (1, 20, 20))
    assert capsys.readouterr().err == ""
    rtx.state.suboptimal = True
    run(plan, bundle, driver, (1, 20, 20))
    said = capsys.readouterr().err
    assert said.startswith(f"note: {plan.folder}: the plan runs here") and said.count("\n") == 1


def test_a_plan_that_is_too_large_for_the_gpu(plan, bundle, driver, rtx) -> None:
    rtx.state.invalid = (16, "")
    with pytest.raises(OutOfMemory, match="does not fit into this GPU's memory"):
        TensorRTRunner(plan, bundle, driver)


def test_what_it_says_is_said_in_its_name(plan, bundle, driver, rtx) -> None:
    rtx.state.deserialise_error = "IRuntime::deserializeCudaEngine: Error Code 1: Cuda Runtime"
    with pytest.raises(PlanError, match="TensorRT-RTX refuses the plan: Error Code 1"):
        TensorRTRunner(plan, bundle, driver)
    rtx.state.deserialise_error = None
    rtx.state.run_error = "Error Code 1"
    with pytest.raises(BackendError, match="TensorRT-RTX cannot run 1 view of 20x20"):
        HostNetwork(TensorRTRunner(plan, bundle, driver), driver)(inputs(1, 20, 20))


def test_a_stale_plan_says_how_to_build_it_again(plan, bundle, driver) -> None:
    stale = Plan(plan.folder, plan.record.model_copy(update={"tensorrt": "1.6.0"}))
    with pytest.raises(
        PlanError,
        match=r"by TensorRT-RTX 1\.6\.0, here is 1\.7\.1\.116; .*: infercam build .* --runtime tensorrt-rtx$",
    ):
        TensorRTRunner(stale, bundle, driver)
    (plan.folder / plans.PLAN_FILE).write_bytes(b"x")
    with pytest.raises(PlanError, match="damaged"):
        TensorRTRunner(plan, bundle, driver)


def test_a_turing_card_is_told_its_target(plan, bundle, driver) -> None:
    driver.gpu, driver.compute_capability = "Tesla T4", (7, 5)
    with pytest.raises(PlanError, match=r"--precision fp32 --runtime tensorrt-rtx --targets sm75$"):
        load_runner(bundle, driver, runtime="tensorrt-rtx")
