"""`infercam package triton`: what is written, against Triton's own schema and ONNX Runtime; what is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup
from typer.testing import CliRunner

from infercam.engine.bundle import Bundle, FileEntry, Manifest, file_entry
from infercam.engine.cli import app
from infercam.engine.common.errors import BundleError, ExportError, InputError
from infercam.engine.runners.plan import PlanOptions, PlanRecord, Profile, graph_hash
from infercam.export.commands import register
from infercam.export.triton import config, repository
from infercam.export.triton.config import Serving
from infercam.export.triton.repository import KINDS, MARK, PackageRequest, is_ours, package
from infercam.export.triton.signature import read_signature
from infercam.export.triton.text_format import Word, to_text
from tests.engine import tiny

FULL = Profile(smallest=(1, 40, 40), best=(4, 100, 120), largest=(6, 300, 300))
WIDE = Profile(smallest=(1, 20, 20), best=(2, 60, 60), largest=(16, 80, 90))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundles") / "tiny")


def parsed(folder: Path) -> ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def put_plan(root: Path, bundle: Bundle, data: bytes = b"a plan", **changes: Any) -> PlanRecord:
    """A plan's folder, as `infercam build` leaves it, for a GPU that is not here."""
    fields: dict[str, Any] = {
        "precision": "fp32",
        "input_type": "float32",
        "bundle": bundle.manifest.name,
        "bundle_hash": bundle.hash,
        "onnx_sha256": graph_hash(bundle, "fp32"),
        "profiles": [FULL, WIDE],
        "tensorrt": "10.16.1",
        "gpu": "NVIDIA H100 80GB HBM3",
        "compute_capability": (9, 0),
        "plan": FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data)),
    }
    record = PlanRecord(**(fields | changes))
    folder = root / record.key
    folder.mkdir(parents=True)
    (folder / "plan.engine").write_bytes(data)
    (folder / "plan.json").write_text(record.model_dump_json())
    return record


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- text format -----------------------------------------------------------------------------------------------
def test_text_format_round_trips_through_protobuf() -> None:
    nasty = 'a"b\\c\n\tµ\x00é'
    message = {
        "name": nasty,
        "max_batch_size": 4,
        "input": [{"name": "x", "data_type": Word("TYPE_FP16"), "dims": [3, -1], "optional": True}],
        "parameters": [{"key": "k", "value": {"string_value": nasty}}],
        "instance_group": [{"kind": Word("KIND_GPU"), "profile": ["0", "1"], "gpus": []}],
    }
    found = text_format.Parse(to_text(message), ModelConfig())
    assert found.name == nasty
    assert found.parameters["k"].string_value == nasty
    assert list(found.input[0].dims) == [3, -1]
    assert found.input[0].optional
    assert list(found.instance_group[0].profile) == ["0", "1"]
    assert list(found.instance_group[0].gpus) == []


@given(text=st.text(), dims=st.lists(st.integers(-1, 2**40)), flag=st.booleans())
def test_any_value_round_trips(text: str, dims: list[int], flag: bool) -> None:
    message = {
        "name": text,
        "input": [{"dims": dims, "optional": flag}],
        "metric_tags": [{"key": text, "value": text}],
    }
    found = text_format.Parse(to_text(message), ModelConfig())
    assert (found.name, dict(found.metric_tags)) == (text, {text: text})
    assert (list(found.input[0].dims), found.input[0].optional) == (dims, flag)


def test_a_config_that_the_schema_does_not_take_is_refused() -> None:
    with pytest.raises(ExportError, match=r"config\.pbtxt.*no_such_field"):
        config.config_text({"name": "x", "no_such_field": 1})
    with pytest.raises(ExportError, match="TYPE_FP33"):
        config.config_text({"input": [{"data_type": Word("TYPE_FP33")}]})


