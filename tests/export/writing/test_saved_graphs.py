"""What an exported graph carries beside its computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from infercam.export.graph.passes import tidy
from infercam.export.runtime import GraphSession, save


def test_what_the_exporter_noted_of_the_machine_is_not_written(tmp_path: Path) -> None:
    """Exporters note source files, lines and folders at every node."""
    node = onnx.helper.make_node("Relu", ["x"], ["y"], doc_string="/home/somebody/model.py(12)")
    node.metadata_props.add(key="stack_trace", value="File /home/somebody/model.py")
    value = onnx.helper.make_tensor_value_info("x", 1, [1], doc_string="/home/somebody")
    graph = onnx.helper.make_graph([node], "g", [value], [onnx.helper.make_tensor_value_info("y", 1, [1])])
    model = onnx.helper.make_model(graph)
    (file,) = save(model, tmp_path / "m.onnx")
    assert b"somebody" not in file.read_bytes()
    assert model.graph.node[0].metadata_props, "the caller's model stays as it is"
    assert onnx.load(file).graph.node[0].op_type == "Relu"


def test_large_weights_go_to_a_file_beside_it_and_stay_in_the_model(toys, tmp_path: Path) -> None:
    """Each begins where a runtime may map it; nothing of the model is lost or moved."""
    t = toys.Toy()
    model = t.model(t.node("Conv", t.features(channels=5), t.random(3, 5, 3, 3)))
    model.metadata_props.add(key="names", value="a b")
    model.producer_name, before = "somebody", onnx.ModelProto()
    before.CopyFrom(model)
    files = save(model, tmp_path / "m.onnx", limit=0, inline=100)
    assert [f.name for f in files] == ["m.onnx", "m.onnx.data"] and model == before
    light = onnx.load(files[0], load_external_data=False)
    offsets = [int(e.value) for w in light.graph.initializer for e in w.external_data if e.key == "offset"]
    assert (
        len(offsets) == 3 and all(o % 64 == 0 for o in offsets) and files[0].stat().st_size < model.ByteSize()
    )
    whole = onnx.load(files[0])
    for field in ("opset_import", "ir_version", "producer_name", "metadata_props"):
        assert getattr(whole, field) == getattr(model, field), field
    for field in ("name", "node", "input", "output"):
        assert getattr(whole.graph, field) == getattr(model.graph, field), field
    for ours, theirs in zip(whole.graph.initializer, model.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs))
    x = toys.picture(1, 32, 32)
    np.testing.assert_array_equal(GraphSession(files[0]).run(x)[0], toys.run(model, x)[0])


def test_clearing_up_takes_no_copy_of_large_weights(toys) -> None:
    """What nothing reads goes, large or not; what stays is the same, and the graph gives the same."""
    t = toys.Toy()
    large = t.random(toys.K, toys.K, 64, 64)
    y = t.node("Add", t.node("Conv", t.features(), large, pads=[31, 31, 32, 32]), t.const(np.float32(1)))
    t.node("Identity", t.random(300, 300))
    model = t.model(y)
    model.graph.node.append(model.graph.node[0])
    del model.graph.node[0]  # out of order
    want = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer if w.dims[:1] != [300]}
    tidy(model)
    assert {w.name for w in model.graph.initializer} == set(want)
    for weight in model.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(weight), want[weight.name])
        assert not weight.external_data
    assert [n.op_type for n in model.graph.node] == ["Conv", "Relu", "Conv", "Relu", "Conv", "Add"]
