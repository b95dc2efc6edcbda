"""Weights that lie in a file while a graph is tried, and relaxing that takes time in proportion to the nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from infercam.export.graph import relax as relaxing
from infercam.export.graph import trials as trying
from infercam.export.graph.floats import as_float32
from infercam.export.graph.index import Graph
from infercam.export.graph.relax import Dims, Free, relax
from infercam.export.graph.shelf import open_shelf
from infercam.export.graph.trials import Trials, forget
from infercam.export.runtime import (
    WEIGHTS_FOLDER,
    GraphSession,
    save,
    values_of,
    weight_bytes,
    weights_folder,
    whole,
)
from infercam.export.writing.onnx_source import load_model


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
def test_a_model_is_the_same_on_a_shelf_and_after_it(toys, raw, tmp_path):
    model = large(toys, raw)
    x = toys.picture(1, 32, 32)
    before = toys.run(model, x)[0]
    want = numpy_helper.to_array(next(w for w in model.graph.initializer if w.name == "large"))
    with open_shelf() as shelf:
        copy = shelf.taken(model)
        assert copy.ByteSize() < model.ByteSize() // 4
        np.testing.assert_array_equal(Graph(copy).constant("large"), want)
        np.testing.assert_array_equal(GraphSession(copy, threads=1).run(x)[0], before)
        with Trials(copy) as trials:
            np.testing.assert_array_equal(trials.run(x)[0], before)
        forget()
        folder = Path(weights_folder(copy) or "")
        assert [f.name for f in folder.iterdir()] == [shelf.file.name]
        for limit in (1 << 30, 0):
            files = save(copy, tmp_path / "m.onnx", limit=limit)
            np.testing.assert_array_equal(GraphSession(files[0]).run(x)[0], before)
            assert not onnx.load(files[0]).metadata_props and len(files) == 1 + (limit == 0)
        again = whole(copy)
    assert not folder.exists() and weights_folder(again) is None and not again.metadata_props
    np.testing.assert_array_equal(toys.run(again, x)[0], before)


@pytest.mark.parametrize("external", [False, True])
def test_a_file_is_read_with_its_large_weights_on_the_shelf(toys, tmp_path, external) -> None:
    model = large(toys, raw=True)
    model.metadata_props.add(key=WEIGHTS_FOLDER, value="/anywhere")  # a file may say so: it is not believed
    written = onnx.ModelProto()
    written.CopyFrom(model)
    onnx.save(written, tmp_path / "m.onnx", save_as_external_data=external, location="w", size_threshold=0)
    with open_shelf() as shelf:
        light = load_model(tmp_path / "m.onnx", shelf)
        assert weights_folder(light) == shelf.folder and light.ByteSize() < shelf.file.stat().st_size // 4
        placed = [t.name for t in light.graph.initializer if shelf.has(t)]
        assert "large" in placed and all(
            weight_bytes(t) > 1 << 16 for t in light.graph.initializer if shelf.has(t)
        )
        back = whole(light)
    assert [t.name for t in back.graph.initializer] == [t.name for t in model.graph.initializer]
    for ours, theirs in zip(back.graph.initializer, model.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs))
    assert back.graph.node == model.graph.node and not back.metadata_props


def test_large_weights_in_half_precision_stay_on_the_shelf(toys) -> None:
    model = large(toys, raw=True)
    weight = next(w for w in model.graph.initializer if w.name == "large")
    want = numpy_helper.to_array(weight).astype(np.float16)
    weight.CopyFrom(numpy_helper.from_array(want, "large"))
    with open_shelf() as shelf:
        light = shelf.taken(model)
        assert as_float32(light) == ["float16"]
        weight = next(w for w in light.graph.initializer if w.name == "large")
        assert shelf.has(weight) and weight.data_type == onnx.TensorProto.FLOAT
        np.testing.assert_array_equal(values_of(weight, shelf.folder), want.astype(np.float32))


def test_what_a_graph_gave_is_remembered_until_another_is_tried(toys, monkeypatch) -> None:
    one, other = (large(toys, raw) for raw in (True, False))
    asked, real = [], trying._child.ask
    monkeypatch.setattr(trying._child, "ask", lambda *q: asked.append(q) or real(*q))

    def runs(model: onnx.ModelProto, **options: bool) -> int:
        asked.clear()
        with Trials(model) as trials:
            trials.run(toys.picture(1, 32, 32), **options)
            assert (32, 32) in trials.seen or len(model.graph.output) < 2
        return sum(q[0] is not None for q in asked)

    same = onnx.ModelProto()
    same.CopyFrom(one)
    assert [runs(one), runs(same), runs(one, again=True)] == [1, 0, 1]
    with Trials(one) as trials:  # another graph comes and goes meanwhile
        assert runs(other) == 1
        trials.run(toys.picture(2, 32, 32))
    assert runs(one) == 1, "it was forgotten"
    forget()


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