# -- the ONNX model ----------------------------------------------------------------------------------------------
def test_onnx_config(bundle: Bundle, tmp_path: Path) -> None:
    serving = Serving(max_batch=5, queue_delay_us=1234, instances=3, device="gpu")
    done = package(PackageRequest(bundle, tmp_path / "repo", serving, only=["onnx"]))
    folder = tmp_path / "repo" / "tiny-4_onnx"
    assert list(done.models) == [folder]
    found = parsed(folder)
    assert (found.name, found.backend, found.platform) == ("tiny-4_onnx", "onnxruntime", "onnxruntime_onnx")
    assert found.max_batch_size == 5
    assert found.dynamic_batching.max_queue_delay_microseconds == 1234
    assert found.version_policy.latest.num_versions == 1
    assert [(i.name, i.data_type, list(i.dims)) for i in found.input] == [("image", 11, [3, -1, -1])]
    shapes = {o.name: (o.data_type, list(o.dims)) for o in found.output}
    assert shapes == {"scores": (11, [5]), "response": (11, [5, -1, -1])}
    group = found.instance_group[0]
    assert (group.count, group.kind) == (3, ModelInstanceGroup.KIND_GPU)
    assert found.parameters["bundle_hash"].string_value == bundle.hash
    labels = {o.name: o.label_filename for o in found.output}
    assert labels == {"scores": "labels.txt", "response": ""}
    assert (folder / "labels.txt").read_text().splitlines() == tiny.CLASSES


@pytest.mark.parametrize(
    ("device", "kind"), [("auto", "KIND_AUTO"), ("cpu", "KIND_CPU"), ("gpu", "KIND_GPU")]
)
def test_devices(bundle: Bundle, tmp_path: Path, device: Any, kind: str) -> None:
    package(PackageRequest(bundle, tmp_path, Serving(device=device), only=["onnx", "maps"]))
    assert ModelInstanceGroup.Kind.Name(parsed(tmp_path / "tiny-4_onnx").instance_group[0].kind) == kind
    maps = parsed(tmp_path / "tiny-4_maps")
    assert maps.instance_group[0].kind == ModelInstanceGroup.KIND_MODEL
    assert maps.parameters["device"].string_value == device


def test_warm_up_is_an_input_that_the_model_takes(bundle: Bundle, tmp_path: Path) -> None:
    package(PackageRequest(bundle, tmp_path, only=["onnx"]))
    found = parsed(tmp_path / "tiny-4_onnx")
    (sample,) = found.model_warmup
    assert sample.batch_size == 1
    warm = sample.inputs["image"]
    assert warm.zero_data
    session = ort.InferenceSession(str(tmp_path / "tiny-4_onnx/1/model.onnx"))
    session.run(None, {"image": np.zeros([1, *warm.dims], np.float32)})


def test_one_picture_a_batch_is_not_batched(bundle: Bundle, tmp_path: Path) -> None:
    package(PackageRequest(bundle, tmp_path, Serving(max_batch=1), only=["onnx"]))
    found = parsed(tmp_path / "tiny-4_onnx")
    assert found.max_batch_size == 1
    assert not found.HasField("dynamic_batching")


def test_a_graph_of_fixed_size_and_batch(tmp_path: Path) -> None:
    fixed = tiny.build(tmp_path / "b", fixed=(32, 48), batch=False)
    package(PackageRequest(fixed, tmp_path / "repo", only=["onnx"]))
    found = parsed(tmp_path / "repo/tiny-4_onnx")
    assert found.max_batch_size == 0
    assert not found.HasField("dynamic_batching")
    assert list(found.input[0].dims) == [1, 3, 32, 48]
    assert {o.name: list(o.dims)[:2] for o in found.output} == {"scores": [1, 5], "response": [1, 5]}
    (sample,) = found.model_warmup
    assert (sample.batch_size, list(sample.inputs["image"].dims)) == (1, [1, 3, 32, 48])


def test_a_graph_of_fixed_size_and_any_batch(tmp_path: Path) -> None:
    fixed = tiny.build(tmp_path / "b", fixed=(32, 48))
    package(PackageRequest(fixed, tmp_path / "repo", only=["onnx"]))
    found = parsed(tmp_path / "repo/tiny-4_onnx")
    assert found.max_batch_size == 8
    assert list(found.input[0].dims) == [3, 32, 48]


