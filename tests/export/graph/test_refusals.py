"""What cannot become a response graph is refused in one line that names the node."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infercam.engine.common.errors import ExportError
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


def test_hidden_layer_after_pooling(toys):
    t = toys.Toy()
    y = t.node("Relu", fc(t, toys, pooled(t)), name="hidden_relu")
    text = refusal(t.model(fc(t, toys, y, toys.C, name="fc2")))
    assert "'hidden_relu' (Relu)" in text and "between the pooling and the logits" in text


def test_layer_norm_after_pooling_as_in_convnext(toys):
    t = toys.Toy()
    y = t.node("LayerNormalization", pooled(t), t.random(toys.K), t.random(toys.K), name="head_norm", axis=-1)
    assert "'head_norm' (LayerNormalization)" in refusal(t.model(fc(t, toys, y)))


def test_layer_norm_after_pooling_written_out(toys):
    t = toys.Toy()
    y = pooled(t)
    d = t.node("Sub", y, t.node("ReduceMean", y, axes=[1]))
    v = t.node("Sqrt", t.node("ReduceMean", t.node("Mul", d, d), axes=[1]))
    y = t.node("Div", d, v, name="norm_divide")
    assert "'norm_divide' (Div)" in refusal(t.model(fc(t, toys, y)))


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


def test_gate_after_pooling(toys):
    t = toys.Toy()
    y = pooled(t)
    y = t.node("Mul", y, t.node("Sigmoid", y), name="gate")
    assert "'gate' (Mul)" in refusal(t.model(fc(t, toys, y)))


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


def test_half_precision_features(toys):
    t = toys.Toy()
    y = t.node("Cast", t.features(), to=TensorProto.FLOAT16, name="half")
    y = t.node("Cast", pooled(t, y), to=TensorProto.FLOAT)
    assert "float16" in refusal(t.model(fc(t, toys, y)))


@pytest.mark.parametrize(
    ("shape", "elem", "words"),
    [
        (("N", 3, "H", "W"), TensorProto.FLOAT16, "float16"),
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
        y = t.node("Cast", "image", to=TensorProto.FLOAT16, name="halve")
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


# --- what stands between the pooling and the logits, by the name people know -----------------------------------


def layer_norm(t, y):
    """As exported below opset 17."""
    d = t.node("Sub", y, t.node("ReduceMean", y, axes=[-1]))
    var = t.node("ReduceMean", t.node("Pow", d, t.const(np.float32(2))), axes=[-1])
    y = t.node("Div", d, t.node("Sqrt", t.node("Add", var, t.const(np.float32(1e-5)))), name="last")
    return t.node("Add", t.node("Mul", y, t.const(t.array(6))), t.const(t.array(6)))


def rms_norm(t, y):
    mean = t.node("ReduceMean", t.node("Mul", y, y), axes=[-1])
    return t.node("Mul", y, t.node("Reciprocal", t.node("Sqrt", mean)), name="last")


def l2_norm(t, y):
    return t.node("Div", y, t.node("ReduceL2", y, axes=[1]), name="last")


def hard_swish(t, y):
    """As exported below opset 14."""
    low, high, three = (t.const(np.float32(v)) for v in (0, 6, 3))
    y = t.node("Mul", y, t.node("Clip", t.node("Add", y, three), low, high), name="last")
    return t.node("Div", y, t.const(np.float32(6)))


def silu(t, y):
    return t.node("Mul", y, t.node("Sigmoid", y), name="last")


def gelu(t, y):
    """As exported below opset 20."""
    e = t.node("Erf", t.node("Div", y, t.const(np.float32(2**0.5))))
    y = t.node("Mul", y, t.node("Add", e, t.const(np.float32(1))), name="last")
    return t.node("Mul", y, t.const(np.float32(0.5)))


def mish(t, y):
    return t.node("Mul", y, t.node("Tanh", t.node("Softplus", y)), name="last")


def relu6(t, y):
    return t.node("Clip", y, t.const(np.float32(0)), t.const(np.float32(6)), name="last")


def excitation(t, y):
    return t.node("Mul", y, t.node("Sigmoid", t.node("MatMul", y, t.random(6, 6))), name="last")


@pytest.mark.parametrize(
    ("bend", "name"),
    [
        (layer_norm, "a LayerNorm"),
        (rms_norm, "an RMS norm"),
        (l2_norm, "an L2 normalisation"),
        (hard_swish, "hard swish"),
        (silu, "SiLU"),
        (gelu, "GELU"),
        (mish, "Mish"),
        (relu6, "ReLU6"),
        (excitation, "a gate"),
    ],
)
@pytest.mark.parametrize("hidden", [False, True])
def test_the_usual_name_of_what_is_written_out(toys, bend, name, hidden):
    t = toys.Toy()
    y = t.node("MatMul", pooled(t), t.random(toys.K, toys.K)) if hidden else pooled(t)
    text = refusal(t.model(fc(t, toys, bend(t, y))))
    assert name in text and "'last'" in text and "train one linear layer on the pooled features" in text
    assert "joins two tensors" not in text and "divides by" not in text
    if "norm" not in name.lower():
        assert ("a hidden layer" in text) == (hidden or bend is excitation)
