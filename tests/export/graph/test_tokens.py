"""Heads over transformer tokens: the grid from the patch embedding, class tokens, patch merging."""

from __future__ import annotations

import numpy as np
import pytest

from infercam.engine.common.errors import ExportError
from infercam.export.graph.surgery import response_graph

D = 8  # token width


def layer_norm(t, y, width, name=None):
    return t.node(
        "LayerNormalization",
        y,
        t.const(t.array(width) + 1),
        t.random(width),
        name=name,
        axis=-1,
        epsilon=1e-5,
    )


def vit(
    toys,
    *,
    size=(32, 48),
    batch="N",
    position=True,
    class_token=False,
    drop_class=True,
    read="mean",
    patch=8,
    normed=True,
    pool="tokens",
    fixed=True,
):
    """Patch embedding -> tokens -> (class token, positions) -> mixing block -> norm -> mean -> linear."""
    t = toys.Toy(shape=(batch, 3, *size) if fixed else (batch, 3, "H", "W"))
    y = t.node(
        "Conv", "image", t.random(D, 3, patch, patch), t.random(D), strides=[patch] * 2, name="patch_embed"
    )
    tokens = size[0] // patch * (size[1] // patch)
    y = t.node("Reshape", y, t.const(np.array([0, D, -1])), name="flatten_patches")
    y = t.node("Transpose", y, perm=[0, 2, 1])
    if class_token:
        y = t.node("Concat", t.const(t.array(1, 1, D)), y, axis=1, name="prepend_class")
        tokens += 1
    if position:
        y = t.node("Add", y, t.const(t.array(1, tokens, D)), name="add_position")
    # attention without heads, so that tokens really mix
    scores = t.node("MatMul", y, t.node("Transpose", y, perm=[0, 2, 1]))
    y = t.node("Add", y, t.node("MatMul", t.node("Softmax", scores, axis=-1), y))
    if normed:
        y = layer_norm(t, y, D)
    if class_token and drop_class:
        y = t.node("Slice", y, t.const(np.array([1])), t.const(np.array([1 << 40])), t.const(np.array([1])))
    features = y
    if read == "class":
        y = t.node("Gather", y, t.const(np.int64(0)), axis=1, name="take_class")
    elif read == "class_slice":
        y = t.node("Slice", y, *(t.const(np.array([v])) for v in (0, 1, 1)), name="take_class")
        y = t.node("Reshape", y, t.const(np.array([-1, D])))
    elif pool == "channels_first":  # nn.AdaptiveAvgPool1d on transposed tokens
        y = t.node("Flatten", t.node("GlobalAveragePool", t.node("Transpose", y, perm=[0, 2, 1])))
    else:
        y = t.node("ReduceMean", y, axes=[1], keepdims=0, name="mean_tokens")
    w, b = t.array(toys.C, D), t.array(toys.C)
    return t, y, features, w, b


def close(t, y, w, b):
    return t.model(t.node("Gemm", y, t.const(w), t.const(b), transB=1, name="head"))


