"""Batch norms folded into the layer before, or made a scale and a shift: the same function, and when not to."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from infercam.export.graph.batch_norms import fold_batch_norms
from infercam.export.graph.surgery import response_graph
from infercam.export.precision.calibrate import float_tensors, magnitudes
from infercam.export.precision.half import FP16, emulated, to_half
from infercam.export.runtime import GraphSession

LAYERS = [
    "conv",
    "depthwise",
    "grouped",
    "transposed",
    "transposed_grouped",
    "gemm",
    "gemm_transposed",
    "matmul",
]


class Norm:
    """The parameters of a batch norm of `channels`, and its twin in float64."""

    def __init__(self, toy, channels: int, epsilon: float | None = None, dtype=np.float32) -> None:
        rng = toy.rng
        values = (
            *(rng.normal(0, 1, channels), rng.normal(0, 1, channels)),
            *(rng.normal(0, 2, channels), rng.uniform(0.01, 4, channels)),
        )
        self.values = [v.astype(dtype) for v in values]
        self.at = {} if epsilon is None else {"epsilon": epsilon}

    def add(self, toy, x: str, **at) -> str:
        return toy.node("BatchNormalization", x, *(toy.const(v) for v in self.values), **(self.at | at))

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        gamma, beta, mean, variance = (v.astype(np.float64) for v in self.values)
        scale = gamma / np.sqrt(variance + np.float32(self.at.get("epsilon", 1e-5)))
        return scale, beta - mean * scale

    def of(self, x: np.ndarray) -> np.ndarray:
        scale, shift = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in self.factors())
        return x.astype(np.float64) * scale + shift


def layer(toy, kind: str, x: str, channels: int, bias: bool) -> str:
    """A layer of 6 channels in and `channels` out."""
    extra = [toy.random(channels)] if bias else []
    if kind == "matmul":
        return toy.node("MatMul", x, toy.random(6, channels))
    if kind == "gemm":
        return toy.node("Gemm", x, toy.random(6, channels), *extra, alpha=0.5, beta=2.0)
    if kind == "gemm_transposed":
        return toy.node("Gemm", x, toy.random(channels, 6), *extra, transB=1, beta=0.25)
    group = {"depthwise": 6, "grouped": 2, "transposed_grouped": 3}.get(kind, 1)
    if kind.startswith("transposed"):
        weight = toy.random(6, channels // group, 2, 3)
        return toy.node("ConvTranspose", x, weight, *extra, group=group, strides=[2, 2])
    weight = toy.random(channels, 6 // group, 3, 2)
    return toy.node("Conv", x, weight, *extra, group=group, strides=[2, 1], pads=[1, 1, 0, 1])


def layered(toys, kind: str, channels: int, bias: bool, epsilon: float | None, opset: int, seed: int):
    """A model with a layer and a batch norm behind it; its input; the batch norm."""
    matrix = kind in ("gemm", "gemm_transposed", "matmul")
    t = toys.Toy(shape=("N", 6) if matrix else ("N", 6, "H", "W"), opset=opset, seed=seed)
    y = layer(t, kind, "image", channels, bias)
    norm = Norm(t, channels, epsilon)
    model = t.model(norm.add(t, y))
    x = t.rng.standard_normal((3, 6) if matrix else (2, 6, 5, 7), dtype=np.float32)
    return model, y, x, norm


def operators(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def near(got: np.ndarray, want: np.ndarray, tolerance: float = 2e-6) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("kind", LAYERS)
@settings(max_examples=12, deadline=None)
@given(
    groups=st.integers(1, 3),
    bias=st.booleans(),
    epsilon=st.sampled_from([None, 1e-3, 0.1]),
    opset=st.sampled_from([11, 13, 14, 17, 21]),
    seed=st.integers(0, 999),
)
def test_folded_into_the_layer_before(toys, kind, groups, bias, epsilon, opset, seed) -> None:
    channels = 6 * groups
    model, before, x, norm = layered(toys, kind, channels, bias, epsilon, opset, seed)
    want = norm.of(toys.run(model, x, before)[0])
    notes = fold_batch_norms(model)
    expected = {"matmul": "Gemm", "gemm_transposed": "Gemm", "gemm": "Gemm"}.get(kind, "Conv")
    assert operators(model) == ["ConvTranspose" if kind.startswith("transposed") else expected]
    assert notes == ["batch norms: 1 folded into the layer before"]
    near(toys.run(model, x)[0], want)
    assert len(model.graph.initializer) == 2  # what was folded is gone


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), epsilon=st.sampled_from([None, 1e-3]), channels=st.integers(1, 9))
def test_before_a_layer_it_becomes_a_scale_and_a_shift(toys, seed, epsilon, channels) -> None:
    """Pre-activation: BN -> ReLU -> Conv. The form that stays has mean 0 and variance 1."""
    t = toys.Toy(shape=("N", channels, "H", "W"), seed=seed)
    norm = Norm(t, channels, epsilon)
    y = norm.add(t, "image")
    model = t.model(t.node("Conv", t.node("Relu", y), t.random(4, channels, 3, 3), pads=[1] * 4))
    x = t.rng.standard_normal((2, channels, 5, 7), dtype=np.float32)
    want = toys.run(model, x)[0]
    assert fold_batch_norms(model) == ["batch norms: 1 made a scale and a shift"]
    assert operators(model) == ["BatchNormalization", "Relu", "Conv"]
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    scale, shift, mean, variance = (weights[i] for i in model.graph.node[0].input[1:])
    np.testing.assert_allclose(scale, norm.factors()[0], rtol=1e-3 if epsilon else 1e-5)
    np.testing.assert_array_equal(shift, norm.factors()[1].astype(np.float32))
    assert not mean.any() and (variance == 1).all()
    near(toys.run(model, x)[0], want)
    near(toys.run(model, x, y)[0], norm.of(x))


def test_several_batch_norms_after_one_layer(toys) -> None:
    t = toys.Toy(shape=("N", 6, "H", "W"))
    first, second = Norm(t, 4), Norm(t, 4, 1e-2)
    y = t.node("Conv", "image", t.random(4, 6, 1, 1))
    model = t.model(second.add(t, first.add(t, y)))
    x = t.rng.standard_normal((1, 6, 5, 4), dtype=np.float32)
    want = second.of(first.of(toys.run(model, x, y)[0]))
    assert fold_batch_norms(model) == ["batch norms: 2 folded into the layer before"]
    assert operators(model) == ["Conv"]
    near(toys.run(model, x)[0], want)


@pytest.mark.parametrize("reader", ["node", "output", "two_norms", "weight_shared"])
def test_what_else_reads_the_layer_is_not_changed(toys, reader) -> None:
    t = toys.Toy(shape=("N", 6, "H", "W"))
    weight = t.random(6, 6, 1, 1)
    y = t.node("Conv", "image", weight)
    outputs = [Norm(t, 6).add(t, y)]
    if reader == "node":
        outputs.append(t.node("Relu", y))
    if reader == "output":
        outputs.append(y)
    if reader == "two_norms":
        outputs.append(Norm(t, 6).add(t, y))
    if reader == "weight_shared":  # of two convolutions: one is folded, with a weight of its own
        outputs.append(t.node("Conv", "image", weight))
    model = t.model(*outputs)
    x = t.rng.standard_normal((1, 6, 3, 4), dtype=np.float32)
    want = toys.run(model, x)
    notes = fold_batch_norms(model)
    assert (notes == ["batch norms: 1 folded into the layer before"]) == (reader == "weight_shared")
    for ours, theirs in zip(toys.run(model, x), want, strict=True):
        near(ours, theirs)


@pytest.mark.parametrize(
    "kind", ["matrix_of_rank_3", "bias_of_every_row", "bias_computed", "weight_computed"]
)
def test_layers_that_cannot_take_it(toys, kind) -> None:
    """The batch norm's channel is another axis than the layer's, or what must be changed is no constant."""
    t = toys.Toy(
        shape=(3, 6) if kind == "bias_of_every_row" else ("N", 3, 6) if "rank" in kind else ("N", 6, "H", "W")
    )
    if kind == "matrix_of_rank_3":
        y, channels = t.node("MatMul", "image", t.random(6, 3)), 3
    elif kind == "bias_of_every_row":
        y, channels = t.node("Gemm", "image", t.random(6, 4), t.random(3, 4)), 4
    else:
        pooled = t.node("ReduceMean", "image", axes=[0, 2, 3], keepdims=0)
        inputs = [t.random(6, 6, 1, 1), pooled]
        if kind == "weight_computed":
            shape = t.const(np.array([1, 6, 1, 1]))
            inputs = [t.node("Mul", inputs[0], t.node("Reshape", pooled, shape))]
        y, channels = t.node("Conv", "image", *inputs), 6
    model = t.model(Norm(t, channels).add(t, y))
    x = t.rng.standard_normal(
        (3, 6) if "row" in kind else (2, 3, 6) if "rank" in kind else (2, 6, 3, 4)
    ).astype(np.float32)
    want = toys.run(model, x)[0]
    assert fold_batch_norms(model) == ["batch norms: 1 made a scale and a shift"]
    near(toys.run(model, x)[0], want)


@pytest.mark.parametrize("kind", ["training", "old_training", "computed", "variance", "per_position"])
def test_batch_norms_that_are_left_alone(toys, kind) -> None:
    t = toys.Toy(shape=("N", 6, "H", "W"), opset={"old_training": 13, "per_position": 8}.get(kind, 17))
    norm = Norm(t, 6)
    if kind == "variance":
        norm.values[3][2] = -1
    y = t.node("Conv", "image", t.random(6, 6, 1, 1))
    if kind == "computed":
        values = [t.const(v) for v in norm.values]
        values[1] = t.node("ReduceMean", "image", axes=[0, 2, 3], keepdims=0)
        out = t.node("BatchNormalization", y, *values)
    else:
        at = {"training": {"training_mode": 1}, "per_position": {"spatial": 0}}.get(kind, {})
        out = norm.add(t, y, **at)
    if kind == "old_training":
        t.nodes[-1].output.extend(["mean", "variance", "saved_mean", "saved_variance"])
    model = t.model(out)
    before = copied(model)
    (note,) = fold_batch_norms(model)
    assert model == before
    words = {"computed": "no constants", "variance": "not finite", "per_position": "every position"}
    assert note.startswith(f"node '{t.nodes[-1].name}' (BatchNormalization) is left as it is")
    assert words.get(kind, "evaluation mode") in note


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_half_precision_weights_are_rounded_once(toys, seed) -> None:
    t = toys.Toy(shape=("N", 4, "H", "W"), seed=seed)
    weight, bias = t.array(4, 4, 1, 1).astype(np.float16), t.array(4).astype(np.float16)
    norm = Norm(t, 4, dtype=np.float16)
    y = t.node("Conv", "image", t.const(weight), t.const(bias))
    info = helper.make_tensor_value_info("image", TensorProto.FLOAT16, ["N", 4, "H", "W"])
    model = t.model(norm.add(t, y), inputs=[info], elem=TensorProto.FLOAT16)
    fold_batch_norms(model)
    scale, shift = norm.factors()
    got = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    folded, added = (got[i] for i in model.graph.node[0].input[1:])
    assert folded.dtype == added.dtype == np.float16
    np.testing.assert_array_equal(
        folded, (weight.astype(np.float64) * scale.reshape(-1, 1, 1, 1)).astype(np.float16)
    )
    np.testing.assert_array_equal(added, (bias.astype(np.float64) * scale + shift).astype(np.float16))
    x = t.rng.standard_normal((1, 4, 3, 3)).astype(np.float16)
    assert ReferenceEvaluator(model).run(None, {"image": x})[0].dtype == np.float16


def residual(toys, seed: int = 0, wide: float = 1.0):
    """A small pre-activation ResNet: two blocks, batch norms before and behind convolutions; raw convolutions are
    `wide` times as large as what the batch norms make of them."""
    t = toys.Toy(seed=seed)

    def active(x: str, channels: int, variance: float = 1.0) -> str:
        norm = Norm(t, channels)
        norm.values[0], norm.values[2] = abs(norm.values[0]) + 0.5, norm.values[2] * np.float32(variance)
        norm.values[3] = (norm.values[3] + 1) * np.float32(variance**2)
        return t.node("Relu", norm.add(t, x))

    x = t.node("Conv", "image", t.random(8, 3, 3, 3), strides=[2, 2], pads=[1] * 4)
    for _ in range(2):
        y = t.node("Conv", active(x, 8), t.random(8, 8, 3, 3, scale=0.2 * wide), pads=[1] * 4)
        y = t.node("Conv", active(y, 8, wide), t.random(8, 8, 3, 3, scale=0.2), pads=[1] * 4)
        x = t.node("Add", x, y)
    y = t.node("GlobalAveragePool", active(x, 8))
    return t.model(t.node("Gemm", t.node("Flatten", y), t.random(8, 5)))


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99))
def test_surgery_folds_and_can_be_told_not_to(toys, seed) -> None:
    model = residual(toys, seed)
    folded, plain = response_graph(model), response_graph(model, fold_batch_norm=False)
    assert folded.notes == ["batch norms: 2 folded into the layer before, 3 made a scale and a shift"]
    assert not plain.notes
    count = [operators(g.model).count("BatchNormalization") for g in (folded, plain)]
    assert count == [3, 5]
    x = toys.picture(2, 37, 41, seed)
    for ours, theirs in zip(toys.run(folded.model, x), toys.run(plain.model, x), strict=True):
        near(ours, theirs, 1e-5)


def test_half_precision_overflows_less(toys) -> None:
    """A convolution's raw sums may be beyond what fp16 holds where its batch norm's are not."""
    model = residual(toys, wide=3e4)
    x = toys.picture(1, 37, 41)
    kept = {}
    for fold in (False, True):
        graph = response_graph(model, fold_batch_norm=fold).model
        seen = magnitudes(graph, float_tensors(graph), [x])
        half = to_half(graph, FP16, ranges={n: m.largest for n, m in seen.items()})
        kept[fold] = [n for n, why in half.kept.items() if "its values reach" in why or "weight" in why]
        bare = emulated(to_half(graph, FP16).model)
        want = GraphSession(graph).run(x)[1]
        error = np.abs(GraphSession(bare).run(x)[1] - want).max() / np.abs(want).max()
        assert error < 0.02 if fold else not error < 0.02
    assert kept[True] == [] and len(kept[False]) >= 2
