"""Freeing batch, height and width: baked reshapes, whole-map windows, and what cannot be freed."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from infercam.engine.common.errors import ExportError
from infercam.export.graph import dynamic
from infercam.export.graph.relax import _BATCH_FACTOR, _size, free_target
from infercam.export.graph.surgery import response_graph
from infercam.export.runtime import weight_bytes


def head(t, toys, f, channels=None):
    w = t.array(toys.C, channels or toys.K)
    pooled = t.node("Flatten", t.node("GlobalAveragePool", f))
    return w, t.node("Gemm", pooled, t.const(w), transB=1, name="fc")


def runs_at(toys, graph, *shapes):
    """The response's size at each shape, after checking that it is consistent."""
    found = []
    for n, h, w in shapes:
        scores, response = toys.run(graph.model, toys.picture(n, h, w), "scores", "response")
        assert scores.shape[0] == response.shape[0] == n
        np.testing.assert_allclose(scores, response.mean((2, 3)) + graph.bias, rtol=1e-4, atol=1e-5)
        found.append(response.shape[2:])
    return found


def shuffled(toys, *, shape=(1, 3, 64, 64), **at):
    """ShuffleNet's channel shuffle as an export at one size bakes it: N, h and w are numbers in two reshapes."""
    t = toys.Toy(shape=shape)
    f = t.features(channels=8)
    y = t.node("Reshape", f, t.const(np.array([1, 2, 4, 16, 16])), name="split_groups", **at)
    y = t.node("Transpose", y, perm=[0, 2, 1, 3, 4])
    y = t.node("Reshape", y, t.const(np.array([1, 8, 16, 16])), name="join_groups", **at)
    w, out = head(t, toys, y, 8)
    return t.model(out), f, w


@pytest.mark.parametrize("at", [{}, {"allowzero": 1}])
def test_channel_shuffle_with_every_size_baked_becomes_free(toys, at):
    model, f, w = shuffled(toys, **at)
    graph = response_graph(model)
    assert (graph.height, graph.width, graph.dynamic_batch, graph.stride) == (None, None, True, 4)
    assert graph.notes == []
    assert runs_at(toys, graph, (1, 64, 64), (3, 40, 72), (2, 97, 33)) == [(16, 16), (10, 18), (25, 9)]
    x = toys.picture(1, 64, 64)
    features = toys.run(model, x, f)[0]
    mixed = features.reshape(1, 2, 4, 16, 16).transpose(0, 2, 1, 3, 4).reshape(1, 8, 16, 16)
    expected = np.einsum("ck,nkhw->nchw", w, mixed)
    np.testing.assert_allclose(toys.run(graph.model, x, "response")[0], expected, rtol=1e-4, atol=1e-5)


def test_a_fixed_convolutional_model_is_free_in_all_three(toys):
    t = toys.Toy(shape=(1, 3, 48, 64))
    _, out = head(t, toys, t.features())
    graph = response_graph(t.model(out))
    assert (graph.height, graph.width, graph.dynamic_batch, graph.stride) == (None, None, True, 4)
    assert runs_at(toys, graph, (1, 48, 64), (4, 20, 90)) == [(12, 16), (5, 23)]
    assert [d.dim_param for d in graph.model.graph.input[0].type.tensor_type.shape.dim] == ["N", "", "H", "W"]


def test_a_batch_of_several_is_made_free(toys):
    t = toys.Toy(shape=(8, 3, 48, 64))
    f = t.features()
    pooled = t.node("Reshape", t.node("GlobalAveragePool", f), t.const(np.array([8, toys.K])))
    w = t.array(toys.C, toys.K)
    model = t.model(t.node("Gemm", pooled, t.const(w), transB=1))
    graph = response_graph(model)
    assert graph.dynamic_batch
    runs_at(toys, graph, (1, 48, 64), (3, 60, 60))


def test_squeeze_and_excitation_with_a_fixed_window_becomes_global(toys):
    t = toys.Toy(shape=(1, 3, 64, 64))
    f = t.features()
    gate = t.node("AveragePool", f, kernel_shape=[16, 16], name="squeeze")
    gate = t.node("Sigmoid", t.node("Conv", gate, t.random(toys.K, toys.K, 1, 1)))
    _, out = head(t, toys, t.node("Mul", f, gate))
    graph = response_graph(t.model(out))
    assert (graph.height, graph.width) == (None, None)
    assert runs_at(toys, graph, (1, 64, 64), (2, 100, 40)) == [(16, 16), (25, 10)]


