"""Response graphs in half precision (fp16, bf16), strongly typed: the graph itself says what runs in which type.

What decides the maps' accuracy, or does not fit into a half, stays in fp32: the response layer and all behind it,
the picture's normalisation, sums over many values (means, pooling, normalisation layers), and whatever has
weights or values that the type cannot hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from infercam.engine.common.errors import ExportError
from infercam.export.graph.frozen import MEAN
from infercam.export.graph.index import Graph, attributes, fresh_name, label, opset, used_by
from infercam.export.graph.passes import lift_constants, tidy
from infercam.export.graph.surgery import RESPONSE
from infercam.export.precision.bf16_activations import write_out


@dataclass(frozen=True)
class HalfType:
    """A 16-bit floating-point type."""

    name: str
    onnx: int
    dtype: np.dtype
    largest: float
    smallest: float
    """The smallest normal number: below it, digits are lost."""
    epsilon: float
    """Relative rounding error of a normal number, at most."""
    opset: int
    """The first operator set whose convolutions take the type."""


FP16 = HalfType("fp16", TensorProto.FLOAT16, np.dtype(np.float16), 65504.0, 2.0**-14, 2.0**-11, 13)
BF16 = HalfType("bf16", TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16), 3.38e38, 2.0**-126, 2.0**-8, 22)
HALVES = {h.name: h for h in (FP16, BF16)}

QUANTISE_OPSET = 19
"""The first operator set that quantises from and to halves, and knows fp8."""
HEADROOM = 4.0
"""Values seen in calibration may grow by this factor on other images before they overflow."""
_LOST = 4.0
"""Weights that lose more than this many times the type's rounding error (denormals) stay in fp32."""

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ELEMENTWISE = (
    *(
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Clip",
        "BatchNormalization",
        "Cast",
        "Identity",
        "Dropout",
        "Pad",
        "Transpose",
    ),
    *("Concat", "Split", "Slice", "Gather", "Reshape", "Squeeze", "Unsqueeze", "Resize"),
)
_HALVED = (
    *_LINEAR,
    *("Add", "Sub", "Mul", "Div", "Max", "Min", "Neg", "Abs", "Where", "BatchNormalization"),
    *(
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Elu",
        "Selu",
        "Celu",
        "Clip",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
    ),
    *("Gelu", "Erf", "Mish", "Softplus", "MaxPool", "Resize", "DepthToSpace", "SpaceToDepth", "Identity"),
    *("Concat", "Split", "Slice", "Gather", "Expand", "Tile", "Pad"),
    *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "QuantizeLinear", "DequantizeLinear"),
)
"""Operators that are safe in half precision; all others (sums, norms, what is not known) stay in fp32."""
_ALWAYS_FP32 = {"Resize": (1, 2)}
"""Inputs whose type the operator fixes (regions and scales)."""


@dataclass
class Halved:
    """A converted graph and what stayed in fp32."""

    model: ModelProto
    kept: dict[str, str]
    """Node -> why, for each node that computes in fp32."""


def to_half(
    model: ModelProto,
    half: HalfType,
    *,
    ranges: Mapping[str, float] | None = None,
    keep: Mapping[str, str] | None = None,
    half_input: bool = False,
) -> Halved:
    """`model` (a float32 response graph: image -> scores, response) in half precision; outputs stay float32.

    `ranges`: largest magnitude of tensors by name, as measured on images; what comes near the type's limit
    stays in fp32. `keep`: other nodes to keep there, as graph.label names them -> why. `half_input`: the picture
    is float16 instead of float32 (fp16 and bf16 graphs alike).
    Raises ExportError where a node cannot be converted.
    """
    quantised = any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph.node)
    model = upgraded(model, max(half.opset, QUANTISE_OPSET if quantised else 0))
    lift_constants(model)
    graph = Graph(model)
    _refuse_subgraphs(graph)
    kept = _kept(graph, half, ranges or {}, keep or {})
    converter = _Converter(graph, half, {id(n) for n, _ in kept}, half_input)
    converter.convert()
    if half is BF16:
        write_out(model)
    return Halved(model, {label(n): why for n, why in kept})


