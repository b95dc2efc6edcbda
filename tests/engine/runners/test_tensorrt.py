"""The TensorRT runner over the stand-in: results, shapes, contexts, memory, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercam.engine.bundle import Bundle, file_entry
from infercam.engine.common.errors import BackendError, MissingExtra
from infercam.engine.device.driver import DeviceError
from infercam.engine.device.runner import OutputShape
from infercam.engine.method.backend import OutOfMemory
from infercam.engine.runners import plan as plans
from infercam.engine.runners.host import HostNetwork
from infercam.engine.runners.options import RuntimeSwitches
from infercam.engine.runners.plan import (
    Environment,
    Plan,
    PlanError,
    PlanOptions,
    PlanRecord,
    Profile,
    find_plan,
    graph_hash,
    list_plans,
    misfit,
    pick_profile,
)
from infercam.engine.runners.tensorrt import TensorRTRunner, environment, load_runner
from tests.engine import tiny
from tests.fake_graphs import FakeCapture

SMALL = Profile(smallest=(1, 8, 8), best=(4, 32, 32), largest=(8, 48, 48))
LARGE = Profile(smallest=(1, 16, 16), best=(2, 96, 96), largest=(2, 128, 128))
HERE = Environment("NVIDIA H100", (9, 0), "11.4.0.106")


def write_plan(
    bundle: Bundle,
    trt,
    folder: Path,
    *,
    profiles=(SMALL, LARGE),
    input_type="float32",
    graph: Path | None = None,
    **changes,
) -> Plan:
    """A plan as `infercam build` would have written it, with some of its record changed."""
    options = changes.pop("options", PlanOptions())
    head = {
        "version": trt.__version__,
        "profiles": [[[n, 3, h, w] for n, h, w in (p.smallest, p.best, p.largest)] for p in profiles],
        "stripped": options.stripped,
        "refittable": options.stripped or options.refittable,
    }
    data = trt._pack(head, onnx.load(str(graph or bundle.graph("fp32"))))
    folder.mkdir(parents=True)
    (folder / plans.PLAN_FILE).write_bytes(data)
    record = {
        "precision": "fp32",
        "input_type": input_type,
        "bundle": bundle.manifest.name,
        "bundle_hash": bundle.hash,
        "onnx_sha256": graph_hash(bundle, "fp32"),
        "profiles": list(profiles),
        "options": options,
        "tensorrt": trt.__version__,
        "gpu": HERE.gpu,
        "compute_capability": HERE.compute_capability,
        "plan": file_entry(folder / plans.PLAN_FILE),
    }
    made = PlanRecord.model_validate(record | changes)
    (folder / plans.RECORD_FILE).write_text(made.model_dump_json())
    return Plan.load(folder)


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of the tiny bundle, so that plans may be put into it."""
    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    return Bundle.load(tmp_path / "bundle")


@pytest.fixture
def driver(trt):
    with trt.state.driver.current():
        yield trt.state.driver


@pytest.fixture
def runner(bundle, trt, driver):
    made = TensorRTRunner(write_plan(bundle, trt, bundle.path / "plans" / "a"), bundle, driver)
    yield made
    made.close()
    assert driver.held == 0


def inputs(n: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3, h, w), dtype=np.float32)


# -- results ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 33, 41), (8, 48, 48), (2, 128, 128), (1, 47, 101)])
def test_responses_are_the_networks(runner, bundle, driver, shape):
    x = inputs(*shape)
    np.testing.assert_allclose(HostNetwork(runner, driver)(x), tiny.network(bundle)(x), atol=1e-5)


def test_larger_batches_go_in_parts(runner, bundle, driver, trt):
    x = inputs(5, 100, 90)
    np.testing.assert_allclose(HostNetwork(runner, driver)(x), tiny.network(bundle)(x), atol=1e-5)
    assert [run[0] for run in trt.state.runs] == [2, 2, 1]