def test_resize_to_a_baked_size_becomes_a_factor(toys):
    t = toys.Toy(shape=(1, 3, 64, 64))
    f = t.features()
    up = t.node("Resize", f, "", "", t.const(np.array([1, toys.K, 32, 32])), mode="nearest", name="up")
    _, out = head(t, toys, up)
    graph = response_graph(t.model(out))
    assert (graph.height, graph.width, graph.stride) == (None, None, 2)
    assert runs_at(toys, graph, (2, 40, 80)) == [(20, 40)]


def test_a_whole_map_window_in_a_model_of_free_size_is_taken_as_global(toys):
    t = toys.Toy()
    pooled = t.node("Flatten", t.node("AveragePool", t.features(), kernel_shape=[8, 8], name="pool"))
    model = t.model(t.node("Gemm", pooled, t.random(toys.K, toys.C)))
    graph = response_graph(model)
    assert any("'pool'" in n and "8x8" in n for n in graph.notes)
    x = toys.picture(1, 32, 32)
    np.testing.assert_allclose(
        toys.run(graph.model, x, "scores")[0], toys.run(model, x)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("declared", [(1, 3, 32, 32), ("N", 3, "H", "W")])
def test_a_size_baked_by_an_added_map_stays_fixed_and_the_node_is_named(toys, declared):
    t = toys.Toy(shape=declared)
    size = (8, 8) if declared[0] == 1 else (16, 16)  # stride 4 at 32 or at the first size tried, 64
    f = t.node("Relu", t.node("Add", t.features(), t.const(t.array(1, toys.K, *size)), name="add_map"))
    _, out = head(t, toys, f)
    graph = response_graph(t.model(out))
    assert (graph.height, graph.width) == (4 * size[0], 4 * size[1])
    assert graph.dynamic_batch and graph.stride == 4
    assert any("fixed" in n and "'add_map'" in n for n in graph.notes)
    assert runs_at(toys, graph, (3, 4 * size[0], 4 * size[1])) == [size]


def test_a_crop_of_fixed_size_is_not_taken_for_a_free_size(toys):
    """It runs at larger sizes, but only looks at a corner: the map must grow with the picture."""
    t = toys.Toy(shape=(1, 3, 64, 64))
    y = t.node(
        "Slice",
        t.features(),
        *(t.const(np.array(v)) for v in ([0, 0], [16, 16], [2, 3])),
        name="crop",
    )
    _, out = head(t, toys, y)
    graph = response_graph(t.model(out))
    assert (graph.height, graph.width) == (64, 64)
    assert any("stays 16x16" in n and "'crop' (Slice)" in n for n in graph.notes)


def test_windows_that_only_fit_some_sizes_keep_the_size_fixed(toys):
    """Windows of 2x2 cells, sizes computed at run time: it runs at every second size, so not at any size."""
    t = toys.Toy(shape=("N", 3, 64, 64))
    f = t.features(channels=8)
    shape = t.node("Shape", f)
    half = t.node(
        "Div", t.node("Slice", shape, *(t.const(np.array([v])) for v in (2, 4, 0))), t.const(np.int64(2))
    )
    h, w = (t.node("Gather", half, t.const(np.array([k])), axis=0) for k in (0, 1))
    two = t.const(np.array([2]))
    target = t.node("Concat", t.const(np.array([0, 8])), h, two, w, two, axis=0)
    y = t.node("Transpose", t.node("Reshape", f, target, name="windows"), perm=[0, 1, 3, 2, 5, 4])
    y = t.node("Reshape", y, shape)
    _, out = head(t, toys, y, 8)
    graph = response_graph(t.model(out))
    assert (graph.height, graph.width, graph.dynamic_batch) == (64, 64, True)
    assert any("'windows'" in n for n in graph.notes)


def test_reshapes_of_a_free_batch_are_left_alone(toys):
    """L,N,E -> L*N,E with the batch free: by the numbers at batch 1 it might as well be L,N*E."""
    t = toys.Toy(shape=("N", 3, 64, 64))
    f = t.features()
    y = t.node("Reshape", f, t.const(np.array([0, 0, -1])))
    y = t.node("Transpose", y, perm=[2, 0, 1])
    y = t.node("Reshape", y, t.const(np.array([-1, toys.K])), name="flat")
    y = t.node("Relu", t.node("MatMul", y, t.random(toys.K, toys.K)))
    y = t.node("Transpose", t.node("Reshape", y, t.const(np.array([256, -1, toys.K]))), perm=[1, 2, 0])
    y = t.node("Reshape", y, t.const(np.array([-1, toys.K, 16, 16])))
    _, out = head(t, toys, y)
    graph = response_graph(t.model(out))
    assert graph.dynamic_batch
    runs_at(toys, graph, (3, 64, 64))


def test_statistics_over_the_batch_keep_the_batch_fixed(toys):
    """Scores that depend on the rest of the batch are found by running, whatever the shapes say."""
    t = toys.Toy()
    f = t.features()
    y = t.node("Sub", f, t.node("ReduceMean", f, axes=[0], keepdims=1, name="batch_mean"))
    y = t.node("Relu", t.node("Add", y, t.random(1, toys.K, 1, 1)))
    _, out = head(t, toys, y)
    graph = response_graph(t.model(out))
    assert not graph.dynamic_batch
    assert any("batch fixed at 1" in n and "depend on the others" in n for n in graph.notes)
    assert graph.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_a_baked_batch_of_several_that_cannot_be_freed_is_refused(toys):
    t = toys.Toy(shape=(2, 3, 32, 32))
    f = t.node("Relu", t.node("Add", t.features(), t.const(t.array(2, toys.K, 1, 1)), name="per_picture"))
    _, out = head(t, toys, f)
    with pytest.raises(ExportError, match=r"batch of 2 .*'per_picture'"):
        response_graph(t.model(out))


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_stride_is_measured(toys, stride):
    t = toys.Toy()
    f = t.node("Relu", t.node("Conv", "image", t.random(toys.K, 3, 3, 3), strides=[stride] * 2, pads=[1] * 4))
    _, out = head(t, toys, f)
    assert response_graph(t.model(out)).stride == stride


def test_stride_of_unpadded_convolutions(toys):
    """Borders are lost, so the map is smaller than size / stride; how it grows still tells the stride."""
    t = toys.Toy()
    f = t.node("Relu", t.node("Conv", "image", t.random(toys.K, 3, 7, 7), strides=[4, 4]))
    _, out = head(t, toys, f)
    assert response_graph(t.model(out)).stride == 4


def test_different_strides_of_rows_and_columns_are_refused(toys):
    t = toys.Toy()
    f = t.node("Relu", t.node("Conv", "image", t.random(toys.K, 3, 4, 4), strides=[4, 2]))
    _, out = head(t, toys, f)
    with pytest.raises(ExportError, match="a row"):
        response_graph(t.model(out))


# --- the rule for reshape targets --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "free", "after", "expected"),
    [
        ((1, 8, 1, 1), (7, 8, 1, 1), (1, 8), (7, 8)),
        ((1, 8, 4, 6), (7, 8, 8, 18), (1, 8, 24), (7, 8, 144)),
        ((1, 8, 4, 6), (7, 8, 8, 18), (1, 2, 4, 4, 6), (7, 2, 4, 8, 18)),
        ((24, 1, 16), (24, 7, 16), (24, 4, 4), (24, 28, 4)),  # attention: L,N,E -> L,N*heads,d
        ((4, 24, 24), (28, 24, 24), (1, 4, 24, 24), (7, 4, 24, 24)),
        ((1, 24, 16), (7, 24, 16), (24, 16), (168, 16)),
        ((1, 24, 16), (1, 54, 16), (1, 4, 6, 16), None),  # which of rows and columns grew is not told
        ((1, 24), (1, 24), (4, 6), (4, 6)),
        ((24, 1, 32), (24, 7, 32), (24, 32), (168, 32)),
    ],
)
def test_free_target(before, free, after, expected):
    pieces = free_target(before, free, after)
    assert (None if pieces is None else tuple(_size(p, free) for p in pieces)) == expected


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_a_free_target_keeps_the_number_of_elements(tail, data):
    """Whatever target the rule gives, it fits the input at the exported size and at the other one."""
    before = (1, *tail)
    merged = data.draw(st.integers(1, len(before)))
    after = (*before[: merged - 1], prod(before[merged - 1 :]))
    free = (_BATCH_FACTOR, *tail)
    pieces = free_target(before, free, after)
    assert pieces is not None
    assert prod(_size(p, free) for p in pieces) == prod(free)
    assert tuple(_size(p, before) for p in pieces) == after
    back = free_target(after, tuple(_size(p, free) for p in pieces), before)
    if back is not None:
        assert tuple(_size(p, tuple(_size(q, free) for q in pieces)) for p in back) == free


