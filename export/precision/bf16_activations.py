"""Activations that TensorRT's parser takes in fp32 and fp16, not in bf16, as the operators that they are made of."""

from __future__ import annotations

from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper

from infercam.export.graph.index import Graph, fresh_name

_GATES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "HardSwish": [("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5})],
    "Mish": [("Softplus", {}), ("Tanh", {})],
}
"""z -> the chain that makes φ(z)/z."""


def write_out(model: ModelProto) -> None:
    """HardSwish and Mish of bf16 tensors as z · HardSigmoid(z) and z · Tanh(Softplus(z)); in place."""
    graph = Graph(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        named = node.domain in ("", "ai.onnx") and node.op_type in _GATES
        half = named and graph.elem_type(node.output[0]) == TensorProto.BFLOAT16
        nodes += _chain(model, node) if half else [node]
    copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _chain(model: ModelProto, node: NodeProto) -> list[NodeProto]:
    made: list[NodeProto] = []
    tensor = node.input[0]
    for operator, settings in _GATES[node.op_type]:
        name = fresh_name(model, f"{node.output[0]}/{operator}")
        made.append(helper.make_node(operator, [tensor], [name], name=name, **settings))
        tensor = name
    return [*made, helper.make_node("Mul", [node.input[0], tensor], [node.output[0]], name=node.name)]