def test_scores_are_the_networks(runner, bundle, driver):
    x = inputs(2, 40, 36)
    image, scores = driver.allocate(x.nbytes), driver.allocate(2 * 5 * 4)
    driver.copy_in(image, x.view(np.uint8).ravel())
    runner.scores(2, 40, 36, image, scores)
    got = driver.view(scores, 40).view(np.float32).reshape(2, 5)
    want = tiny.network(bundle)(x).mean(axis=(2, 3)) + tiny.weights()["bias"]
    np.testing.assert_allclose(got, want, atol=1e-5)
    driver.free(image)
    driver.free(scores)


def test_shapes_are_asked_of_the_plan(runner):
    assert runner.response_shape(33, 41) == OutputShape(5, 9, 11)
    assert runner.response_shape(33, 41) == OutputShape(5, 9, 11)
    assert (runner.max_batch(48, 48), runner.max_batch(49, 48), runner.max_batch(8, 8)) == (8, 2, 8)


@pytest.mark.parametrize("size", [(129, 20), (20, 200), (7, 30), (1, 1)])
def test_a_shape_outside_the_profiles_is_named(runner, size):
    with pytest.raises(
        BackendError, match=rf"a view of {size[0]}x{size[1]} is outside .*1-8 views of 8x8 to"
    ):
        runner.max_batch(*size)
    with pytest.raises(BackendError, match="infercam build"):
        runner.response_shape(*size)


def test_a_batch_outside_the_profiles_is_named(runner, driver):
    with pytest.raises(BackendError, match="9 views of 40x40 is outside"):
        runner.respond(9, 40, 40, 1, 2)


def test_half_precision_input(bundle, trt, driver, tmp_path):
    model = onnx.load(str(bundle.graph("fp32")))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    model.graph.node.insert(
        0, onnx.helper.make_node("Cast", ["image"], ["image32"], to=onnx.TensorProto.FLOAT)
    )
    model.graph.node[1].input[0] = "image32"
    onnx.save(model, str(tmp_path / "half.onnx"))
    plan = write_plan(bundle, trt, tmp_path / "p", input_type="float16", graph=tmp_path / "half.onnx")
    runner = TensorRTRunner(plan, bundle, driver)
    x = inputs(2, 40, 44)
    got, want = HostNetwork(runner, driver)(x), tiny.network(bundle)(x)
    assert 1e-6 < np.abs(got - want).max() < 1e-2  # the input is rounded, the rest is not
    runner.close()


# -- contexts and memory ---------------------------------------------------------------------------------------
def test_a_shape_that_comes_again_needs_no_set_up(runner, driver, trt):
    network = HostNetwork(runner, driver)
    for _ in range(3):
        for shape in [(1, 20, 20), (2, 24, 20), (1, 100, 100)]:
            network(inputs(*shape))
    # and once, for a remainder of the stride, to ask for the response's size, in a context of its own
    assert trt.state.shapes_set == 3 + 1 and trt.state.contexts == 3 + 1


