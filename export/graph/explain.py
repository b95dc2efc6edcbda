"""One line about a graph without a response map: what stands in the way, by its usual name, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from infercam.export.graph.index import Graph, attributes, label

LINEAR_OPS = ("Gemm", "MatMul", "Conv", "Einsum")
_MAX_POOLS = {"GlobalMaxPool", "MaxPool", "ReduceMax", "GlobalLpPool", "LpPool"}
_NEAR = 3  # nodes before a pooling: the power, and a clip that keeps it positive
_RETRAIN = "train one linear layer on the pooled features in its place and export that"


def explain(graph: Graph, node: NodeProto, why: str, path: Sequence[NodeProto]) -> str:
    """One line about the node that ends the walk; `path` leads to it from the logits, nearest to these first."""
    flattened = next((n for n in reversed(path) if flattens_a_map(graph, n)), None)
    linear = next((n for n in reversed(path) if n.op_type in LINEAR_OPS), None)
    if node.op_type in ("QLinearConv", "QLinearMatMul", "DequantizeLinear", "QuantizeLinear"):
        return f"{label(node)}: quantised graphs cannot be exported; give the float32 model"
    if node.op_type in ("If", "Loop", "Scan"):
        return (
            f"{label(node)}: what is computed depends on the picture or its size here; export the model with fixed "
            "sizes, which leaves one branch, or with torch.export (dynamo=True)"
        )
    if flattened is not None:
        return no_pooling(flattened, linear, "")
    if node.op_type in _MAX_POOLS:
        return (
            f"{label(node)}: the head pools by maximum; a response map needs average pooling; --method recipro takes "
            "any head, at one size"
        )
    token = next((n for n in [node, *reversed(path)] if _takes_one_token(graph, n)), None)
    if token is not None:
        return (
            f"{label(token)}: the head reads only the class token, which has no position, and the grid of its patch "
            "tokens cannot be told: they must come last, as many as the convolution that embeds them has positions"
        )
    if _nearest_pool(graph, node) is None:
        return no_pooling(None, linear, f"{label(node)} {why} and no pooling lies before it")
    if linear is None:
        several = len(graph.proto.output) > 1
        cure = "another one can be named with --output" if several else "export the model without it"
        return (
            f"{label(node)} {why} and lies between the linear layer and the output: the output must be "
            f"the logits, or their sigmoid or softmax; {cure}"
        )
    return _after_the_pooling(graph, node, why)


def no_pooling(flattened: NodeProto | None, linear: NodeProto | None, why: str) -> str:
    """That there is no global average pooling, and what comes closest."""
    if flattened is not None:
        return (
            f"no global average pooling: {label(flattened)} flattens the whole map into the linear layer; "
            "only classifiers that average over all positions have a response map; --method recipro takes any head, "
            "at one size"
        )
    before = f" before {label(linear)}" if linear is not None else ""
    return f"no global average pooling{before}: {why}; a global average pooling and a linear layer are needed"


def flattens_a_map(graph: Graph, node: NodeProto) -> bool:
    """Whether a reshape makes one vector of a map with more than one position."""
    if node.op_type not in ("Flatten", "Reshape"):
        return False
    before, after = graph.shape(node.input[0]), graph.shape(node.output[0])
    if before is None or len(before) < 3 or (after is not None and len(after) > 2):
        return False
    if len(before) == 3:  # positions may be the second or the third axis; one token has none
        return all(isinstance(d, int) and d > 1 for d in before[1:])
    return any(isinstance(d, int) and d > 1 for d in before[2:])


def _after_the_pooling(graph: Graph, node: NodeProto, why: str) -> str:
    """Of a node between the pooling and the last linear layer that cannot be frozen (freeze.py)."""
    pool = _nearest_pool(graph, node)
    powers = [n for n in graph.ancestors(pool.output[0])[:_NEAR] if n.op_type == "Pow"] if pool else []
    if node.op_type in ("Pow", "Sqrt") and powers:
        return (
            f"{label(node)}: a generalised mean (GeM) is pooled, {label(powers[0])} before it; a response map needs "
            f"average pooling: {_RETRAIN}"
        )
    return (
        f"{label(node)} {why} and lies between the pooling and the logits: there may be linear layers, norms, "
        f"activations and gates, one after the other, and {node.op_type} is none of them here; {_RETRAIN}"
    )


def _takes_one_token(graph: Graph, node: NodeProto) -> bool:
    if not node.input or graph.rank(node.input[0]) != 3:
        return False
    if node.op_type == "Gather":
        index = graph.constant(node.input[1])
        return attributes(node).get("axis", 0) == 1 and index is not None and index.size == 1
    shape = graph.shape(node.output[0])
    return node.op_type in ("Slice", "Split") and shape is not None and len(shape) == 3 and shape[1] == 1


def _nearest_pool(graph: Graph, node: NodeProto) -> NodeProto | None:
    """A global pooling among what the node depends on that pools a whole map into one vector."""
    for before in [node, *graph.ancestors(node.output[0])]:
        if before.op_type in ("GlobalAveragePool", "ReduceMean"):
            shape = graph.shape(before.output[0])
            if shape is None or len(shape) == 2 or (len(shape) == 4 and all(d == 1 for d in shape[2:])):
                return before
        if before.op_type == "Conv" and graph.rank(before.output[0]) == 4:
            shape = graph.shape(before.output[0])
            if shape is not None and not all(d == 1 for d in shape[2:]):
                return None
    return None
