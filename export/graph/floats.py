"""Graphs that compute in half or double precision, read as float32 ones: the weights are the same numbers (of double
ones the nearest), and every cast between floating types becomes none."""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from infercam.export.graph.shelf import Shelf
from infercam.export.runtime import values_of

OTHERS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_LARGEST = float(np.finfo(np.float32).max)
_TYPES = {"to", "dtype", "stash_type", "output_dtype"}
"""Attributes that name an element type."""


def as_float32(model: ModelProto) -> list[str]:
    """Make every float16, bfloat16 and float64 tensor of a graph a float32 one, in place; the names of the types that
    there were."""
    found: set[int] = set()
    shelf = Shelf.of(model)
    for tensor in model.graph.initializer:
        if shelf is not None and uses_external_data(tensor) and tensor.data_type in OTHERS:
            found.add(tensor.data_type)
            narrow = _float32(values_of(tensor, shelf.folder), tensor.name)
            tensor.CopyFrom(shelf.put(narrow, narrow.raw_data))
    _graph(model.graph, found)
    return sorted(TensorProto.DataType.Name(t).lower() for t in found)


def _graph(graph: GraphProto, found: set[int]) -> None:
    for tensor in graph.initializer:
        _tensor(tensor, found)
    for info in (*graph.input, *graph.output, *graph.value_info):
        _info(info, found)
    for node in graph.node:
        _node(node, found)


def _node(node: NodeProto, found: set[int]) -> None:
    for a in node.attribute:
        if a.type == AttributeProto.INT and a.name in _TYPES and a.i in OTHERS:
            found.add(a.i)
            a.i = TensorProto.FLOAT
        elif a.type == AttributeProto.TENSOR:
            _tensor(a.t, found)
        elif a.type == AttributeProto.GRAPH:
            _graph(a.g, found)
        for t in a.tensors:
            _tensor(t, found)
        for g in a.graphs:
            _graph(g, found)


def _tensor(tensor: TensorProto, found: set[int]) -> None:
    if tensor.data_type not in OTHERS:
        return
    found.add(tensor.data_type)
    tensor.CopyFrom(_float32(numpy_helper.to_array(tensor), tensor.name))


def _float32(values: np.ndarray, name: str) -> TensorProto:
    value = values.astype(np.float64)
    narrow = np.where(np.isfinite(value), value.clip(-_LARGEST, _LARGEST), value).astype(np.float32)
    return numpy_helper.from_array(narrow, name)


def _info(info: ValueInfoProto, found: set[int]) -> None:
    kind = info.type.tensor_type
    if info.type.HasField("tensor_type") and kind.elem_type in OTHERS:
        found.add(kind.elem_type)
        kind.elem_type = TensorProto.FLOAT
