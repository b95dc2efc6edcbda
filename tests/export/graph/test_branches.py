"""Heads that are linear in the pooled values without being one line of nodes: joined, cut, summed, gathered."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from infercam.engine.common.errors import ExportError
from infercam.export.graph.surgery import response_graph

FREE = ((1, 32, 32), (2, 45, 70))


def check(toys, model, shapes=FREE):
    """Scores equal the source's, picture by picture, and the response's mean plus the bias."""
    graph = response_graph(model)
    out = model.graph.output[0].name
    for n, h, w in shapes:
        x = toys.picture(n, h, w, seed=h)
        scores, response = toys.run(graph.model, x, "scores", "response")
        logits = np.concatenate([toys.run(model, x[i : i + 1], out)[0].reshape(1, -1) for i in range(n)])
        np.testing.assert_allclose(scores, logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores, response.mean((2, 3)) + graph.bias, rtol=1e-4, atol=1e-5)
    return graph


def vector(t, f=None):
    return t.node("Flatten", t.node("GlobalAveragePool", f or t.features()))


def fc(t, toys, y, classes=None, k=None):
    c = classes or toys.C
    return t.node("Gemm", y, t.random(c, k or toys.K), t.random(c), transB=1)


# --- picking the one element of an axis -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scalars", "vectors", "negative", "slices"])
def test_pooled_map_indexed(toys, kind):
    """`pool(x)[:, :, 0, 0]`"""
    t = toys.Toy()
    y = t.node("GlobalAveragePool", t.features())
    if kind == "slices":
        ends = [t.const(np.array([v])) for v in (0, 1, 3)]
        y = t.node("Squeeze", t.node("Slice", y, *ends), t.const(np.array([2, 3])))
    else:
        zero = t.const(np.array({"scalars": 0, "vectors": [0], "negative": -1}[kind]))
        y = t.node("Gather", t.node("Gather", y, zero, axis=3), zero, axis=2)
        y = t.node("Flatten", y)
    check(toys, t.model(fc(t, toys, y)))


# --- several linear layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["half", "mean", "stacked", "sum", "difference"])
def test_two_heads_averaged(toys, kind):
    """RepViT, EfficientFormer, LeViT: a head and its distilled twin."""
    t = toys.Toy()
    y = vector(t)
    a, b = fc(t, toys, y), fc(t, toys, y)
    if kind == "mean":
        out = t.node("Mean", a, b)
    elif kind == "stacked":
        one = t.const(np.array([1]))
        out = t.node("Concat", t.node("Unsqueeze", a, one), t.node("Unsqueeze", b, one), axis=1)
        out = t.node("ReduceMean", out, axes=[1], keepdims=0)
    else:
        out = t.node("Sub" if kind == "difference" else "Sum" if kind == "sum" else "Add", a, b)
        out = t.node("Div", out, t.const(np.float32(2)))
    check(toys, t.model(out))


def test_heads_of_two_norms_of_one_vector(toys):
    """LeViT: each head has a BatchNormalization of its own."""
    t = toys.Toy()
    y = vector(t)
    heads = []
    for _ in range(2):
        names = [t.random(toys.K) for _ in range(3)] + [t.const(np.abs(t.array(toys.K)) + 1)]
        heads.append(fc(t, toys, t.node("BatchNormalization", y, *names)))
    check(toys, t.model(t.node("Add", *heads)))


def test_heads_joined_and_cut(toys):
    t = toys.Toy()
    y = vector(t)
    y = t.node("Concat", fc(t, toys, y, 3), fc(t, toys, y, 4), y, axis=1)
    ends = [t.const(np.array([v])) for v in (1, 9, 1)]
    graph = check(toys, t.model(t.node("Slice", y, *ends)))
    assert graph.classes == 8


@pytest.mark.parametrize("kind", ["slice", "backwards", "gather", "split"])
def test_background_cut_off(toys, kind):
    t = toys.Toy()
    y = fc(t, toys, vector(t), 6)
    if kind == "slice":
        out = t.node("Slice", y, *(t.const(np.array([v])) for v in (1, 1 << 40, 1)))
    elif kind == "backwards":
        out = t.node("Slice", y, *(t.const(np.array([v])) for v in (-1, -(1 << 40), 1, -1)))
    elif kind == "gather":
        out = t.node("Gather", y, t.const(np.array([5, 3, 1])), axis=1)
    else:
        t.node("Split", y, t.const(np.array([1, 5])), axis=1, name="split")
        t.nodes[-1].output.append("rest")
        out = "rest"
    assert check(toys, t.model(out)).classes == {"backwards": 6, "gather": 3}.get(kind, 5)


@pytest.mark.parametrize(
    ("equation", "shape"),
    [("nc,kc->nk", (5, 6)), ("bi,io->bo", (6, 5)), ("...c,kc->...k", (5, 6)), ("nc,cgk->ngk", (6, 2, 3))],
)
def test_einsum(toys, equation, shape):
    t = toys.Toy()
    y = t.node("Einsum", vector(t), t.random(*shape), equation=equation)
    check(toys, t.model(y))


def test_einsum_over_a_pooled_map_with_the_weight_first(toys):
    t = toys.Toy()
    y = t.node("GlobalAveragePool", t.features())
    y = t.node("Einsum", t.random(toys.C, toys.K), y, equation="kc,nchw->nkhw")
    check(toys, t.model(t.node("Flatten", y)))


def test_linear_layer_written_as_product_and_sum(toys):
    t = toys.Toy()
    y = t.node("Mul", t.node("Unsqueeze", vector(t), t.const(np.array([1]))), t.random(1, toys.C, toys.K))
    y = t.node("ReduceSum", y, t.const(np.array([-1])), keepdims=0)
    check(toys, t.model(t.node("Add", y, t.random(toys.C))))


# --- sums instead of means ------------------------------------------------------------------------------------


def test_sum_over_a_fixed_number_of_positions(toys):
    t = toys.Toy(shape=("N", 3, 32, 32))
    y = t.node("ReduceSum", t.features(), t.const(np.array([2, 3])), keepdims=0)
    graph = check(
        toys, t.model(fc(t, toys, t.node("Div", y, t.const(np.float32(64))))), ((1, 32, 32), (2, 32, 32))
    )
    assert any("sum over 8x8 positions made a mean" in n for n in graph.notes)


def test_sum_over_the_number_of_positions_computed(toys):
    t = toys.Toy()
    f = t.features()
    y = t.node("ReduceSum", f, t.const(np.array([2, 3])), keepdims=0)
    sizes = t.node("Slice", t.node("Shape", f), t.const(np.array([2])), t.const(np.array([4])))
    count = t.node("Cast", t.node("ReduceProd", sizes, keepdims=0), to=1)
    check(toys, t.model(fc(t, toys, t.node("Div", y, count))))


def test_a_sum_that_is_no_mean(toys):
    t = toys.Toy()
    y = t.node("ReduceSum", t.features(), t.const(np.array([2, 3])), keepdims=0, name="sum")
    with pytest.raises(ExportError, match=r"'sum' \(ReduceSum\): sums over all positions.*needs the mean"):
        response_graph(t.model(fc(t, toys, t.node("Div", y, t.const(np.float32(64))))))


# --- several pooled maps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("joined", ["Concat", "Add"])
def test_two_pooled_maps_of_one_size(toys, joined):
    t = toys.Toy()
    a = t.features()
    b = t.features(out="others")
    mean = t.node("ReduceMean", b, axes=[2, 3])
    at = {"axis": 1} if joined == "Concat" else {}
    y = t.node(joined, t.node("GlobalAveragePool", a), mean, **at)
    check(toys, t.model(fc(t, toys, t.node("Flatten", y), k=2 * toys.K if joined == "Concat" else toys.K)))


def test_one_map_pooled_twice(toys):
    t = toys.Toy()
    f = t.features()
    y = t.node("Concat", t.node("GlobalAveragePool", f), t.node("ReduceMean", f, axes=[2, 3]), axis=1)
    graph = check(toys, t.model(fc(t, toys, t.node("Flatten", y), k=2 * toys.K)))
    weight = next(w for w in graph.model.graph.initializer if w.name == "response.weight")
    assert list(weight.dims) == [toys.C, toys.K, 1, 1]


def test_two_pooled_maps_of_different_sizes(toys):
    t = toys.Toy()
    a = t.features()
    b = t.node("Conv", a, t.random(4, toys.K, 3, 3), strides=[2, 2], pads=[1] * 4)
    y = t.node("Concat", t.node("GlobalAveragePool", a, name="fine"), t.node("GlobalAveragePool", b), axis=1)
    with pytest.raises(ExportError, match=r"maps of different sizes \(16x16 of node 'fine'"):
        response_graph(t.model(fc(t, toys, t.node("Flatten", y), k=toys.K + 4)))


# --- what only running the model tells ------------------------------------------------------------------------


def test_a_change_of_strides_for_any_batch(toys):
    """PyTorch's exporter: from a flat tensor the elements range(N) * K + range(K) are gathered."""
    t = toys.Toy()
    y = t.node("GlobalAveragePool", t.features())
    zero, one, k = (t.const(np.int64(v)) for v in (0, 1, toys.K))
    batch = t.node("Gather", t.node("Shape", "image"), zero, axis=0)
    rows = t.node("Mul", t.node("Range", zero, batch, one), k)
    index = t.node("Add", t.node("Unsqueeze", rows, t.const(np.array([1]))), t.node("Range", zero, k, one))
    y = t.node("Gather", t.node("Reshape", y, t.const(np.array([-1]))), index, axis=0)
    check(toys, t.model(fc(t, toys, y)))


