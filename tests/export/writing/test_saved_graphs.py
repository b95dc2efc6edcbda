"""What an exported graph carries beside its computation."""

from __future__ import annotations

from pathlib import Path

import onnx

from infercam.export.runtime import save


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
