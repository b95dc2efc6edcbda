"""What a graph does to the picture before its first layer: whole numbers made floats, a normalisation of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from infercam.engine.common.errors import ExportError
from infercam.export.graph.index import Graph, attributes, label

_MOVES = {
    "Identity",
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Gather",
    "Split",
    "Flatten",
    "Concat",
}
_ASKS = {"Shape", "Size"}
_KEEP_AXES = {
    "Identity",
    "Cast",
    "Sub",
    "Add",
    "Mul",
    "Div",
    "Pad",
    "Clip",
    "Slice",
    "Resize",
    "BatchNormalization",
}
_REACH = 100  # nodes looked at for the first convolution
_BGR = np.array([103.94, 116.78, 123.68])  # ImageNet's mean colour as Caffe's models have it


@dataclass(frozen=True)
class Normalisation:
    """What a graph does by itself: its nodes, for messages, and the scale of the pixels it evidently expects."""

    nodes: str
    scale: float | None
    blue_first: bool = False
    """Whether its means are ImageNet's in the order B, G, R."""


def make_float(graph: Graph, picture: str) -> None:
    """Turn a uint8 input into a float32 one, in place: the Casts behind it go. `graph` must be indexed anew.

    Raises ExportError where a node computes with the whole numbers before they are cast.
    """
    front, seen = [picture], set[str]()
    while front:
        tensor = front.pop()
        seen.add(tensor)
        for node in _readers(graph, tensor):
            to = attributes(node).get("to")
            if node.op_type == "Cast" and to == TensorProto.FLOAT:
                node.op_type = "Identity"
                del node.attribute[:]
            elif node.op_type in _MOVES and node.input[0] == tensor:
                front += [o for o in node.output if o not in seen]
            elif node.op_type not in _ASKS:
                raise ExportError(
                    f"input '{picture}' is uint8, and {label(node)} reads it before it is cast to float32; export a "
                    "model that begins with a Cast to float32, or that takes float32"
                )
    info = next(i for i in graph.proto.input if i.name == picture)
    info.type.tensor_type.elem_type = TensorProto.FLOAT


def _readers(graph: Graph, tensor: str) -> Iterator[NodeProto]:
    return (n for n in graph.proto.node if tensor in n.input)


def declare_channels(graph: Graph) -> bool:
    """Declare, in place, which axis of a picture input of rank 4 has the three channels, where it says of none how
    large it is; whether anything was declared. `graph` must be indexed anew then.

    Raises ExportError where the graph does not tell.
    """
    changed = False
    for info in graph.image_inputs():
        dims = info.type.tensor_type.shape.dim
        if len(dims) != 4 or any(dims[axis].dim_value > 0 for axis in (1, 3)):
            continue
        axis = _channels_by_use(graph, info.name)
        if axis is None:
            raise ExportError(
                f"input '{info.name}' does not say which of its axes has the 3 channels: export the model with the "
                "shape N,3,H,W or N,H,W,3"
            )
        dims[axis].dim_value = 3
        changed = True
    return changed


def _channels_by_use(graph: Graph, picture: str) -> int | None:
    """The axis of the picture that the first convolution takes for channels, or constants of three values lie on."""
    waiting: list[tuple[str, tuple[int, ...]]] = [(picture, (0, 1, 2, 3))]
    for tensor, axes in waiting:  # grows while it is walked along
        for node in _readers(graph, tensor):
            if node.op_type == "Conv":
                return axes[1]
            if node.op_type == "Transpose":
                perm = attributes(node).get("perm", (3, 2, 1, 0))
                waiting.append((node.output[0], tuple(axes[p] for p in perm)))
            elif node.op_type in _KEEP_AXES and len(waiting) < _REACH:
                constants = [v for i in node.input if i != tensor and (v := graph.constant(i)) is not None]
                along = {a for v in constants for a in range(-v.ndim, 0) if v.shape[a] == 3 and v.size == 3}
                if len(along) == 1 and node.op_type in ("Sub", "Add", "Mul", "Div"):
                    return axes[along.pop()]
                waiting.append((node.output[0], axes))
    return None


