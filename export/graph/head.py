"""Finding a classifier's head: global average pooling and everything affine between it and the logits.

The walk goes backward from an output. Whatever lies between the pooling and the logits must be affine in
the pooled vector (Gemm, MatMul, 1x1 Conv, scale, shift, reshape); it is composed, in float64, into one matrix and
one bias, so that `logits = weight @ mean(features) + bias` (engine/method/README.md §1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Literal

import numpy as np
from onnx import NodeProto, TensorProto

from infercam.engine.common.errors import ExportError
from infercam.export.graph.index import Graph, attributes, label

Layout = Literal["NCHW", "NHWC", "NLD", "NDL"]  # the last two: token sequences, channels last / first

ACTIVATIONS = {"Sigmoid": "sigmoid", "Softmax": "softmax", "LogSoftmax": "softmax"}
_SHAPE_OPS = {"Identity", "Dropout", "Flatten", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Cast"}
_MAX_POOLS = {"GlobalMaxPool", "MaxPool", "ReduceMax", "GlobalLpPool", "LpPool"}
_NORMS = {"LayerNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization"}


@dataclass
class Head:
    """What `find_head` found. `weight` is None where nothing lies between the pooling and the logits."""

    logits: str
    features: str
    layout: Layout
    pool: NodeProto
    weight: np.ndarray | None
    bias: np.ndarray
    activation: str | None
    notes: list[str] = field(default_factory=list)


@dataclass
class _Affine:
    """`weight @ x + bias`, or `scale * x + bias` as long as no matrix has been met (float64)."""

    weight: np.ndarray | None = None
    scale: np.ndarray = field(default_factory=lambda: np.ones(1))
    bias: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def after_matrix(self, a: np.ndarray) -> None:
        """Compose with x = a @ z."""
        if self.weight is None:
            if self.scale.size not in (1, len(a)):
                raise ValueError(f"{self.scale.size} factors for {len(a)} values")
            self.weight = a if np.all(self.scale == 1) else self.scale[:, None] * a
        else:
            self.weight = self.weight @ a

    def after_shift(self, b: np.ndarray) -> None:
        """Compose with x = z + b."""
        if self.weight is None:
            self.bias = self.bias + self.scale * b
        else:
            self.bias = self.bias + self.weight @ np.broadcast_to(b, (self.weight.shape[1],))

    def after_scale(self, s: np.ndarray) -> None:
        """Compose with x = s * z."""
        if self.weight is None:
            self.scale = self.scale * s
        else:
            self.weight = self.weight * np.broadcast_to(s, (self.weight.shape[1],))


def find_head(graph: Graph, output: str) -> Head:
    """The head that makes `output`; raises ExportError naming the node that prevents it."""
    tensor, activation = _strip_activation(graph, output)
    logits = tensor
    affine = _Affine()
    last_linear: NodeProto | None = None
    flattened: NodeProto | None = None
    while True:
        node = graph.producer.get(tensor)
        if node is None:
            raise ExportError(_no_pooling(flattened, last_linear, f"reached the input '{tensor}'"))
        pooled = _pooling(graph, node)
        if pooled is not None:
            break
        if _flattens_a_map(graph, node):
            flattened = node
        try:
            tensor = _compose(graph, node, affine)
        except _NotAffine as e:
            raise ExportError(_explain(graph, node, str(e), flattened, last_linear)) from None
        except ValueError as e:
            raise ExportError(f"{label(node)}: its constant does not fit the head ({e})") from None
        if node.op_type in ("Gemm", "MatMul", "Conv"):
            last_linear = node
    features, layout, notes = pooled
    features, layout = _resolve(graph, features, layout)
    return _finish(graph, Head(logits, features, layout, node, None, np.zeros(0), activation, notes), affine)


def _finish(graph: Graph, head: Head, affine: _Affine) -> Head:
    channels = channel_count(graph, head.features, head.layout)
    weight = affine.weight
    if weight is None and not np.all(affine.scale == 1):
        weight = np.diag(np.broadcast_to(affine.scale, (channels or affine.scale.size,)))
    rows: int | None = channels if weight is None else len(weight)
    if weight is not None and channels is not None and weight.shape[1] != channels:
        raise ExportError(
            f"{label(head.pool)}: {channels} channels are pooled but the linear layer takes {weight.shape[1]}; "
            "it does not pool to one value per channel"
        )
    if rows is None:
        raise ExportError(f"{label(head.pool)}: cannot tell how many channels it pools")
    head.weight = weight
    head.bias = np.broadcast_to(affine.bias, (rows,)).copy()
    return head


def channel_count(graph: Graph, features: str, layout: Layout) -> int | None:
    """Number of channels of the pooled tensor, where shape inference knows it."""
    shape = graph.shape(features)
    size = None if shape is None else shape[channel_axis(layout)]
    return size if isinstance(size, int) else None


def channel_axis(layout: Layout) -> int:
    return {"NCHW": 1, "NHWC": 3, "NLD": 2, "NDL": 1}[layout]


def _strip_activation(graph: Graph, output: str) -> tuple[str, str | None]:
    """Tensor before a closing sigmoid or softmax (seen through reshapes), and which of them it was."""
    tensor: str = output
    while (node := graph.producer.get(tensor)) is not None:
        if node.op_type in ACTIVATIONS:
            return node.input[0], ACTIVATIONS[node.op_type]
        if node.op_type not in _SHAPE_OPS:
            break
        tensor = node.input[0]
    return output, None


# --- the affine part -------------------------------------------------------------------------------------


class _NotAffine(Exception):
    pass


def _compose(graph: Graph, node: NodeProto, affine: _Affine) -> str:
    """Put one node of the tail into `affine`; returns the tensor that the node reads."""
    op = node.op_type
    if op in _SHAPE_OPS:
        return str(node.input[0])
    if op == "Gather" and _gathers_all(graph, node):
        return str(node.input[0])
    if op == "Gemm":
        return _gemm(graph, node, affine)
    if op == "MatMul":
        return _matmul(graph, node, affine)
    if op == "Conv":
        return _conv(graph, node, affine)
    if op == "BatchNormalization":
        return _batch_norm(graph, node, affine)
    if op in ("Add", "Sub", "Mul", "Div"):
        return _arithmetic(graph, node, affine)
    raise _NotAffine("is not linear")


def _gathers_all(graph: Graph, node: NodeProto) -> bool:
    """PyTorch's exporter writes a change of strides as gathering 0, 1, 2, … from a flat tensor."""
    index = graph.constant(node.input[1])
    if index is None or graph.rank(node.input[0]) != 1:
        return False
    return bool(np.array_equal(index.ravel(), np.arange(index.size))) and index.size > 1