def test_the_packaged_graph_gives_the_bundle_s_outputs(bundle: Bundle, tmp_path: Path) -> None:
    package(PackageRequest(bundle, tmp_path, only=["onnx"]))
    ours = ort.InferenceSession(str(bundle.graph()))
    theirs = ort.InferenceSession(str(tmp_path / "tiny-4_onnx/1/model.onnx"))
    x = np.random.default_rng(0).standard_normal((3, 3, 37, 51), dtype=np.float32)
    names = [o.name for o in parsed(tmp_path / "tiny-4_onnx").output]
    for a, b in zip(ours.run(names, {"image": x}), theirs.run(names, {"image": x}), strict=True):
        np.testing.assert_array_equal(a, b)


def with_graph(root: Path, precision: str, model: onnx.ModelProto, external: bool = False) -> Bundle:
    """The bundle at `root` with one more graph."""
    name = f"response.{precision}.onnx"
    onnx.save(
        model, str(root / name), save_as_external_data=external, location=f"{name}.data", size_threshold=0
    )
    manifest = Manifest.model_validate_json((root / "manifest.json").read_text())
    made = [p for p in (root / name, root / f"{name}.data") if p.exists()]
    changed = manifest.model_copy(
        update={
            "graphs": manifest.graphs | {precision: name},
            "files": manifest.files | {p.name: file_entry(p) for p in made},
        }
    )
    (root / "manifest.json").write_text(changed.model_dump_json())
    return Bundle.load(root)


