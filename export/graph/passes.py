"""Clearing up a graph after surgery, by onnx_ir's passes."""

from __future__ import annotations

import onnx_ir as ir
from onnx import ModelProto
from onnx_ir.passes import common

from infercam.engine.common.errors import ExportError


class _RemoveUnusedInputs(ir.passes.InPlacePass):
    def call(self, model: ir.Model) -> ir.passes.PassResult:
        unused = [i for i in model.graph.inputs if not i.uses() and not i.is_graph_output()]
        for value in unused:
            model.graph.inputs.remove(value)
        return ir.passes.PassResult(model, modified=bool(unused))


def tidy(model: ModelProto) -> None:
    """In place: what no output needs goes (nodes, weights, inputs), weights are no inputs, nodes are in order.

    Raises ExportError where the graph has a cycle.
    """
    _run(
        model,
        common.RemoveInitializersFromInputsPass(),
        common.RemoveUnusedNodesPass(),
        _RemoveUnusedInputs(),
        common.TopologicalSortPass(),
    )


def lift_constants(model: ModelProto) -> None:
    """In place: Constant nodes become initialisers, so that converting a type is one thing."""
    _run(model, common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0))


def _run(model: ModelProto, *passes: ir.passes.InPlacePass) -> None:
    graph = ir.from_proto(model)
    try:
        ir.passes.Sequential(*passes)(graph)
    except ir.passes.PassError as e:
        raise ExportError(f"the graph cannot be put in order ({e.__cause__ or e}): it is damaged") from None
    model.graph.CopyFrom(ir.to_proto(graph).graph)
    del model.graph.value_info[:], model.graph.quantization_annotation[:]  # of tensors that may be gone
    model.graph.doc_string = ""
