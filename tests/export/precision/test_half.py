"""Half-precision graphs: types, what stays in fp32 and why, and the emulation against plain arithmetic."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infercam.engine.common.errors import ExportError
from infercam.export.graph.index import Graph, opset
from infercam.export.precision.calibrate import float_tensors, magnitudes
from infercam.export.precision.half import BF16, FP16, HALVES, emulated, linear_layers, to_half
from infercam.export.runtime import GraphSession
from tests.engine import tiny


def changed(model: onnx.ModelProto, **weights: np.ndarray) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].astype(np.float32), tensor.name))
    return copy


def picture(n: int = 1, h: int = 33, w: int = 47) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 3, h, w), dtype=np.float32)


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("half_input", [False, True])
def test_strongly_typed_and_near(half, half_input: bool) -> None:
    model = tiny.model()
    found = to_half(model, half, half_input=half_input)
    onnx.checker.check_model(found.model, full_check=True)
    graph = Graph(found.model)
    kind = TensorProto.FLOAT16 if half_input else TensorProto.FLOAT
    assert graph.image_inputs()[0].type.tensor_type.elem_type == kind
    assert graph.elem_type("c0") == graph.elem_type("r1") == half.onnx
    assert graph.elem_type("response") == graph.elem_type("scores") == TensorProto.FLOAT
    assert set(found.kept) == {f"node '{o}' ({t})" for o, t in (
        ("response", "Conv"), ("pooled", "GlobalAveragePool"), ("flat", "Flatten"), ("scores", "Add")
    )}  # fmt: skip
    x = picture(2)
    for got, want in zip(GraphSession(emulated(found.model)).run(x), GraphSession(model).run(x), strict=True):
        assert got.dtype == np.float32 and got.shape == want.shape
        assert 0 < np.abs(got - want).max() < 8 * half.epsilon * np.abs(want).max()


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_the_emulation_rounds_every_tensor(half) -> None:
    """Against NumPy: weights, input and each layer's output rounded to the type, products in between exact."""
    w = tiny.weights()
    found = emulated(to_half(tiny.model(), half, half_input=half is FP16).model)
    found.graph.output.extend(
        [helper.make_empty_tensor_value_info("c0"), helper.make_empty_tensor_value_info("r1")]
    )
    x = picture()
    _, response, first, last = GraphSession(found).run(x)
    for tensor in (first, last):
        np.testing.assert_array_equal(tensor.astype(half.dtype).astype(np.float32), tensor)

    def rounded(a):
        return np.asarray(a).astype(half.dtype).astype(np.float64)

    patch = np.pad(rounded(x[0]), ((0, 0), (1, 1), (1, 1)))[:, 4:7, 8:11]
    want = rounded(((rounded(w["w0"][5]) * patch).sum() + rounded(w["b0"][5])).astype(np.float32))
    assert abs(first[0, 5, 2, 4] - want) <= 2 * half.epsilon * abs(want)  # a tie may go either way
    head = np.einsum("oc,chw->ohw", w["head"][:, :, 0, 0].astype(np.float64), last[0].astype(np.float64))
    np.testing.assert_allclose(response[0], head, rtol=1e-5, atol=1e-5)


def test_weights_beyond_the_type_are_named_and_stay() -> None:
    large = tiny.weights()["w0"].copy()
    large[0, 0, 0, 0] = 7e4
    model = changed(tiny.model(), w0=large)
    kept = to_half(model, FP16).kept
    assert kept["node 'c0' (Conv)"] == "weight 'w0' reaches 7e+04, beyond fp16's 65504"
    assert "node 'c0' (Conv)" not in to_half(model, BF16).kept
    seen = magnitudes(model, float_tensors(model), [picture()])
    found = to_half(model, FP16, ranges={name: m.largest for name, m in seen.items()}).model
    assert np.isfinite(GraphSession(emulated(found)).run(picture())[1]).all()


def test_denormal_weights_are_named_and_stay() -> None:
    small = tiny.weights()["w1"] * 1e-7
    why = to_half(changed(tiny.model(), w1=small), FP16).kept["node 'c1' (Conv)"]
    assert "weight 'w1' loses" in why and "below fp16's smallest normal 6.1e-05" in why


def test_values_near_the_limit_stay() -> None:
    ranges = {"c0": 20000.0, "r0": 100.0, "c1": 100.0}
    kept = to_half(tiny.model(), FP16, ranges=ranges).kept
    assert "its values reach 2e+04" in kept["node 'c0' (Conv)"]
    assert "node 'r0' (Relu)" in kept, "what reads the large values cannot take them either"
    assert "node 'c1' (Conv)" not in kept
    assert "node 'c0' (Conv)" not in to_half(tiny.model(), BF16, ranges=ranges).kept


