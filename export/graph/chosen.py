"""`If` nodes that always choose the same branch, put in the branch's place.

PyTorch's tracing exporter writes `squeeze(3)` of an axis whose size it does not know as an If around a Squeeze, which
asks for that size: it is the same whenever the model runs. Running the source tells which; the exported graph is
compared with the source afterwards, as always.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper

from infercam.export.graph.index import Graph, attributes, fresh_name, rename
from infercam.export.graph.observe import observe

_DEPTH = 8  # of Ifs inside the branches of others


def take_branches(model: ModelProto) -> None:
    """Replace, in place, each top-level If that asks for sizes alone, with one answer whenever the model ran."""
    for _ in range(_DEPTH):
        graph = Graph(model)
        nodes = [n for n in model.graph.node if n.op_type == "If" and _asks_sizes(graph, n.input[0])]
        if not nodes:
            return
        runs = observe(model, [], sorted({n.input[0] for n in nodes})).runs
        taken = False
        for node in nodes:
            seen = {bool(np.all(r.values[node.input[0]])) for r in runs}
            if len(seen) == 1:
                _inline(model, node, attributes(node)["then_branch" if seen.pop() else "else_branch"])
                taken = True
        if not taken:
            return


def _asks_sizes(graph: Graph, condition: str) -> bool:
    return graph.constant(condition) is not None or graph.follows_sizes(condition)


def _inline(model: ModelProto, node: NodeProto, chosen: GraphProto) -> None:
    """Put a branch's nodes in the place of the node; other branches may use the same names inside."""
    branch = ModelProto()
    branch.graph.CopyFrom(chosen)
    inner = [t.name for t in chosen.initializer] + [o for n in chosen.node for o in n.output if o]
    for name in inner:
        rename(branch, name, fresh_name(model, f"{node.output[0]}/{name}"))
    made = [o.name for o in branch.graph.output]
    ends = [helper.make_node("Identity", [m], [o]) for m, o in zip(made, node.output, strict=True) if o]
    at = next(i for i, n in enumerate(model.graph.node) if n is node or n == node)
    del model.graph.node[at]
    for new in reversed([*branch.graph.node, *ends]):
        model.graph.node.insert(at, new)
    model.graph.initializer.extend(branch.graph.initializer)
