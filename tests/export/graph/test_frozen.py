"""Heads that are not linear, exact with scalars of the image frozen, against a float64 twin of the definition."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from infercam.engine.common.errors import ExportError
from infercam.export.graph import frozen
from infercam.export.graph.surgery import response_graph
from tests.export.graph.frozen_twin import FUNCTIONS, NORMS, head, layers_of, maps, toy_of

SHAPES = ((1, 32, 32), (3, 45, 70))
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def check(toys, model, layers, graph=None, shapes=SHAPES):
    graph = graph or response_graph(model)
    for n, h, w in shapes:
        x = toys.picture(n, h, w, seed=h)
        out = toys.run(graph.model, x)
        scores, response = out[:2]
        bias = out[2] if graph.per_image_bias else graph.bias
        assert len(out) == (3 if graph.per_image_bias else 2)
        features = toys.run(model, x, "features")[0]
        want_scores, want_response, want_bias = maps(features, layers)
        size = float(np.abs(want_scores).max())
        np.testing.assert_allclose(scores, toys.run(model, x)[0], rtol=1e-4, atol=1e-4 * size)
        np.testing.assert_allclose(response.mean((2, 3)) + bias, scores, rtol=1e-4, atol=1e-4 * size)
        np.testing.assert_allclose(scores, want_scores, rtol=1e-4, atol=1e-4 * size)
        size = float(np.abs(want_response).max())
        np.testing.assert_allclose(response, want_response, rtol=1e-3, atol=1e-4 * size)
        np.testing.assert_allclose(
            np.broadcast_to(bias, want_bias.shape), want_bias, rtol=1e-3, atol=1e-4 * size
        )
    onnx.checker.check_model(graph.model, full_check=True)
    return graph


HEADS = st.lists(st.sampled_from(["linear", *NORMS, *FUNCTIONS]), min_size=1, max_size=5)


@given(
    kinds=HEADS,
    channels=st.integers(2, 9),
    hidden=st.integers(2, 8),
    classes=st.integers(1, 6),
    how=st.sampled_from(["op", "written"]),
    convolved=st.booleans(),
    opset=st.sampled_from([17, 18, 20]),
    positions=st.sampled_from([0, 1 << 30]),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_head_is_what_the_definition_says(
    toys, kinds, channels, hidden, classes, how, convolved, opset, positions, seed
):
    """Of any depth, either way from features to response; exact to 1e-4 of the largest value."""
    layers = layers_of(np.random.default_rng(seed), kinds, channels, hidden, classes, how)
    model = toy_of(toys, layers, channels=channels, convolved=convolved, opset=opset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen.matrix_is_cheaper, "__defaults__", (positions,))
        graph = response_graph(model)
    check(toys, model, layers, graph, ((3, 45, 70),))
    assert (graph.height, graph.width, graph.dynamic_batch) == (None, None, True)
    plain = set(kinds) == {"linear"}
    assert plain == (not any(n.name.startswith("infercam/frozen") for n in graph.model.graph.node))


@pytest.mark.parametrize("how", ["op", "written"])
@pytest.mark.parametrize("kind", [*NORMS, *FUNCTIONS])
def test_every_kind_alone(toys, kind, how):
    """On the pooled vector itself, and behind a hidden layer."""
    for kinds in ([kind], ["linear", kind]):
        layers = layers_of(np.random.default_rng(1), kinds, toys.K, 7, toys.C, how)
        graph = check(toys, toy_of(toys, layers, channels=toys.K), layers)
        assert graph.per_image_bias == (len(kinds) == 2)


# --- which values ------------------------------------------------------------------------------------------


def test_activations_are_frozen_where_they_vanish(toys):
    """A hidden unit that is exactly 0, or nearly, in the image: the limit of φ(z)/z, no division by zero."""
    rng = np.random.default_rng(3)
    for kind in FUNCTIONS:
        layers = layers_of(rng, ["linear", kind], toys.K, 6, toys.C)
        layers[0].weight[0], layers[0].bias[0] = 0, 0
        layers[0].weight[1] *= 1e-5
        layers[0].bias[1] = 1e-6
        layers[0].weight[2], layers[0].bias[2] = 0, 200  # and far out
        check(toys, toy_of(toys, layers, channels=toys.K), layers, shapes=((2, 32, 32),))


@pytest.mark.parametrize("how", ["subtracted", "negated", "turned"])
def test_a_norm_as_tensorflow_writes_it(toys, how):
    """x · s + (b - mean · s): the same map as of the operator of the same weights."""
    graphs = []
    for op in (False, True):
        t = toys.Toy()
        x = t.node("Flatten", t.node("GlobalAveragePool", t.features()))
        scale, shift = t.random(toys.K), t.random(toys.K)
        if op:
            y = t.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)
        else:
            mean = t.node("ReduceMean", x, axes=[-1])
            d = t.node("Sub", x, mean)
            variance = t.node("ReduceMean", t.node("Mul", d, d), axes=[-1])
            s = t.node("Reciprocal", t.node("Sqrt", t.node("Add", variance, t.const(np.float32(1e-5)))))
            s = t.node("Mul", s, scale)
            if how == "subtracted":
                rest = t.node("Sub", shift, t.node("Mul", mean, s))
            else:
                rest = t.node("Add", t.node("Mul", t.node("Neg", mean), s), shift)
            pair = (t.node("Mul", x, s), rest)
            y = t.node("Add", *(reversed(pair) if how == "turned" else pair))
        model = t.model(t.node("Gemm", y, *(t.const(v) for v in gemm_weights(toys)), transB=1))
        graphs.append((model, response_graph(model)))
    for n, h, w in SHAPES:
        picture = toys.picture(n, h, w, seed=h)
        (scores, response), (_, wanted) = (toys.run(g.model, picture)[:2] for _, g in graphs)
        np.testing.assert_allclose(scores, toys.run(graphs[0][0], picture)[0], **CLOSE)
        np.testing.assert_allclose(response.mean((2, 3)) + graphs[0][1].bias, scores, **CLOSE)
        np.testing.assert_allclose(response, wanted, rtol=1e-3, atol=1e-4)


def gemm_weights(toys):
    rng = np.random.default_rng(5)
    return (rng.normal(size=s).astype(np.float32) for s in ((toys.C, toys.K), (toys.C,)))


def test_a_dead_vector_is_normalised(toys):
    """Features that are all the same leave a LayerNorm nothing but its epsilon, an L2 norm nothing."""
    t = toys.Toy()
    f = t.node("Mul", t.features(channels=toys.K), t.const(np.float32(0)))
    y = t.node("LpNormalization", t.node("Flatten", t.node("GlobalAveragePool", f)), axis=1)
    y = t.node("Gemm", y, t.random(toys.C, toys.K), t.random(toys.C), transB=1)
    x = toys.picture(1, 32, 32)
    scores, response = toys.run(response_graph(t.model(y)).model, x)[:2]
    assert np.isfinite(scores).all() and not response.any()


# --- which graphs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [0, 1 << 30])
def test_classes_kept(toys, positions, monkeypatch):
    monkeypatch.setattr(frozen.matrix_is_cheaper, "__defaults__", (positions,))
    layers = layers_of(np.random.default_rng(0), ["layer_norm", "linear", "hard_swish"], toys.K, 7, 6)
    model = toy_of(toys, layers, channels=toys.K)
    graph = response_graph(model, keep_classes=[4, 1])
    assert graph.classes == 2
    x = toys.picture(2, 45, 70)
    scores, response, bias = toys.run(graph.model, x)
    np.testing.assert_allclose(scores, toys.run(model, x)[0][:, [4, 1]], **CLOSE)
    np.testing.assert_allclose(scores, response.mean((2, 3)) + bias, **CLOSE)


def test_a_linear_head_is_not_touched(toys):
    """Also one that subtracts the mean over channels, which is linear at each position."""
    t = toys.Toy(opset=17)
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features()))
    y = t.node("Sub", y, t.node("ReduceMean", y, axes=[1]))
    w = t.array(toys.C, toys.K)
    model = t.model(t.node("Gemm", y, t.const(w), transB=1))
    graph = response_graph(model)
    assert [n.op_type for n in graph.model.graph.node[-3:]] == ["Conv", "GlobalAveragePool", "Flatten"]
    weight = next(i for i in graph.model.graph.initializer if i.name == "response.weight")
    want = w - w.mean(1, keepdims=True)
    np.testing.assert_allclose(onnx.numpy_helper.to_array(weight)[:, :, 0, 0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("taken", ["bias", "scores", "response"])
def test_names_that_the_source_uses_itself(toys, taken):
    layers = layers_of(np.random.default_rng(0), ["linear", "relu"], toys.K, 7, toys.C)
    model = toy_of(toys, layers, channels=toys.K)
    relu = next(n for n in model.graph.node if n.op_type == "Relu" and "gemm" in n.input[0])
    gemm = next(n for n in model.graph.node if n.output[0] == relu.input[0])
    gemm.output[0] = relu.input[0] = taken
    graph = response_graph(model)
    assert [o.name for o in graph.model.graph.output] == ["scores", "response", "bias"]
    check(toys, model, layers, graph)


def test_a_picture_of_whole_numbers(toys):
    t = toys.Toy()
    y = t.node("Div", t.node("Cast", "image", to=TensorProto.FLOAT), t.const(np.float32(255)))
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features(y)))
    layers = layers_of(np.random.default_rng(0), ["linear", "gelu"], toys.K, 7, toys.C)
    infos = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 3, "H", "W"])]
    model = t.model(head(t, y, layers, False), inputs=infos)
    graph = response_graph(model)
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 45, 70)).astype(np.uint8)
    scores, response, bias = toys.run(graph.model, x.astype(np.float32))
    np.testing.assert_allclose(scores, toys.run(model, x)[0], **CLOSE)
    np.testing.assert_allclose(scores, response.mean((2, 3)) + bias, **CLOSE)


def test_a_pooling_of_a_fixed_window_and_a_baked_batch(toys):
    """The gates come from the mean over the whole map, whatever the source's window was, for any batch."""
    t = toys.Toy(shape=(1, 3, 32, 32))
    y = t.node(
        "Reshape", t.node("AveragePool", t.features(), kernel_shape=[8, 8]), t.const(np.array([1, toys.K]))
    )
    layers = layers_of(np.random.default_rng(0), ["layer_norm", "linear", "relu"], toys.K, 7, toys.C)
    model = t.model(head(t, y, layers, False))
    graph = response_graph(model)
    assert (graph.height, graph.width, graph.dynamic_batch) == (None, None, True)
    x = toys.picture(3, 61, 40)
    scores, response, bias = toys.run(graph.model, x)
    features = toys.run(graph.model, x, "features")[0]
    for ours, twin in zip((scores, response, bias), maps(features, layers), strict=True):
        np.testing.assert_allclose(ours, twin, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [9, 11, 13, 14, 21])