def test_a_graph_that_does_not_run_is_refused(toys):
    t = toys.Toy(shape=(1, 3, 32, 32))
    f = t.node("Relu", t.node("Add", t.features(), t.const(t.array(1, toys.K, 5, 5)), name="misfit"))
    _, out = head(t, toys, f)
    with pytest.raises(ExportError, match="misfit"):
        response_graph(t.model(out))


def test_a_chain_of_five_hundred_nodes(toys):
    """No walk over a graph recurses: Python would stop it at 1,000 frames."""
    t = toys.Toy()
    y = t.features(channels=4)
    for _ in range(300):
        y = t.node("Relu", t.node("Conv", y, t.const(np.eye(4, dtype=np.float32)[:, :, None, None])))
    _, out = head(t, toys, y, 4)
    graph = response_graph(t.model(out))
    assert (graph.height, graph.stride) == (None, 4)


def test_half_of_the_channels_by_a_computed_bound(toys):
    """`x.chunk(2, 1)` between reshapes that bake the size: ShuffleNet."""
    t = toys.Toy(shape=(1, 3, 32, 32))
    f = t.features(channels=8)
    channels = t.node("Gather", t.node("Shape", f), t.const(np.array([1])), axis=0)
    half = t.node("Div", t.node("Add", channels, t.const(np.array([1]))), t.const(np.array([2])))
    y = t.node("Slice", f, t.const(np.array([0])), half, t.const(np.array([1])))
    y = t.node("Reshape", y, t.const(np.array([1, 2, 2, 8, 8])))
    y = t.node("Reshape", t.node("Transpose", y, perm=[0, 2, 1, 3, 4]), t.const(np.array([1, 4, 8, 8])))
    y = t.node("Relu", y)
    w, out = head(t, toys, y, 4)
    model = t.model(out)
    graph = response_graph(model)
    assert (graph.height, graph.width, graph.dynamic_batch) == (None, None, True)
    x = toys.picture(1, 32, 32)
    expected = np.einsum("ck,nkhw->nchw", w, toys.run(model, x, y)[0])
    np.testing.assert_allclose(toys.run(graph.model, x, "response")[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (4, 5, 6)])