def check(toys, model, features, w, b, grid, size=(32, 48), batches=(1, 3)):
    graph = response_graph(model)
    for n in batches:
        x = toys.picture(n, *size)
        scores, response = toys.run(graph.model, x, "scores", "response")
        logits, tokens = [], []
        for i in range(n):
            y = toys.run(model, x[i : i + 1], model.graph.output[0].name, features)
            logits.append(y[0])
            tokens.append(y[1])
        expected = np.einsum("ck,nlk->ncl", w, np.concatenate(tokens)).reshape(n, -1, *grid)
        np.testing.assert_allclose(response, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores, np.concatenate(logits), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(graph.bias, b)
    return graph


@pytest.mark.parametrize("pool", ["tokens", "channels_first"])
@pytest.mark.parametrize("class_token", [False, True])
def test_mean_of_patch_tokens(toys, pool, class_token):
    """A grid of 4 by 6 that is not square, so that a transposed or squared guess would show."""
    t, y, f, w, b = vit(toys, pool=pool, class_token=class_token, batch=1 if class_token else "N")
    graph = check(toys, close(t, y, w, b), f, w, b, (4, 6))
    assert (graph.height, graph.width, graph.stride, graph.multiple) == (None, None, 8, 8)
    assert graph.dynamic_batch
    assert any("add_position" in n and "4x6 positions are interpolated" in n for n in graph.notes)


def test_class_token_baked_for_one_picture_is_repeated_for_a_batch(toys):
    t, y, f, w, b = vit(toys, class_token=True, batch=1)
    graph = check(toys, close(t, y, w, b), f, w, b, (4, 6), batches=(1, 2, 5))
    assert graph.dynamic_batch
    assert "Expand" in [n.op_type for n in graph.model.graph.node]


def test_without_position_embedding_any_size_runs(toys):
    t, y, f, w, b = vit(toys, position=False, fixed=False)
    model = close(t, y, w, b)
    graph = response_graph(model)
    assert (graph.height, graph.width, graph.dynamic_batch, graph.stride) == (None, None, True, 8)
    x = toys.picture(2, 40, 72)
    response = toys.run(graph.model, x, "response")[0]
    tokens = toys.run(model, x, f)[0]
    expected = np.einsum("ck,nlk->ncl", w, tokens).reshape(2, -1, 5, 9)
    np.testing.assert_allclose(response, expected, rtol=1e-4, atol=1e-5)


def test_token_linear_layer_before_the_mean(toys):
    t, _, f, w, b = vit(toys)
    y = t.node("Add", t.node("MatMul", f, t.const(w.T.copy())), t.const(b))
    model = t.model(t.node("ReduceMean", y, axes=[1], keepdims=0))
    check(toys, model, f, w, b, (4, 6))


def test_a_class_token_inside_the_mean_is_refused(toys):
    t, y, _, w, b = vit(toys, class_token=True, drop_class=False)
    with pytest.raises(ExportError, match=r"25 tokens, 1 more than the 4x6 patches of node 'patch_embed'"):
        response_graph(close(t, y, w, b))


def test_norm_after_the_mean(toys):
    """timm's fc_norm: its deviation is a scalar of the image."""
    t, y, features, w, b = vit(toys)
    g, shift = t.array(D) + 1, t.array(D)
    y = t.node("LayerNormalization", y, t.const(g), t.const(shift), name="fc_norm", axis=-1)
    model = close(t, y, w, b)
    graph = response_graph(model)
    assert not graph.per_image_bias
    x = toys.picture(2, 32, 48)
    scores, response = toys.run(graph.model, x)
    tokens = toys.run(model, x, features)[0].astype(np.float64)
    mean = tokens.mean(1)
    deviation = np.sqrt(mean.var(axis=1) + 1e-5)[:, None, None]
    want = ((tokens - mean.mean(1)[:, None, None]) / deviation * g) @ w.T.astype(np.float64)
    np.testing.assert_allclose(response.reshape(2, toys.C, 24).transpose(0, 2, 1), want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores, toys.run(model, x)[0], rtol=1e-4, atol=1e-4)


def test_patch_merging_halves_the_grid(toys):
    """Swin: 4x6 patches of 8 pixels become 2x3 tokens."""
    t = toys.Toy(shape=("N", 3, 32, 48))
    y = t.node("Conv", "image", t.random(D, 3, 8, 8), strides=[8, 8], name="patch_embed")
    y = t.node("Reshape", y, t.const(np.array([0, D, -1])))
    y = t.node("Transpose", y, perm=[0, 2, 1])
    y = t.node("Reshape", y, t.const(np.array([0, 2, 2, 3, 2 * D])))
    y = t.node("Transpose", y, perm=[0, 1, 3, 2, 4])
    y = t.node("Reshape", y, t.const(np.array([0, 6, 4 * D])))
    y = layer_norm(t, t.node("MatMul", y, t.random(4 * D, D)), D)
    w, b = t.array(toys.C, D), t.array(toys.C)
    model = close(t, t.node("ReduceMean", y, axes=[1], keepdims=0), w, b)
    graph = check(toys, model, y, w, b, (2, 3))
    assert (graph.height, graph.width, graph.stride) == (32, 48, 16)


def test_tokens_without_a_patch_convolution(toys):
    """Patches cut by reshape: a square picture has a square grid, for any other there is no telling."""
    for size, grid in (((16, 16), (4, 4)), ((16, 32), None)):
        t = toys.Toy(shape=("N", 3, *size))
        h, w_ = size[0] // 4, size[1] // 4
        y = t.node("Reshape", "image", t.const(np.array([0, 3, h, 4, w_, 4])))
        y = t.node("Transpose", y, perm=[0, 2, 4, 1, 3, 5])
        y = t.node("Reshape", y, t.const(np.array([0, h * w_, 48])))
        y = t.node("Relu", t.node("MatMul", y, t.random(48, D)))
        w, b = t.array(toys.C, D), t.array(toys.C)
        model = close(t, t.node("ReduceMean", y, axes=[1], keepdims=0), w, b)
        if grid:
            check(toys, model, y, w, b, grid, size)
        else:
            with pytest.raises(ExportError, match="cannot tell the grid"):
                response_graph(model)


def test_patch_merging_of_any_size(toys):
    """Swin with free axes: how often the grid was halved is seen by running the source; padding rounds it up."""
    t = toys.Toy()
    y = t.node("Conv", "image", t.random(D, 3, 4, 4), strides=[4, 4], name="patch_embed")
    y = t.node("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    y = t.node("Transpose", t.node("Reshape", y, t.const(np.array([0, D, -1]))), perm=[0, 2, 1])
    y = layer_norm(t, y, D)
    w, b = t.array(toys.C, D), t.array(toys.C)
    model = close(t, t.node("ReduceMean", y, axes=[1], keepdims=0), w, b)
    graph = check(toys, model, y, w, b, (4, 6), size=(32, 48))
    check(toys, model, y, w, b, (5, 6), size=(36, 48))
    assert (graph.height, graph.width, graph.stride) == (None, None, 8)


def test_a_class_token_inside_the_mean_is_refused_at_any_size(toys):
    t, y, _, w, b = vit(toys, class_token=True, drop_class=False, position=False, fixed=False, batch=1)
    with pytest.raises(ExportError, match=r"65 tokens, 1 more than the 8x8 patches of node 'patch_embed'"):
        response_graph(close(t, y, w, b))