def _split(graph: Graph, node: NodeProto) -> tuple[int, np.ndarray]:
    """Position of the one input that depends on the picture, and the other one's value, of a binary node."""
    constants = [graph.constant(i) for i in node.input[:2]]
    if constants[1] is not None and constants[0] is None:
        return 0, constants[1]
    if constants[0] is not None and constants[1] is None:
        return 1, constants[0]
    raise _NotAffine("joins two tensors that both depend on the picture")


def _gemm(graph: Graph, node: NodeProto, affine: _Affine) -> str:
    at = attributes(node)
    position, value = _split(graph, node)
    matrix = value.astype(np.float64)
    # Y = alpha * op(A) op(B) + beta * C; with the data first, the matrix of the map is op(B) transposed
    transposed = bool(at.get("transB" if position == 0 else "transA", 0))
    matrix = matrix if transposed == (position == 0) else matrix.T
    if len(node.input) > 2 and node.input[2]:
        shift = graph.constant(node.input[2])
        if shift is None:
            raise _NotAffine("adds a tensor that depends on the picture")
        affine.after_shift(float(at.get("beta", 1.0)) * shift.astype(np.float64).ravel())
    alpha = float(at.get("alpha", 1.0))
    affine.after_matrix(matrix if alpha == 1 else alpha * matrix)
    return str(node.input[position])


