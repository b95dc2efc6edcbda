"""Recipro-CAM: any head, one position of its features at a time, beside a loop over positions in NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import ExportError
from infercam.export import export_onnx
from infercam.export.graph import recipro
from infercam.export.graph.dynamic import SizeWishes
from infercam.export.graph.surgery import response_graph
from infercam.export.graph.wishes import MapWishes

SIZE, GRID = (24, 32), (6, 8)
RECIPRO = MapWishes(recipro=True)


def linear(t, y, channels, classes):
    y = t.node("MatMul", y, t.random(channels, classes))
    return t.node("Add", y, t.random(classes))


def gem(t, y):
    y = t.node("Pow", t.node("Clip", y, t.const(np.float32(1e-6))), t.const(np.float32(3)))
    return t.node("Pow", t.node("Flatten", t.node("GlobalAveragePool", y)), t.const(np.float32(1 / 3)))


def whole(t, y):
    """A convolution over the whole map, as timm's VGG has."""
    return t.node("Relu", t.node("Conv", y, t.random(7, t.K, *GRID), t.random(7)))


HEADS = {
    "mean": lambda t, y: linear(t, t.node("Flatten", t.node("GlobalAveragePool", y)), t.K, t.C),
    "maximum": lambda t, y: linear(t, t.node("Flatten", t.node("GlobalMaxPool", y)), t.K, t.C),
    "gem": lambda t, y: linear(t, gem(t, y), t.K, t.C),
    "window": lambda t, y: linear(t, t.node("Flatten", t.node("GlobalAveragePool", whole(t, y))), 7, t.C),
    "flattened": lambda t, y: linear(
        t,
        t.node("Relu", linear(t, t.node("Reshape", y, t.const(np.array([1, t.K * 48]))), t.K * 48, 7)),
        7,
        t.C,
    ),
}


def network(toys, head, shape=(1, 3, *SIZE)):
    t = toys.Toy(shape=shape)
    t.K, t.C = toys.K, toys.C
    return t.model(HEADS[head](t, t.features()))


def head_alone(model: onnx.ModelProto, channels: int) -> onnx.ModelProto:
    """What lies behind 'features', for one map."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    behind = [n for n in copy.graph.node if n.output[0] != "features"]
    first = next(i for i, n in enumerate(behind) if "features" in n.input)
    del copy.graph.node[:]
    copy.graph.node.extend(behind[first:])
    del copy.graph.input[:]
    info = helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, [1, channels, *GRID])
    copy.graph.input.append(info)
    return copy


@pytest.mark.parametrize(("head", "free"), [*((h, False) for h in HEADS), ("window", True)])
def test_each_position_alone(toys, head, free):
    """Of free sizes only the size wished for tells that the map behind a window has one position."""
    model = network(toys, head, **({"shape": ("N", 3, "H", "W")} if free else {}))
    graph = response_graph(model, maps=RECIPRO, sizes=SizeWishes(size=SIZE))
    x = toys.picture(1, *SIZE)
    scores, response = toys.run(graph.model, x, "scores", "response")
    logits, features = toys.run(model, x, model.graph.output[0].name, "features")
    alone = head_alone(model, toys.K)

    def run(f):
        return toys.run(alone, f.astype(np.float32))[0][0]

    empty = run(np.zeros_like(features))
    want = np.zeros((toys.C, *GRID))
    for y, c in np.ndindex(*GRID):
        one = np.zeros_like(features)
        one[..., y, c] = features[..., y, c]
        want[:, y, c] = run(one) - empty
    np.testing.assert_allclose(response[0], want, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scores, logits, rtol=1e-5, atol=1e-6)
    assert (graph.method, graph.decomposition) == ("recipro", "none")
    assert (graph.height, graph.width, graph.dynamic_batch) == (*SIZE, False)


def test_of_a_mean_it_is_the_class_activation_map(toys):
    model = network(toys, "mean", shape=("N", 3, "H", "W"))
    graph = response_graph(model, maps=RECIPRO)
    x = toys.picture(1, graph.height, graph.width)
    ours, theirs = (toys.run(g.model, x, "response")[0] for g in (graph, response_graph(model)))
    np.testing.assert_allclose(ours * ours[0, 0].size, theirs, rtol=1e-3, atol=1e-4)
    kept = response_graph(model, maps=RECIPRO, keep_classes=[2, 0])
    np.testing.assert_allclose(toys.run(kept.model, x, "response")[0], ours[:, [2, 0]], rtol=1e-5, atol=1e-7)


def test_too_many_positions_are_refused(toys, monkeypatch):
    monkeypatch.setattr(recipro, "MOST_BYTES", 4 * 49 * 6 * 48 - 1)
    with pytest.raises(ExportError, match=r"6x8 positions of 6 channels.*give a smaller --size"):
        response_graph(network(toys, "maximum"), maps=RECIPRO)


def test_without_a_map_there_is_nothing_to_keep(toys):
    t = toys.Toy(shape=(1, 3, *SIZE))
    y = t.node("Flatten", "image")
    model = t.model(t.node("MatMul", y, t.random(3 * SIZE[0] * SIZE[1], toys.C)))
    with pytest.raises(ExportError, match=r"no feature map .* that everything goes through"):
        response_graph(model, maps=RECIPRO)


def test_a_bundle_of_it(toys, tmp_path):
    file = tmp_path / "m.onnx"
    onnx.save(network(toys, "flattened"), file)
    export_onnx(file, tmp_path / "b", recipro=True)
    m = Bundle.load(tmp_path / "b").manifest
    assert (m.method, m.input.fixed_size, m.input.dynamic_batch) == ("recipro", SIZE, False)
    assert any("customary, not exact" in n for n in m.source["notes"])
