"""One line about a graph without a response map: what stands in the way, by its usual name, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from infercam.export.graph.index import Graph, attributes, label, used_by
from infercam.export.graph.pooling import POOLS

LINEAR_OPS = ("Gemm", "MatMul", "Conv", "Einsum")
_MAX_POOLS = {"GlobalMaxPool", "MaxPool", "ReduceMax", "GlobalLpPool", "LpPool"}
_NORMS = {
    "LayerNormalization": "a LayerNorm",
    "RMSNormalization": "an RMS norm",
    "InstanceNormalization": "an instance norm",
    "GroupNormalization": "a group norm",
    "LpNormalization": "an L2 normalisation",
}
_ACTIVATIONS = {
    "Relu": "ReLU",
    "LeakyRelu": "leaky ReLU",
    "PRelu": "PReLU",
    "Clip": "ReLU6",
    "Elu": "ELU",
    "Celu": "CELU",
    "Selu": "SELU",
    "Gelu": "GELU",
    "Sigmoid": "sigmoid",
    "HardSwish": "hard swish",
    "HardSigmoid": "hard sigmoid",
    "Swish": "SiLU",
    "Mish": "Mish",
    "Softplus": "softplus",
    "Tanh": "tanh",
    "Max": "maximum",
    "Min": "minimum",
}
_NEAR = 16  # nodes of a norm or an activation that is written out; the longest (LayerNorm) has ten
_RETRAIN = "train one linear layer on the pooled features in its place and export that"


def explain(graph: Graph, node: NodeProto, why: str, path: Sequence[NodeProto]) -> str:
    """One line about the node that ends the walk; `path` leads to it from the logits, nearest to these first."""
    flattened = next((n for n in reversed(path) if flattens_a_map(graph, n)), None)
    linear = next((n for n in reversed(path) if n.op_type in LINEAR_OPS), None)
    if node.op_type in ("QLinearConv", "QLinearMatMul", "DequantizeLinear", "QuantizeLinear"):
        return f"{label(node)}: quantised graphs cannot be exported; give the float32 model"
    if flattened is not None:
        return no_pooling(flattened, linear, "")
    if node.op_type in _MAX_POOLS:
        return f"{label(node)}: the head pools by maximum; a response map needs average pooling"
    token = next((n for n in [node, *reversed(path)] if _takes_one_token(graph, n)), None)
    if token is not None:
        return (
            f"{label(token)}: the head reads only the class token, which has no position; "
            "a response map needs a mean over the patch tokens"
        )
    if _nearest_pool(graph, node) is None:
        return no_pooling(None, linear, f"{label(node)} {why} and no pooling lies before it")
    if linear is None:
        return (
            f"{label(node)} {why} and lies between the linear layer and the output: the output must be "
            "the logits, or their sigmoid or softmax; another one can be named with --output"
        )
    return _after_the_pooling(graph, node, why)


def no_pooling(flattened: NodeProto | None, linear: NodeProto | None, why: str) -> str:
    """That there is no global average pooling, and what comes closest."""
    if flattened is not None:
        return (
            f"no global average pooling: {label(flattened)} flattens the whole map into the linear layer; "
            "only classifiers that average over all positions have a response map"
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
    """What the node is a part of, and how to get a model without it."""
    near = _near(graph, node)
    norm = _norm(node, near)
    if norm is not None:
        return (
            f"{label(node)}: {norm} between the pooling and the logits does not commute with the mean over "
            "positions, so that no response map is exact; give a model that normalises before it pools (of timm: "
            f"head_norm_first=True, fc_norm=False), or {_RETRAIN}"
        )
    bend = _activation(node, near)
    if bend is not None:
        hidden = any(n.op_type in LINEAR_OPS for n in near)
        what = f"a hidden layer ({bend})" if hidden else f"an activation ({bend})"
        return (
            f"{label(node)}: {what} between the pooling and the logits; only linear layers, scales and shifts "
            f"commute with the mean over positions: {_RETRAIN}"
        )
    return (
        f"{label(node)} {why} and lies between the pooling and the logits: {node.op_type} there does not commute "
        f"with the mean over positions (only linear layers, scales and shifts do); {_RETRAIN}"
    )


def _near(graph: Graph, node: NodeProto) -> list[NodeProto]:
    """The nodes before this one, nearest first, back to the linear layers or poolings (these included)."""
    found: list[NodeProto] = []
    front = [node]
    while front and len(found) < _NEAR:
        inputs = [graph.producer.get(i) for n in front for i in sorted(used_by(n))]
        fresh = {id(n): n for n in inputs if n is not None and not any(n is f for f in found)}
        found += fresh.values()
        front = [n for n in fresh.values() if not _ends(graph, n)]
    return found


def _ends(graph: Graph, node: NodeProto) -> bool:
    """Whether a node is a linear layer or pools positions (a norm's own mean is over channels: rank 2)."""
    if node.op_type in LINEAR_OPS or graph.constant(node.output[0]) is not None:
        return True
    return node.op_type in POOLS and (graph.rank(node.input[0]) or 4) > 2 and not _normalises(graph, node)


def _normalises(graph: Graph, node: NodeProto) -> bool:
    """Whether a mean is over the last axis alone of what keeps its rank, as a norm's is."""
    at = attributes(node)
    value = graph.constant(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    axes = list(at.get("axes", [] if value is None else value.ravel()))
    rank = graph.rank(node.input[0])
    return len(axes) == 1 and at.get("keepdims", 1) == 1 and rank is not None and axes[0] in (-1, rank - 1)


def _norm(node: NodeProto, near: Sequence[NodeProto]) -> str | None:
    """The name of a normalisation, whole or written out."""
    if node.op_type in _NORMS:
        return _NORMS[node.op_type]
    ops = [n.op_type for n in near]
    if node.op_type not in ("Div", "Mul"):
        return None
    if "ReduceL2" in ops or ("Sqrt" in ops and ("ReduceSumSquare" in ops or "ReduceSum" in ops)):
        return "an L2 normalisation"
    rooted = "Sqrt" in ops or "Pow" in ops or "Reciprocal" in ops
    if rooted and "ReduceMean" in ops:
        return "a LayerNorm" if "Sub" in ops else "an RMS norm"
    return None


def _activation(node: NodeProto, near: Sequence[NodeProto]) -> str | None:
    """The name of an activation, whole or written out as a product with itself."""
    if node.op_type in _ACTIVATIONS:
        return _ACTIVATIONS[node.op_type]
    if node.op_type in ("Erf", "Where", "Exp"):
        return "GELU" if node.op_type == "Erf" else "ELU"
    if node.op_type not in ("Mul", "Div"):
        return None
    ops = {n.op_type for n in near}
    if ops & {"HardSigmoid", "Clip"} or {"Max", "Min"} <= ops:
        return "hard swish"
    if "Erf" in ops:
        return "GELU"
    if "Tanh" in ops:
        return "Mish" if "Softplus" in ops else "GELU"
    gate = next((n for n in near if n.op_type == "Sigmoid"), None)
    if gate is None:
        return None
    return "SiLU" if gate.input[0] in node.input else "a gate"


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