def _matmul(graph: Graph, node: NodeProto, affine: _Affine) -> str:
    position, value = _split(graph, node)
    matrix = value.astype(np.float64)
    matrix = (
        matrix.reshape(matrix.shape[-2:]) if prod(matrix.shape[:-2]) == 1 and matrix.ndim >= 2 else matrix
    )
    if matrix.ndim != 2:
        raise _NotAffine(f"multiplies by a constant of shape {value.shape}, not by one matrix,")
    affine.after_matrix(matrix.T if position == 0 else matrix)
    return str(node.input[position])


def _conv(graph: Graph, node: NodeProto, affine: _Affine) -> str:
    at = attributes(node)
    weight = graph.constant(node.input[1])
    if weight is None:
        raise _NotAffine("has a weight that is not constant")
    if prod(weight.shape[2:]) != 1 or any(at.get("pads", [])):
        raise _NotAffine(f"is a {'x'.join(map(str, weight.shape[2:]))} convolution, not a 1x1 one,")
    if len(node.input) > 2 and node.input[2]:
        bias = graph.constant(node.input[2])
        if bias is None:
            raise _NotAffine("has a bias that is not constant")
        affine.after_shift(bias.astype(np.float64).ravel())
    affine.after_matrix(_dense(weight.astype(np.float64), int(at.get("group", 1))))
    return str(node.input[0])


def _dense(weight: np.ndarray, groups: int) -> np.ndarray:
    """The matrix of a grouped 1x1 convolution's weight (out, in / groups, 1, 1)."""
    rows, columns = weight.shape[:2]
    flat = weight.reshape(rows, columns)
    if groups == 1:
        return flat
    out = np.zeros((rows, columns * groups))
    step = rows // groups
    for g in range(groups):
        out[g * step : (g + 1) * step, g * columns : (g + 1) * columns] = flat[g * step : (g + 1) * step]
    return out


def _batch_norm(graph: Graph, node: NodeProto, affine: _Affine) -> str:
    values = [graph.constant(i) for i in node.input[1:5]]
    if any(v is None for v in values):
        raise _NotAffine("has parameters that are not constant")
    gamma, beta, mean, var = (v.astype(np.float64) for v in values if v is not None)
    scale = gamma / np.sqrt(var + float(attributes(node).get("epsilon", 1e-5)))
    affine.after_shift(beta - mean * scale)
    affine.after_scale(scale)
    return str(node.input[0])


def _arithmetic(graph: Graph, node: NodeProto, affine: _Affine) -> str:
    position, constant = _split(graph, node)
    value = constant.astype(np.float64).ravel()
    if node.op_type == "Add":
        affine.after_shift(value)
    elif node.op_type == "Mul":
        affine.after_scale(value)
    elif node.op_type == "Div":
        if position == 1:
            raise _NotAffine("divides by a tensor that depends on the picture, which")
        affine.after_scale(1 / value)
    elif position == 0:
        affine.after_shift(-value)
    else:  # constant - x: outermost comes the shift, then the sign
        affine.after_shift(value)
        affine.after_scale(np.array([-1.0]))
    return str(node.input[position])


# --- pooling ---------------------------------------------------------------------------------------------


def _pooling(graph: Graph, node: NodeProto) -> tuple[str, Layout, list[str]] | None:
    """What a pooling node pools: tensor, layout, notes; None if the node is no pooling."""
    if node.op_type == "GlobalAveragePool":
        return node.input[0], "NDL" if graph.rank(node.input[0]) == 3 else "NCHW", []
    if node.op_type == "ReduceMean":
        return _reduce_mean(graph, node)
    if node.op_type == "AveragePool":
        return _average_pool(graph, node)
    return None