def test_a_bundle_that_knows_its_responses_size_is_not_asked(trt, driver, tmp_path):
    bundle = tiny.build(tmp_path / "b", cells=True)
    runner = TensorRTRunner(write_plan(bundle, trt, tmp_path / "p"), bundle, driver)
    for side in (20, 33, 128):
        assert runner.response_shape(side, side) == OutputShape(5, -(-side // 4), -(-side // 4))
    with pytest.raises(BackendError, match="outside the plan's profiles"):
        runner.response_shape(129, 20)
    assert trt.state.contexts == 0
    runner.close()


def test_the_least_recently_used_shape_gives_its_context_away(bundle, trt, driver, tmp_path):
    runner = TensorRTRunner(write_plan(bundle, trt, tmp_path / "p"), bundle, driver, contexts=2)
    network = HostNetwork(runner, driver)
    for side in (20, 24, 28):
        runner.response_shape(side, side)
    asked = trt.state.shapes_set
    for side in (20, 24, 20, 28, 20, 24):  # 24 gives way to 28, then 28 to 24
        network(inputs(1, side, side))
    assert trt.state.shapes_set - asked == 4 and runner.keeps == 2
    assert trt.state.contexts == 2 + 1 and len(runner.slots) == 2  # one asks for shapes
    runner.close()


def test_contexts_take_no_more_than_their_share_of_the_memory(bundle, trt, driver, tmp_path):
    trt.state.context_bytes = 1 << 20
    driver.budget = 100 << 20
    runner = TensorRTRunner(write_plan(bundle, trt, tmp_path / "p"), bundle, driver, share=0.05)
    assert runner.keeps > 5, "not known yet"
    network = HostNetwork(runner, driver)
    for side in range(20, 30):
        network(inputs(1, side, side))
        assert runner.keeps == 5
    assert len(runner.slots) == 5 and trt.state.contexts == 5 + 1
    runner.close()
    assert driver.held == 0


def test_a_context_that_finds_no_memory_takes_anothers_place(bundle, trt, driver, tmp_path):
    trt.state.context_bytes = 1 << 20
    runner = TensorRTRunner(write_plan(bundle, trt, tmp_path / "p"), bundle, driver, share=1)
    for side in (20, 30):
        runner.response_shape(side, side)
    network = HostNetwork(runner, driver)
    driver.budget = driver.held + (1 << 20) + 200_000  # one more and no further
    for side in (20, 30):
        x = inputs(1, side, side)
        np.testing.assert_allclose(network(x), tiny.network(bundle)(x), atol=1e-5)
    assert len(runner.slots) == 1
    runner.close()
    runner = TensorRTRunner(runner.plan, bundle, driver, share=1)
    driver.budget = driver.held + (1 << 20) + 4096  # for the one that asks for shapes
    runner.response_shape(20, 20)
    with pytest.raises(OutOfMemory, match="TensorRT cannot make an execution context"):
        runner.respond(1, 20, 20, 1, 2)
    runner.close()


# -- getting ready ---------------------------------------------------------------------------------------------
def test_a_shape_that_is_ready_needs_nothing_more(runner, driver, trt):
    held = driver.held
    assert runner.prepare(2, 24, 20) and trt.state.runs == [(2, 3, 24, 20)]
    seen = trt.state.shapes_set, trt.state.contexts
    assert runner.prepare(2, 24, 20) and len(trt.state.runs) == 1, "it was"
    assert driver.held > held
    HostNetwork(runner, driver)(inputs(2, 24, 20))
    assert (trt.state.shapes_set, trt.state.contexts) == seen


def test_getting_ready_takes_no_other_shapes_place(bundle, trt, driver, tmp_path):
    runner = TensorRTRunner(write_plan(bundle, trt, tmp_path / "p"), bundle, driver, contexts=2)
    assert [runner.prepare(1, side, side) for side in (20, 24, 28, 20)] == [True, True, False, True]
    assert trt.state.runs == [(1, 3, 20, 20), (1, 3, 24, 24)]
    with pytest.raises(BackendError, match="9 views of 20x20 is outside"):
        runner.prepare(9, 20, 20)
    runner.close()
    assert driver.held == 0


def test_getting_ready_without_memory_leaves_nothing_behind(runner, driver, trt):
    runner.prepare(1, 20, 20)
    runner.response_shape(128, 128)
    held, driver.budget = driver.held, driver.held + 100_000
    with pytest.raises(OutOfMemory):
        runner.prepare(2, 128, 128)
    assert driver.held <= held and not runner.slots.ready((2, 128, 128))
    driver.budget = 1 << 30
    assert runner.prepare(2, 128, 128)


def test_a_shape_that_cannot_be_set_up_costs_no_context(runner, driver, trt, monkeypatch):
    network = HostNetwork(runner, driver)
    runner.response_shape(24, 24)
    take = trt.IExecutionContext.set_input_shape
    monkeypatch.setattr(trt.IExecutionContext, "set_input_shape", lambda *args: False)
    with pytest.raises(BackendError, match="cannot take 1 view of 24x24"):
        runner.respond(1, 24, 24, 1, 2)
    monkeypatch.setattr(trt.IExecutionContext, "set_input_shape", take)
    made = trt.state.contexts
    network(inputs(1, 24, 24))
    assert trt.state.contexts == made


# -- CUDA graphs -----------------------------------------------------------------------------------------------
@pytest.fixture
def graphs(bundle, trt, driver, tmp_path):
    """A runner with CUDA graphs, two shapes at a time, and what was done to the graphs."""
    capture = FakeCapture(trt)
    runner = TensorRTRunner(
        write_plan(bundle, trt, tmp_path / "p"),
        bundle,
        driver,
        contexts=2,
        switches=RuntimeSwitches(cuda_graphs=True),
        capture=capture,
    )
    yield runner, capture.log
    runner.close()
    assert capture.log.count("capture") == capture.log.count("close")


def respond(runner, driver, bundle, x: np.ndarray, image: int, response: int) -> None:
    """Runs it at these addresses and checks what comes out."""
    n, _, h, w = x.shape
    shape = (n, *runner.response_shape(h, w))
    driver.copy_in(image, x.view(np.uint8).ravel())
    runner.respond(n, h, w, image, response)
    got = np.empty(shape, np.float32)
    driver.copy_out(got.view(np.uint8).ravel(), response)
    np.testing.assert_allclose(got, tiny.network(bundle)(x), atol=1e-5)


def test_a_shape_is_captured_the_second_time_wherever_its_pictures_lie(graphs, bundle, driver):
    runner, log = graphs
    blocks = [driver.allocate(64 << 10) for _ in range(4)]
    for seed in range(4):
        respond(runner, driver, bundle, inputs(2, 24, 20, seed), *blocks[seed % 3 :][:2])
    assert log == ["capture", "launch", "launch", "launch"]
    assert runner.describe()["cuda_graphs"] is True
    for block in blocks:
        driver.free(block)


def test_a_graph_goes_with_its_shape(graphs, bundle, driver):
    runner, log = graphs
    blocks = [driver.allocate(64 << 10) for _ in range(2)]
    for side in (28, 24, 28, 24):
        respond(runner, driver, bundle, inputs(1, side, side), *blocks)
    assert (log.count("capture"), log.count("close")) == (2, 0)
    respond(runner, driver, bundle, inputs(1, 20, 20), *blocks)  # takes the context of 28
    assert log.count("close") == 1
    for block in blocks:
        driver.free(block)


def test_a_graph_of_memory_that_moved_is_not_launched(graphs, bundle, driver):
    runner, log = graphs
    blocks = [driver.allocate(400 << 10) for _ in range(2)]
    for _ in range(2):
        respond(runner, driver, bundle, inputs(1, 24, 20), *blocks)
    respond(runner, driver, bundle, inputs(2, 128, 100), *blocks)  # needs more of it
    respond(runner, driver, bundle, inputs(1, 24, 20), *blocks)
    assert log.count("launch") == 1
    respond(runner, driver, bundle, inputs(1, 24, 20), *blocks)
    assert log.count("launch") == 2 and log.count("capture") == 2
    for block in blocks:
        driver.free(block)


def test_getting_ready_captures(graphs, bundle, driver):
    runner, log = graphs
    assert runner.prepare(2, 24, 20) and log == ["capture", "launch"]
    blocks = [driver.allocate(64 << 10) for _ in range(2)]
    respond(runner, driver, bundle, inputs(2, 24, 20), *blocks)
    assert log == ["capture", "launch", "launch"]
    for block in blocks:
        driver.free(block)


def test_scores_are_not_captured(graphs, bundle, driver):
    runner, log = graphs
    x = inputs(1, 24, 20)
    image, scores = driver.allocate(x.nbytes), driver.allocate(5 * 4)
    driver.copy_in(image, x.view(np.uint8).ravel())
    for _ in range(3):
        runner.scores(1, 24, 20, image, scores)
        respond(runner, driver, bundle, x, image, scores_block := driver.allocate(4096))
        driver.free(scores_block)
    want = tiny.network(bundle)(x).mean(axis=(2, 3)) + tiny.weights()["bias"]
    np.testing.assert_allclose(driver.view(scores, 20).view(np.float32)[None], want, atol=1e-5)
    assert log == ["capture", "launch", "launch"]
    driver.free(image)
    driver.free(scores)


def test_what_cannot_be_captured_runs_plainly(graphs, bundle, driver, trt):
    runner, log = graphs
    asked = []

    def refuse(enqueue):
        asked.append(1)
        raise BackendError("CUDA graphs: cuStreamEndCapture: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")

    runner._capture = refuse
    blocks = [driver.allocate(64 << 10) for _ in range(2)]
    for seed in range(4):
        respond(runner, driver, bundle, inputs(2, 24, 20, seed), *blocks)
    assert log == [] and len(asked) == 1
    for block in blocks:
        driver.free(block)


def test_scratch_grows_with_the_shapes_and_is_shared(runner, driver):
    network = HostNetwork(runner, driver)
    network(inputs(1, 20, 20))
    small = driver.held
    network(inputs(2, 128, 128))
    large = driver.held
    network(inputs(1, 20, 20))
    assert small < large == driver.held
    assert large >= 16 * 2 * 3 * 128 * 128


def test_out_of_memory_leaves_the_runner_usable(runner, bundle, driver):
    x = inputs(1, 20, 20)
    network = HostNetwork(runner, driver)
    network(x)
    image, response = driver.allocate(2 * 3 * 128 * 128 * 4), driver.allocate(2 * 5 * 32 * 32 * 4)
    driver.budget = driver.held + 10_000
    with pytest.raises(OutOfMemory):
        runner.respond(2, 128, 128, image, response)
    np.testing.assert_allclose(network(x), tiny.network(bundle)(x), atol=1e-5)
    driver.budget = 1 << 30
    driver.free(image)
    driver.free(response)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (
            "[checkMacros.cpp::42] Error Code 1: Cuda Runtime (out of memory)",
            OutOfMemory,
            "out of GPU memory",
        ),
        (
            "IExecutionContext::enqueueV3: Error Code 1: Cask\n (no kernel)",
            BackendError,
            "Error Code 1: Cask",
        ),
    ],
)
def test_a_failing_run_is_one_line(runner, driver, trt, said, kind, words):
    trt.state.run_error = said
    with pytest.raises(kind) as e:
        HostNetwork(runner, driver)(inputs(1, 20, 20))
    assert words in str(e.value) and "\n" not in str(e.value)
    assert isinstance(e.value, OutOfMemory) == (kind is OutOfMemory)