def own_normalisation(graph: Graph, picture: str, *, channels_last: bool) -> Normalisation | None:
    """The factors and shifts by constants that a graph begins with, None where it has none (or does nothing)."""
    axis = 3 if channels_last else 1
    factor, shift = np.ones(3), np.zeros(3)
    found: list[NodeProto] = []
    tensor = picture
    while True:
        readers = [n for n in _readers(graph, tensor) if n.op_type not in _ASKS]
        if len(readers) != 1:
            break
        node = readers[0]
        if node.op_type == "Transpose":
            perm = list(attributes(node).get("perm", (3, 2, 1, 0)))
            if axis not in perm:
                break
            axis = perm.index(axis)
        elif node.op_type not in ("Identity", "Cast"):
            step = _affine_step(graph, node, tensor, axis)
            if step is None:
                break
            found.append(node)
            factor, shift = factor * step[0], shift * step[0] + step[1]
        tensor = node.output[0]
    if not found or not np.all(factor) or (np.all(factor == 1) and not np.any(shift)):
        return None
    names = " to ".join(dict.fromkeys(label(n) for n in (found[0], found[-1])))
    scale = _expected_scale(factor, shift)
    middle = -shift / factor * (1 if scale == 1 else 255)
    return Normalisation(names, scale, bool(np.all(np.abs(middle - _BGR) < 3)))


def _affine_step(
    graph: Graph, node: NodeProto, tensor: str, axis: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Factor and shift of each channel, of a node that is nothing else."""
    if (
        node.op_type == "BatchNormalization"
        and axis == 1
        and len(node.input) == 5
        and node.input[0] == tensor
    ):
        values = [graph.constant(i) for i in node.input[1:5]]
        gamma, beta, mean, var = (_per_channel(v, 0) for v in values)
        if gamma is None or beta is None or mean is None or var is None:
            return None
        scale = gamma / np.sqrt(var + float(attributes(node).get("epsilon", 1e-5)))
        return scale, beta - mean * scale
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
        return None
    position = list(node.input).index(tensor)
    value = _per_channel(graph.constant(node.input[1 - position]), axis - 4)
    if (
        value is None
        or (position == 1 and node.op_type == "Div")
        or (node.op_type == "Div" and not np.all(value))
    ):
        return None
    one, zero = np.ones(3), np.zeros(3)
    if node.op_type in ("Mul", "Div"):
        return (value if node.op_type == "Mul" else 1 / value), zero
    if node.op_type == "Add":
        return one, value
    return (one, -value) if position == 0 else (-one, value)


def _per_channel(value: np.ndarray | None, axis: int) -> np.ndarray | None:
    """A constant as three numbers along an axis; None where it is anything else."""
    if value is None:
        return None
    if value.size == 1:
        return np.full(3, float(value.ravel()[0]))
    along = value.ndim > (axis if axis >= 0 else -axis - 1) and value.shape[axis] == 3
    return value.ravel().astype(np.float64) if along and value.size == 3 else None


def _expected_scale(factor: np.ndarray, shift: np.ndarray) -> float | None:
    """Which pixels such a normalisation is made for: 0..255 (scale 1) or 0..1 (1/255), None where it is not evident.

    The picture that it maps to zero tells: a mean colour is 100 to 130 of 255, or 0.4 to 0.5 of 1. Without a shift
    the factor does: 1/255 and 1/127.5 are for 0..255, 255 is for 0..1. Around an input that is normalised already
    (a BatchNormalization of the picture with a mean near 0) neither is evident.
    """
    if not np.any(shift):
        size = np.abs(factor)
        return 1.0 if np.all(size < 1 / 50) else 1 / 255 if np.all(size > 50) else None
    middle = -shift / factor
    if np.all(middle > 2):
        return 1.0
    return 1 / 255 if np.all((middle > 0.1) & (middle < 1)) and np.all(np.abs(factor) > 0.5) else None
