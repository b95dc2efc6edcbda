"""Graphs of other precisions, end to end on a tiny bundle: made, checked, put into the bundle, run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from infercam.engine import Engine
from infercam.engine.bundle import Bundle, InputSpec
from infercam.engine.common.errors import ExportError
from infercam.engine.method.recipe import recipe
from infercam.export.commands import register
from infercam.export.compare import TOLERANCES
from infercam.export.graph import frozen
from infercam.export.graph.index import Graph
from infercam.export.graph.surgery import response_graph
from infercam.export.precision.precision import PrecisionSettings, add_precision
from infercam.export.writing import bundle_update
from infercam.export.writing.bundle_writer import write_bundle
from tests.engine import tiny
from tests.export.graph.frozen_twin import layers_of, toy_of

CLASSES = [0, 3]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [tiny.picture(40 + i, 56 - i, i) for i in range(12)]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny.build(tmp_path / "bundle")


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_added_and_recorded(bundle: Bundle, images, precision: str) -> None:
    said: list[str] = []
    loose = TOLERANCES[precision].model_copy(update={"iou": 0.6, "response_error": 0.5})
    report = add_precision(bundle, PrecisionSettings(precision, tolerance=loose), images, said.append)
    again = Bundle.load(bundle.path)
    assert again.manifest.precisions == {precision: report} and again.hash == bundle.hash
    assert again.graph(precision).name == f"response.{precision}.onnx"
    assert "12 images" not in report.checked and "6 images" in report.checked, "half of them were not shown"
    model = onnx.load(str(again.graph(precision)))
    onnx.checker.check_model(model, full_check=True)
    assert {o.type.tensor_type.elem_type for o in model.graph.output} == {TensorProto.FLOAT}
    assert 0 < report.response_error < 0.5 and report.map_iou > 0.6
    types = {t.data_type for t in model.graph.initializer}
    wanted = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16, "int8": TensorProto.INT8}
    assert wanted[precision] in types
    head = next(n for n in model.graph.node if "response" in n.output)
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert kinds[head.input[1]] == TensorProto.FLOAT, "the response layer stays in fp32"
    assert any("check" in s for s in said)


def test_fp8_wants_wide_layers(bundle: Bundle, images) -> None:
    with pytest.raises(ExportError, match="the graph has no layer that can be put in fp8"):
        add_precision(bundle, PrecisionSettings("fp8"), images)


def test_fp8_of_wide_layers(tmp_path: Path, images, monkeypatch: pytest.MonkeyPatch) -> None:
    from infercam.export.precision import quantise

    monkeypatch.setattr(quantise, "_FP8_CHANNELS", 3)
    bundle = tiny.build(tmp_path / "b")
    report = add_precision(bundle, PrecisionSettings("fp8", rest="fp16", half_input=True), images)
    assert report.quantised >= 1 and report.rest == "fp16" and report.input_type == "float16"
    model = onnx.load(str(Bundle.load(bundle.path).graph("fp8")))
    graph = Graph(model)
    assert graph.image_inputs()[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    assert TensorProto.FLOAT8E4M3FN in {t.data_type for t in model.graph.initializer}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_cpu_engine_runs_it(bundle: Bundle, images, precision: str) -> None:
    add_precision(bundle, PrecisionSettings(precision), images)
    one = recipe("released")
    with Engine.load(bundle.path, "cpu", 1) as plain, Engine.load(bundle.path, "cpu", 1, precision) as other:
        assert other.backend.precision == precision
        want = plain.maps(images[0], CLASSES, one, "baseline")
        got = other.maps(images[0], CLASSES, one, "baseline")
    difference = np.abs(got - want)
    assert difference.max() > 0 and difference.mean() < {"fp16": 1e-3, "int8": 0.05}[precision]


def test_a_half_input_runs_on_the_cpu(bundle: Bundle, images) -> None:
    report = add_precision(bundle, PrecisionSettings("fp16", half_input=True), images)
    assert report.input_type == "float16"
    with Engine.load(bundle.path, "cpu", 1, "fp16") as engine:
        assert engine.maps(images[0], CLASSES).shape == (2, *images[0].shape[:2])


def test_halves_need_no_images(bundle: Bundle) -> None:
    report = add_precision(bundle, PrecisionSettings("fp16"))
    assert "generated textures" in report.checked and report.map_iou >= 0.99


def test_a_missed_tolerance_leaves_the_bundle_alone(bundle: Bundle, images) -> None:
    before = hashes(bundle.path)
    strict = TOLERANCES["int8"].model_copy(update={"response_error": 1e-6})
    with pytest.raises(
        ExportError, match="int8 graph is not good enough and was not added: responses differ"
    ):
        add_precision(bundle, PrecisionSettings("int8", tolerance=strict), images)
    assert hashes(bundle.path) == before


def test_a_second_one_replaces_the_first(bundle: Bundle, images, monkeypatch: pytest.MonkeyPatch) -> None:
    add_precision(bundle, PrecisionSettings("fp16"), images)
    add_precision(Bundle.load(bundle.path), PrecisionSettings("fp16", half_input=True), images)
    again = Bundle.load(bundle.path)
    assert sorted(p.name for p in bundle.path.iterdir()) == [
        "manifest.json",
        "response.fp16.2.onnx",
        "response.onnx",
    ]
    assert again.manifest.precisions["fp16"].input_type == "float16"

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_update, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        add_precision(again, PrecisionSettings("fp16"), images)
    assert Bundle.load(bundle.path).manifest == again.manifest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PrecisionSettings("fp4"), "no precision 'fp4'; there are: fp16, bf16, int8, fp8"),
        (PrecisionSettings("fp16", rest="bf16"), "--rest goes with int8 and fp8"),
        (PrecisionSettings("int8", rest="int8"), "fp32, fp16 or bf16, not 'int8'"),
        (PrecisionSettings("int8", half_input=True), "a float16 input goes with fp16 or bf16"),
        (PrecisionSettings("fp16", keep=("nosuch",)), "--keep nosuch: the graph has no layer of that name"),
    ],
)
def test_settings_that_cannot_be(bundle: Bundle, images, settings: PrecisionSettings, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        add_precision(bundle, settings, images)


def test_quantising_needs_images(bundle: Bundle, images) -> None:
    with pytest.raises(ExportError, match="int8 is calibrated on your images: give at least 8"):
        add_precision(bundle, PrecisionSettings("int8"), images[:7])


def test_layers_that_the_user_keeps(bundle: Bundle, images) -> None:
    report = add_precision(bundle, PrecisionSettings("fp16", keep=("c0",)), images)
    assert any(line.startswith("node 'c0' (Conv): as asked") for line in report.kept)
    model = onnx.load(str(Bundle.load(bundle.path).graph("fp16")))
    first = next(n for n in model.graph.node if n.op_type == "Conv")
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert kinds[first.input[1]] == TensorProto.FLOAT


def test_the_command(bundle: Bundle, images, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    app = Typer()
    register(app)
    options = ["precision", str(bundle.path), "--to", "fp16", "--to", "int8", "--images", str(folder)]
    result = CliRunner().invoke(app, [*options, "--json", str(tmp_path / "report.json")])
    assert result.exit_code == 0, result.output
    assert "added fp16" in result.output and "added int8" in result.output and "passed over" in result.output
    assert '"map_iou"' in (tmp_path / "report.json").read_text()
    assert set(Bundle.load(bundle.path).manifest.graphs) == {"fp32", "fp16", "int8"}
    result = CliRunner().invoke(app, ["precision", str(bundle.path), "--to", "fp32"])
    assert isinstance(result.exception, ExportError) and "no precision 'fp32'" in str(result.exception)


@pytest.mark.shared
@pytest.mark.slow
def test_a_real_classifier_in_fp16(shared: Path, tmp_path: Path) -> None:
    """One depthwise layer of it amplifies rounding: without it in fp32 the maps' IoU is 0.97."""
    from infercam.engine.data.images import read_image
    from infercam.export import export_onnx

    bundle = export_onnx(shared / "models" / "mobilenetv2_voc.onnx", tmp_path / "voc")
    photos = sorted((shared / "voc" / "VOC2012" / "JPEGImages").glob("*.jpg"))[::50]
    report = add_precision(
        bundle, PrecisionSettings("fp16", longest_side=320), [read_image(p) for p in photos]
    )
    assert report.map_iou >= 0.99
    assert any("blocks.0/dw" in line for line in report.kept)