# -- what is refused -------------------------------------------------------------------------------------------
def test_without_a_driver_tensorrt_is_not_touched(bundle, trt, driver, tmp_path, monkeypatch):
    plan = write_plan(bundle, trt, tmp_path / "p")
    trt.state.driver = None

    def absent():
        raise DeviceError("no NVIDIA driver on this machine")

    monkeypatch.setattr("infercam.engine.runners.tensorrt.probe", absent)
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        TensorRTRunner(plan, bundle, driver)


def test_a_damaged_plan_is_refused(bundle, trt, driver, tmp_path):
    plan = write_plan(bundle, trt, tmp_path / "p")
    file = plan.folder / plans.PLAN_FILE
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert not plan.intact()
    with pytest.raises(PlanError, match=r"plan\.engine: damaged .* build it again"):
        TensorRTRunner(plan, bundle, driver)
    file.unlink()
    with pytest.raises(PlanError, match="cannot be read"):
        TensorRTRunner(plan, bundle, driver)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"gpu": "NVIDIA L4", "compute_capability": (8, 9)},
            r"made for NVIDIA L4 \(compute 8.9\), here is NVIDIA H100",
        ),
        ({"compute_capability": (8, 0)}, "compute 8.0"),
        ({"tensorrt": "10.16.1.11"}, "made by TensorRT 10.16.1.11, here is 11.4.0.106"),
        ({"onnx_sha256": "0" * 64}, "another fp32 graph"),
        ({"bundle_hash": "0" * 64}, "another bundle .'tiny-4'.: its classes"),
        ({"precision": "fp16"}, "made from a fp16 graph, which the bundle has not"),
    ],
)
def test_a_foreign_plan_is_refused(bundle, trt, driver, tmp_path, changes, words):
    plan = write_plan(bundle, trt, bundle.path / "plans" / "a", **changes)
    with pytest.raises(PlanError, match=words) as e:
        TensorRTRunner(plan, bundle, driver)
    assert "infercam build" in str(e.value)
    with pytest.raises(PlanError, match=words):
        find_plan(bundle, changes.get("precision", "fp32"), HERE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_type": "float16"}, "'image' is not of the recorded type"),
        ({"profiles": [SMALL]}, None),
    ],
)
def test_a_record_that_does_not_tell_the_truth_is_refused(bundle, trt, driver, tmp_path, changes, words):
    plan = write_plan(bundle, trt, tmp_path / "p", **changes)
    if words is None:  # the record is of one profile, the plan of two
        plan = Plan(plan.folder, plan.record.model_copy(update={"profiles": [SMALL, LARGE]}))
        words = "not the recorded profiles"
    with pytest.raises(PlanError, match=words):
        TensorRTRunner(plan, bundle, driver)