def linear_layers(model: ModelProto) -> list[str]:
    """Labels of the layers with weights, the response layer and the gates left out."""
    graph = Graph(model)
    response = response_layer(graph) | gates(graph)
    return [label(n) for n in graph.proto.node if n.op_type in _LINEAR and id(n) not in response]


def upgraded(model: ModelProto, version: int) -> ModelProto:
    """A copy at operator set `version` or later; raises ExportError where ONNX has no conversion."""
    copy = ModelProto()
    copy.CopyFrom(model)
    if opset(copy) >= version:
        return copy
    try:
        return onnx.version_converter.convert_version(copy, version)
    except Exception as e:  # the converter's exceptions share no base below Exception
        first = (str(e).splitlines() or [type(e).__name__])[0]
        raise ExportError(
            f"the graph (opset {opset(model)}) cannot be raised to opset {version}: {first}"
        ) from None


def response_layer(graph: Graph) -> set[int]:
    """ids of the nodes from the last linear layer to the outputs: what makes `response` and `scores`."""
    found: set[int] = set()
    front = [RESPONSE]
    while front:
        node = graph.producer.get(front.pop())
        if node is not None and id(node) not in found:
            found.add(id(node))
            if node.op_type not in _LINEAR and node.op_type != "Shape":
                front.extend(i for i in node.input if i)
    behind = {RESPONSE}
    for node in graph.proto.node:
        if used_by(node) & behind:
            found.add(id(node))
            behind.update(node.output)
    return found


def gates(graph: Graph) -> set[int]:
    """ids of the nodes that the scalars of a frozen head are made by, and what they multiply (graph/frozen.py).

    They are a vector an image: half precision saves nothing there, and moves every position of a map.
    """
    found: set[int] = set()
    behind: set[str] = set()
    for node in graph.proto.node:
        if node.name.startswith(f"infercam/{MEAN}") or used_by(node) & behind:
            found.add(id(node))
            behind.update(node.output)
    return found


def normalisation(graph: Graph) -> set[int]:
    """ids of the nodes between the picture and the first layer: what a classifier does to its pixels."""
    found: set[int] = set()
    early = {i.name for i in graph.image_inputs()}
    for node in graph.proto.node:
        fed = [i for i in node.input if i and i not in graph.initializers]
        if node.op_type in _ELEMENTWISE and fed and set(fed) <= early:
            found.add(id(node))
            early.update(node.output)
    return found


def _refuse_subgraphs(graph: Graph) -> None:
    for node in graph.proto.node:
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise ExportError(f"{label(node)} has a sub-graph: such a graph cannot be put in half precision")


def _kept(
    graph: Graph, half: HalfType, ranges: Mapping[str, float], keep: Mapping[str, str]
) -> list[tuple[NodeProto, str]]:
    """Nodes with float32 outputs that stay in fp32, each with the reason."""
    response, pixels, frozen = response_layer(graph), normalisation(graph), gates(graph)
    out = []
    for node in graph.proto.node:
        if not any(graph.elem_type(o) == TensorProto.FLOAT for o in node.output if o):
            continue
        if id(node) in response:
            why: str | None = "the response layer"
        elif id(node) in frozen:
            why = "the image's own factors"
        elif id(node) in pixels:
            why = "the picture's normalisation"
        elif node.op_type not in _HALVED or not _allows(node, half, opset(graph.model)):
            why = f"the operator {node.op_type}"
        else:
            why = keep.get(label(node)) or _too_wide(node, half, ranges) or _lossy(graph, node, half)
        if why:
            out.append((node, why))
    return out