@pytest.mark.parametrize("positions", [0, 1 << 30])
def test_a_frozen_head(toys, tmp_path: Path, images, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gates stay in fp32, either way that it is written; the bias of each image is still an output."""
    monkeypatch.setattr(frozen.matrix_is_cheaper, "__defaults__", (positions,))
    layers = layers_of(np.random.default_rng(0), ["layer_norm", "linear", "gelu"], toys.K, 7, toys.C)
    source = toy_of(toys, layers, channels=toys.K)
    bundle = write_bundle(
        tmp_path / "b",
        response_graph(source),
        classes=list("abcde"),
        input_spec=InputSpec(),
        multi_label=True,
        source={},
        source_scores=lambda x: toys.run(source, x)[0],
    )
    assert bundle.manifest.per_image_bias and not any(bundle.manifest.bias)
    for precision in ("fp16", "bf16", "int8"):
        loose = TOLERANCES[precision].model_copy(update={"iou": 0.8})
        report = add_precision(bundle, PrecisionSettings(precision, tolerance=loose), images)
        model = onnx.load(str(Bundle.load(bundle.path).graph(precision)))
        assert [o.name for o in model.graph.output] == ["scores", "response", "bias"]
        assert (precision == "int8") != any("the image's own factors" in k for k in report.kept)
