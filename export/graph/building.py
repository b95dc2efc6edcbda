"""Adding nodes and constants to a graph, and bringing pooled features to a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from infercam.engine.common.errors import ExportError
from infercam.export.graph.index import Graph, float_type, fresh_name, opset
from infercam.export.graph.pooling import Layout, Pooling
from infercam.export.graph.tokens import token_grid
from infercam.export.runtime import values_of, weights_folder

END = np.iinfo(np.int64).max  # of a Slice: to the end


class NodeBuilder:
    """Adds nodes and constants to a graph under names that are free."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.opset = opset(model)
        self._source = Graph(model)

    def graph_constant(self, name: str) -> np.ndarray | None:
        """Value of one of the classifier's own tensors, where it is constant."""
        return self._source.constant(name) if name else None

    def constant(self, value: np.ndarray, base: str) -> str:
        name = fresh_name(self.model, base)
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def shared(self, value: np.ndarray, base: str) -> str:
        """A float32 constant, or that of the classifier's own weights which is the same."""
        value = value.astype(np.float32)
        for t in self.model.graph.initializer:
            same = t.data_type == TensorProto.FLOAT and tuple(t.dims) == value.shape
            if same and np.array_equal(values_of(t, weights_folder(self.model)), value):
                return str(t.name)
        return self.constant(value, base)

    def node(self, op: str, inputs: list[str], out: str, **at: Any) -> str:
        self.model.graph.node.append(helper.make_node(op, inputs, [out], name=f"infercam/{out}", **at))
        return out

    def tensor(self, base: str) -> str:
        return fresh_name(self.model, base)


def to_map(graph: Graph, build: NodeBuilder, tensor: str, layout: Layout) -> str:
    """Bring pooled features to N,C,h,w."""
    _require_float32(graph, tensor)
    if layout == "NCHW":
        return tensor
    if layout == "NHWC":
        return build.node("Transpose", [tensor], build.tensor("features.nchw"), perm=[0, 3, 1, 2])
    grid = token_grid(graph, tensor, layout)
    if layout == "NLD":
        tensor = build.node("Transpose", [tensor], build.tensor("features.ndl"), perm=[0, 2, 1])
    if grid.fixed is not None:
        size = build.constant(np.array(grid.fixed, np.int64), "grid.size")
    else:
        size = size_of(build, grid.like)
        if grid.over > 1:  # patches that were merged; a model that pads an odd grid rounds up
            more = build.constant(np.array([grid.over - 1], np.int64), "grid.more")
            over = build.constant(np.array([grid.over], np.int64), "grid.over")
            size = build.node("Add", [size, more], build.tensor("grid.rounded"))
            size = build.node("Div", [size, over], build.tensor("grid.merged"))
    return on_grid(build, tensor, size)


def _require_float32(graph: Graph, tensor: str) -> None:
    kind = graph.elem_type(tensor)
    if kind not in (0, TensorProto.FLOAT):
        raise ExportError(
            f"the pooled tensor '{tensor}' is {float_type(kind)}; only float32 models can be exported"
        )


def size_of(build: NodeBuilder, like: str) -> str:
    """Height and width of a map (N, C, h, w) at run time, int64 (2,)."""
    shape = build.node("Shape", [like], build.tensor("grid.shape"))
    both = build.constant(np.array([2, 3], np.int64), "grid.axes")
    return build.node("Gather", [shape, both], build.tensor("grid.size"), axis=0)


def on_grid(build: NodeBuilder, tensor: str, size: str) -> str:
    """(N, C, h·w) as a map (N, C, h, w)."""
    head = build.constant(np.array([0, 0], np.int64), "grid.head")
    target = build.node("Concat", [head, size], build.tensor("grid.target"), axis=0)
    return build.node("Reshape", [tensor, target], build.tensor("features.map"))


def sliced(build: NodeBuilder, tensor: str, axis: int, start: int, end: int = END) -> str:
    """What is from `start` on along an axis, up to `end`."""
    if build.opset < 10:
        return build.node("Slice", [tensor], build.tensor("tokens"), starts=[start], ends=[end], axes=[axis])
    bounds = [build.constant(np.array([v], np.int64), "tokens.bound") for v in (start, end, axis)]
    return build.node("Slice", [tensor, *bounds], build.tensor("tokens"))


def patch_tokens(build: NodeBuilder, p: Pooling, tokens: str = "") -> str:
    """The patch tokens (N, P, D) of the sequence that a class token is taken from, or of another like it."""
    return sliced(build, tokens or p.features, 1, p.extra)


def maps_of(build: NodeBuilder, poolings: Sequence[Pooling]) -> list[str]:
    """What each pooling reads, as N,C,h,w; raises ExportError where it is not float32 or no grid."""
    return [_map_of(build, p) for p in poolings]


def _map_of(build: NodeBuilder, p: Pooling) -> str:
    graph = Graph(build.model)
    if p.token is None:
        return to_map(graph, build, p.features, p.layout)
    _require_float32(graph, p.features)
    turned = build.node("Transpose", [patch_tokens(build, p)], build.tensor("features.ndl"), perm=[0, 2, 1])
    return on_grid(build, turned, size_of(build, p.like))


def joined_maps(build: NodeBuilder, maps: list[str]) -> str:
    """One map with the channels of all."""
    return maps[0] if len(maps) == 1 else build.node("Concat", maps, build.tensor("features.all"), axis=1)