def _allows(node: NodeProto, half: HalfType, version: int) -> bool:
    """Whether the operator's schema takes the type (bf16 came late to many)."""
    if node.domain not in ("", "ai.onnx"):
        return False
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return False
    wanted = f"tensor({'float16' if half is FP16 else 'bfloat16'})"
    by_name = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    types = [by_name.get(o.type_str, [o.type_str]) for o in schema.outputs[:1]]
    return all(wanted in t for t in types)


def _too_wide(node: NodeProto, half: HalfType, ranges: Mapping[str, float]) -> str | None:
    widest = max((ranges.get(t, 0.0) for t in (*node.input, *node.output)), default=0.0)
    if widest <= half.largest / HEADROOM:
        return None
    return f"its values reach {widest:.3g}, near or beyond {half.name}'s {half.largest:.5g}"


def _lossy(graph: Graph, node: NodeProto, half: HalfType) -> str | None:
    """Why the node's weights do not fit into the type, by name; None where they do."""
    for i, name in enumerate(node.input):
        weight = graph.initializers.get(name)
        if weight is None or weight.data_type != TensorProto.FLOAT or i in _ALWAYS_FP32.get(node.op_type, ()):
            continue
        value = numpy_helper.to_array(weight).astype(np.float64)
        finite = value[np.isfinite(value)]  # an infinite bound of a Clip is one in half as well
        largest = float(np.abs(finite).max(initial=0))
        if largest > half.largest and node.op_type != "Clip":
            return f"weight '{name}' reaches {largest:.4g}, beyond {half.name}'s {half.largest:.5g}"
        if node.op_type == "Clip":
            continue
        lost = np.linalg.norm(finite.astype(half.dtype).astype(np.float64) - finite)
        size = np.linalg.norm(finite)
        if size and lost > _LOST * half.epsilon * size:
            small = int(np.count_nonzero((np.abs(finite) < half.smallest) & (finite != 0)))
            return (
                f"weight '{name}' loses {lost / size:.1%} ({small} of {finite.size} values below "
                f"{half.name}'s smallest normal {half.smallest:.2g})"
            )
    return None


class _Converter:
    """Rewrites `graph.model` in place so that every tensor has the type of the node that makes it."""

    def __init__(self, graph: Graph, half: HalfType, fp32: set[int], half_input: bool) -> None:
        self.graph = graph
        self.half = half
        self.fp32 = fp32
        self.types: dict[str, int] = {}
        """Of each tensor that was float32."""
        self.casts: dict[tuple[str, int], str] = {}
        self.weights: dict[tuple[str, int], str] = {}
        for picture in graph.image_inputs():
            kind = TensorProto.FLOAT16 if half_input else TensorProto.FLOAT
            picture.type.tensor_type.elem_type = kind
            self.types[picture.name] = kind

    def convert(self) -> None:
        model = self.graph.model
        nodes = list(model.graph.node)
        for node in nodes:
            kind = TensorProto.FLOAT if id(node) in self.fp32 else self.half.onnx
            for o in node.output:
                if o and self._was_float(o, node):
                    self.types[o] = kind
        for node in nodes:
            self._convert_inputs(node)
        tidy(model)

    def _was_float(self, tensor: str, node: NodeProto) -> bool:
        kind = self.graph.elem_type(tensor)
        if kind == 0:
            raise ExportError(
                f"{label(node)}: the type of its output is not known, so it cannot be converted"
            )
        return kind == TensorProto.FLOAT

    def _convert_inputs(self, node: NodeProto) -> None:
        floats = any(o in self.types for o in node.output)
        own = next((self.types[o] for o in node.output if o in self.types), TensorProto.FLOAT)
        if not floats and node.op_type == "QuantizeLinear" and id(node) not in self.fp32:
            own = self.half.onnx
        for i, name in enumerate(node.input):
            kind = TensorProto.FLOAT if i in _ALWAYS_FP32.get(node.op_type, ()) else own
            if name in self.types and self.types[name] != kind and node.op_type != "Cast":
                node.input[i] = self._cast(name, kind)
            elif self._float_weight(name) and kind != TensorProto.FLOAT:
                node.input[i] = self._weight(name, kind)

    def _float_weight(self, name: str) -> bool:
        weight = self.graph.initializers.get(name)
        return weight is not None and weight.data_type == TensorProto.FLOAT

    def _cast(self, name: str, kind: int) -> str:
        if (name, kind) not in self.casts:
            suffix = TensorProto.DataType.Name(kind).lower()
            out = fresh_name(self.graph.model, f"{name}.{suffix}")
            node = helper.make_node("Cast", [name], [out], name=f"infercam/{out}", to=kind)
            self.graph.model.graph.node.append(node)
            self.casts[name, kind] = out
        return self.casts[name, kind]

    def _weight(self, name: str, kind: int) -> str:
        """A copy of a float32 weight in the half type (the original stays for fp32 nodes that share it)."""
        if (name, kind) not in self.weights:
            value = numpy_helper.to_array(self.graph.initializers[name])
            limit = self.half.largest
            bounded = np.where(np.isfinite(value), np.clip(value, -limit, limit), value)  # a Clip's bounds
            out = fresh_name(self.graph.model, f"{name}.{self.half.name}")
            tensor = numpy_helper.from_array(bounded.astype(self.half.dtype), out)
            self.graph.model.graph.initializer.append(tensor)
            self.weights[name, kind] = out
        return self.weights[name, kind]