def test_operator_sets(toys, opset):
    layers = layers_of(np.random.default_rng(0), ["layer_norm", "linear", "hard_swish"], toys.K, 7, toys.C)
    t = toys.Toy(opset=opset)
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features()))
    if opset < 11:  # Clip took its bounds as attributes
        layers[2].kind = "tanh"
    check(toys, t.model(head(t, y, layers, False)), layers)


def test_gates_of_other_layers(toys):
    """Squeeze-and-excitation and gated units after the pooling: the gate is frozen, what it multiplies is not."""
    t = toys.Toy()
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features()))
    gate = t.node("Sigmoid", t.node("Gemm", y, t.random(toys.K, toys.K), transB=1))
    y = t.node("Mul", y, gate)
    a, b = (t.node("MatMul", y, t.random(toys.K, 7)) for _ in range(2))
    y = t.node("Mul", a, t.node("Sigmoid", b))
    model = t.model(t.node("Gemm", y, t.random(toys.C, 7), t.random(toys.C), transB=1))
    graph = response_graph(model)
    x = toys.picture(3, 45, 70)
    scores, response = toys.run(graph.model, x)[:2]
    np.testing.assert_allclose(scores, toys.run(model, x)[0], **CLOSE)
    np.testing.assert_allclose(scores, response.mean((2, 3)) + graph.bias, **CLOSE)


