"""Graph surgery on every supported kind of head: scores equal the source's, responses an independent einsum."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infercam.engine.common.errors import ExportError
from infercam.export.graph.surgery import response_graph

POOLS = ["gap", "mean", "mean_input", "mean_negative", "mean_flat", "mean_twice", "mean_twice_kept"]
POOLS += ["average", "nhwc", "nhwc_flat", "merged", "merged_last"]
FLATTENS = [
    "flatten",
    "reshape",
    "reshape_baked",
    "reshape_minus",
    "squeeze",
    "squeeze_all",
    "identity_dropout",
]
LINEARS = ["gemm", "gemm_transposed", "gemm_scaled", "gemm_data_second", "matmul", "matmul_add", "add_matmul"]
LINEARS += ["matmul_weight_computed", "conv", "conv_bias", "conv_grouped", "two_layers"]
TAILS = ["none", "sigmoid", "softmax", "log_softmax", "dropout", "temperature", "reshape_sigmoid"]
BETWEEN = ["none", "batch_norm", "scale", "shift", "divide", "subtract", "reverse_subtract", "cast"]


def build(
    toys, pool="gap", flatten="flatten", linear="gemm", tail="none", between="none", seed=0, channels=6
):
    """A classifier with that head, and the linear layer it amounts to."""
    fixed = pool == "average"
    t = toys.Toy(
        shape=(1, 3, 32, 32) if fixed else ("N", 3, "H", "W"),
        opset=18 if pool == "mean_input" else 17,
        seed=seed,
    )
    f = t.features(channels=channels)
    y, kept = _pool(t, pool, f)
    convolved = linear.startswith("conv")
    if convolved and not kept:
        y = t.node("Reshape", y, t.const(np.array([0, channels, 1, 1])))
    elif not convolved:
        y = _flatten(t, flatten if kept else "identity_dropout", y, channels)
    y, scale, shift = _between(t, between, y, channels, rank=4 if convolved else 2)
    y, weight, bias = _linear(t, linear, y, channels, toys.C)
    weight, bias = weight * scale, bias + weight @ shift
    logits = t.node("Flatten", y) if convolved else y
    out, factor = _tail(t, tail, logits)
    return toys.Case(t.model(out), f, factor * weight, factor * bias, logits if factor == 1 else out)


def _pool(t, kind, f):
    """The pooled tensor, and whether it keeps its spatial axes."""
    if kind == "gap":
        return t.node("GlobalAveragePool", f), True
    if kind == "mean":
        return t.node("ReduceMean", f, axes=[2, 3]), True
    if kind == "mean_input":
        return t.node("ReduceMean", f, t.const(np.array([2, 3]))), True
    if kind == "mean_negative":
        return t.node("ReduceMean", f, axes=[-1, -2]), True
    if kind == "mean_flat":
        return t.node("ReduceMean", f, axes=[-2, -1], keepdims=0), False
    if kind == "mean_twice":
        return t.node(
            "ReduceMean", t.node("ReduceMean", f, axes=[3], keepdims=0), axes=[2], keepdims=0
        ), False
    if kind == "mean_twice_kept":
        return t.node("ReduceMean", t.node("ReduceMean", f, axes=[2]), axes=[3]), True
    if kind == "average":
        return t.node("AveragePool", f, kernel_shape=[8, 8]), True
    if kind == "merged":
        y = t.node("Reshape", f, t.const(np.array([0, 0, -1])))
        return t.node("ReduceMean", y, axes=[2], keepdims=0), False
    if kind == "merged_last":
        y = t.node("Transpose", t.node("Reshape", f, t.const(np.array([0, 0, -1]))), perm=[0, 2, 1])
        return t.node("ReduceMean", y, axes=[1], keepdims=0), False
    y = t.node("Transpose", f, perm=[0, 2, 3, 1])
    if kind == "nhwc_flat":
        y = t.node("Relu", y)  # the features stay channels-last up to the pooling
    return t.node("ReduceMean", y, axes=[1, 2], keepdims=0), False


def _flatten(t, kind, y, channels):
    if kind == "flatten":
        return t.node("Flatten", y)
    if kind == "strided_gather":  # how PyTorch's exporter writes as_strided, with the batch of 1 baked in
        y = t.node("Reshape", y, t.const(np.array([-1])))
        return t.node("Gather", y, t.const(np.arange(channels).reshape(1, channels)), axis=0)
    if kind == "squeeze":
        return t.node("Squeeze", y, t.const(np.array([2, 3])))
    if kind == "squeeze_all":
        return t.node("Squeeze", y, t.const(np.array([-1, -2])))
    if kind == "identity_dropout":
        y = t.node("Dropout", t.node("Identity", y))
        return t.node("Reshape", y, t.const(np.array([-1, channels])))
    target = {"reshape": [0, -1], "reshape_baked": [1, channels], "reshape_minus": [-1, channels]}[kind]
    return t.node("Reshape", y, t.const(np.array(target)))


def _between(t, kind, y, channels, rank):
    """A constant scale and shift between pooling and linear layer; returns them as vectors."""
    one, zero = np.ones(channels), np.zeros(channels)
    shape = (1, channels) + (1,) * (rank - 2)
    v = t.array(channels) + 2
    if kind == "batch_norm":
        gamma, beta, mean = (t.array(channels) for _ in range(3))
        names = [t.const(a) for a in (gamma, beta, mean, v)]
        scale = gamma.astype(np.float64) / np.sqrt(v.astype(np.float64) + 1e-3)
        return t.node("BatchNormalization", y, *names, epsilon=1e-3), scale, beta - mean * scale
    if kind == "scale":
        return t.node("Mul", t.const(v.reshape(shape)), y), v, zero
    if kind == "shift":
        return t.node("Add", y, t.const(v.reshape(shape))), one, v
    if kind == "divide":
        return t.node("Div", y, t.const(np.float32(4))), one / 4, zero
    if kind == "subtract":
        return t.node("Sub", y, t.const(v.reshape(shape))), one, -v
    if kind == "reverse_subtract":
        return t.node("Sub", t.const(v.reshape(shape)), y), -one, v
    if kind == "cast":
        return t.node("Cast", y, to=1), one, zero
    return y, one, zero


def _linear(t, kind, y, k, c):
    w, b, zero = t.array(c, k), t.array(c), np.zeros(c)
    if kind == "gemm":
        return t.node("Gemm", y, t.const(w.T.copy()), t.const(b), name="fc"), w, b
    if kind == "gemm_transposed":
        return t.node("Gemm", y, t.const(w), transB=1, name="fc"), w, zero
    if kind == "gemm_scaled":
        return t.node("Gemm", y, t.const(w), t.const(b), transB=1, alpha=0.5, beta=2.0), 0.5 * w, 2 * b
    if kind == "gemm_data_second":
        out = t.node("Gemm", t.const(w), y, t.const(b[:, None]), transB=1)
        return t.node("Transpose", out, perm=[1, 0]), w, b
    if kind == "matmul":
        return t.node("MatMul", y, t.const(w.T.copy())), w, zero
    if kind == "matmul_add":
        return t.node("Add", t.node("MatMul", y, t.const(w.T.copy())), t.const(b)), w, b
    if kind == "add_matmul":
        return t.node("Add", t.const(b[None]), t.node("MatMul", y, t.const(w.T.copy()))), w, b
    if kind == "matmul_weight_computed":
        return t.node("MatMul", y, t.node("Transpose", t.node("Identity", t.const(w)), perm=[1, 0])), w, zero
    if kind == "conv":
        return t.node("Conv", y, t.const(w[:, :, None, None])), w, zero
    if kind == "conv_bias":
        return t.node("Conv", y, t.const(w[:, :, None, None]), t.const(b), kernel_shape=[1, 1]), w, b
    if kind == "conv_grouped":
        g, v = t.array(k, k // 2), t.array(c, k)
        dense = np.zeros((k, k))
        dense[: k // 2, : k // 2], dense[k // 2 :, k // 2 :] = g[: k // 2], g[k // 2 :]
        mid = t.node("Conv", y, t.const(g[:, :, None, None]), group=2)
        return t.node("Conv", mid, t.const(v[:, :, None, None]), t.const(b)), v @ dense, b
    v, a = t.array(7, k), t.array(7)
    w = t.array(c, 7)
    mid = t.node("Gemm", y, t.const(v), t.const(a), transB=1)
    return t.node("Gemm", mid, t.const(w), t.const(b), transB=1), w @ v, b + w @ a


def _tail(t, kind, y):
    if kind == "sigmoid":
        return t.node("Sigmoid", y), 1.0
    if kind == "softmax":
        return t.node("Softmax", t.node("Dropout", y), axis=1), 1.0
    if kind == "log_softmax":
        return t.node("LogSoftmax", y, axis=1), 1.0
    if kind == "dropout":
        return t.node("Dropout", y), 1.0
    if kind == "temperature":
        return t.node("Div", y, t.const(np.float32(0.5))), 2.0
    if kind == "reshape_sigmoid":
        return t.node("Reshape", t.node("Sigmoid", y), t.const(np.array([-1, 5, 1, 1]))), 1.0
    return y, 1.0


def check(toys, case, graph, shapes=((1, 32, 32), (2, 45, 70), (3, 33, 20))):
    """Scores against the source and the head's own formula, responses against einsum, at several shapes."""
    for n, h, w in shapes:
        x = toys.picture(n, h, w, seed=h)
        scores, response = toys.run(graph.model, x, "scores", "response")
        # the source may be fixed to one picture, so each is run on its own
        features = np.concatenate([toys.run(case.model, x[i : i + 1], case.features)[0] for i in range(n)])
        logits = np.concatenate(
            [toys.run(case.model, x[i : i + 1], case.logits)[0].reshape(1, -1) for i in range(n)]
        )
        expected = np.einsum("ck,nkhw->nchw", case.weight, features.astype(np.float64))
        assert response.shape == expected.shape
        np.testing.assert_allclose(response, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores, logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores, response.mean((2, 3)) + graph.bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(graph.bias, case.bias, rtol=1e-5, atol=1e-6)
    assert graph.bias.dtype == np.float32
    assert graph.stride == 4
    onnx.checker.check_model(graph.model, full_check=True)
    assert [o.name for o in graph.model.graph.output] == ["scores", "response"]


FIXED = ((1, 32, 32), (3, 32, 32))  # shapes at which a source of fixed size can be compared


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("flatten", FLATTENS)
def test_pool_and_flatten(toys, pool, flatten):
    case = build(toys, pool, flatten)
    graph = response_graph(case.model)
    check(toys, case, graph, FIXED if pool == "average" else ((1, 32, 32), (2, 45, 70)))
    assert (graph.height, graph.width, graph.dynamic_batch) == (None, None, True)


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("linear", LINEARS)
def test_linear_and_what_lies_between(toys, linear, between):
    case = build(toys, linear=linear, between=between)
    check(toys, case, response_graph(case.model), ((2, 45, 70),))


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("linear", ["gemm", "conv_bias"])
def test_tail(toys, tail, linear):
    case = build(toys, linear=linear, tail=tail)
    graph = response_graph(case.model)
    check(toys, case, graph)
    assert graph.multi_label == (tail not in ("softmax", "log_softmax"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pool=st.sampled_from([p for p in POOLS if p != "average"]),
    flatten=st.sampled_from(FLATTENS),
    linear=st.sampled_from(LINEARS),
    tail=st.sampled_from(TAILS),
    between=st.sampled_from(BETWEEN),
    channels=st.sampled_from([2, 6, 10]),
    shape=st.tuples(st.integers(1, 3), st.integers(8, 60), st.integers(8, 60)),
    seed=st.integers(0, 1000),
)
def test_any_combination(toys, pool, flatten, linear, tail, between, channels, shape, seed):
    case = build(toys, pool, flatten, linear, tail, between, seed, channels)
    check(toys, case, response_graph(case.model), (shape,))


def test_the_source_model_is_not_changed(toys):
    case = build(toys)
    before = case.model.SerializeToString()
    response_graph(case.model)
    assert case.model.SerializeToString() == before


def test_the_old_head_is_gone_and_weights_are_kept_exactly(toys):
    case = build(toys, linear="gemm_transposed", tail="sigmoid")
    graph = response_graph(case.model)
    ops = [n.op_type for n in graph.model.graph.node]
    assert "Gemm" not in ops and "Sigmoid" not in ops
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in graph.model.graph.initializer}
    np.testing.assert_array_equal(weights["response.weight"][:, :, 0, 0], case.weight.astype(np.float32))
    assert not np.any(graph.bias)


def test_keep_classes_keeps_rows_in_the_given_order(toys):
    case = build(toys)
    graph = response_graph(case.model, keep_classes=[3, 1])
    case.weight, case.bias = case.weight[[3, 1]], case.bias[[3, 1]]
    x = toys.picture(2, 40, 40)
    scores, response = toys.run(graph.model, x, "scores", "response")
    np.testing.assert_allclose(
        scores, toys.run(case.model, x, case.logits)[0][:, [3, 1]], rtol=1e-5, atol=1e-6
    )
    assert response.shape[1] == graph.classes == 2
    np.testing.assert_allclose(graph.bias, case.bias, rtol=1e-6)


@pytest.mark.parametrize("bad", [[], [0, 0], [5], [-1]])
def test_keep_classes_refuses_rows_that_are_not_there(toys, bad):
    with pytest.raises(ExportError, match="keep_classes"):
        response_graph(build(toys).model, keep_classes=bad)


def test_names_that_the_response_graph_needs_may_be_taken(toys):
    """An inner tensor called 'response' and an output called 'scores' are common."""
    t = toys.Toy()
    f = t.features(out="response")
    pooled = t.node("Flatten", t.node("GlobalAveragePool", f))
    w = t.array(toys.C, toys.K)
    t.nodes.append(onnx.helper.make_node("Gemm", [pooled, t.const(w)], ["scores"], name="fc", transB=1))
    model = t.model("scores")
    graph = response_graph(model)
    x = toys.picture(2, 32, 48)
    scores, response = toys.run(graph.model, x, "scores", "response")
    source_scores, features = toys.run(model, x, "scores", "response")
    np.testing.assert_allclose(scores, source_scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(response, np.einsum("ck,nkhw->nchw", w, features), rtol=1e-4, atol=1e-5)


# --- the linear layer before the pooling --------------------------------------------------------------------


def squeezenet(toys, relu=True):
    t = toys.Toy()
    f = t.features()
    w, b = t.array(toys.C, toys.K), t.array(toys.C)
    y = t.node("Conv", f, t.const(w[:, :, None, None]), t.const(b), name="final_conv")
    mapped = t.node("Relu", y, name="final_relu") if relu else y
    out = t.node("Flatten", t.node("GlobalAveragePool", mapped))
    return t.model(out), mapped, b, out


def test_convolution_before_pooling(toys):
    model, mapped, b, out = squeezenet(toys, relu=False)
    graph = response_graph(model)
    x = toys.picture(2, 40, 56)
    scores, response = toys.run(graph.model, x, "scores", "response")
    with_bias, logits = toys.run(model, x, mapped, out)
    np.testing.assert_allclose(response, with_bias - b[:, None, None], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(graph.bias, b)


def test_shift_after_a_convolution_before_pooling_is_taken_off_too(toys):
    t = toys.Toy()
    f = t.features()
    w, b = t.array(toys.C, toys.K), t.array(toys.C)
    y = t.node("Add", t.node("Conv", f, t.const(w[:, :, None, None])), t.const(b.reshape(1, -1, 1, 1)))
    model = t.model(t.node("Flatten", t.node("GlobalAveragePool", y)))
    graph = response_graph(model)
    np.testing.assert_allclose(graph.bias, b)
    x = toys.picture(1, 32, 32)
    response = toys.run(graph.model, x, "response")[0]
    np.testing.assert_allclose(response, toys.run(model, x, y)[0] - b[:, None, None], rtol=1e-4, atol=1e-5)


def test_relu_between_convolution_and_pooling_stays_in_the_response(toys):
    """SqueezeNet: mean(relu(conv)) is not mean(conv), so the response is the map after the relu."""
    model, mapped, _, out = squeezenet(toys)
    graph = response_graph(model)
    x = toys.picture(2, 40, 56)
    scores, response = toys.run(graph.model, x, "scores", "response")
    expected, logits = toys.run(model, x, mapped, out)
    np.testing.assert_array_equal(response, expected)
    np.testing.assert_allclose(scores, logits, rtol=1e-5, atol=1e-6)
    assert not graph.bias.any()
    assert any("'final_relu' (Relu)" in n and "'final_conv'" in n for n in graph.notes)


@pytest.mark.parametrize("relu", [True, False])
def test_keep_classes_before_pooling(toys, relu):
    model, mapped, b, _ = squeezenet(toys, relu=relu)
    graph = response_graph(model, keep_classes=[4, 0])
    x = toys.picture(1, 32, 32)
    response = toys.run(graph.model, x, "response")[0]
    expected = toys.run(model, x, mapped)[0] - (0 if relu else b[:, None, None])
    np.testing.assert_allclose(response, expected[:, [4, 0]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(graph.bias, 0 * b[[4, 0]] if relu else b[[4, 0]])


def test_channels_last_linear_before_pooling(toys):
    """Transpose, MatMul, Add, mean over axes 1 and 2: a converted Keras head."""
    t = toys.Toy()
    f = t.features()
    w, b = t.array(toys.K, toys.C), t.array(toys.C)
    y = t.node("MatMul", t.node("Transpose", f, perm=[0, 2, 3, 1]), t.const(w))
    y = t.node("Add", y, t.const(b))
    model = t.model(t.node("ReduceMean", y, axes=[1, 2], keepdims=0))
    graph = response_graph(model)
    x = toys.picture(2, 32, 48)
    response = toys.run(graph.model, x, "response")[0]
    features = toys.run(model, x, f)[0]
    np.testing.assert_allclose(response, np.einsum("kc,nkhw->nchw", w, features), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(graph.bias, b)


# --- inputs --------------------------------------------------------------------------------------------------


def test_channels_last_input_is_transposed(toys):
    t = toys.Toy(shape=("N", 32, 48, 3))
    f = t.features(t.node("Transpose", "image", perm=[0, 3, 1, 2]))
    w = t.array(toys.C, toys.K)
    pooled = t.node("Flatten", t.node("GlobalAveragePool", f))
    model = t.model(t.node("Gemm", pooled, t.const(w), transB=1))
    graph = response_graph(model)
    assert graph.channels_last and graph.input_name == "image"
    x = toys.picture(2, 32, 48)
    response = toys.run(graph.model, x, "response")[0]
    features = toys.run(model, np.ascontiguousarray(x.transpose(0, 2, 3, 1)), f)[0]
    np.testing.assert_allclose(response, np.einsum("ck,nkhw->nchw", w, features), rtol=1e-4, atol=1e-5)
    assert (graph.height, graph.width) == (None, None)
    assert toys.run(graph.model, toys.picture(1, 50, 60), "response")[0].shape == (1, toys.C, 13, 15)


def test_old_files_list_their_weights_among_the_inputs(toys):
    case = build(toys)
    for w in case.model.graph.initializer:
        case.model.graph.input.append(onnx.helper.make_tensor_value_info(w.name, w.data_type, w.dims))
    graph = response_graph(case.model)
    assert [i.name for i in graph.model.graph.input] == ["image"]
    check(toys, case, graph, ((1, 32, 32),))


def test_local_functions_are_inlined(toys):
    case = build(toys, linear="gemm_transposed")
    fc = case.model.graph.node[-1]
    body = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], transB=1, name="inside")
    function = onnx.helper.make_function(
        "local", "Classify", ["x", "w"], ["y"], [body], [onnx.helper.make_opsetid("", 17)]
    )
    call = onnx.helper.make_node("Classify", list(fc.input), list(fc.output), domain="local", name="call")
    case.model.graph.node.pop()
    case.model.graph.node.append(call)
    case.model.functions.append(function)
    case.model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    check(toys, case, response_graph(case.model), ((2, 45, 70),))


def test_of_two_outputs_the_one_with_a_head_is_taken(toys):
    case = build(toys)
    case.model.graph.output.append(onnx.helper.make_empty_tensor_value_info(case.features))
    graph = response_graph(case.model)
    check(toys, case, graph, ((1, 32, 32),))
    assert any("outputs" in n for n in graph.notes)


def test_logits_and_probabilities_as_outputs_are_one_head(toys):
    case = build(toys, tail="softmax")
    case.model.graph.output.append(onnx.helper.make_empty_tensor_value_info(case.logits))
    check(toys, case, response_graph(case.model, output=case.logits), ((1, 32, 32),))


def test_two_heads_need_a_choice(toys):
    case = build(toys)
    t = toys.Toy(seed=9)
    w = t.array(3, toys.K)
    case.model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w2"))
    pooled = case.model.graph.node[-1].input[0]
    case.model.graph.node.append(onnx.helper.make_node("Gemm", [pooled, "w2"], ["aux"], transB=1, name="aux"))
    case.model.graph.output.append(onnx.helper.make_empty_tensor_value_info("aux"))
    with pytest.raises(ExportError, match="--output"):
        response_graph(case.model)
    assert response_graph(case.model, output="aux").classes == 3
    assert response_graph(case.model, output=case.logits).classes == toys.C
    with pytest.raises(ExportError, match="no output 'other'"):
        response_graph(case.model, output="other")