def test_half_precision_input_and_weights_beside_the_graph(tmp_path: Path) -> None:
    tiny.build(tmp_path / "b")
    model = tiny.model()
    half = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT16, ["n", 3, "h", "w"])
    first = model.graph.node[0]
    cast = onnx.helper.make_node("Cast", ["image"], ["wide"], to=onnx.TensorProto.FLOAT)
    first.input[0] = "wide"
    model.graph.node.insert(0, cast)
    model.graph.input[0].CopyFrom(half)
    both = with_graph(tmp_path / "b", "fp16", model, external=True)
    package(PackageRequest(both, tmp_path / "repo", precision="fp16", only=["onnx"]))
    folder = tmp_path / "repo/tiny-4_onnx"
    found = parsed(folder)
    assert found.input[0].data_type == 10  # TYPE_FP16
    assert found.model_warmup[0].inputs["image"].data_type == 10
    assert (folder / "1/response.fp16.onnx.data").is_file()
    x = np.random.default_rng(1).standard_normal((1, 3, 20, 30)).astype(np.float16)
    want = ort.InferenceSession(str(both.graph("fp32"))).run(["scores"], {"image": x.astype(np.float32)})
    got = ort.InferenceSession(str(folder / "1/model.onnx")).run(["scores"], {"image": x})
    np.testing.assert_array_equal(got[0], want[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: {"input": m.input.model_copy(update={"name": "picture"})}, "its inputs are image"),
        (
            lambda m: {"input": m.input.model_copy(update={"height": 32, "width": 32})},
            "says N×3×H×W of 32x32",
        ),
        (lambda m: {"input": m.input.model_copy(update={"dynamic_batch": False})}, "one fixed batch"),
        (lambda m: {"scores": "logits"}, "no output 'logits'"),
        (lambda m: {"classes": m.classes[:-1], "bias": m.bias[:-1]}, "manifest has 4 classes"),
        (lambda m: {"scores": "response"}, "manifest has 5 classes"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says(tmp_path: Path, change: Any, says: str) -> None:
    good = tiny.build(tmp_path / "b")
    manifest = good.manifest.model_copy(update=change(good.manifest))
    (tmp_path / "b/manifest.json").write_text(manifest.model_dump_json())
    with pytest.raises(ExportError, match=says):
        package(PackageRequest(Bundle.load(tmp_path / "b"), tmp_path / "repo", only=["onnx"]))
    assert not (tmp_path / "repo").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_outputs_without_shapes(tmp_path: Path) -> None:
    """Old exporters leave the shapes of outputs out: the manifest knows what matters."""
    tiny.build(tmp_path / "b")
    model = tiny.model()
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    both = with_graph(tmp_path / "b", "bf16", model)
    signature = read_signature(both, "bf16")
    assert signature.scores.dims == (-1, 5)
    assert signature.response.dims == (-1, 5, -1, -1)


def test_a_file_that_is_no_onnx(tmp_path: Path) -> None:
    tiny.build(tmp_path / "b")
    (tmp_path / "b/response.onnx").write_bytes(b"\x0a\x05hello")
    manifest = json.loads((tmp_path / "b/manifest.json").read_text())
    manifest["files"]["response.onnx"] = file_entry(tmp_path / "b/response.onnx").model_dump()
    (tmp_path / "b/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises((ExportError, BundleError)) as caught:
        package(PackageRequest(Bundle.load(tmp_path / "b"), tmp_path / "repo"))
    assert "response.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


# -- the TensorRT model --------------------------------------------------------------------------------------------
def test_tensorrt_config(bundle: Bundle, tmp_path: Path) -> None:
    put_plan(tmp_path / "plans", bundle)
    request = PackageRequest(
        bundle, tmp_path / "repo", Serving(max_batch=32, instances=2), plans=tmp_path / "plans"
    )
    done = package(request)
    assert [f.name for f in done.models] == ["tiny-4_onnx", "tiny-4_tensorrt", "tiny-4_maps"]
    folder = tmp_path / "repo/tiny-4_tensorrt"
    assert (folder / "1/model.plan").read_bytes() == b"a plan"
    found = parsed(folder)
    assert (found.backend, found.platform) == ("tensorrt", "tensorrt_plan")
    assert found.max_batch_size == 6, "a batch must fit every profile"
    group = found.instance_group[0]
    assert (group.count, group.kind, list(group.profile)) == (2, ModelInstanceGroup.KIND_GPU, ["0", "1"])
    assert list(found.model_warmup[0].inputs["image"].dims) == [3, 100, 120]
    assert found.parameters["plan_gpu"].string_value == "NVIDIA H100 80GB HBM3"
    assert found.parameters["plan_tensorrt"].string_value == "10.16.1"
    # The engine of the maps finds the same plan in its copy of the bundle.
    (plan,) = (tmp_path / "repo/tiny-4_maps/1/bundle/plans").iterdir()
    assert sorted(p.name for p in plan.iterdir()) == ["plan.engine", "plan.json"]


def test_without_a_plan_tensorrt_is_left_out(bundle: Bundle, tmp_path: Path) -> None:
    done = package(PackageRequest(bundle, tmp_path / "repo"))
    assert sorted(f.name for f in done.models) == ["tiny-4_maps", "tiny-4_onnx"]
    assert "infercam build" in done.left_out["tensorrt"]
    with pytest.raises(ExportError, match="infercam build"):
        package(PackageRequest(bundle, tmp_path / "other", only=["tensorrt"]))
    assert not (tmp_path / "other").exists()


def test_the_plan_s_gpu_can_be_named(bundle: Bundle, tmp_path: Path) -> None:
    plans = tmp_path / "plans"
    put_plan(plans, bundle)
    put_plan(plans, bundle, b"other", gpu="NVIDIA A10G", compute_capability=(8, 6))

    def chosen(**more: Any) -> bytes:
        root = tmp_path / f"repo{len(list(tmp_path.iterdir()))}"
        package(PackageRequest(bundle, root, only=["tensorrt"], plans=plans, **more))
        return (root / "tiny-4_tensorrt/1/model.plan").read_bytes()

    assert chosen(plan_gpu="h100") == b"a plan"
    assert chosen(plan_gpu="8.6") == b"other"
    with pytest.raises(ExportError, match=r"several GPUs.*--plan-gpu"):
        chosen()
    with pytest.raises(
        ExportError,
        match=r"no plan for 'L4' \(there are: fp32 for NVIDIA .*; fp32 for NVIDIA .*infercam build",
    ):
        chosen(plan_gpu="L4")
    assert "several GPUs" in package(PackageRequest(bundle, tmp_path / "r", plans=plans)).left_out["tensorrt"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"options": PlanOptions(stripped=True)}, "no weights"),
        ({"onnx_sha256": "0" * 64}, "another fp32 graph"),
        ({"bundle_hash": "0" * 64}, "another bundle"),
        ({"profiles": [Profile(smallest=(2, 9, 9), best=(2, 9, 9), largest=(4, 9, 9))]}, "no single picture"),
    ],
)
def test_plans_that_triton_cannot_serve(
    bundle: Bundle, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    put_plan(tmp_path / "plans", bundle, **changes)
    with pytest.raises(ExportError, match=says):
        package(PackageRequest(bundle, tmp_path / "repo", only=["tensorrt"], plans=tmp_path / "plans"))


def test_a_damaged_plan_is_not_packaged(bundle: Bundle, tmp_path: Path) -> None:
    record = put_plan(tmp_path / "plans", bundle)
    (tmp_path / "plans" / record.key / "plan.engine").write_bytes(b"a plam")
    done = package(PackageRequest(bundle, tmp_path / "repo", plans=tmp_path / "plans"))
    assert "damaged" in done.left_out["tensorrt"]
    assert not (tmp_path / "repo/tiny-4_maps/1/bundle/plans").exists()


def test_cpu_needs_no_plan(bundle: Bundle, tmp_path: Path) -> None:
    put_plan(tmp_path / "plans", bundle)
    done = package(PackageRequest(bundle, tmp_path / "repo", Serving(device="cpu"), plans=tmp_path / "plans"))
    assert "--cpu" in done.left_out["tensorrt"]
    assert not (tmp_path / "repo/tiny-4_maps/1/bundle/plans").exists()


RTX: dict[str, Any] = {
    "runtime": "tensorrt-rtx",
    "tensorrt": "1.7.1.116",
    "gpu": "",
    "compute_capability": (0, 0),
}


def maps_plans(root: Path) -> set[bytes]:
    return {p.read_bytes() for p in root.glob("tiny-4_maps/1/bundle/plans/*/plan.engine")}


def test_rtx_plans_go_with_the_maps_alone(bundle: Bundle, tmp_path: Path) -> None:
    plans, root = tmp_path / "plans", tmp_path / "repo"
    put_plan(plans, bundle, b"any card", **RTX)
    done = package(PackageRequest(bundle, root, plans=plans))
    assert sorted(f.name for f in done.models) == ["tiny-4_maps", "tiny-4_onnx"]
    assert "TensorRT-RTX's, which Triton's TensorRT backend does not take" in done.left_out["tensorrt"]
    assert maps_plans(root) == {b"any card"} and [p.record.targets for p in done.rtx] == [()]
    with pytest.raises(ExportError, match="does not take"):
        package(PackageRequest(bundle, tmp_path / "other", only=["tensorrt"], plans=plans))
    put_plan(plans, bundle)
    done = package(PackageRequest(bundle, root, plans=plans, force=True))
    assert (root / "tiny-4_tensorrt/1/model.plan").read_bytes() == b"a plan"
    assert maps_plans(root) == {b"any card", b"a plan"}, "the engine takes what fits where it runs"
    assert package(PackageRequest(bundle, tmp_path / "t", only=["tensorrt"], plans=plans)).rtx == []
    cpu = package(PackageRequest(bundle, tmp_path / "cpu", Serving(device="cpu"), plans=plans))
    assert cpu.rtx == [] and not maps_plans(tmp_path / "cpu")


def test_which_rtx_plans_go(bundle: Bundle, tmp_path: Path) -> None:
    plans = tmp_path / "plans"
    put_plan(plans, bundle, b"old", created="2026-01-01T00:00:00.000+00:00", **RTX)
    put_plan(plans, bundle, b"new", created="2026-02-01T00:00:00.000+00:00", **RTX | {"tensorrt": "1.7.2"})
    put_plan(plans, bundle, b"turing", targets=("sm75",), **RTX)
    put_plan(plans, bundle, b"stale", targets=("sm86",), onnx_sha256="0" * 64, **RTX)
    damaged = put_plan(plans, bundle, b"damaged", targets=("sm120",), **RTX)
    (plans / damaged.key / "plan.engine").write_bytes(b"dammged")

    def shipped(**more: Any) -> set[bytes]:
        root = tmp_path / f"repo{len(list(tmp_path.iterdir()))}"
        package(PackageRequest(bundle, root, only=["maps"], plans=plans, **more))
        return maps_plans(root)

    assert shipped() == {b"new", b"turing"}
    assert shipped(plan_gpu="7.5") == {b"turing"}
    with pytest.raises(ExportError, match="does not take"):
        shipped(plan_gpu="9.0")
    put_plan(plans, bundle)  # TensorRT's: a GPU may be named
    assert shipped(plan_gpu="9.0") == {b"a plan"}
    put_plan(plans, bundle, b"ada", gpu="NVIDIA L4", compute_capability=(8, 9))
    assert shipped(plan_gpu="8.9") == {b"new", b"ada"}
    assert shipped(plan_gpu="l4") == {b"new", b"turing", b"ada"}
    assert shipped(precision="fp32", plan_gpu="H100") == {b"new", b"turing", b"a plan"}


# -- the whole method -------------------------------------------------------------------------------------------
def test_maps_config_and_files(bundle: Bundle, tmp_path: Path) -> None:
    serving = Serving(recipe="best", queue=7, max_pixels=1000, score_threshold=0.25)
    package(PackageRequest(bundle, tmp_path, serving, only=["maps"]))
    folder = tmp_path / "tiny-4_maps"
    found = parsed(folder)
    assert (found.backend, found.platform, found.max_batch_size) == ("python", "", 0)
    inputs = {i.name: (i.data_type, list(i.dims), i.optional) for i in found.input}
    assert inputs == {"image": (13, [1], False), "classes": (13, [-1], True)}
    outputs = {o.name: (o.data_type, list(o.dims)) for o in found.output}
    assert outputs == {"maps": (11, [-1, -1, -1]), "classes": (8, [-1]), "scores": (11, [5])}
    assert not found.model_transaction_policy.decoupled
    values = {k: v.string_value for k, v in found.parameters.items()}
    assert values == {
        "device": "auto",
        "recipe": "best",
        "score_threshold": "0.25",
        "queue": "7",
        "max_pixels": "1000",
        "bundle_hash": bundle.hash,
    }
    assert Bundle.load(folder / "1/bundle").hash == bundle.hash
    assert "import torch" not in (folder / "1/model.py").read_text()
    mark = json.loads((folder / MARK).read_text())
    assert mark["manifest_sha256"] == hashlib.sha256((bundle.path / "manifest.json").read_bytes()).hexdigest()
    assert set(mark["files"]) | {MARK} == set(files(folder))
    for name, entry in mark["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"serving": Serving(recipe="fats")}, InputError, "fats"),
        ({"precision": "fp16"}, BundleError, "no fp16 graph"),
        ({"precision": "tf32", "serving": Serving(device="cpu")}, ExportError, "no tf32 arithmetic"),
        ({"name": "../up"}, ExportError, "--name"),
        ({"name": "a b"}, ExportError, "--name"),
    ],
)
def test_what_is_refused(
    bundle: Bundle, tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    request = replace(PackageRequest(bundle, tmp_path / "repo"), **changes)
    with pytest.raises(error, match=says):
        package(request)
    assert list(tmp_path.iterdir()) == []


def test_class_names_that_are_not_one_line(tmp_path: Path) -> None:
    good = tiny.build(tmp_path / "b")
    manifest = good.manifest.model_copy(update={"classes": ["a\nb", *good.manifest.classes[1:]]})
    (tmp_path / "b/manifest.json").write_text(manifest.model_dump_json())
    with pytest.raises(ExportError, match="one line"):
        package(PackageRequest(Bundle.load(tmp_path / "b"), tmp_path / "repo"))


# -- in place, whole or not at all --------------------------------------------------------------------------------
def test_adds_to_a_repository_and_replaces_only_its_own(bundle: Bundle, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    (repo / "theirs" / "1").mkdir(parents=True)
    (repo / "theirs/config.pbtxt").write_text("name: 'theirs'")
    package(PackageRequest(bundle, repo, only=["onnx"]))
    before = files(repo)
    with pytest.raises(ExportError, match=r"tiny-4_onnx.*--force"):
        package(PackageRequest(bundle, repo))
    assert files(repo) == before
    package(PackageRequest(bundle, repo, Serving(max_batch=3), force=True))
    assert parsed(repo / "tiny-4_onnx").max_batch_size == 3
    assert (repo / "theirs/config.pbtxt").read_text() == "name: 'theirs'"
    assert sorted(p.name for p in repo.iterdir()) == ["theirs", "tiny-4_maps", "tiny-4_onnx"]
    assert [p.name for p in tmp_path.iterdir()] == ["repo"]


@pytest.mark.parametrize("mark", [None, "{}", "not json", '{"schema_version": 1}'])
def test_another_s_model_of_that_name_is_never_replaced(
    bundle: Bundle, tmp_path: Path, mark: str | None
) -> None:
    theirs = tmp_path / "repo/tiny-4_maps"
    theirs.mkdir(parents=True)
    (theirs / "precious").write_text("work")
    if mark is not None:
        (theirs / MARK).write_text(mark)
    with pytest.raises(ExportError, match="not made by infercam"):
        package(PackageRequest(bundle, tmp_path / "repo", force=True))
    assert (theirs / "precious").read_text() == "work"
    assert [p.name for p in (tmp_path / "repo").iterdir()] == ["tiny-4_maps"]


def test_a_link_is_not_ours(bundle: Bundle, tmp_path: Path) -> None:
    package(PackageRequest(bundle, tmp_path / "elsewhere", only=["onnx"]))
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/tiny-4_onnx").symlink_to(tmp_path / "elsewhere/tiny-4_onnx")
    with pytest.raises(ExportError, match="not made by infercam"):
        package(PackageRequest(bundle, tmp_path / "repo", force=True))
    assert is_ours(tmp_path / "elsewhere/tiny-4_onnx")


def test_a_file_in_the_way(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "repo").write_text("notes")
    with pytest.raises(ExportError, match="not a folder"):
        package(PackageRequest(bundle, tmp_path / "repo"))
    assert (tmp_path / "repo").read_text() == "notes"


@pytest.mark.parametrize("failing", range(6))
def test_a_failure_in_the_middle_leaves_all_as_it_was(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Six renames replace three models: two each. Whichever fails, the old repository stands."""
    put_plan(tmp_path / "plans", bundle)
    repo = tmp_path / "repo"
    package(PackageRequest(bundle, repo, plans=tmp_path / "plans"))
    before = files(repo)
    rename, calls = Path.rename, []

    def fails(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing + 1:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(ExportError, match="No space left"):
        package(PackageRequest(bundle, repo, Serving(max_batch=2), plans=tmp_path / "plans", force=True))
    monkeypatch.undo()
    assert files(repo) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plans", "repo"]


def test_a_failure_in_writing_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repository, "_flush", full)
    with pytest.raises(ExportError, match=r"repo: cannot be written: No space left"):
        package(PackageRequest(bundle, tmp_path / "deep/repo"))
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_bundle_changed_since_is_refused(tmp_path: Path) -> None:
    good = tiny.build(tmp_path / "b")
    graph = tmp_path / "b/response.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="changed since export"):
        package(PackageRequest(good, tmp_path / "repo", only=["maps"]))
    assert not (tmp_path / "repo").exists()


# -- the command --------------------------------------------------------------------------------------------------
@pytest.fixture
def run(bundle: Bundle) -> Any:
    if "package" not in [g.name for g in app.registered_groups]:
        register(app)
    return lambda *args: CliRunner().invoke(app, ["package", "triton", *map(str, args)])


def test_the_command(run: Any, bundle: Bundle, tmp_path: Path) -> None:
    done = run(bundle.path, "-o", tmp_path / "repo", "--max-batch", "4", "--cpu", "--only", "onnx,maps")
    assert done.exit_code == 0, done.output
    assert "tiny-4_onnx" in done.output
    assert "tritonserver --model-repository=" in done.output
    assert "infercam[cpu]" in done.output
    assert parsed(tmp_path / "repo/tiny-4_onnx").max_batch_size == 4
    again = run(bundle.path, "-o", tmp_path / "repo")
    assert isinstance(again.exception, ExportError)
    assert run(bundle.path, "-o", tmp_path / "repo", "--force").exit_code == 0


def test_the_command_says_what_it_leaves_out(run: Any, bundle: Bundle, tmp_path: Path) -> None:
    done = run(bundle.path, "-o", tmp_path / "repo")
    assert "left out tensorrt" in done.output
    assert "infercam build" in done.output


def test_the_command_says_how_to_serve_a_version_compatible_plan(
    run: Any, bundle: Bundle, tmp_path: Path
) -> None:
    put_plan(tmp_path / "plans", bundle, options=PlanOptions(version_compatible=True))
    done = run(bundle.path, "-o", tmp_path / "repo", "--cache", tmp_path / "plans")
    assert "version-compatible=true" in done.output
    assert "NVIDIA H100" in done.output


def test_the_command_says_what_rtx_plans_need(run: Any, bundle: Bundle, tmp_path: Path) -> None:
    put_plan(tmp_path / "plans", bundle, targets=("sm86", "sm120"), **RTX)
    done = run(bundle.path, "-o", tmp_path / "repo", "--cache", tmp_path / "plans")
    assert "plan is for compute 8.6, 12.0 and TensorRT-RTX 1.7.1.116, with infercam[gpu,rtx]" in done.output


def test_the_command_works_without_tritonclient(
    run: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "find_spec", lambda _: None)
    monkeypatch.setattr(config, "check", lambda _: pytest.fail("parsed without a schema"))
    done = run(bundle.path, "-o", tmp_path / "repo")
    assert done.exit_code == 0
    assert "not checked against Triton's schema" in done.output
    parsed(tmp_path / "repo/tiny-4_maps")


@pytest.mark.parametrize(
    "wrong",
    [
        ["--only", "onnx,torch"],
        ["--only", ","],
        ["--name", "a/b"],
        ["--recipe", "none"],
        ["--precision", "fp8"],
    ],
)
def test_bad_options_are_one_line(run: Any, bundle: Bundle, tmp_path: Path, wrong: list[str]) -> None:
    done = run(bundle.path, "-o", tmp_path / "repo", *wrong)
    assert done.exit_code != 0
    assert isinstance(done.exception, ExportError | BundleError | InputError)
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "repo").exists()


def test_kinds_are_all_there_are() -> None:
    assert KINDS == ("onnx", "tensorrt", "maps")


@pytest.mark.shared
def test_mobilenetv2(tmp_path: Path, shared: Path) -> None:
    """A real classifier: exported, packaged, and run as packaged."""
    from infercam.export import export_onnx

    bundle = export_onnx(shared / "models/mobilenetv2_voc.onnx", tmp_path / "bundle")
    package(PackageRequest(bundle, tmp_path / "repo"))
    found = parsed(tmp_path / "repo/mobilenetv2_voc_onnx")
    assert {o.name: list(o.dims) for o in found.output} == {"scores": [20], "response": [20, -1, -1]}
    labels = (tmp_path / "repo/mobilenetv2_voc_onnx/labels.txt").read_text().splitlines()
    assert (labels[0], labels[19], len(labels)) == ("aeroplane", "tvmonitor", 20)
    x = np.random.default_rng(0).standard_normal((2, 3, 97, 130), dtype=np.float32)
    scores, response = ort.InferenceSession(str(tmp_path / "repo/mobilenetv2_voc_onnx/1/model.onnx")).run(
        ["scores", "response"], {"image": x}
    )
    np.testing.assert_allclose(response.mean((2, 3)) + bundle.manifest.bias, scores, atol=1e-3)