def test_bytes_of_a_weight_by_its_dimensions(dtype, shape) -> None:
    value = np.zeros(shape, dtype)
    assert weight_bytes(numpy_helper.from_array(value)) == value.nbytes


def test_bytes_of_what_has_no_fixed_size() -> None:
    assert weight_bytes(helper.make_tensor("s", TensorProto.STRING, [1], ["abc"])) > 0


@pytest.mark.parametrize("declared", [(1, 3, 96, 128), ("N", 3, "H", "W")])
def test_where_batch_and_size_are_not_free_together_the_batch_is(toys, monkeypatch, declared):
    real = dynamic._try

    def not_both(*args, batch=False, multiple=0):
        if batch and multiple:
            raise dynamic._Prevented("the two together fail")
        return real(*args, batch=batch, multiple=multiple)

    monkeypatch.setattr(dynamic, "_try", not_both)
    t = toys.Toy(shape=declared)
    _, out = head(t, toys, t.features())
    graph = response_graph(t.model(out))
    size = (96, 128) if declared[0] == 1 else (224, 224)
    assert (graph.height, graph.width, graph.dynamic_batch) == (*size, True)
    assert any("batch is free instead" in n and "together fail" in n for n in graph.notes)
    runs_at(toys, graph, (1, *size), (3, *size))


@pytest.mark.parametrize(("cut", "cells"), [(7, "8x8"), (1, "14x14")])
def test_a_fixed_size_is_warned_of_and_so_are_cells_that_are_too_large(toys, cut, cells):
    """VGG at 448: a convolution without padding cuts its 14x14 cells to 8x8, of 56 pixels each."""
    t = toys.Toy(shape=(1, 3, 448, 448))
    y = t.features()
    for _ in range(3):
        y = t.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = t.node("Conv", y, t.random(4, toys.K, cut, cut))
    y = t.node("Add", y, t.random(1, 4, *map(int, cells.split("x"))))
    _, out = head(t, toys, y, 4)
    notes = [n for n in response_graph(t.model(out)).notes if n.startswith("warning")]
    assert "the size is fixed: larger views than 448x448 are seen in overlapping windows" in notes[-1]
    assert [cells in n and "more than 48" in n for n in notes[:-1]] == [True] * (cut == 7)
