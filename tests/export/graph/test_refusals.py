"""What cannot become a response graph is refused in one line that names the node."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infercam.engine.common.errors import ExportError
from infercam.export.graph.dynamic import SizeWishes
from infercam.export.graph.surgery import response_graph


def refusal(model, **options) -> str:
    with pytest.raises(ExportError) as caught:
        response_graph(model, **options)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text


def pooled(t, f=None):
    return t.node("Flatten", t.node("GlobalAveragePool", f or t.features(), name="gap"))


def fc(t, toys, y, k=None, name="fc"):
    return t.node("Gemm", y, t.random(toys.C, k or toys.K), transB=1, name=name)


def test_no_pooling_names_the_flatten(toys):
    t = toys.Toy(shape=("N", 3, 32, 32))
    y = t.node("Flatten", t.features(), name="flatten_all")
    text = refusal(t.model(fc(t, toys, y, 6 * 64)))
    assert "no global average pooling" in text and "'flatten_all' (Flatten)" in text


def test_fully_convolutional_network_without_pooling(toys):
    t = toys.Toy()
    y = t.node("Conv", t.features(), t.random(toys.C, toys.K, 1, 1), name="last")
    text = refusal(t.model(y))
    assert "no global average pooling" in text and "'last' (Conv)" in text


def test_an_operator_that_a_converter_left(toys):
    """tf2onnx of Keras's ConvNeXt."""
    t = toys.Toy()
    y = t.node("StatefulPartitionedCall", t.features(), name="depthwise")
    text = refusal(t.model(fc(t, toys, pooled(t, y))))
    assert "'depthwise' (StatefulPartitionedCall): no operator of ONNX (opset 17)" in text


def test_windows_of_one_position_before_a_flatten(toys):
    """torchvision's VGG at one size: what AdaptiveAvgPool2d(7) becomes does nothing; the flatten is to blame."""
    t = toys.Toy(shape=("N", 3, 32, 32))
    y = t.node("AveragePool", t.features(), kernel_shape=[1, 1], strides=[1, 1])
    y = t.node("Relu", fc(t, toys, t.node("Flatten", y, name="flatten_all"), 6 * 64, name="hidden"))
    text = refusal(t.model(fc(t, toys, y, toys.C)))
    assert "no global average pooling" in text and "'flatten_all' (Flatten)" in text


@pytest.mark.parametrize("op", ["GlobalMaxPool", "MaxPool", "ReduceMax"])
def test_maximum_pooling(toys, op):
    t = toys.Toy(shape=("N", 3, 32, 32))
    at = {"MaxPool": {"kernel_shape": [8, 8]}, "ReduceMax": {"axes": [2, 3]}}.get(op, {})
    y = t.node("Flatten", t.node(op, t.features(), name="pool", **at))
    text = refusal(t.model(fc(t, toys, y)))
    assert "'pool'" in text and "maximum" in text


def test_average_of_windows(toys):
    t = toys.Toy(shape=("N", 3, 32, 32))
    y = t.node("AveragePool", t.features(), kernel_shape=[4, 4], strides=[4, 4], name="windows")
    text = refusal(t.model(fc(t, toys, t.node("Flatten", y), toys.K * 4)))
    assert "'windows' (AveragePool)" in text


def test_padded_window(toys):
    t = toys.Toy(shape=("N", 3, 32, 32))
    y = t.node(
        "AveragePool", t.features(), kernel_shape=[8, 8], pads=[1, 1, 1, 1], strides=[8, 8], name="padded"
    )
    assert "'padded'" in refusal(t.model(fc(t, toys, t.node("Flatten", y))))


def test_mean_over_one_axis_only(toys):
    t = toys.Toy(shape=("N", 3, 32, 32))
    y = t.node("ReduceMean", t.features(), axes=[2], keepdims=0, name="rows")
    y = t.node("Reshape", y, t.const(np.array([0, -1])))
    text = refusal(t.model(fc(t, toys, y, toys.K * 8)))
    assert "'rows' (ReduceMean)" in text


def test_two_poolings_joined(toys):
    t = toys.Toy()
    f = t.features()
    y = t.node("Concat", t.node("GlobalAveragePool", f), t.node("GlobalMaxPool", f, name="max"), axis=1)
    text = refusal(t.model(fc(t, toys, t.node("Flatten", y), 2 * toys.K)))
    assert "'max' (GlobalMaxPool)" in text and "maximum" in text


