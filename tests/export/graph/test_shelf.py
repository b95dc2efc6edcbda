"""Weights that lie in a file while a graph is tried, and relaxing that takes time in proportion to the nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from infercam.export.graph import relax as relaxing
from infercam.export.graph.index import Graph
from infercam.export.graph.relax import Dims, Free, relax
from infercam.export.graph.shelf import Shelf
from infercam.export.graph.trials import Trials
from infercam.export.runtime import GraphSession, weights_folder


def large(toys, raw: bool) -> onnx.ModelProto:
    t = toys.Toy()
    wide = t.array(256, toys.K, 3, 3)
    deep = t.array(toys.C, 256, 3, 9)
    y = t.node("Conv", t.features(), t.const(wide), pads=[1] * 4)
    y = t.node("Conv", y, t.const(np.tile(deep, (1, 1, 1, 2)), "large"), pads=[1, 8, 1, 9])
    model = t.model(y)
    weight = next(w for w in model.graph.initializer if w.name == "large")
    if not raw:
        values = numpy_helper.to_array(weight).ravel().tolist()
        weight.ClearField("raw_data")
        weight.float_data.extend(values)
    return model


@pytest.mark.parametrize("raw", [True, False])
def test_a_model_is_the_same_on_a_shelf_and_after_it(toys, raw):
    model = large(toys, raw)
    x = toys.picture(1, 32, 32)
    before = toys.run(model, x)[0]
    work = onnx.ModelProto()
    work.CopyFrom(model)
    with Shelf(work) as shelf:
        copy = onnx.ModelProto()
        copy.CopyFrom(work)
        assert copy.ByteSize() < model.ByteSize() // 4 and Graph(copy).constant("large") is None
        np.testing.assert_array_equal(GraphSession(copy, threads=1).run(x)[0], before)
        with Trials(copy) as trials:
            np.testing.assert_array_equal(trials.run(x)[0], before)
        folder = Path(weights_folder(copy) or "")
        assert [f.name for f in folder.iterdir()] == ["weights.bin"]
        shelf.put_back(copy)
    assert not folder.exists() and weights_folder(copy) is None and not copy.metadata_props
    np.testing.assert_array_equal(toys.run(copy, x)[0], before)


def test_relaxing_takes_time_in_proportion_to_the_nodes(toys, monkeypatch):
    real, counted = relaxing.infer, []
    monkeypatch.setattr(relaxing, "infer", lambda model: counted.append(len(model.graph.node)) or real(model))

    def nodes_inferred(count: int) -> int:
        t = toys.Toy(shape=(1, 3, 32, 32))
        y = t.features()
        for _ in range(count):
            y = t.node("Relu", t.node("Reshape", y, t.const(np.array([1, toys.K, 64]))))
            y = t.node("Reshape", y, t.const(np.array([1, 2, 3, 8, 8])))
            y = t.node("Reshape", y, t.const(np.array([1, toys.K, 8, 8])))
        model = t.model(y)
        counted.clear()
        relax(model, "image", Dims(1, 32, 32), baked=Free(True, False), free=Free(True, False))
        assert all(s == 8 for s in toys.run(model, toys.picture(1, 32, 32))[0].shape[2:])
        return sum(counted)

    assert nodes_inferred(80) < 3 * nodes_inferred(40)
