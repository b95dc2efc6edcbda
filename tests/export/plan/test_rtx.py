"""Plans for TensorRT-RTX: which runtime is taken, cards, options, and builds of a small bundle by the real one."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import onnx
import pytest
import typer
from typer.testing import CliRunner

tensorrt_rtx = pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT-RTX is not installed, so nothing is built: pip install 'infercam[rtx]'"
)

from infercam.engine.bundle import Bundle, Manifest, file_entry
from infercam.engine.common.errors import ExportError, InfercamError, InputError, MissingExtra
from infercam.engine.device.driver import DeviceError
from infercam.engine.runners.plan import (
    Environment,
    Plan,
    PlanError,
    PlanOptions,
    Profile,
    find_plan,
    list_plans,
)
from infercam.export.commands.build import register
from infercam.export.plan import runtimes
from infercam.export.plan.build import BuildRequest, BuildWatch, build_plan
from infercam.export.plan.builder import BuildCancelled
from infercam.export.plan.rtx import rtx_maker
from infercam.export.plan.runtimes import caution, check_options, choose_runtime
from infercam.export.precision import half
from tests.engine import tiny
from tests.export.plan.plan_file import read_plan
from tests.export.plan.test_build import retrained

VERSION = tensorrt_rtx.__version__
ADA = Environment("RTX 4090", (8, 9), None, rtx=VERSION)
SOME = Profile(smallest=(1, 8, 8), best=(4, 40, 52), largest=(8, 192, 192))


@pytest.fixture(autouse=True)
def no_plans_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INFERCAM_PLANS", raising=False)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny.build(tmp_path / "bundle")


@pytest.fixture
def build(bundle):
    """Run `infercam build` on the tiny bundle for TensorRT-RTX; what it printed, or the error that it raised."""
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)

    def run(*args: object) -> str:
        given = ["build", bundle.path, "--precision", "fp32", "--runtime", "tensorrt-rtx", *args]
        result = CliRunner().invoke(app, list(map(str, given)), env={"COLUMNS": "200"})
        if isinstance(result.exception, InfercamError):
            assert "\n" not in str(result.exception)
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return run


def request(bundle: Bundle, targets: str | None = None, **changes) -> BuildRequest:
    given = {"precision": "fp32", "profiles": [SOME], "samples": list, **changes}
    return BuildRequest(bundle, rtx=rtx_maker(targets), **given)


# -- which runtime ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("gpu", "installed", "chosen", "why"),
    [
        (True, {"tensorrt", "tensorrt-rtx"}, "tensorrt", "on this GPU"),
        (True, {"tensorrt-rtx"}, "tensorrt-rtx", r"not tensorrt: it needs tensorrt: .*infercam\[gpu\]"),
        (False, {"tensorrt", "tensorrt-rtx"}, "tensorrt-rtx", "not tensorrt: no driver"),
        (False, {"tensorrt"}, None, r"no driver; TensorRT-RTX needs no GPU: pip install 'infercam\[rtx\]'"),
        (True, set(), None, r"infercam\[gpu\]"),
    ],
)
def test_the_runtime_is_what_can_run_here(monkeypatch, gpu, installed, chosen, why):
    monkeypatch.setattr(runtimes, "device_obstacle", lambda: None if gpu else DeviceError("no driver"))
    monkeypatch.setattr(runtimes, "installed", lambda kind: "1.0" if kind in installed else None)
    if chosen is None:
        with pytest.raises(InputError, match=why):
            choose_runtime()
    else:
        kind, said = choose_runtime()
        assert kind == chosen and re.search(why, said)


def test_a_runtime_asked_for_is_taken_and_an_unknown_one_is_one_line():
    assert choose_runtime("tensorrt-rtx")[0] == "tensorrt-rtx" and choose_runtime("tensorrt")[0] == "tensorrt"
    with pytest.raises(InputError, match="no runtime 'openvino'; there are: tensorrt, tensorrt-rtx"):
        choose_runtime("openvino")


def test_without_the_package_one_line_names_the_extra(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(
        MissingExtra, match=r"infercam build needs tensorrt-rtx-cu13: pip install 'infercam\[rtx\]'"
    ):
        rtx_maker(None)


# -- cards and options -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "targets"),
    [(None, ()), ("", ()), ("sm120, SM86,sm86", ("sm86", "sm120")), ("sm75", ("sm75",))],
)
def test_targets(text, targets):
    assert rtx_maker(text).targets == targets


@pytest.mark.parametrize("text", ["sm90", "8.6", "sm75,current", "none"])
def test_a_card_that_it_does_not_build_for_is_one_line(text):
    with pytest.raises(InputError, match=r"--targets \S+: TensorRT-RTX .* builds for sm75, sm80, sm86"):
        rtx_maker(text)


@pytest.mark.parametrize(
    "options",
    [
        PlanOptions(hardware_compatible=True),
        PlanOptions(version_compatible=True),
        PlanOptions(stripped=True),
        PlanOptions(refittable=True),
        PlanOptions(workspace_mb=64),
    ],
    ids=str,
)
def test_options_of_tensorrt_are_refused_with_rtx_and_the_other_way_round(options):
    check_options("tensorrt", options, None)
    with pytest.raises(InputError, match="is not for --runtime tensorrt-rtx: "):
        check_options("tensorrt-rtx", options, None)
    check_options("tensorrt-rtx", PlanOptions(), "sm86")
    with pytest.raises(InputError, match="--targets is for --runtime tensorrt-rtx"):
        check_options("tensorrt", PlanOptions(), "sm86")


def test_a_precision_that_gains_nothing_is_cautioned_of():
    assert "an fp16 plan is smaller" in str(caution("tensorrt-rtx", "int8"))
    assert caution("tensorrt-rtx", "fp16") is caution("tensorrt", "int8") is None


# -- built by the real one -------------------------------------------------------------------------------------
def test_a_plan_without_gpu_and_images(build, bundle):
    printed = build()
    (plan,) = (Plan.load(folder) for folder in (bundle.path / "plans").iterdir())
    assert plan.folder.name == plan.record.key and plan.intact()
    assert sorted(p.name for p in plan.folder.iterdir()) == ["plan.engine", "plan.json"]
    assert find_plan(bundle, None, ADA, runtime="tensorrt-rtx").folder == plan.folder
    for words in (
        f"runtime: TensorRT-RTX {VERSION} (as asked for)",
        f"built fp32 plan for compute 8.0, 8.6, 8.9, 12.0 and later, TensorRT-RTX {VERSION}, ",
        "not compared with ONNX Runtime",
        "1-64 views of 56x56",
    ):
        assert words in printed
    read = read_plan(plan.read())
    assert (read.version, read.targets[0], read.targets[-1]) == (VERSION, "sm80", "later")
    assert read.shapes == [
        (n, 3, h, w) for p in plan.record.profiles for n, h, w in (p.smallest, p.best, p.largest)
    ]
    assert "kept" in build()


def test_several_plans_stand_side_by_side(build, bundle):
    build()
    build("--targets", "sm86")
    build("--targets", "sm86,sm89", "--precision", "tf32")
    build("--targets", "sm86", "--profiles", 1)
    found = [f.plan for f in list_plans(bundle, ADA)]
    assert len({p.record.key for p in found}) == 4
    for plan in found:
        targets = read_plan(plan.read()).targets
        assert plan.record.targets in (targets, ()) and plan.record.runtime == "tensorrt-rtx"
    fitting = {f.plan.record.targets for f in list_plans(bundle, ADA) if f.problem is None}
    assert fitting == {(), ("sm86", "sm89")}
    with pytest.raises(PlanError, match="no TensorRT plan; make one with"):
        find_plan(bundle, None, ADA)


def test_force_builds_anew_in_the_same_place(bundle):
    first = build_plan(request(bundle, "sm86"), None)
    again = build_plan(request(bundle, "sm86", force=True), None)
    assert again.how == "built" and again.plan.folder == first.plan.folder
    assert read_plan(again.plan.read())[:3] == (
        VERSION,
        ("sm86",),
        [(1, 3, 8, 8), (4, 3, 40, 52), (8, 3, 192, 192)],
    )


@pytest.mark.parametrize("damage", ["plan.engine", "plan.json", "moved"])
def test_a_damaged_plan_is_built_anew(bundle, damage):
    folder = build_plan(request(bundle), None).plan.folder
    assert build_plan(request(bundle), None).how == "kept"
    if damage == "moved":
        record = json.loads((folder / "plan.json").read_text())
        (folder / "plan.json").write_text(json.dumps(record | {"targets": ["sm86"]}))
    else:
        (folder / damage).write_text("{}")
    assert build_plan(request(bundle), None).how == "built"
    assert Plan.load(folder).intact()


def test_a_bundle_exported_again_needs_a_new_plan(bundle):
    build_plan(request(bundle), None)
    other = retrained(bundle)
    with pytest.raises(PlanError, match="made from another fp32 graph"):
        find_plan(other, "fp32", ADA, runtime="tensorrt-rtx")
    assert build_plan(request(other), None).how == "built"


def test_a_stopped_build_installs_nothing(bundle):
    watch = BuildWatch()
    seen = []

    def stop(phase: str, done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            watch.stopped.set()

    watch.building = stop
    with pytest.raises(BuildCancelled, match="nothing was installed"):
        build_plan(request(bundle), None, watch)
    assert len(seen) == 3 and not list((bundle.path / "plans").iterdir())


def test_a_type_that_a_card_has_not_is_the_builders_own_line(bundle):
    short = bfloat_graph(bundle)
    build_plan(request(short, "sm86", precision="bf16"), None)
    with pytest.raises(ExportError, match=r"Cannot compile for target\(s\) sm75, .* datatypes: b16\.\)$"):
        build_plan(request(short, "sm75", precision="bf16"), None)


def bfloat_graph(bundle: Bundle) -> Bundle:
    """The bundle with a bf16 graph: the converter's."""
    file = bundle.path / "response.bf16.onnx"
    onnx.save(half.to_half(onnx.load(str(bundle.graph("fp32"))), half.BF16).model, str(file))
    manifest = bundle.manifest.model_dump()
    manifest["graphs"]["bf16"] = file.name
    manifest["files"][file.name] = file_entry(file).model_dump()
    (bundle.path / "manifest.json").write_text(Manifest.model_validate(manifest).model_dump_json())
    return Bundle.load(bundle.path)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--labels", "x.json"], "--labels: needs images"),
        (["--centres", "cpu"], "--centres cpu: needs images"),
        (["--split", "val"], "give one source of images"),
        (["--strip-weights"], "--strip-weights is not for --runtime tensorrt-rtx"),
        (["--targets", "sm90"], "--targets sm90: TensorRT-RTX"),
        (["--runtime", "x"], "no runtime 'x'"),
        (
            ["--precision", "int8"],
            r"no int8 graph; make it with: infercam precision .* \(there are: fp32; --precision",
        ),
    ],
)
def test_bad_options_are_one_line(build, bundle, args, words):
    with pytest.raises(InfercamError, match=words):
        build(*args)
    assert not list(bundle.path.glob("plans/*"))