def test_weights_that_depend_on_the_picture(toys):
    t = toys.Toy()
    y = pooled(t)
    y = t.node("MatMul", y, t.node("Transpose", y, perm=[1, 0]), name="gram")
    text = refusal(t.model(y))
    assert "'gram' (MatMul)" in text and "both depend on the picture" in text


@pytest.mark.parametrize("kind", ["Relu", "Add"])
def test_feature_extractor(toys, kind):
    """Pooled features of a backbone have the shape of scores, but there is no classifier."""
    t = toys.Toy()
    f = t.features()
    y = t.node("Add", f, t.node("Relu", f), name="residual")
    y = t.node("Relu", y) if kind == "Relu" else y
    text = refusal(t.model(pooled(t, y)))
    assert "no linear layer" in text and "'residual' (Add)" in text and "feature extractor" in text


def test_output_made_of_integers(toys):
    t = toys.Toy()
    y = t.node("ArgMax", fc(t, toys, pooled(t)), axis=1, name="argmax")
    text = refusal(t.model(y, elem=TensorProto.INT64))
    assert "'argmax' (ArgMax)" in text and "the output must be the logits" in text


def test_something_after_the_sigmoid(toys):
    t = toys.Toy()
    y = t.node("Sigmoid", fc(t, toys, pooled(t)), name="sigmoid")
    assert "'sigmoid' (Sigmoid)" in refusal(t.model(t.node("Mul", y, t.const(np.float32(2)))))


def test_empty_graph():
    model = helper.make_model(helper.make_graph([], "empty", [], []))
    assert "empty" in refusal(model)


@pytest.mark.parametrize(("version", "words"), [(6, "too old"), (99, "newer")])
def test_opset(toys, version, words):
    t = toys.Toy()
    model = t.model(fc(t, toys, pooled(t)))
    model.opset_import[0].version = version
    text = refusal(model)
    assert words in text and str(version) in text


def test_operator_of_another_domain(toys):
    t = toys.Toy()
    t.domains.append("com.example")
    y = t.node("Shiny", t.features(), name="shiny", domain="com.example")
    text = refusal(t.model(fc(t, toys, pooled(t, y))))
    assert "'shiny' (Shiny)" in text and "com.example" in text


def test_quantised_graph(toys):
    t = toys.Toy()
    s, z = t.const(np.float32(0.1)), t.const(np.uint8(0))
    y = t.node("DequantizeLinear", t.node("QuantizeLinear", t.features(), s, z, name="quantise"), s, z)
    text = refusal(t.model(fc(t, toys, pooled(t, y))))
    assert "'quantise' (QuantizeLinear)" in text and "float32" in text


@pytest.mark.parametrize(
    ("shape", "elem", "words"),
    [
        (("N", 3, "H", "W"), TensorProto.INT32, "int32"),
        (("N", 1, 32, 32), TensorProto.FLOAT, "3 channels"),
        (("N", 12), TensorProto.FLOAT, "rank 2"),
    ],
)
def test_input_that_is_no_picture(toys, shape, elem, words):
    t = toys.Toy()
    y = t.node("Cast", "image", to=TensorProto.FLOAT)
    if len(shape) == 2:
        y = t.node("Reshape", y, t.const(np.array([0, 3, 2, 2])))
    if shape[1] == 1:
        y = t.node("Concat", y, y, y, axis=1)
    out = fc(t, toys, pooled(t, t.features(y)))
    text = refusal(t.model(out, inputs=[helper.make_tensor_value_info("image", elem, shape)]))
    assert "'image'" in text and words in text


@pytest.mark.parametrize("op", ["Div", "Cast"])
def test_whole_numbers_that_are_computed_with(toys, op):
    """Only what begins with a Cast to float32 gives the same for float32."""
    t = toys.Toy()
    if op == "Div":
        y = t.node("Div", "image", t.const(np.uint8(2)), name="halve")
    else:
        y = t.node("Cast", "image", to=TensorProto.INT32, name="halve")
    out = fc(t, toys, pooled(t, t.features(t.node("Cast", y, to=TensorProto.FLOAT))))
    infos = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 3, "H", "W"])]
    text = refusal(t.model(out, inputs=infos))
    assert "'image' is uint8" in text and "'halve'" in text