def test_what_tensorrt_refuses_is_one_line(bundle, trt, driver, tmp_path):
    plan = write_plan(bundle, trt, tmp_path / "p")
    trt.state.deserialise_error = (
        "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (\n bad plan )"
    )
    with pytest.raises(PlanError, match="refuses the plan: Error Code 6: API Usage Error") as e:
        TensorRTRunner(plan, bundle, driver)
    assert "\n" not in str(e.value)
    trt.state.deserialise_error = "CUDA out of memory"
    with pytest.raises(OutOfMemory):
        TensorRTRunner(plan, bundle, driver)


def test_stripped_weights_come_from_the_bundle(bundle, trt, driver, tmp_path):
    plan = write_plan(bundle, trt, tmp_path / "p", options=PlanOptions(stripped=True))
    runner = TensorRTRunner(plan, bundle, driver)
    x = inputs(1, 30, 30)
    np.testing.assert_allclose(HostNetwork(runner, driver)(x), tiny.network(bundle)(x), atol=1e-5)
    runner.close()


def test_version_compatible_plans_run_on_the_lean_runtime(bundle, trt, driver, tmp_path, monkeypatch):
    options = PlanOptions(version_compatible=True)
    plan = write_plan(bundle, trt, bundle.path / "plans" / "a", options=options)
    with pytest.raises(
        PlanError, match=r"lean runtime, which is not installed: pip install 'infercam\[lean\]'"
    ):
        TensorRTRunner(plan, bundle, driver)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", trt)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # import fails
    runner = load_runner(bundle, driver)
    assert environment(driver.info()).tensorrt is None
    x = inputs(1, 30, 30)
    np.testing.assert_allclose(HostNetwork(runner, driver)(x), tiny.network(bundle)(x), atol=1e-5)
    runner.close()
    monkeypatch.setitem(sys.modules, "tensorrt_lean", None)
    with pytest.raises(MissingExtra, match=r"infercam\[gpu\]"):
        load_runner(bundle, driver)