@pytest.mark.parametrize("opset", [11, 13, 14])
def test_a_rank_that_inference_does_not_tell(toys, opset):
    """`x.view(x.size(0), x.size(1), -1).mean(-1)` with a target that is joined of computed numbers."""
    t = toys.Toy(opset=opset)
    f = t.features()
    sizes = [t.node("Gather", t.node("Shape", f), t.const(np.array([i])), axis=0) for i in (0, 1)]
    target = t.node("Concat", *sizes, t.const(np.array([-1])), axis=0)
    y = t.node("Reshape", f, t.node("Cast", t.node("Cast", target, to=1), to=7))  # inference loses it here
    check(toys, t.model(fc(t, toys, t.node("ReduceMean", y, axes=[-1], keepdims=0))))


def test_a_batch_of_two_baked_into_the_head(toys):
    t = toys.Toy(shape=(2, 3, 32, 32))
    y = t.node("Reshape", t.node("GlobalAveragePool", t.features()), t.const(np.array([2, -1])))
    model = t.model(fc(t, toys, y))
    graph = response_graph(model)
    x = toys.picture(2, 32, 32)
    scores = toys.run(graph.model, x, "scores")[0]
    np.testing.assert_allclose(scores, toys.run(model, x)[0], rtol=1e-4, atol=1e-5)


