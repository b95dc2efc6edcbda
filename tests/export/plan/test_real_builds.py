"""Whole ways from a network to a plan, by the real parser and builder: what they take, and what is in the plan.

TensorRT-RTX's, which shares its parser with TensorRT and needs no GPU. Exported by tracing (1 s a network); by
torch.export, which is what users get first, in the slow tests (10 s a network).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT-RTX is not installed, so nothing is built: pip install 'infercam[rtx]'"
)
pytest.importorskip("torch")

from infercam.engine.bundle import Bundle, Manifest, file_entry
from infercam.export import from_torch
from infercam.export.make_bundle import ExportSettings, make_bundle
from infercam.export.plan.build import BuildRequest, build_plan
from infercam.export.plan.profiles import ladder_profiles
from infercam.export.plan.rtx import rtx_maker
from infercam.export.precision import half, quantise
from tests.export.plan.networks import NETWORKS, network
from tests.export.plan.plan_file import read_plan
from tests.shared import ROOT

HALVES = {"fp16": half.FP16, "bf16": half.BF16}
EIGHTS = {"int8": quantise.INT8, "fp8": quantise.FP8}


def slow(*names: str) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def exported(name: str, folder: Path) -> Bundle:
    size = (64, 64) if name == "vit" else (224, 224)
    return from_torch(network(name), folder, classes=list("abcde"), example_size=size)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """A network's bundle by its name, exported once; `demo` is the embedded one."""
    made = {"demo": Bundle.load(ROOT / "engine" / "demo" / "bundle")}

    def get(name: str) -> Bundle:
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("infercam.export.writing.from_torch._export_dynamo", _not_here)
                made[name] = exported(name, tmp_path_factory.mktemp(name) / name)
        return made[name]

    return get


def _not_here(*args: object) -> onnx.ModelProto:
    raise RuntimeError("left out, to be quick")


def with_graph(bundle: Bundle, precision: str, model: onnx.ModelProto, folder: Path) -> Bundle:
    """A copy of the bundle in `folder`, with one more graph."""
    path = folder / f"{bundle.path.name}-{precision}"
    shutil.copytree(bundle.path, path)
    file = path / f"response.{precision}.onnx"
    onnx.save(model, str(file))
    manifest = bundle.manifest.model_dump()
    manifest["graphs"][precision] = file.name
    manifest["files"][file.name] = file_entry(file).model_dump()
    return Bundle(path, Manifest.model_validate(manifest))


def built(bundle: Bundle, precision: str, cache: Path, targets: str | None = None):
    """The plan of the ladder's profiles, after all has been checked that can be read of it without a driver."""
    profiles = ladder_profiles(bundle.manifest, 2)
    plan = build_plan(
        BuildRequest(bundle, precision, profiles, list, cache=cache, rtx=rtx_maker(targets)), None
    ).plan
    read = read_plan(plan.read())
    wanted = [(n, 3, h, w) for p in profiles for n, h, w in (p.smallest, p.best, p.largest)]
    assert [s for s in read.shapes if s in wanted] == wanted
    assert all(name.encode() in read.body for name in ("image", "scores", "response"))
    return plan


# -- what it takes ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["demo", *NETWORKS])
def test_every_network_is_built_in_fp32_and_fp16(bundles, tmp_path, name):
    bundle = bundles(name)
    full = built(bundle, "fp32", tmp_path)
    short = built(halved(bundle, "fp16", tmp_path), "fp16", tmp_path)
    assert full.record.plan.size > bundle.manifest.files["response.onnx"].size * 0.9
    assert short.folder != full.folder and short.record.input_type == "float32"


def halved(bundle: Bundle, precision: str, folder: Path, half_input: bool = False) -> Bundle:
    model = half.to_half(onnx.load(str(bundle.graph())), HALVES[precision], half_input=half_input).model
    return with_graph(bundle, precision, model, folder)


@pytest.mark.parametrize("name", ["resnet38", "mobilenetv3", *slow("mobilenetv2", "swin")])
def test_bfloat16_is_taken(bundles, tmp_path, name):
    built(halved(bundles(name), "bf16", tmp_path), "bf16", tmp_path)


def test_float16_pictures_are_taken(bundles, tmp_path):
    bundle = halved(bundles("resnet38"), "fp16", tmp_path, half_input=True)
    assert built(bundle, "fp16", tmp_path).record.input_type == "float16"


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["resnet38", *slow("mobilenetv2", "swin")])
def test_quantised_graphs_are_taken(bundles, tmp_path, name, precision):
    """Weights and activations in 8 bits, as `infercam precision` writes them (with clips of 1: nothing is run)."""
    kind = EIGHTS[precision]
    base = quantise.prepared(onnx.load(str(bundles(name).graph())), kind)
    chosen = quantise.layers(base, kind)
    model = quantise.quantised(base, kind, chosen, dict.fromkeys([x.activation for x in chosen], 1.0))
    assert len(chosen) > 3
    built(with_graph(bundles(name), precision, model, tmp_path), precision, tmp_path, targets="sm89,sm120")


def test_eight_bit_weights_alone_are_taken(bundles, tmp_path):
    """Weight-only int8: the weights pass DequantizeLinear, the activations do not."""
    base = quantise.prepared(onnx.load(str(bundles("vit").graph())), quantise.INT8)
    chosen = quantise.layers(base, quantise.INT8)
    model = quantise.quantised(
        base, quantise.INT8, chosen, dict.fromkeys([x.activation for x in chosen], 1.0)
    )
    by_output = {n.output[0]: n for n in model.graph.node}
    for layer in chosen:
        by_output[layer.output].input[0] = layer.activation
    plan = built(with_graph(bundles("vit"), "int8", model, tmp_path), "int8", tmp_path, targets="sm86")
    assert plan.record.precision == "int8"


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_built_as_torch_export_writes_it(tmp_path, name):
    bundle = exported(name, tmp_path / "bundle")
    built(bundle, "fp32", tmp_path)
    built(halved(bundle, "fp16", tmp_path), "fp16", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mobilenetv2_voc", "efficientnet_lite0_imagenet"])
def test_real_classifiers(shared, tmp_path, model):
    bundle = make_bundle(shared / "models" / f"{model}.onnx", tmp_path / "bundle", ExportSettings())
    built(bundle, "fp32", tmp_path)
    built(halved(bundle, "fp16", tmp_path), "fp16", tmp_path)