@pytest.mark.parametrize(("how", "groups"), [("op", 1), ("op", 2), ("instance", 1)])
def test_group_norms(toys, groups, how):
    """GroupNormalization, and PyTorch's way of writing it: an instance norm of the groups."""
    t = toys.Toy(opset=21)
    y = t.node("GlobalAveragePool", t.features())
    g, b = t.array(toys.K) + 1, t.array(toys.K)
    if how == "op":
        y = t.node("GroupNormalization", y, t.const(g), t.const(b), num_groups=groups)
    else:
        y = t.node("Reshape", y, t.const(np.array([0, groups, -1])))
        one, zero = np.ones(groups, np.float32), np.zeros(groups, np.float32)
        y = t.node("InstanceNormalization", y, t.const(one), t.const(zero))
        y = t.node("Reshape", y, t.const(np.array([-1, toys.K, 1, 1])))
        y = t.node("Add", t.node("Mul", y, t.const(g[:, None, None])), t.const(b[:, None, None]))
    w, shift = t.array(toys.C, toys.K), t.array(toys.C)
    model = t.model(t.node("Gemm", t.node("Flatten", y), t.const(w), t.const(shift), transB=1))
    graph = response_graph(model)
    x = toys.picture(2, 45, 70)
    scores, response = toys.run(graph.model, x)
    np.testing.assert_allclose(scores, toys.run(model, x)[0], **CLOSE)
    np.testing.assert_allclose(graph.bias, w @ b + shift, **CLOSE)
    np.testing.assert_allclose(scores, response.mean((2, 3)) + graph.bias, **CLOSE)


