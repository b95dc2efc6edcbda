"""Clearing up a graph after surgery, by onnx_ir's passes."""

from __future__ import annotations

import onnx_ir as ir
from onnx import ModelProto
from onnx_ir.passes import common

from infercam.engine.common.errors import ExportError
from infercam.export.runtime import reference_to, weight_bytes, with_weights

_LARGE = 1 << 16


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
    large = {t.name for t in model.graph.initializer if weight_bytes(t) > _LARGE}
    light = (reference_to(t, "elsewhere") if t.name in large else t for t in model.graph.initializer)
    graph = ir.from_proto(with_weights(model, light))  # no pass reads a large weight
    try:
        ir.passes.Sequential(*passes)(graph)
    except ir.passes.PassError as e:
        raise ExportError(f"the graph cannot be put in order ({e.__cause__ or e}): it is damaged") from None
    found = ir.to_proto(graph).graph
    kept = {t.name for t in found.initializer} & large
    own = model.graph
    for i in reversed(range(len(own.initializer))):  # the large ones stay where they are: a copy may not fit
        if own.initializer[i].name not in kept:
            del own.initializer[i]
    own.initializer.extend(t for t in found.initializer if t.name not in kept)
    del found.initializer[:]
    del own.node[:], own.input[:], own.output[:], own.metadata_props[:]
    del own.value_info[:], own.quantization_annotation[:]  # of tensors that may be gone
    own.node.extend(found.node)
    own.input.extend(found.input)
    own.output.extend(found.output)
    own.metadata_props.extend(found.metadata_props)
    own.doc_string = ""
