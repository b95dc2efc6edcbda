"""From a bundle to an installed plan, and back through the runner to responses: TensorRT-RTX parses the graph and
builds, what a plan answers is the stand-in's (tests/fake_tensorrt.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT-RTX is not installed, so nothing is built: pip install 'infercam[rtx]'"
)

from infercam.engine.api import Engine
from infercam.engine.bundle import Bundle, Manifest, file_entry
from infercam.engine.common.errors import (
    BackendError,
    BundleError,
    ExportError,
    InputError,
    MissingExtra,
    StoreError,
)
from infercam.engine.method import reference
from infercam.engine.runners.host import HostNetwork
from infercam.engine.runners.plan import Plan, PlanError, PlanOptions, Profile, find_plan, list_plans
from infercam.engine.runners.tensorrt import environment, load_runner
from infercam.export.compare import TOLERANCES, FidelityReport, Sample
from infercam.export.plan.build import BuildRequest, BuildWatch, build_plan, structure_hash
from infercam.export.plan.builder import BuildCancelled, timing_cache_file
from tests.engine import tiny
from tests.shared import ROOT

WIDE = Profile(smallest=(1, 8, 8), best=(4, 40, 52), largest=(8, 192, 192))
NARROW = Profile(smallest=(1, 8, 8), best=(2, 40, 52), largest=(4, 120, 120))


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny.build(tmp_path / "bundle")


def samples() -> list[Sample]:
    """Three pictures, one with ground truth: a rectangle of class 1 on background."""
    mask = np.zeros((40, 52), np.uint8)
    mask[10:30, 10:40] = 2
    masks = [mask, None, None]
    return [Sample(f"p{i}", tiny.picture(40, 52, i), mask=m) for i, m in enumerate(masks)]


def request(bundle: Bundle, **changes) -> BuildRequest:
    given = {"precision": "fp32", "profiles": [WIDE], "samples": samples, **changes}
    return BuildRequest(bundle, **given)


def half_graph(bundle: Bundle, output: int = TensorProto.FLOAT) -> Bundle:
    """The bundle with an fp16 graph: float16 input, outputs of type `output`."""
    model = onnx.load(str(bundle.graph("fp32")))
    graph = model.graph
    graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    graph.node.insert(0, helper.make_node("Cast", ["image"], ["image32"], to=TensorProto.FLOAT))
    graph.node[1].input[0] = "image32"
    for value in graph.output:
        value.type.tensor_type.elem_type = output
        if output != TensorProto.FLOAT:
            maker = next(n for n in graph.node if value.name in n.output)
            maker.output[0] = f"{value.name}32"
            for node in graph.node:
                node.input[:] = [f"{value.name}32" if i == value.name else i for i in node.input]
            graph.node.append(helper.make_node("Cast", [f"{value.name}32"], [value.name], to=output))
    file = bundle.path / "response.fp16.onnx"
    onnx.save(model, str(file))
    manifest = bundle.manifest.model_dump()
    manifest["graphs"]["fp16"] = file.name
    manifest["files"][file.name] = file_entry(file).model_dump()
    (bundle.path / "manifest.json").write_text(Manifest.model_validate(manifest).model_dump_json())
    return Bundle.load(bundle.path)


def folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


# -- build, keep, rebuild --------------------------------------------------------------------------------------
def test_a_plan_is_built_checked_installed_and_run(bundle, trt):
    driver = trt.state.driver
    built = build_plan(request(bundle, profiles=[WIDE, NARROW]), driver)
    assert built.how == "built" and built.plan.folder.parent == bundle.path / "plans"
    assert folders(bundle.path / "plans") == [built.plan.record.key] == [built.plan.folder.name]
    assert folders(built.plan.folder) == ["plan.engine", "plan.json", "report.json"]
    report = FidelityReport.model_validate_json((built.plan.folder / "report.json").read_bytes())
    assert report == built.report and report.missed is None and report.tolerance == TOLERANCES["fp32"]
    assert report.fidelity.images == 3 and report.fidelity.masks == 1 and report.fidelity.views == 3 * 4 * 2
    assert report.fidelity.response_error < 1e-6 and report.fidelity.iou > 0.999
    assert report.fidelity.miou_drop == pytest.approx(0, abs=1e-6)
    assert driver.held == 0
    with driver.current():
        runner = load_runner(Bundle.load(bundle.path), driver)
        x = np.random.default_rng(0).standard_normal((3, 3, 41, 37), dtype=np.float32)
        np.testing.assert_allclose(HostNetwork(runner, driver)(x), tiny.network(bundle)(x), atol=1e-5)
        runner.close()


def test_a_plan_of_a_bundle_with_a_bias_of_each_image(tmp_path, trt):
    """The plan has no output that the runner does not give a place for."""
    bundle = tiny.build(tmp_path / "b", per_image_bias=True)
    driver = trt.state.driver
    assert build_plan(request(bundle), driver).report.missed is None
    with driver.current():
        runner = load_runner(Bundle.load(bundle.path), driver)
        x = np.random.default_rng(0).standard_normal((1, 3, 40, 52), dtype=np.float32)
        np.testing.assert_allclose(HostNetwork(runner, driver)(x), tiny.network(bundle)(x), atol=1e-5)
        runner.close()


@pytest.mark.parametrize("recipe", ["released", "fast"])
def test_maps_of_a_plan_are_the_cpu_engines(bundle, trt, recipe):
    driver = trt.state.driver
    build_plan(request(bundle), driver)
    pixels = tiny.picture(40, 52, 5)
    with driver.current(), Engine.load(bundle, "cpu") as engine:
        runner = load_runner(bundle, driver, "fp32")
        chosen, spec = engine.recipe(recipe), bundle.manifest.input
        got = reference.response_maps(pixels, [0, 2], chosen, "both", HostNetwork(runner, driver), spec)
        np.testing.assert_allclose(got, engine.maps(pixels, [0, 2], recipe), atol=1e-4)
        runner.close()


def test_the_same_request_is_kept_and_force_builds_anew(bundle, trt):
    first = build_plan(request(bundle), trt.state.driver)
    assert build_plan(request(bundle), trt.state.driver).how == "kept"
    assert trt.state.builds == 1
    again = build_plan(request(bundle, force=True), trt.state.driver)
    assert again.how == "built" and trt.state.builds == 2 and again.plan.folder == first.plan.folder
    assert folders(bundle.path / "plans") == [first.plan.record.key]


@pytest.mark.parametrize("damage", ["plan.engine", "plan.json", "report.json", "half", "moved"])
def test_a_damaged_plan_is_rebuilt_never_trusted(bundle, trt, damage):
    folder = build_plan(request(bundle), trt.state.driver).plan.folder
    if damage == "half":
        (folder / "plan.engine").write_bytes((folder / "plan.engine").read_bytes()[:50])
    elif damage == "moved":  # another plan's record in its place
        record = json.loads((folder / "plan.json").read_text())
        (folder / "plan.json").write_text(json.dumps(record | {"precision": "tf32"}))
    else:
        (folder / damage).write_text("{}")
    assert build_plan(request(bundle), trt.state.driver).how == "built"
    assert Plan.load(folder).intact()


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "tf32"},
        {"profiles": [NARROW]},
        {"options": PlanOptions(hardware_compatible=True)},
        {"options": PlanOptions(workspace_mb=64)},
    ],
)
def test_other_settings_are_another_plan_beside_it(bundle, trt, change):
    one = build_plan(request(bundle), trt.state.driver).plan
    other = build_plan(request(bundle, **change), trt.state.driver).plan
    assert one.folder != other.folder and one.intact() and other.intact()
    assert len(list_plans(bundle, environment(trt.state.driver.info()))) == 2


def test_another_tensorrt_or_gpu_makes_a_plan_stale(bundle, trt, monkeypatch):
    driver = trt.state.driver
    build_plan(request(bundle), driver)
    monkeypatch.setattr(trt, "__version__", "11.5.0.1")
    with pytest.raises(PlanError, match=r"made by TensorRT 11\.4\.0\.106, here is 11\.5\.0\.1"):
        find_plan(bundle, "fp32", environment(driver.info()))
    assert build_plan(request(bundle), driver).how == "built"
    driver.gpu = "NVIDIA L40"
    with pytest.raises(PlanError, match=r"made for NVIDIA H100 .* here is NVIDIA L40"):
        find_plan(bundle, "fp32", environment(driver.info()))
    assert build_plan(request(bundle), driver).how == "built"
    assert len(folders(bundle.path / "plans")) == 3


def test_a_bundle_exported_again_needs_a_new_plan(bundle, trt):
    driver = trt.state.driver
    build_plan(request(bundle), driver)
    other = retrained(bundle)
    with pytest.raises(PlanError, match="made from another fp32 graph"):
        find_plan(other, "fp32", environment(driver.info()))
    assert build_plan(request(other), driver).how == "built"


def retrained(bundle: Bundle, scale: float = 1.5, rename: bool = False) -> Bundle:
    """The same network with other weights, in the same bundle."""
    model = onnx.load(str(bundle.graph("fp32")))
    for tensor in model.graph.initializer:
        if tensor.name == "w0":
            values = onnx.numpy_helper.to_array(tensor) * np.float32(scale)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w0"))
    if rename:
        model.graph.node.append(helper.make_node("Identity", ["pooled"], ["unused"]))
    onnx.save(model, str(bundle.graph("fp32")))
    manifest = bundle.manifest.model_dump()
    manifest["files"]["response.onnx"] = file_entry(bundle.graph("fp32")).model_dump()
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.load(bundle.path)


def test_plans_may_lie_elsewhere(bundle, trt, tmp_path):
    built = build_plan(request(bundle, cache=tmp_path / "plans"), trt.state.driver)
    assert built.plan.folder.parent == tmp_path / "plans" and not (bundle.path / "plans").exists()
    here = environment(trt.state.driver.info())
    assert find_plan(bundle, "fp32", here, tmp_path / "plans").record == built.plan.record


# -- precision and options -------------------------------------------------------------------------------------
def test_half_precision_goes_by_the_graph(bundle, trt):
    with pytest.raises(BundleError, match=r"no fp16 graph; make it with: infercam precision .* --to fp16"):
        build_plan(request(bundle, precision="fp16"), trt.state.driver)
    built = build_plan(request(half_graph(bundle), precision="fp16"), trt.state.driver)
    assert built.plan.record.input_type == "float16"
    assert 1e-6 < built.report.fidelity.response_error < 1e-2


def test_half_precision_outputs_are_refused(bundle, trt):
    broken = half_graph(bundle, output=TensorProto.FLOAT16)
    with pytest.raises(ExportError, match="output 'scores' is not float32"):
        build_plan(request(broken, precision="fp16"), trt.state.driver)


@pytest.mark.parametrize(
    ("precision", "options", "flags"),
    [
        ("fp32", PlanOptions(), []),
        ("tf32", PlanOptions(), ["TF32"]),
        ("fp32", PlanOptions(stripped=True), ["REFIT_IDENTICAL", "STRIP_PLAN"]),
        ("fp32", PlanOptions(refittable=True), ["REFIT"]),
        ("fp32", PlanOptions(stripped=True, refittable=True), ["REFIT", "STRIP_PLAN"]),
    ],
)
def test_flags(bundle, trt, precision, options, flags):
    built = build_plan(request(bundle, precision=precision, options=options), trt.state.driver)
    assert trt.state.flags == flags
    assert built.report.fidelity.response_error < 1e-6


def test_a_version_compatible_plan_carries_no_code_and_is_checked_on_the_lean_runtime(
    bundle, trt, monkeypatch
):
    wanted = request(bundle, options=PlanOptions(version_compatible=True))
    monkeypatch.setitem(sys.modules, "tensorrt_lean", None)
    with pytest.raises(MissingExtra, match="tensorrt-lean"):
        build_plan(wanted, trt.state.driver)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", trt)
    assert build_plan(wanted, trt.state.driver).how == "built"
    assert trt.state.flags == ["EXCLUDE_LEAN_RUNTIME", "VERSION_COMPATIBLE"]


def test_a_graph_of_one_size_has_no_profiles_but_its_own(tmp_path, trt):
    fixed = tiny.build(tmp_path / "fixed", fixed=(48, 64), batch=False)
    built = build_plan(request(fixed), trt.state.driver)
    assert built.plan.record.profiles == [
        Profile(smallest=(1, 48, 64), best=(1, 48, 64), largest=(1, 48, 64))
    ]
    assert built.report.fidelity.views == 3 * 2


def test_a_profile_that_the_graph_does_not_take_is_refused(tmp_path, trt):
    single = tiny.build(tmp_path / "single", batch=False)
    with pytest.raises(ExportError, match=r"takes only \(1, -1, -1\) .* not a profile of 1-8 views"):
        build_plan(request(single), trt.state.driver)


# -- refit -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stripped", [False, True])
def test_new_weights_are_refitted_into_the_old_plan(bundle, trt, stripped):
    options = PlanOptions(refittable=True, stripped=stripped)
    first = build_plan(request(bundle, options=options), trt.state.driver)
    other = retrained(bundle)
    second = build_plan(request(other, options=options), trt.state.driver)
    assert (first.how, second.how, trt.state.builds) == ("built", "refitted", 1)
    assert second.report.fidelity.response_error < 1e-6  # of the new network
    assert second.plan.folder != first.plan.folder


def test_another_structure_is_built_anew(bundle, trt):
    options = PlanOptions(refittable=True)
    build_plan(request(bundle, options=options), trt.state.driver)
    other = retrained(bundle, rename=True)
    assert build_plan(request(other, options=options), trt.state.driver).how == "built"


def test_a_refit_that_fails_falls_back_to_a_build(bundle, trt):
    options = PlanOptions(refittable=True)
    folder = build_plan(request(bundle, options=options), trt.state.driver).plan.folder
    (folder / "plan.engine").write_bytes(b"damaged")
    assert build_plan(request(retrained(bundle), options=options), trt.state.driver).how == "built"


def test_the_structure_is_the_graph_without_its_weights(bundle):
    before = structure_hash(bundle.graph("fp32"))
    assert structure_hash(retrained(bundle).graph("fp32")) == before
    assert structure_hash(retrained(bundle, rename=True).graph("fp32")) != before


# -- the check -------------------------------------------------------------------------------------------------
def test_a_plan_that_misses_the_tolerance_is_not_installed(bundle, trt):
    trt.state.distort = 0.05
    with pytest.raises(ExportError, match=r"the fp32 plan is not installed: responses differ by 0\.0") as e:
        build_plan(request(bundle), trt.state.driver)
    (name,) = folders(bundle.path / "plans" / "rejected")
    assert name in str(e.value) and folders(bundle.path / "plans") == ["rejected"]
    report = FidelityReport.model_validate_json(
        (bundle.path / "plans/rejected" / name / "report.json").read_bytes()
    )
    assert report.missed is not None and report.missed in str(e.value)
    with pytest.raises(PlanError, match="no TensorRT plan"):
        find_plan(bundle, "fp32", environment(trt.state.driver.info()))
    assert trt.state.driver.held == 0


def test_a_rejected_plan_does_not_replace_the_good_one(bundle, trt):
    good = build_plan(request(bundle), trt.state.driver).plan
    trt.state.distort = 0.05
    with pytest.raises(ExportError, match="not installed"):
        build_plan(request(bundle, force=True), trt.state.driver)
    assert Plan.load(good.folder).record == good.record and good.intact()


def test_a_stricter_tolerance_checks_again(bundle, trt):
    trt.state.distort = 5e-4
    build_plan(request(bundle), trt.state.driver)
    strict = TOLERANCES["fp32"].model_copy(update={"response_error": 1e-5})
    with pytest.raises(ExportError, match="not installed"):
        build_plan(request(bundle, tolerance=strict), trt.state.driver)


def test_without_images_nothing_is_installed(bundle, trt):
    with pytest.raises(InputError, match="no images"):
        build_plan(request(bundle, samples=list), trt.state.driver)
    assert folders(bundle.path / "plans") == []


# -- what goes wrong -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (
            "[builder.cpp::1] Error Code 10: Could not find any implementation",
            ExportError,
            "Error Code 10: Could not",
        ),
        ("Error Code 2: OutOfMemory (Requested size 123)", BackendError, "--workspace MB"),
    ],
)
def test_a_failing_build_is_one_line(bundle, trt, said, kind, words):
    trt.state.build_error = said
    with pytest.raises(kind) as e:
        build_plan(request(bundle), trt.state.driver)
    assert words in str(e.value) and "\n" not in str(e.value)
    assert folders(bundle.path / "plans") == []


def test_a_node_that_tensorrt_does_not_take_is_named(bundle, trt):
    model = onnx.load(str(bundle.graph("fp32")))
    del model.graph.node[0].input[1:], model.graph.node[0].attribute[:]
    model.graph.node[0].op_type, model.graph.node[0].name = "Det", "stem"
    onnx.save(model, str(bundle.graph("fp32")))
    with pytest.raises(
        ExportError, match=r"In node 0 with name: stem and operator: Det \(checkDet\): UNSUPPORTED_NODE$"
    ) as e:
        build_plan(request(bundle), trt.state.driver)
    assert "\n" not in str(e.value) and "ModelImporter.cpp" not in str(e.value)


def test_without_tensorrt_one_line_names_the_extra(bundle, trt, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtra, match=r"infercam build needs tensorrt: pip install 'infercam\[gpu\]'"):
        build_plan(request(bundle), trt.state.driver)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_one_line(bundle, trt):
    bundle.path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match=r"cannot be written: Permission denied; see --cache DIR"):
            build_plan(request(bundle), trt.state.driver)
    finally:
        bundle.path.chmod(0o700)


def test_a_file_in_the_place_of_the_folder_is_one_line(bundle, trt, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        build_plan(request(bundle, cache=tmp_path / "file"), trt.state.driver)


def test_a_stopped_build_installs_nothing_and_keeps_its_timings(bundle, trt):
    watch = BuildWatch()
    seen = []
    watch.building = lambda phase, done, total: seen.append((phase, done, total))
    trt.state.on_step = lambda phase, step: watch.stopped.set() if step == 1 else None
    with pytest.raises(BuildCancelled, match="nothing was installed"):
        build_plan(request(bundle), trt.state.driver, watch)
    assert len(seen) == 2 and all(0 < done <= total for _, done, total in seen)  # of a hundred steps
    assert folders(bundle.path / "plans") == []
    assert timing_cache_file(trt.__version__, trt.state.driver.gpu).is_file()


def test_a_build_stopped_during_the_check_installs_nothing(bundle, trt):
    watch = BuildWatch()
    watch.checking = lambda images: watch.stopped.set()
    with pytest.raises(BuildCancelled, match="before the plan was checked"):
        build_plan(request(bundle), trt.state.driver, watch)
    assert folders(bundle.path / "plans") == []


def test_timings_go_on_from_build_to_build_and_a_damaged_file_is_no_harm(bundle, trt):
    build_plan(request(bundle), trt.state.driver)
    build_plan(request(bundle, force=True), trt.state.driver)
    file = timing_cache_file(trt.__version__, trt.state.driver.gpu)
    file.write_bytes(b"damaged")
    build_plan(request(bundle, force=True), trt.state.driver)
    assert trt.state.timings_read == [b"", b"TIMINGS1", b""]
    assert file.read_bytes() == b"TIMINGS3"


KILLED = """
import sys, os
sys.path.insert(0, {root!r})
from tests import fake_tensorrt
from tests.export.plan import test_build
from tests.host_driver import HostDriver
from infercam.engine.bundle import Bundle
from infercam.export.plan import build
sys.modules["tensorrt"] = fake_tensorrt
build.probe = __import__("infercam.engine.runners.tensorrt", fromlist=["x"]).probe = lambda: None
fake_tensorrt.state.driver = HostDriver()
fake_tensorrt.state.on_step = lambda phase, step: os.kill(os.getpid(), 9)
build.build_plan(test_build.request(Bundle.load({bundle!r})), fake_tensorrt.state.driver)
"""


def test_a_killed_build_leaves_no_plan_and_the_next_one_cleans_up(bundle, trt, tmp_path):
    code = KILLED.format(root=str(ROOT), bundle=str(bundle.path))
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == -9, run.stderr
    (left,) = folders(bundle.path / "plans")
    assert left.startswith(".tmp-")
    with pytest.raises(PlanError, match="no TensorRT plan"):
        find_plan(bundle, "fp32", environment(trt.state.driver.info()))
    built = build_plan(request(bundle), trt.state.driver)
    assert folders(bundle.path / "plans") == [built.plan.record.key]
