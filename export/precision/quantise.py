"""Quantised response graphs: Q/DQ nodes around the layers that multiply (int8, or fp8 E4M3).

Symmetric, without zero points: activations with one scale per tensor, weights stored in 8 bits with one scale per
output channel (int8) or per tensor (fp8), which is what TensorRT's kernels take. Biases and all else stay as they
are. The response layer and a frozen head's gates are never quantised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from infercam.engine.common.errors import ExportError
from infercam.export.graph.index import Graph, attributes, fresh_name, label
from infercam.export.graph.passes import lift_constants, tidy
from infercam.export.precision.half import QUANTISE_OPSET, gates, response_layer, upgraded


@dataclass(frozen=True)
class QuantisedType:
    """An 8-bit type."""

    name: str
    onnx: int
    dtype: np.dtype
    largest: float
    per_channel: bool
    opset: int
    ir_version: int


INT8 = QuantisedType("int8", TensorProto.INT8, np.dtype(np.int8), 127.0, True, 13, 7)
FP8 = QuantisedType(
    "fp8", TensorProto.FLOAT8E4M3FN, np.dtype(ml_dtypes.float8_e4m3fn), 448.0, False, QUANTISE_OPSET, 9
)
QUANTISED = {q.name: q for q in (INT8, FP8)}

_FP8_CHANNELS = 16  # fp8 kernels work on blocks of 16 channels
_SMALLEST_SCALE = 2.0**-24  # of a half; also keeps a channel of zeros from dividing by zero


@dataclass(frozen=True)
class Layer:
    """A layer that can be quantised. `output` is its identity; `axis` that of the weight's output channels."""

    output: str
    label: str
    activation: str
    weight: str
    axis: int


def prepared(model: ModelProto, kind: QuantisedType) -> ModelProto:
    """A copy of a float32 response graph that can be quantised to `kind`; raises ExportError."""
    copy = upgraded(model, kind.opset)
    copy.ir_version = max(copy.ir_version, kind.ir_version)
    lift_constants(copy)
    if any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in copy.graph.node):
        raise ExportError("the fp32 graph has quantised layers already; quantise the original classifier")
    return copy


def layers(model: ModelProto, kind: QuantisedType) -> list[Layer]:
    """Layers with constant weights that `kind` has arithmetic for, in the graph's order."""
    graph = Graph(model)
    skipped = response_layer(graph) | gates(graph)
    found = []
    for node in graph.proto.node:
        layer = None if id(node) in skipped else _layer(graph, node)
        if layer is not None and (kind.per_channel or _fits_fp8(graph, node, layer)):
            found.append(layer)
    return found


def _layer(graph: Graph, node: NodeProto) -> Layer | None:
    if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2:
        return None
    activation, weight = node.input[0], graph.initializers.get(node.input[1])
    if weight is None or weight.data_type != TensorProto.FLOAT or len(weight.dims) < 2:
        return None
    if activation in graph.initializers:
        return None
    if node.op_type == "Gemm":
        at = attributes(node)
        if at.get("transA", 0):
            return None
        axis = 0 if at.get("transB", 0) else 1
    else:
        axis = 0 if node.op_type == "Conv" else len(weight.dims) - 1
    return Layer(node.output[0], label(node), activation, weight.name, axis)


def _fits_fp8(graph: Graph, node: NodeProto, layer: Layer) -> bool:
    shape = graph.initializers[layer.weight].dims
    return attributes(node).get("group", 1) == 1 and min(shape[0], shape[1]) >= _FP8_CHANNELS


def quantised(
    model: ModelProto,
    kind: QuantisedType,
    chosen: Iterable[Layer],
    clips: Mapping[str, float],
    *,
    half_scales: bool = False,
) -> ModelProto:
    """A copy of a `prepared` model with the chosen layers quantised.

    `clips`: activation tensor -> the magnitude at which it is cut. `half_scales`: scales are rounded to float16
    first, for a graph whose other layers will be in half precision.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    rewriter = _Rewriter(copy, kind, half_scales)
    by_output = {n.output[0]: n for n in copy.graph.node if n.output}
    for layer in chosen:
        node = by_output[layer.output]
        node.input[0] = rewriter.activation(layer.activation, clips[layer.activation])
        node.input[1] = rewriter.weight(layer)
    tidy(copy)
    return copy


class _Rewriter:
    """Adds Q/DQ nodes; a tensor or weight that several layers share is quantised once."""

    def __init__(self, model: ModelProto, kind: QuantisedType, half_scales: bool) -> None:
        self.model = model
        self.kind = kind
        self.half_scales = half_scales
        self.weights = {t.name: t for t in model.graph.initializer}
        self.made: dict[str, str] = {}
        self.zero = self._constant(np.zeros((), kind.dtype), f"zero.{kind.name}")

    def activation(self, name: str, clip: float) -> str:
        if name not in self.made:
            scale = self._constant(self._scale(np.float64(clip)), f"{name}.scale")
            q = fresh_name(self.model, f"{name}.{self.kind.name}")
            dq = fresh_name(self.model, f"{name}.dequantised")
            self._node("QuantizeLinear", [name, scale, self.zero], q)
            self._node("DequantizeLinear", [q, scale, self.zero], dq)
            self.made[name] = dq
        return self.made[name]

    def weight(self, layer: Layer) -> str:
        key = f"{layer.weight} {layer.axis}"
        if key not in self.made:
            value = numpy_helper.to_array(self.weights[layer.weight]).astype(np.float64)
            others = tuple(i for i in range(value.ndim) if i != layer.axis)
            peak = np.abs(value).max(axis=others if self.kind.per_channel else None)
            scale = self._scale(peak)
            at = {"axis": layer.axis} if self.kind.per_channel else {}
            wide = np.expand_dims(scale.astype(np.float64), others) if self.kind.per_channel else scale
            q = self._constant(_rounded(value / wide, self.kind), f"{layer.weight}.{self.kind.name}")
            names = [q, self._constant(scale, f"{layer.weight}.scale")]
            if self.kind.per_channel:
                zeros = np.zeros(scale.shape, self.kind.dtype)
                names.append(self._constant(zeros, f"{layer.weight}.zero"))
            else:
                names.append(self.zero)
            dq = fresh_name(self.model, f"{layer.weight}.dequantised")
            self._node("DequantizeLinear", names, dq, **at)
            self.made[key] = dq
        return self.made[key]

    def _scale(self, peak: np.ndarray | np.float64) -> np.ndarray:
        scale = np.maximum(np.asarray(peak) / self.kind.largest, _SMALLEST_SCALE)
        return np.asarray(scale.astype(np.float16) if self.half_scales else scale).astype(np.float32)

    def _constant(self, value: np.ndarray, base: str) -> str:
        name = fresh_name(self.model, base)
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _node(self, op: str, inputs: list[str], out: str, **at: Any) -> None:
        self.model.graph.node.append(helper.make_node(op, inputs, [out], name=f"infercam/{out}", **at))


def _rounded(value: np.ndarray, kind: QuantisedType) -> np.ndarray:
    """Values in units of the scale, cut at the type's largest and rounded to it (ties to even)."""
    cut = np.clip(value, -kind.largest, kind.largest)
    return (np.rint(cut) if kind is INT8 else cut).astype(kind.dtype)


def rounding(values: np.ndarray, clip: float, kind: QuantisedType) -> np.ndarray:
    """What becomes of non-negative `values` when quantised with that clip (float64)."""
    scale = max(clip / kind.largest, _SMALLEST_SCALE)
    return np.asarray(_rounded(values / scale, kind).astype(np.float64) * scale)