# Rounding a value that already is a half changes nothing: these only move or choose values.
_EXACT = frozenset(
    {"Relu", "MaxPool", "Identity", "Concat", "Split", "Slice", "Gather", "Expand", "Tile", "Pad", "Reshape"}
    | {"Transpose", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth", "Max", "Min", "Clip"}
)


def emulated(model: ModelProto) -> ModelProto:
    """The same graph for a machine without half arithmetic: float32 throughout, every half tensor rounded.

    Tensors are rounded to the half type when they are made; sums inside an operator are in float32, as tensor
    cores add them up. ONNX Runtime's own CPU provider cannot stand in: it has no bf16 convolution, and computes
    fp16 in float32 without rounding in between.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    kinds = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    graph = Graph(copy)
    half_of = {
        o: graph.elem_type(o) for n in copy.graph.node for o in n.output if graph.elem_type(o) in kinds
    }
    for picture in graph.image_inputs():
        if (kind := picture.type.tensor_type.elem_type) in kinds:
            picture.type.tensor_type.elem_type = TensorProto.FLOAT
            _round_input(copy, picture.name, kind)
    for weight in copy.graph.initializer:
        if weight.data_type in kinds:
            weight.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), weight.name)
            )
    for node in list(copy.graph.node):
        if node.op_type == "Cast" and attributes(node)["to"] in kinds:
            node.attribute[0].i = TensorProto.FLOAT
        elif node.op_type in _EXACT:
            continue
        for i, o in enumerate(node.output):
            if o in half_of:
                node.output[i] = _rounded(copy, o, half_of[o])
    tidy(copy)
    return copy


def _rounded(model: ModelProto, target: str, kind: int) -> str:
    """Nodes that make `target` from a new tensor, whose name is returned, by rounding it."""
    raw, half = fresh_name(model, f"{target}.raw"), fresh_name(model, f"{target}.half")
    model.graph.node.append(helper.make_node("Cast", [raw], [half], to=kind))
    model.graph.node.append(helper.make_node("Cast", [half], [target], to=TensorProto.FLOAT))
    return raw


def _round_input(model: ModelProto, name: str, kind: int) -> None:
    inner = fresh_name(model, f"{name}.rounded")
    for node in model.graph.node:
        for i, x in enumerate(node.input):
            if x == name:
                node.input[i] = inner
    model.graph.node.append(helper.make_node("Cast", [name], [f"{inner}.half"], to=kind))
    model.graph.node.append(helper.make_node("Cast", [f"{inner}.half"], [inner], to=TensorProto.FLOAT))