# -- which plan fits -------------------------------------------------------------------------------------------
def record_of(bundle: Bundle, **changes) -> PlanRecord:
    record = {
        "precision": "fp32",
        "input_type": "float32",
        "bundle": "b",
        "bundle_hash": bundle.hash,
        "onnx_sha256": graph_hash(bundle, "fp32"),
        "profiles": [SMALL],
        "tensorrt": "11.4.0.106",
        "gpu": HERE.gpu,
        "compute_capability": HERE.compute_capability,
        "plan": {"sha256": "0" * 64, "size": 1},
    }
    return PlanRecord.model_validate(record | changes)


@pytest.mark.parametrize(
    ("options", "made", "here", "fits"),
    [
        ({}, "11.4.0.106", HERE, True),
        ({}, "11.4.0.106", HERE._replace(tensorrt="11.4.0.107"), False),
        ({}, "11.4.0.106", HERE._replace(tensorrt=None), False),
        ({}, "11.4.0.106", HERE._replace(gpu="NVIDIA H200"), False),
        ({"version_compatible": True}, "11.2.0", HERE._replace(tensorrt=None, lean="11.4.0"), True),
        ({"version_compatible": True}, "11.4.0", HERE._replace(lean="11.2.0"), False),
        ({"version_compatible": True}, "10.16.1", HERE._replace(lean="11.4.0"), False),
        ({"version_compatible": True}, "11.2.0", HERE, False),
        (
            {"hardware_compatible": True},
            "11.4.0.106",
            HERE._replace(gpu="RTX 4090", compute_capability=(8, 9)),
            True,
        ),
        (
            {"hardware_compatible": True},
            "11.4.0.106",
            HERE._replace(gpu="T4", compute_capability=(7, 5)),
            False,
        ),
    ],
)
def test_which_machines_a_plan_fits(tiny_bundle, options, made, here, fits):
    record = record_of(tiny_bundle, options=options, tensorrt=made)
    assert (misfit(record, tiny_bundle, here) is None) == fits