def _reduce_mean(graph: Graph, node: NodeProto) -> tuple[str, Layout, list[str]]:
    """One ReduceMean, or several in a row (`x.mean(3).mean(2)`), over the positions of a map or of tokens."""
    first = node
    tensor, axes = _mean_axes(graph, first)
    while (before := graph.producer.get(tensor)) is not None and before.op_type == "ReduceMean":
        source, inner = _mean_axes(graph, before)
        kept = bool(attributes(before).get("keepdims", 1))
        left = [
            a for a in range(graph.rank(source) or 4) if kept or a not in inner
        ]  # axes of `tensor` in terms of `source`
        axes = inner | {left[a] for a in axes}
        tensor, first = source, before
    rank = graph.rank(tensor)
    layouts: dict[tuple[int, tuple[int, ...]], Layout] = {
        (4, (2, 3)): "NCHW",
        (4, (1, 2)): "NHWC",
        (3, (1,)): "NLD",
        (3, (2,)): "NDL",
    }
    found = layouts.get((rank or 0, tuple(sorted(axes))))
    if found is None:
        raise ExportError(
            f"{label(node)}: averages axes {sorted(axes)} of a tensor of rank {rank or 'unknown'}, "
            "which is not a pooling over all positions"
        )
    return tensor, found, []


def _mean_axes(graph: Graph, node: NodeProto) -> tuple[str, set[int]]:
    """The tensor a ReduceMean reads and its axes, counted from 0 (an attribute, or an input since opset 18)."""
    at = attributes(node)
    axes: list[int] | None = None
    if "axes" in at:
        axes = list(at["axes"])
    elif len(node.input) > 1 and node.input[1]:
        value = graph.constant(node.input[1])
        if value is None:
            raise ExportError(f"{label(node)}: its axes are not constant")
        axes = [int(a) for a in value.ravel()]
    rank = graph.rank(node.input[0])
    if axes is None or (rank is None and any(a < 0 for a in axes)):
        raise ExportError(f"{label(node)}: cannot tell over which axes of '{node.input[0]}' it averages")
    return node.input[0], {a % rank if rank else a for a in axes}


def _average_pool(graph: Graph, node: NodeProto) -> tuple[str, Layout, list[str]]:
    at = attributes(node)
    kernel = tuple(at.get("kernel_shape", ()))
    shape = graph.shape(node.input[0])
    layout: Layout = "NDL" if len(kernel) == 1 else "NCHW"
    spatial = None if shape is None else tuple(shape[2:])
    name = "x".join(map(str, kernel))
    if any(at.get("pads", [])):
        raise ExportError(f"{label(node)}: pads its {name} window, so it is not a global average pooling")
    if spatial == kernel:
        return node.input[0], layout, [f"{label(node)}: {name} window of the whole map made global"]
    if spatial is not None and all(isinstance(s, int) for s in spatial):
        size = "x".join(map(str, spatial))
        raise ExportError(f"{label(node)}: averages {name} windows of a {size} map, not the whole map")
    note = f"{label(node)}: {name} window taken for the whole map and made global"
    return node.input[0], layout, [note]


def _resolve(graph: Graph, tensor: str, layout: Layout) -> tuple[str, Layout]:
    """Look through transposes and spatial flattening, back to a N,C,H,W map where there is one."""
    while (node := graph.producer.get(tensor)) is not None:
        source = node.input[0] if node.input else ""
        shape, before = graph.shape(tensor), graph.shape(source)
        perm = tuple(attributes(node).get("perm", ())) if node.op_type == "Transpose" else ()
        if layout == "NHWC" and perm == (0, 2, 3, 1):
            tensor, layout = source, "NCHW"
        elif layout == "NCHW" and perm == (0, 3, 1, 2):
            tensor, layout = source, "NHWC"
        elif layout in ("NLD", "NDL") and perm == (0, 2, 1):
            tensor, layout = source, "NDL" if layout == "NLD" else "NLD"
        elif layout == "NCHW" and _one_row(node, before, shape):
            tensor, layout = source, "NDL"
        elif layout in ("NLD", "NDL") and _merges_positions(node, before, shape, layout):
            tensor, layout = source, "NCHW" if layout == "NDL" else "NHWC"
        else:
            break
    return tensor, layout