def test_without_onnx_one_line_names_the_extra(build, monkeypatch):
    monkeypatch.setattr("infercam.export.requirements.find_spec", lambda package: None)
    with pytest.raises(MissingExtra, match=r"infercam build needs onnx: pip install 'infercam\[export\]'"):
        build()


def test_images_tune_the_profiles_of_an_exact_recipe(build, bundle, tmp_path):
    data = tiny.write_dataset(tmp_path / "data", 4)
    printed = build("--images", data / "images", "--profiles", 2)
    (plan,) = (Plan.load(folder) for folder in (bundle.path / "plans").iterdir())
    assert plan.record.profiles[0].largest[1:] < (200, 200) and "100.0%" in printed


# -- what the real parser says ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            "operator",
            r"TensorRT-RTX cannot take this graph: In node 0 with name: stem and operator: Det .*UNSUPPORTED",
        ),
        ("cut", "TensorRT-RTX cannot take this graph: .*Failed to parse the ONNX model"),
        ("empty", "no input or output 'image', which the manifest names"),
        ("integers", "input 'image' is neither float32 nor float16"),
    ],
)
def test_a_graph_that_it_does_not_take_is_one_line(bundle, damage, words):
    file = bundle.graph("fp32")
    model = onnx.load(str(file))
    if damage == "operator":
        del model.graph.node[0].input[1:], model.graph.node[0].attribute[:]
        model.graph.node[0].op_type, model.graph.node[0].name = "Det", "stem"
    if damage == "integers":
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
        model.graph.node.insert(0, onnx.helper.make_node("Cast", ["image"], ["x"], to=onnx.TensorProto.FLOAT))
        model.graph.node[1].input[0] = "x"
    data = {"cut": file.read_bytes()[:300], "empty": b""}.get(damage, model.SerializeToString())
    file.write_bytes(data)
    with pytest.raises(ExportError, match=words) as e:
        build_plan(request(bundle), None)
    assert "\n" not in str(e.value) and ".cpp" not in str(e.value)
    assert not list(bundle.path.glob("plans/*"))