def test_a_stripped_plan_cannot_be_version_compatible():
    with pytest.raises(ValueError, match="take one of the two"):
        PlanOptions(stripped=True, version_compatible=True)


def test_the_newest_plan_that_fits_is_found(bundle, trt):
    root = bundle.path / "plans"
    with pytest.raises(
        PlanError, match=r"no TensorRT plan; make one with: infercam build .* --precision fp32"
    ):
        find_plan(bundle, "fp32", HERE)
    write_plan(bundle, trt, root / "old", created="2026-01-01T00:00:00.000+00:00")
    write_plan(bundle, trt, root / "new", created="2026-02-01T00:00:00.000+00:00")
    portable = PlanOptions(hardware_compatible=True)
    write_plan(bundle, trt, root / "portable", created="2026-03-01T00:00:00.000+00:00", options=portable)
    write_plan(bundle, trt, root / "other", created="2026-04-01T00:00:00.000+00:00", gpu="NVIDIA L4")
    write_plan(bundle, trt, root / "rejected" / "newest", created="2026-05-01T00:00:00.000+00:00")
    write_plan(bundle, trt, root / ".tmp-half", created="2026-05-01T00:00:00.000+00:00")
    assert find_plan(bundle, "fp32", HERE).folder.name == "new"
    assert find_plan(bundle, None, HERE).folder.name == "new"
    assert find_plan(bundle, "fp32", HERE._replace(gpu="NVIDIA H200")).folder.name == "portable"
    assert [f.folder.name for f in list_plans(bundle, HERE)] == ["other", "portable", "new", "old"]
    with pytest.raises(PlanError, match=r"no fp16 plan \(there are: fp32\)"):
        find_plan(bundle, "fp16", HERE)
    with pytest.raises(PlanError, match=r"and 3 more that do not fit"):
        find_plan(bundle, "fp32", HERE._replace(tensorrt="11.5.0"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a plan's record"),
        ("[1, 2]", "build the plan again"),
        ('{"schema_version": 99}', "newer infercam"),
        ("{}", "Field required"),
        ("[" * 100_000, "not a plan's record"),
    ],
)
def test_a_broken_record_is_one_line_and_hides_no_good_plan(bundle, trt, text, words):
    write_plan(bundle, trt, bundle.path / "plans" / "good")
    broken = bundle.path / "plans" / "broken"
    broken.mkdir()
    (broken / plans.RECORD_FILE).write_text(text)
    with pytest.raises(PlanError, match=words) as e:
        Plan.load(broken)
    assert "\n" not in str(e.value)
    assert find_plan(bundle, "fp32", HERE).folder.name == "good"


def test_a_record_of_another_shape_is_refused(bundle, trt):
    plan = write_plan(bundle, trt, bundle.path / "plans" / "a")
    raw = json.loads((plan.folder / plans.RECORD_FILE).read_text())
    raw["profiles"][0]["largest"] = [1, 4, 4]
    (plan.folder / plans.RECORD_FILE).write_text(json.dumps(raw))
    with pytest.raises(PlanError, match="does not hold"):
        Plan.load(plan.folder)


sides = st.integers(1, 200)


@given(st.tuples(st.integers(1, 12), sides, sides))
def test_the_profile_picked_takes_the_shape(shape):
    at = pick_profile([SMALL, LARGE], shape)
    takers = [i for i, p in enumerate([SMALL, LARGE]) if p.takes(shape)]
    assert at in takers if takers else at is None