def test_the_pictures_normalisation_stays(toys) -> None:
    toy = toys.Toy()
    x = toy.node("Sub", "image", toy.const(np.full((1, 3, 1, 1), 0.4, np.float32)), name="mean")
    x = toy.node("Div", x, toy.const(np.full((1, 3, 1, 1), 0.2, np.float32)), name="std")
    toy.features(x)
    toy.nodes.append(helper.make_node("Conv", ["features", toy.random(5, 6, 1, 1)], ["response"]))
    toy.nodes.append(helper.make_node("GlobalAveragePool", ["response"], ["mean"]))
    toy.nodes.append(helper.make_node("Flatten", ["mean"], ["scores"]))
    found = to_half(toy.model("scores", "response"), FP16)
    assert found.kept["node 'mean' (Sub)"] == found.kept["node 'std' (Div)"] == "the picture's normalisation"
    assert len(linear_layers(found.model)) == 2


def test_a_weight_shared_across_types_is_there_twice(toys) -> None:
    """Scale before and behind the response layer."""
    toy = toys.Toy()
    scale = toy.const(np.full((1, 1, 1, 1), 2.0, np.float32), "scale")
    toy.features()
    toy.nodes.append(helper.make_node("Mul", ["features", scale], ["scaled"]))
    toy.nodes.append(helper.make_node("Conv", ["scaled", toy.random(5, 6, 1, 1)], ["plain"]))
    toy.nodes.append(helper.make_node("Mul", ["plain", scale], ["response"]))
    toy.nodes.append(helper.make_node("GlobalAveragePool", ["response"], ["mean"]))
    toy.nodes.append(helper.make_node("Flatten", ["mean"], ["scores"]))
    model = to_half(toy.model("scores", "response"), FP16).model
    assert np.isfinite(GraphSession(model).run(picture())[1]).all()
    assert {t.name: t.data_type for t in model.graph.initializer if "scale" in t.name} == {
        "scale": TensorProto.FLOAT,
        "scale.fp16": TensorProto.FLOAT16,
    }


def test_unknown_operators_stay_and_bf16_gets_its_opset() -> None:
    model = tiny.model()
    model.graph.node[1].op_type = "Softplus"  # has a half form
    assert "node 'r0' (Softplus)" not in to_half(model, FP16).kept
    model.graph.node[1].op_type = "Sin"
    assert to_half(model, FP16).kept["node 'r0' (Sin)"] == "the operator Sin"
    assert opset(to_half(tiny.model(), BF16).model) >= 22
    assert opset(to_half(tiny.model(), FP16).model) == 17


def test_a_subgraph_is_refused() -> None:
    model = tiny.model()
    branch = helper.make_graph([], "b", [], [])
    model.graph.node.append(
        helper.make_node("If", ["c"], ["unused"], "choice", then_branch=branch, else_branch=branch)
    )
    with pytest.raises(ExportError, match="node 'choice' \\(If\\) has a sub-graph"):
        to_half(model, FP16)


def test_the_original_is_left_alone() -> None:
    model = tiny.model()
    before = model.SerializeToString()
    to_half(model, FP16, half_input=True)
    assert model.SerializeToString() == before
    assert BF16.dtype == np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("activation", ["HardSwish", "Mish"])
def test_activations_that_tensorrt_lacks_in_bf16_are_written_out(activation: str, kept: bool) -> None:
    """Where they are in bf16, and nowhere else; what they compute is what they computed."""
    model = tiny.model()
    if opset(model) < 18:
        model = onnx.version_converter.convert_version(model, 18)
    (relu,) = (n for n in model.graph.node if n.op_type == "Relu" and "r1" in n.output)
    relu.op_type = activation
    name = f"node 'r1' ({activation})"
    keep = {name: "the test"} if kept else {}
    found = to_half(model, BF16, keep=keep)
    onnx.checker.check_model(found.model, full_check=True)
    assert (name in found.kept) == kept
    assert any(n.op_type == activation for n in found.model.graph.node) == kept
    assert any(n.op_type == activation for n in to_half(model, FP16).model.graph.node)
    x = picture(2)
    for got, want in zip(GraphSession(emulated(found.model)).run(x), GraphSession(model).run(x), strict=True):
        assert 0 < np.abs(got - want).max() < 8 * BF16.epsilon * np.abs(want).max()
