"""Q/DQ graphs, where activations are cut, and which layers are left out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from infercam.engine.common.errors import ExportError
from infercam.export.compare import Agreement
from infercam.export.graph.index import attributes
from infercam.export.precision.calibrate import CLIPS, Magnitudes, float_tensors, magnitudes
from infercam.export.precision.half import FP16, emulated, to_half
from infercam.export.precision.leave_out import fewest_left_out
from infercam.export.precision.quantise import FP8, INT8, layers, prepared, quantised, rounding
from infercam.export.runtime import GraphSession
from tests.engine import tiny

X = np.random.default_rng(0).standard_normal((2, 3, 33, 47), dtype=np.float32)


def base(kind=INT8) -> onnx.ModelProto:
    return prepared(tiny.model(), kind)


def test_weights_are_per_channel_and_near(toys) -> None:
    model = base()
    chosen = layers(model, INT8)
    assert [x.output for x in chosen] == ["c0", "c1"], "not the response layer"
    graph = quantised(model, INT8, chosen, {"image": 4.0, "r0": 3.0})
    onnx.checker.check_model(graph, full_check=True)
    stored = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    weight = tiny.weights()["w0"]
    q, scale = stored["w0.int8"], stored["w0.scale"]
    assert q.dtype == np.int8 and np.abs(q.reshape(8, -1).astype(int)).max(axis=1).tolist() == [127] * 8
    assert (np.abs(q * scale[:, None, None, None] - weight) <= scale[:, None, None, None] * 0.5001).all()
    assert stored["image.scale"] == np.float32(4.0 / 127) and "w0" not in stored
    dq = next(n for n in graph.graph.node if "w0.int8" in n.input)
    assert attributes(dq)["axis"] == 0


def test_the_graph_computes_with_the_rounded_tensors() -> None:
    """Against the fp32 network fed with what the rounding leaves of picture and weights."""
    model = base()
    first = layers(model, INT8)[:1]
    got = GraphSession(quantised(model, INT8, first, {"image": 2.0})).run(X)[1]
    plain = tiny.model()
    for t in plain.graph.initializer:
        if t.name == "w0":
            w = numpy_helper.to_array(t)
            scale = (np.abs(w).reshape(8, -1).max(axis=1) / 127)[:, None, None, None].astype(np.float32)
            t.CopyFrom(numpy_helper.from_array((np.rint(w / scale) * scale).astype(np.float32), "w0"))
    x = (np.clip(np.rint(X * np.float32(127 / 2)), -128, 127) * np.float32(2 / 127)).astype(np.float32)
    np.testing.assert_allclose(got, GraphSession(plain).run(x)[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("transposed", "axis"), [(1, 0), (0, 1)], ids=["Gemm with transB", "Gemm"])
def test_axis_of_a_gemm(toys, transposed: int, axis: int) -> None:
    toy = toys.Toy()
    flat = toy.node("Flatten", toy.node("GlobalAveragePool", toy.features()))
    shape = (4, 6) if transposed else (6, 4)
    out = toy.node("Gemm", flat, toy.random(*shape), transB=transposed)
    found = [x for x in layers(toy.model(out), INT8) if x.output == out]
    assert found[0].axis == axis


def test_fp8_skips_narrow_and_grouped_layers(toys) -> None:
    toy = toys.Toy()
    x = toy.node("Conv", "image", toy.random(32, 3, 1, 1), name="narrow")
    x = toy.node("Conv", x, toy.random(32, 32, 1, 1), name="wide")
    x = toy.node("Conv", x, toy.random(32, 1, 3, 3), group=32, name="depthwise")
    model = toy.model(x)
    assert [x.output for x in layers(model, FP8)] == ["wide_out"]
    assert len(layers(model, INT8)) == 3


def test_half_scales_survive_the_conversion() -> None:
    model = base()
    chosen = layers(model, INT8)
    graph = quantised(model, INT8, chosen, {"image": 4.0, "r0": 3.0}, half_scales=True)
    mixed = to_half(graph, FP16).model
    onnx.checker.check_model(mixed, full_check=True)
    stored = {t.name: t for t in mixed.graph.initializer}
    assert stored["w0.scale.fp16"].data_type == TensorProto.FLOAT16
    assert "w0.scale" not in stored
    got, want = (GraphSession(m).run(X)[1] for m in (emulated(mixed), graph))
    assert np.abs(got - want).max() < 0.03 * np.abs(want).max()


def test_a_quantised_graph_is_not_quantised_again() -> None:
    model = base()
    graph = quantised(model, INT8, layers(model, INT8), {"image": 4.0, "r0": 3.0})
    with pytest.raises(ExportError, match="quantised layers already"):
        prepared(graph, INT8)


def test_a_channel_of_zeros() -> None:
    model = tiny.model()
    for t in model.graph.initializer:
        if t.name == "w1":
            w = numpy_helper.to_array(t).copy()
            w[3] = 0
            t.CopyFrom(numpy_helper.from_array(w, "w1"))
    model = prepared(model, INT8)
    graph = quantised(model, INT8, layers(model, INT8), {"image": 0.0, "r0": 3.0})
    assert np.isfinite(GraphSession(graph).run(X)[1]).all()


@settings(max_examples=30)
@given(st.floats(1e-3, 1e3), st.lists(st.floats(0, 1e4), min_size=1, max_size=30))
def test_rounding(clip: float, values: list[float]) -> None:
    x = np.array(values)
    for kind in (INT8, FP8):
        got = rounding(x, clip, kind)
        inside = x <= clip
        assert (got <= clip * (1 + 1e-9)).all() and np.allclose(got[~inside], clip)
        bound = np.full(x.shape, clip / 254) if kind is INT8 else np.maximum(x / 16, clip / 448 * 2.0**-10)
        assert (np.abs(got - x)[inside] <= bound[inside] * (1 + 1e-9)).all()


# -- calibration -----------------------------------------------------------------------------------------------
@settings(max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200), st.sampled_from(CLIPS))
def test_every_rule_cuts_within_the_range(values: list[float], rule: str) -> None:
    m, x = Magnitudes(), np.array(values, np.float32)
    m.add(x, float(np.abs(x).max()))
    for kind in (INT8, FP8):
        assert 0 <= m.clip(rule, kind) <= m.largest


def test_percentiles_and_least_squares_of_a_heavy_tail() -> None:
    x = np.abs(np.random.default_rng(0).standard_normal(200_000)).astype(np.float32)
    x[0] = 500.0
    m = Magnitudes()
    for part in np.array_split(x, 7):
        m.add(part, float(part.max()))
    assert m.clip("largest", INT8) == 500.0
    assert m.clip("99.9 %", INT8) == pytest.approx(np.quantile(x, 0.999), rel=0.02)
    best = m.clip("least squares", INT8)

    def error(clip: float) -> float:
        return float(((rounding(x, clip, INT8) - x) ** 2).sum())

    assert error(best) < error(500.0) and error(best) <= 1.05 * min(error(500 * 2.0**-k) for k in range(7))


def test_magnitudes_of_a_graphs_tensors() -> None:
    model = tiny.model()
    tensors = float_tensors(model)
    assert tensors == ["c0", "r0", "c1", "r1", "response", "pooled", "flat", "scores"]
    steps = []
    found = magnitudes(model, tensors, [X[:1], X[1:]], lambda: steps.append(1))
    model.graph.output.extend(helper.make_empty_tensor_value_info(t) for t in ("c0", "r1"))
    scores, _, c0, r1 = GraphSession(model).run(X)
    for name, value in (("c0", c0), ("r1", r1), ("scores", scores)):
        assert found[name].largest == pytest.approx(np.abs(value).max(), rel=1e-5)
    assert len(steps) == 2 and found["c0"].counts.sum() + found["c0"].zeros == c0[:, :, ::3, ::3].size


# -- choice ----------------------------------------------------------------------------------------------------
def agreed(value: float) -> Agreement:
    return Agreement(
        views=1, maps=1, error=0, worst_error=0, iou=value, worst_iou=value, worst_image="p", overlap=value
    )


@settings(max_examples=30)
@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.floats(0, 0.1), min_size=1, max_size=20),
    st.floats(0, 1),
)
def test_the_fewest_and_costliest_are_left_out(costs: dict[str, float], aim: float) -> None:
    """With costs that add up, bisection finds the least number, and no cheaper part goes before a dearer one."""

    def lowered(parts):
        return agreed(1 - sum(costs[p] for p in parts) / 2)

    parts = list(costs)
    kept, gone, found = fewest_left_out(parts, lowered, lambda p: 1 - costs[p], aim, lowered(parts))
    assert sorted([*kept, *gone]) == sorted(parts) and [p for p in parts if p in kept] == kept
    assert found == lowered(kept) and found.iou >= aim
    if gone:
        assert min(costs[p] for p in gone) >= max((costs[p] for p in kept), default=0)
        cheapest = min(gone, key=lambda p: costs[p])
        assert lowered([*kept, cheapest]).iou < aim


def test_where_nothing_reaches_the_aim_the_best_is_taken() -> None:
    quality = {3: 0.5, 2: 0.6, 1: 0.8, 0: 0.7}
    kept, gone, found = fewest_left_out(
        ["a", "b", "c"], lambda parts: agreed(quality[len(parts)]), lambda p: 0.5, 0.9, agreed(0.5)
    )
    assert found.iou == 0.8 and len(kept) == 1 and len(gone) == 2
