"""Class-token heads: the customary map is the head over the patch tokens, positions follow the picture's size."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from infercam.engine.common.errors import ExportError
from infercam.export.graph.surgery import response_graph
from infercam.export.graph.wishes import MapWishes
from tests.export.graph.vit_graphs import HEADS, PATCH, C, D, Vit


def on_patches(vit, matrix, tokens) -> np.ndarray:
    """matrix (C, D) over the patch tokens: N×C×h×w."""
    return np.einsum("ck,nlk->ncl", matrix, tokens[:, vit.extra :]).reshape(len(tokens), C, *vit.grid)


def check(toys, vit, model, want, *, n=2, **options):
    """Response and scores of pictures at the model's own size; `want`: tokens -> response."""
    graph = response_graph(model, **options)
    x = toys.picture(n, *vit.size)
    scores, response = toys.run(graph.model, x, "scores", "response")
    np.testing.assert_allclose(response, want(vit.tokens(x)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores, vit.logits(model, x), rtol=1e-4, atol=1e-5)
    assert (graph.decomposition, graph.method) == ("none", "patch-tokens")
    assert any("customary, not exact" in n for n in graph.notes)
    return graph


@pytest.mark.parametrize(("opset", "rank"), [(13, 3), (17, 4), (18, 3), (22, 4)])
def test_patch_tokens_through_the_head(toys, opset, rank):
    vit = Vit(toys, opset=opset)
    if opset < 17:
        vit._norm = lambda t, y, gamma, beta: _written_out(t, y, vit.w[gamma], vit.w[beta])
    model = vit.classifier(rank=rank)
    graph = check(toys, vit, model, lambda tokens: on_patches(vit, vit.w["head"], tokens))
    np.testing.assert_allclose(graph.bias, vit.w["head.b"])
    assert graph.stride == PATCH


def _written_out(t, y, gamma, beta):
    centred = t.node("Sub", y, t.node("ReduceMean", y, axes=[-1]))
    variance = t.node("ReduceMean", t.node("Mul", centred, centred), axes=[-1])
    y = t.node("Div", centred, t.node("Sqrt", t.node("Add", variance, t.const(np.float32(1e-5)))))
    return t.node("Add", t.node("Mul", y, t.const(gamma)), t.const(beta))


def test_positions_in_an_old_opset(toys):
    """Resize took an empty scale then. The batch stays 1: ONNX's inference tells nothing behind a repeated token."""
    vit = Vit(toys, opset=11)
    vit._norm = lambda t, y, gamma, beta: _written_out(t, y, vit.w[gamma], vit.w[beta])
    model = vit.classifier()
    graph = check(toys, vit, model, lambda tokens: on_patches(vit, vit.w["head"], tokens), n=1)
    assert graph.height is None and not graph.dynamic_batch


def test_registers_are_no_patches(toys):
    vit = Vit(toys, extra=5)
    check(toys, vit, vit.classifier(), lambda tokens: on_patches(vit, vit.w["head"], tokens))


def test_one_of_several_class_tokens(toys):
    vit = Vit(toys, extra=2)
    check(toys, vit, vit.classifier(take=1), lambda tokens: on_patches(vit, vit.w["head"], tokens))


@pytest.mark.parametrize("take", ["Gather", "Slice", "Split"])
def test_distillation_averages_two_heads(toys, take):
    """DeiT: both heads over the same patch tokens, averaged as the scores are."""
    vit = Vit(toys, extra=2)
    t = vit.toy()
    y = vit.trunk(t)
    if take == "Gather":
        tokens = [t.node("Gather", y, t.const(np.int64(i)), axis=1) for i in (0, 1)]
    elif take == "Slice":
        tokens = [
            t.node(
                "Squeeze",
                t.node("Slice", y, *(t.const(np.array([v])) for v in (i, i + 1, 1))),
                t.const(np.array([1])),
            )
            for i in (0, 1)
        ]
    else:
        node = helper.make_node(
            "Split", [y, t.const(np.array([1, 1, 24]))], ["s0", "s1", "s2"], axis=1, name="split"
        )
        t.nodes.append(node)
        tokens = [t.node("Reshape", s, t.const(np.array([-1, D]))) for s in ("s0", "s1")]
    heads = [
        t.node("Gemm", z, t.const(vit.w[f"head{i}"]), t.const(vit.w[f"head{i}.b"]), transB=1)
        for z, i in zip(tokens, ("", "2"), strict=True)
    ]
    model = t.model(t.node("Div", t.node("Add", *heads), t.const(np.float32(2))))
    both = (vit.w["head"] + vit.w["head2"]) / 2
    graph = check(toys, vit, model, lambda tokens: on_patches(vit, both, tokens))
    np.testing.assert_allclose(graph.bias, (vit.w["head.b"] + vit.w["head2.b"]) / 2, rtol=1e-6)


def test_the_mean_beside_the_class_token_stays_exact(toys):
    """DINOv2's linear head: [class token; mean of the patches]. The mean's half of the map has the mean's scores."""
    vit = Vit(toys, extra=1)
    t = vit.toy()
    y = vit.trunk(t)
    token = t.node("Gather", y, t.const(np.int64(0)), axis=1)
    patches = t.node("Slice", y, *(t.const(np.array([v])) for v in (1, 1 << 40, 1)))
    mean = t.node("ReduceMean", patches, axes=[1], keepdims=0)
    model = t.model(t.node("MatMul", t.node("Concat", token, mean, axis=1), t.const(vit.w["wide"].T.copy())))
    of_class, of_mean = vit.w["wide"][:, :D], vit.w["wide"][:, D:]
    check(toys, vit, model, lambda tokens: on_patches(vit, of_class + of_mean, tokens))
    x = toys.picture(2, *vit.size)
    tokens = vit.tokens(x)
    exact = on_patches(vit, of_mean, tokens).mean(axis=(2, 3))
    scores = toys.run(response_graph(model).model, x, "scores")[0]
    np.testing.assert_allclose(exact + tokens[:, 0] @ of_class.T, scores, rtol=1e-4, atol=1e-5)


def layer_norm(x, gamma, beta):
    x = x.astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * gamma + beta


@pytest.mark.parametrize("batch_in_shape", [False, True])
def test_a_norm_after_the_class_token_is_each_patchs_own(toys, batch_in_shape):
    """PiT and CLIP take the token first and norm it then: each patch is normed by its own mean and deviation."""
    vit = Vit(toys)

    def after(t, y):
        y = t.node("Reshape", y, t.const(np.array([1, D]))) if batch_in_shape else y
        return vit._norm(t, y, "gamma", "beta", name="late_norm")

    check_late_norm(toys, vit, vit.classifier(norm=False, after=after))


def test_a_class_token_cut_off_at_a_computed_bound_before_the_norm(toys):
    """PiT: tokens[:, :n], n from a shape that only a run tells, then the norm, then [:, 0]."""
    vit = Vit(toys)
    t = vit.toy()
    y = vit.trunk(t, norm=False)
    length = t.node("Gather", t.node("Shape", y), t.const(np.array([1])), axis=0)
    more = t.node("Sub", length, t.const(np.array([vit.grid[0] * vit.grid[1]])))
    bound = t.node("ReduceMin", more, keepdims=1)
    one, zero = t.const(np.array([1])), t.const(np.array([0]))
    y = vit._norm(t, t.node("Slice", y, zero, bound, one, one, name="cut"), "gamma", "beta")
    y = t.node("Gather", y, t.const(np.int64(0)), axis=1)
    model = t.model(t.node("Gemm", y, t.const(vit.w["head"]), t.const(vit.w["head.b"]), transB=1))
    check_late_norm(toys, vit, model)


def check_late_norm(toys, vit, model):
    w = vit.w
    graph = response_graph(model)
    x = toys.picture(2, *vit.size)
    normed = layer_norm(vit.tokens(x, norm=False), w["gamma"], 0)  # its shift goes into the bias
    scores, response = toys.run(graph.model, x, "scores", "response")
    np.testing.assert_allclose(response, on_patches(vit, w["head"], normed), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores, vit.logits(model, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(graph.bias, w["head"] @ w["beta"] + w["head.b"], rtol=1e-5)
    assert not graph.per_image_bias


def test_a_pooler_with_tanh_goes_over_every_patch(toys):
    """ViT's representation layer: linear, tanh, linear."""
    vit = Vit(toys)
    hidden = vit.w["0.q"]
    model = vit.classifier(after=lambda t, y: t.node("Tanh", t.node("MatMul", y, t.const(hidden))))
    check(toys, vit, model, lambda tokens: on_patches(vit, vit.w["head"], np.tanh(tokens @ hidden)))
    kept = response_graph(model, keep_classes=[3, 0])
    x = toys.picture(1, *vit.size)
    all_scores, all_maps = toys.run(response_graph(model).model, x)
    scores, maps = toys.run(kept.model, x)
    np.testing.assert_allclose(scores, all_scores[:, [3, 0]], rtol=1e-5)
    np.testing.assert_allclose(maps, all_maps[:, [3, 0]], rtol=1e-4, atol=1e-6)


def test_kept_classes(toys):
    vit = Vit(toys)
    rows = [4, 1]
    graph = response_graph(vit.classifier(), keep_classes=rows)
    x = toys.picture(2, *vit.size)
    scores, response = toys.run(graph.model, x)
    np.testing.assert_allclose(scores, vit.logits(vit.classifier(), x)[:, rows], rtol=1e-4, atol=1e-5)
    want = on_patches(vit, vit.w["head"], vit.tokens(x))[:, rows]
    np.testing.assert_allclose(response, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(graph.bias, vit.w["head.b"][rows])


@pytest.mark.parametrize("rank", [4, 3])
@pytest.mark.parametrize("extra", [1, 3])
def test_attention_times_the_map(toys, rank, extra):
    """The last block's, from the class token, averaged over heads; of mean 1 over all tokens."""
    vit = Vit(toys, extra=extra)
    graph = response_graph(vit.classifier(rank=rank), maps=MapWishes(attention=True))
    x = toys.picture(2, *vit.size)
    attention = vit.weights(x, vit.blocks - 1, rank=rank).mean(1)[:, 0]
    assert attention.shape == (2, extra + 24)
    np.testing.assert_allclose(attention.sum(1), 1, rtol=1e-5)
    weights = attention[:, extra:].reshape(2, 1, *vit.grid) * attention.shape[1]
    want = on_patches(vit, vit.w["head"], vit.tokens(x)) * weights
    np.testing.assert_allclose(toys.run(graph.model, x, "response")[0], want, rtol=1e-4, atol=1e-5)
    assert graph.method == "patch-tokens-attention" and HEADS > 1


# --- sizes -------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), extra=st.sampled_from([1, 3]))
def test_positions_follow_the_picture(toys, rows, columns, extra):
    """The freed graph at any size is the network built at that size with PyTorch's bicubic table."""
    pytest.importorskip("torch")
    graph, vit = _freed(toys, extra)
    other = vit.enlarged((rows * PATCH, columns * PATCH))
    x = toys.picture(2, *other.size)
    scores, response = toys.run(graph.model, x)
    np.testing.assert_allclose(
        response, on_patches(other, vit.w["head"], other.tokens(x)), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(scores, other.logits(other.classifier(), x), rtol=1e-3, atol=1e-4)


_FREED: dict[int, tuple] = {}


def _freed(toys, extra):
    if extra not in _FREED:
        vit = Vit(toys, extra=extra)
        _FREED[extra] = response_graph(vit.classifier()), vit
    return _FREED[extra]


def test_sides_are_multiples_of_the_patch(toys):
    graph, _ = _freed(toys, 1)
    assert (graph.height, graph.width, graph.dynamic_batch) == (None, None, True)
    assert (graph.multiple, graph.smallest) == (PATCH, PATCH)
    assert any("4x6 positions are interpolated (bicubic)" in n for n in graph.notes)


def test_positions_of_a_mean_over_patches_follow_too(toys):
    """An exact head: nothing about it changes but the sizes."""
    pytest.importorskip("torch")
    vit = Vit(toys, extra=0)

    def model(v):
        t = v.toy()
        y = t.node("ReduceMean", v.trunk(t), axes=[1], keepdims=0)
        return t.model(t.node("Gemm", y, t.const(v.w["head"]), t.const(v.w["head.b"]), transB=1))

    graph = response_graph(model(vit))
    assert (graph.height, graph.multiple, graph.decomposition, graph.method) == (None, PATCH, "mean", "cam")
    other = vit.enlarged((56, 24))
    x = toys.picture(2, *other.size)
    scores = toys.run(graph.model, x, "scores")[0]
    np.testing.assert_allclose(scores, other.logits(model(other), x), rtol=1e-3, atol=1e-4)


# --- refusals ----------------------------------------------------------------------------------------------


def test_patches_must_come_last(toys):
    vit = Vit(toys)
    with pytest.raises(ExportError, match=r"'prepend'.*tokens after the patches of node 'patch_embed'"):
        response_graph(vit.classifier(order="last"))


def test_a_table_that_is_joined_in_the_graph_is_no_sequence_of_tokens(toys):
    """Its last part is a constant too, and no token after the patches."""
    vit = Vit(toys)
    t = vit.toy()
    whole = t.node("Concat", t.const(vit.table[:, :1]), t.const(vit.table[:, 1:]), axis=1)
    wanted, t.const = t.const, lambda v, *name: whole if v is vit.table else wanted(v, *name)
    y = t.node("Gather", vit.trunk(t), t.const(np.int64(0)), axis=1)
    model = t.model(t.node("Gemm", y, t.const(vit.w["head"]), t.const(vit.w["head.b"]), transB=1))
    check(toys, vit, model, lambda tokens: on_patches(vit, vit.w["head"], tokens))


def test_a_class_token_without_a_linear_layer_is_no_classifier(toys):
    vit = Vit(toys)
    t = vit.toy()
    model = t.model(t.node("Gather", vit.trunk(t), t.const(np.int64(0)), axis=1, name="take_class"))
    with pytest.raises(ExportError, match=r"'take_class'.*no linear layer after the class token"):
        response_graph(model)


def test_attention_needs_a_class_token(toys):
    t = toys.Toy()
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features()))
    model = t.model(t.node("Gemm", y, t.random(toys.K, toys.C)))
    with pytest.raises(ExportError, match="reads no class token: --attention"):
        response_graph(model, maps=MapWishes(attention=True))


def test_attention_as_one_operator_gives_no_weights(toys):
    vit = Vit(toys, opset=23)

    def fused(t, y, b, rank):
        q, k, v = (t.node("MatMul", y, t.const(vit.w[f"{b}.{n}"])) for n in "qkv")
        return t.node("Attention", q, k, v, q_num_heads=HEADS, kv_num_heads=HEADS, name=f"fused{b}")

    vit._attention = fused
    assert onnx.defs.onnx_opset_version() >= 23
    model = vit.classifier()
    assert response_graph(model).decomposition == "none"  # the map itself needs no weights
    with pytest.raises(ExportError, match=r"\(Attention\): attention as one operator.*opset 22 or older"):
        response_graph(model, maps=MapWishes(attention=True))


def test_a_sequence_of_another_grid_is_refused(toys):
    """Tokens merged after the embedding: their grid is not the convolution's."""
    vit = Vit(toys, extra=1)
    t = vit.toy()
    y = vit.trunk(t)
    y = t.node("Slice", y, *(t.const(np.array([v])) for v in (0, 13, 1)))
    y = t.node("Gather", y, t.const(np.int64(0)), axis=1, name="take_class")
    model = t.model(t.node("Gemm", y, t.const(vit.w["head"]), transB=1))
    with pytest.raises(ExportError, match=r"'take_class'.*class token.*grid of its patch tokens"):
        response_graph(model)