# --- If -------------------------------------------------------------------------------------------------------


def squeezed_if_one(t, y, axis, inner=None):
    """`y.squeeze(axis)` as PyTorch's tracing exporter writes it where it does not know the axis' size."""
    size = t.node("Gather", t.node("Shape", y), t.const(np.array([axis])), axis=0)
    given = {} if inner is None else {"initializer": [numpy_helper.from_array(np.array([axis]), "axes")]}
    axes = t.const(np.array([axis])) if inner is None else "axes"
    branches = {
        "then_branch": helper.make_node("Squeeze", [y, axes], ["inside"]),
        "else_branch": helper.make_node("Identity", [y], ["inside"]),
    }
    ends = [helper.make_empty_tensor_value_info("inside")]
    graphs = {k: helper.make_graph([n], k, [], ends, **given) for k, n in branches.items()}
    return t.node("If", t.node("Equal", size, t.const(np.array([1]))), **graphs)


@pytest.mark.parametrize("inner", [None, "weights in the branch"])
@pytest.mark.parametrize("last", [False, True])
def test_squeezes_that_ask_for_the_size(toys, last, inner):
    """Two of them, their branches' tensors of the same names, behind the pooling or the logits."""
    t = toys.Toy()
    y = t.node("GlobalAveragePool", t.features())
    if last:
        y = t.node("Conv", y, t.random(toys.C, toys.K, 1, 1), t.random(toys.C))
    y = squeezed_if_one(t, squeezed_if_one(t, y, 3, inner), 2, inner)
    check(toys, t.model(y if last else fc(t, toys, y)))


def test_branches_that_depend_on_the_picture(toys):
    t = toys.Toy()
    y = vector(t)
    bright = t.node("Greater", t.node("ReduceMean", "image", keepdims=0), t.const(np.float32(0)))
    doubled = helper.make_node("Add", [y, y], ["inside"])
    ends = [helper.make_empty_tensor_value_info("inside")]
    same = helper.make_node("Identity", [y], ["inside"])
    y = t.node(
        "If",
        bright,
        then_branch=helper.make_graph([doubled], "then", [], ends),
        else_branch=helper.make_graph([same], "else", [], ends),
    )
    with pytest.raises(ExportError, match=r"\(If\): what is computed depends on the picture"):
        response_graph(t.model(fc(t, toys, y)))