def _one_row(node: NodeProto, before: tuple | None, after: tuple | None) -> bool:
    """Whether a 1-D pooling was written as a 2-D one: (N,C,L) made (N,C,1,L)."""
    if node.op_type not in ("Reshape", "Unsqueeze") or before is None or after is None:
        return False
    return len(before) == 3 and len(after) == 4 and after[2] == 1 and before[1] == after[1]


def _merges_positions(node: NodeProto, before: tuple | None, after: tuple | None, layout: Layout) -> bool:
    """Whether a reshape turns (N,C,h,w) into (N,C,hw), or (N,h,w,C) into (N,hw,C), and nothing else."""
    if node.op_type not in ("Reshape", "Flatten") or before is None or after is None or len(before) != 4:
        return False
    channels = before[1] if layout == "NDL" else before[3]
    return isinstance(channels, int) and channels == after[channel_axis(layout)]


# --- saying what is wrong --------------------------------------------------------------------------------


def _flattens_a_map(graph: Graph, node: NodeProto) -> bool:
    """Whether a reshape makes one vector of a map with more than one position."""
    if node.op_type not in ("Flatten", "Reshape"):
        return False
    before, after = graph.shape(node.input[0]), graph.shape(node.output[0])
    if before is None or len(before) < 3 or (after is not None and len(after) > 2):
        return False
    if len(before) == 3:  # positions may be the second or the third axis; one token has none
        return all(isinstance(d, int) and d > 1 for d in before[1:])
    return any(isinstance(d, int) and d > 1 for d in before[2:])


def _no_pooling(flattened: NodeProto | None, last_linear: NodeProto | None, why: str) -> str:
    if flattened is not None:
        return (
            f"no global average pooling: {label(flattened)} flattens the whole map into the linear layer; "
            "only classifiers that average over all positions have a response map"
        )
    linear = f" before {label(last_linear)}" if last_linear is not None else ""
    return f"no global average pooling{linear}: {why}; a global average pooling and a linear layer are needed"


def _explain(
    graph: Graph, node: NodeProto, why: str, flattened: NodeProto | None, last_linear: NodeProto | None
) -> str:
    """One line about a node that ends the walk."""
    if node.op_type in ("QLinearConv", "QLinearMatMul", "DequantizeLinear", "QuantizeLinear"):
        return f"{label(node)}: quantised graphs cannot be exported; give the float32 model"
    if flattened is not None:
        return _no_pooling(flattened, last_linear, "")
    if node.op_type in _MAX_POOLS:
        return f"{label(node)}: the head pools by maximum; a response map needs average pooling"
    if _takes_one_token(graph, node):
        return (
            f"{label(node)}: the head reads only the class token, which has no position; "
            "a response map needs a mean over the patch tokens"
        )
    if _nearest_pool(graph, node) is None:
        return _no_pooling(None, last_linear, f"{label(node)} {why} and no pooling lies before it")
    if last_linear is None:
        return (
            f"{label(node)} {why} and lies between the linear layer and the output: the output must be "
            "the logits, or their sigmoid or softmax; another one can be named with --output"
        )
    what = "a normalisation" if node.op_type in _NORMS else f"{node.op_type}"
    return (
        f"{label(node)} {why} and lies between the pooling and the logits: {what} there does not commute with "
        "the mean over positions (only linear layers, scales and shifts do)"
    )


def _takes_one_token(graph: Graph, node: NodeProto) -> bool:
    if graph.rank(node.input[0]) != 3 if node.input else True:
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


def float_type(elem_type: int) -> str:
    """Name of an ONNX element type, for messages."""
    return TensorProto.DataType.Name(elem_type).lower() if elem_type else "unknown"