def two_inputs(toys, *, used: bool):
    t = toys.Toy()
    f = t.features()
    if used:
        f = t.node("Relu", t.node("Add", f, "hint"))
    out = fc(t, toys, pooled(t, f))
    spare = t.node("Identity", "hint")
    infos = [
        helper.make_tensor_value_info("hint", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, "H", "W"]),
    ]
    return t.model(out, *([] if used else [spare]), inputs=infos), out


def test_several_inputs(toys):
    model, out = two_inputs(toys, used=True)
    text = refusal(model)
    assert "2 inputs" in text and "hint" in text and "image" in text
    model, out = two_inputs(toys, used=False)
    assert response_graph(model, output=out).input_name == "image"  # the other one is not needed
    assert "'hint'" in refusal(model, output=out, input_name="hint")


def test_logits_that_ignore_the_input(toys):
    t = toys.Toy()
    f = t.node("Relu", t.const(t.array(1, toys.K, 8, 8)))
    text = refusal(t.model(fc(t, toys, pooled(t, f))))
    assert "no input" in text or "no linear" in text or "depend" in text


def test_pooled_channels_that_do_not_fit_the_linear_layer(toys):
    """An AveragePool that was not global, in a model whose size is not declared."""
    t = toys.Toy()
    y = t.node("AveragePool", t.features(), kernel_shape=[4, 4], strides=[4, 4], name="windows")
    y = t.node("Reshape", y, t.const(np.array([0, -1])))
    text = refusal(t.model(fc(t, toys, y, toys.K * 4)))
    assert "'windows'" in text and "24" in text


def test_a_broken_graph_is_no_traceback(toys):
    t = toys.Toy()
    y = t.node("Gemm", "nowhere", t.random(toys.C, toys.K), transB=1, name="fc")
    assert "'fc' (Gemm)" in refusal(t.model(y))


def test_random_damage_never_gives_a_traceback(toys):
    """Removing or rewiring any one node ends in ExportError or in a graph that still is consistent."""
    t = toys.Toy(shape=(1, 3, 32, 32))
    model = t.model(fc(t, toys, pooled(t)))
    rng = np.random.default_rng(0)
    refused = 0
    for k in range(len(model.graph.node)):
        for what in ("remove", "rewire", "attributes"):
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            node = copy.graph.node[k]
            if what == "remove":
                del copy.graph.node[k]
            elif what == "rewire":
                names = [i for n in copy.graph.node for i in n.input]
                node.input[0] = names[rng.integers(len(names))]
            else:
                del node.attribute[:]
            try:
                graph = response_graph(copy)
            except ExportError:
                refused += 1
            else:
                x = toys.picture(1, graph.height or 32, graph.width or 32)
                scores, response = toys.run(graph.model, x, "scores", "response")
                np.testing.assert_allclose(scores, response.mean((2, 3)) + graph.bias, rtol=1e-3, atol=1e-4)
    assert refused >= len(model.graph.node)


# --- what stands between the pooling and the logits and cannot be frozen ----------------------------------------


def square(t, toys, y):
    return t.node("Mul", y, y, name="last")


def exponential(t, toys, y):
    return t.node("Exp", y, name="last")


def softmax(t, toys, y):
    return t.node("Softmax", y, name="last")


def reciprocal(t, toys, y):
    return t.node("Div", t.const(np.float32(1)), y, name="last")


def residual(t, toys, y):
    return t.node("Add", y, t.node("Relu", t.node("MatMul", y, t.random(6, 6))), name="last")


@pytest.mark.parametrize("bend", [square, exponential, softmax, reciprocal, residual])
def test_what_is_neither_norm_nor_activation(toys, bend):
    t = toys.Toy()
    text = refusal(t.model(fc(t, toys, bend(t, toys, pooled(t)))))
    assert "'last'" in text and "train one linear layer on the pooled features" in text
    assert "linear layers, norms, activations and gates" in text


def test_two_heads_with_activations_averaged(toys):
    t = toys.Toy()
    y = pooled(t)
    heads = [fc(t, toys, t.node("Relu", t.node("MatMul", y, t.random(6, 6))), name=f"fc{i}") for i in (0, 1)]
    text = refusal(t.model(t.node("Add", *heads, name="average")))
    assert "'average' (Add)" in text and "joins branches that are not linear in the same vector" in text


