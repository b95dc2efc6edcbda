"""Floating-point operations of a response graph, counted from the graph itself.

Counted are the multiply-adds of convolutions and matrix products, two operations each; what is left out (biases,
activations, pooling, additions) is below 2 % in the networks this is for. Shapes come from ONNX shape inference at
the network height and width that were really inferred.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infercam.benchmarks.bench.job import NotMeasured
from infercam.engine.common.errors import MissingExtra

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Shape = tuple[int, ...]


class Counter:
    """Operations of one graph by input size; each size is counted once."""

    def __init__(self, model: ModelProto, input_name: str) -> None:
        self._model, self._input = model, input_name
        self._known: dict[tuple[int, int], int] = {}

    @classmethod
    def load(cls, graph: Path, input_name: str) -> Counter:
        """Raises MissingExtra without onnx, NotMeasured where the graph cannot be read."""
        try:
            import onnx
        except ImportError:
            raise MissingExtra("onnx", "export", "counting operations") from None
        try:
            return cls(onnx.load(graph, load_external_data=False), input_name)
        except Exception as e:
            raise NotMeasured(f"{graph}: cannot be read: {str(e).splitlines()[0]}") from None

    def at(self, height: int, width: int) -> int:
        """Operations of one image of that size; raises NotMeasured naming a node whose shape stays unknown."""
        if (height, width) not in self._known:
            self._known[height, width] = count(self._model, {self._input: (1, 3, height, width)})
        return self._known[height, width]

    def of(self, shapes: Mapping[str, int]) -> int:
        """Operations of all views, as Measured.shapes lists them ("375x500": 8)."""
        total = 0
        for shape, views in shapes.items():
            height, width = (int(n) for n in shape.split("x"))
            total += views * self.at(height, width)
        return total


def count(model: ModelProto, inputs: Mapping[str, Shape]) -> int:
    """Two operations for every multiply-add of the graph at these input shapes."""
    shapes = infer_shapes(model, inputs)
    total = 0
    for node in model.graph.node:
        rule = _RULES.get(node.op_type)
        if rule is not None:
            total += 2 * rule(node, shapes)
    return total


def infer_shapes(model: ModelProto, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shape of every tensor whose shape is known once the inputs' are."""
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]  # the exporter's, of other sizes
    for value in fixed.graph.input:
        if value.name in inputs:
            _set_shape(value, inputs[value.name])
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    shapes = {t.name: tuple(t.dims) for t in inferred.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    return shapes


def _set_shape(value: Any, shape: Shape) -> None:
    value.type.tensor_type.shape.ClearField("dim")
    for size in shape:
        value.type.tensor_type.shape.dim.add().dim_value = size


def _shape(node: NodeProto, name: str, shapes: Mapping[str, Shape]) -> Shape:
    try:
        return shapes[name]
    except KeyError:
        where = f"{node.op_type} {node.name or '?'}"
        raise NotMeasured(f"the shape of {name!r} ({where}) does not follow from the input's") from None


def _volume(shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _conv(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Every output value is a product with one filter: channels in its group × its area."""
    weight = _shape(node, node.input[3 if node.op_type == "QLinearConv" else 1], shapes)
    return _volume(_shape(node, node.output[0], shapes)) * _volume(weight[1:])


def _conv_transpose(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Every input value is spread by one filter."""
    return _volume(_shape(node, node.input[0], shapes)) * _volume(_shape(node, node.input[1], shapes)[1:])


def _matmul(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    return _volume(_shape(node, node.output[0], shapes)) * _shape(node, node.input[0], shapes)[-1]


def _gemm(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    left = _shape(node, node.input[0], shapes)
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return _volume(_shape(node, node.output[0], shapes)) * left[0 if transposed else -1]


_RULES: dict[str, Callable[[NodeProto, Mapping[str, Shape]], int]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
}