# -- plans for TensorRT-RTX ------------------------------------------------------------------------------------
RTX = {"runtime": "tensorrt-rtx", "tensorrt": "1.7.1.116", "gpu": "", "compute_capability": (0, 0)}
ADA = Environment("RTX 4090", (8, 9), None, rtx="1.7.1.116")


@pytest.mark.parametrize(
    ("targets", "environment", "problem"),
    [
        ((), ADA, None),
        ((), ADA._replace(compute_capability=(8, 0)), None),
        ((), ADA._replace(compute_capability=(12, 5)), None),
        ((), ADA._replace(compute_capability=(7, 5)), "made for compute 8.0, 8.6, 8.9, 12.0 and later"),
        ((), ADA._replace(compute_capability=(9, 0)), "made for compute 8.0, 8.6"),
        ((), ADA._replace(compute_capability=(10, 3)), "made for compute 8.0, 8.6"),
        (("sm75", "sm120"), ADA._replace(compute_capability=(12, 0)), None),
        (("sm75", "sm120"), ADA, r"made for compute 7\.5, 12\.0, here is RTX 4090 \(compute 8\.9\)"),
        (("sm86",), ADA, "made for compute 8.6"),
        ((), ADA._replace(rtx="1.8.0.1"), r"made by TensorRT-RTX 1\.7\.1\.116, here is 1\.8\.0\.1"),
        ((), ADA._replace(rtx=None, tensorrt="1.7.1.116"), r"pip install 'infercam\[rtx\]'"),
    ],
)
def test_a_plan_for_rtx_fits_its_version_and_the_cards_it_was_built_for(
    bundle, trt, targets, environment, problem
):
    record = write_plan(bundle, trt, bundle.path / "plans" / "a", targets=targets, **RTX).record
    found = misfit(record, bundle, environment)
    assert found is None if problem is None else re.search(problem, found)


def test_each_runtime_finds_its_own_plans(bundle, trt):
    write_plan(bundle, trt, bundle.path / "plans" / "full")
    write_plan(bundle, trt, bundle.path / "plans" / "rtx", created="2999", **RTX)
    both = HERE._replace(compute_capability=(8, 9), rtx=ADA.rtx)
    assert find_plan(bundle, None, HERE).folder.name == "full"
    assert find_plan(bundle, None, both, runtime="tensorrt-rtx").folder.name == "rtx"
    shutil.rmtree(bundle.path / "plans" / "rtx")
    with pytest.raises(
        PlanError, match=r"no TensorRT-RTX plan; make one with: infercam build .* --runtime tensorrt-rtx$"
    ):
        find_plan(bundle, None, both, runtime="tensorrt-rtx")


def test_what_was_built_for_is_part_of_the_key(bundle, trt):
    keys = [
        write_plan(bundle, trt, bundle.path / "plans" / str(i), **changes).record.key
        for i, changes in enumerate(
            [
                {},
                RTX,
                RTX | {"targets": ("sm86",)},
                RTX | {"targets": ("sm86", "sm89")},
                RTX | {"tensorrt": "1.8"},
            ]
        )
    ]
    assert len(set(keys)) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": ("sm86",)},
        {"gpu": ""},
        RTX | {"gpu": "RTX 4090"},
        RTX | {"targets": ("8.6",)},
        {"runtime": "x"},
    ],
)
def test_a_record_that_mixes_the_runtimes_is_refused(bundle, trt, changes):
    plan = write_plan(bundle, trt, bundle.path / "plans" / "a")
    file = plan.folder / plans.RECORD_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(PlanError, match="build the plan again"):
        Plan.load(plan.folder)


def test_a_record_of_schema_1_is_read_and_keeps_its_key(bundle, trt):
    plan = write_plan(bundle, trt, bundle.path / "plans" / "a")
    file = plan.folder / plans.RECORD_FILE
    old = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("runtime", "targets")}
    file.write_text(json.dumps(old | {"schema_version": 1}))
    assert Plan.load(plan.folder).record.key == plan.record.key
    assert misfit(Plan.load(plan.folder).record, bundle, HERE) is None