def test_generalised_mean_pooling(toys):
    t = toys.Toy()
    y = t.node("Clip", t.features(), t.const(np.float32(1e-6)))
    y = pooled(t, t.node("Pow", y, t.const(np.float32(3)), name="cube"))
    y = t.node("Pow", y, t.const(np.float32(1 / 3)), name="root")
    text = refusal(t.model(fc(t, toys, y)))
    assert "'root' (Pow)" in text and "GeM" in text and "'cube'" in text


@pytest.mark.parametrize("pool", ["GlobalMaxPool", "flatten", "token"])
def test_a_hidden_layer_does_not_hide_what_is_pooled(toys, pool):
    """What is named is the obstacle, not the activation behind it."""
    t = toys.Toy(shape=(1, 3, 32, 32))
    f = t.features()
    k = toys.K
    if pool == "GlobalMaxPool":
        y = t.node("Flatten", t.node("GlobalMaxPool", f, name="what"))
    elif pool == "flatten":
        y, k = t.node("Flatten", f, name="what"), 64 * toys.K
    else:
        y = t.node("Transpose", t.node("Reshape", f, t.const(np.array([0, 0, -1]))), perm=[0, 2, 1])
        y = t.node("LayerNormalization", y, t.random(toys.K), axis=-1)
        y = t.node("Gather", y, t.const(np.array(0)), axis=1, name="what")
    y = t.node("Relu", fc(t, toys, y, k, name="hidden"))
    text = refusal(t.model(fc(t, toys, y, toys.C, name="last")))
    assert "'what'" in text
    words = {
        "GlobalMaxPool": "pools by maximum",
        "flatten": "flattens the whole map",
        "token": "only the class token",
    }
    assert words[pool] in text


@pytest.mark.parametrize("op", ["Relu", "LayerNormalization", "Tanh"])
def test_what_follows_the_last_linear_layer(toys, op):
    t = toys.Toy()
    y = fc(t, toys, pooled(t))
    y = t.node(op, y, *([t.random(toys.C)] if op == "LayerNormalization" else []), name="last")
    text = refusal(t.model(y))
    assert f"'last' ({op})" in text and "the output must be the logits" in text


def test_a_sum_before_an_activation(toys):
    t = toys.Toy(shape=("N", 3, 32, 32))
    y = t.node("ReduceSum", t.features(), t.const(np.array([2, 3])), keepdims=0, name="sum")
    y = t.node("Relu", fc(t, toys, y))
    text = refusal(t.model(fc(t, toys, y, toys.C, name="fc2")))
    assert "'sum' (ReduceSum)" in text and "needs the mean" in text


def test_two_weights_of_one_name(toys):
    t = toys.Toy()
    pooled = t.node("Flatten", t.node("GlobalAveragePool", t.features()))
    model = t.model(t.node("Gemm", pooled, t.const(t.array(toys.C, toys.K), "w"), transB=1))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((3, 2), np.float32), "w"))
    with pytest.raises(ExportError, match="two different weights are named 'w'"):
        response_graph(model)
    model.graph.initializer[-1].CopyFrom(next(w for w in model.graph.initializer if w.name == "w"))
    assert response_graph(model).classes == toys.C, "the same twice does no harm"


def test_a_layout_that_nothing_tells(toys):
    t = toys.Toy()
    y = t.node("Reshape", "image", t.const(np.array([0, 3, 32, 32])))
    model = t.model(fc(t, toys, pooled(t, t.features(y))), inputs=[
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["a", "b", "c", "d"])
    ])  # fmt: skip
    text = refusal(model)
    assert "which of its axes has the 3 channels" in text and "N,H,W,3" in text


def test_a_piece_cut_out_of_the_picture_at_another_size(toys):
    t = toys.Toy()
    ends = [t.const(np.array(v)) for v in ([0, 0], [64, 64], [2, 3])]
    out = fc(t, toys, pooled(t, t.features(t.node("Slice", "image", *ends, name="cut"))))
    text = refusal(t.model(out), sizes=SizeWishes(size=(96, 96)))
    assert "'cut'" in text and "64x64" in text and "without it" in text