def test_weights_are_stored_once_and_the_note_names_what_is_frozen(toys):
    layers = layers_of(np.random.default_rng(0), ["linear", "relu"], toys.K, 300, toys.C)
    graph = response_graph(toy_of(toys, layers, channels=toys.K))
    assert sum(i.dims == [300, toys.K] for i in graph.model.graph.initializer) == 1
    assert any("'relu" in n and "each image's own" in n for n in graph.notes)


def test_damage_never_gives_a_traceback(toys):
    """Nodes removed, rewired, without attributes: refused in one line, or a graph that still is consistent."""
    kinds = ["layer_norm", "linear", "clip", "linear", "gelu_tanh"]
    layers = layers_of(np.random.default_rng(0), kinds, toys.K, toys.K, toys.C)
    model = toy_of(toys, layers, channels=toys.K, shape=(1, 3, 32, 32))
    rng, refused = np.random.default_rng(0), 0
    for k in range(4, len(model.graph.node)):
        for what in ("remove", "rewire", "rewire last", "attributes"):
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            node = copy.graph.node[k]
            names = [i for n in copy.graph.node for i in n.input]
            if what == "remove":
                del copy.graph.node[k]
            elif what == "attributes":
                del node.attribute[:]
            else:
                node.input[0 if what == "rewire" else -1] = names[rng.integers(len(names))]
            try:
                graph = response_graph(copy)
            except ExportError as e:
                refused += 1
                assert "\n" not in str(e)
                continue
            out = toys.run(graph.model, toys.picture(1, graph.height or 32, graph.width or 32))
            bias = out[2] if graph.per_image_bias else graph.bias
            np.testing.assert_allclose(out[0], out[1].mean((2, 3)) + bias, rtol=1e-3, atol=1e-4)
    assert refused > len(model.graph.node)


def test_the_cheaper_way():
    """The chain for many classes, the matrix for few; on larger maps the matrix earlier."""
    assert not frozen.matrix_is_cheaper((960, 1280, 1000), 192)
    assert frozen.matrix_is_cheaper((960, 1280, 1000), 1024)
    assert frozen.matrix_is_cheaper((960, 1280, 20), 192)
