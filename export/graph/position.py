"""Position tables: a transformer exported at one size has one vector a token added; here it is interpolated.

For a picture of another size a table of (h, w) patches is interpolated (bicubic, a = -0.75, half-pixel centres, no
antialiasing: PyTorch's `interpolate(mode="bicubic")`) to the grid of the convolution that embeds the patches, by
ONNX's Resize. At the table's own size it changes nothing. Rows for class tokens and registers stay. Rotary and
relative tables are left as they are, and with them the size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from infercam.export.graph.building import NodeBuilder, size_of
from infercam.export.graph.class_token import MOST_EXTRA
from infercam.export.graph.index import Graph, label
from infercam.export.graph.passes import tidy
from infercam.export.graph.tokens import patch_embedding

_OPSET = 11  # Resize to given sizes


@dataclass(frozen=True)
class _Table:
    """A constant (1, L, D) that `node` adds to tokens as its input `position`."""

    node: NodeProto
    position: int
    value: np.ndarray
    patches: str
    grid: tuple[int, int]

    @property
    def extra(self) -> int:
        return int(self.value.shape[1]) - self.grid[0] * self.grid[1]


def interpolate_positions(model: ModelProto) -> list[str]:
    """Rewrite every position table of the graph, in place; returns a note about each."""
    build, graph = NodeBuilder(model), Graph(model)
    tables = (
        [] if build.opset < _OPSET else [t for n in graph.proto.node if (t := _table(graph, n)) is not None]
    )
    for table in tables:
        table.node.input[table.position] = _interpolated(build, table)
    if tables:
        tidy(model)
    return [
        f"{label(t.node)}: its {t.grid[0]}x{t.grid[1]} positions are interpolated (bicubic) to other sizes"
        for t in tables
    ]


def _table(graph: Graph, node: NodeProto) -> _Table | None:
    if node.op_type != "Add":
        return None
    values = [graph.constant(i) for i in node.input]
    position = next((i for i, v in enumerate(values) if v is not None), None)
    value = None if position is None else values[position]
    if position is None or value is None or value.dtype != np.float32:
        return None
    value = value[None] if value.ndim == 2 else value
    tokens = node.input[1 - position]
    if value.ndim != 3 or value.shape[0] != 1 or min(value.shape[1:]) < 2 or graph.rank(tokens) != 3:
        return None
    patches = patch_embedding(graph, tokens)
    grid = None if patches is None else _grid_of(graph, patches)
    if patches is None or grid is None or not 0 <= value.shape[1] - grid[0] * grid[1] <= MOST_EXTRA:
        return None
    return _Table(node, position, value, patches, grid)


def _grid_of(graph: Graph, patches: str) -> tuple[int, int] | None:
    """The map's height and width at the size that the model was exported at, if it was at one."""
    shape = graph.shape(patches)
    if shape is None or not all(isinstance(d, int) for d in shape[2:]):
        runs = graph.observed([patches], [graph.proto.output[0].name]).runs
        sizes = {r.shapes[patches][2:] for r in runs}
        shape = (0, 0, *next(iter(sizes))) if len(sizes) == 1 else None
    return None if shape is None else (int(shape[2] or 0), int(shape[3] or 0))


def _interpolated(build: NodeBuilder, table: _Table) -> str:
    """The table for the picture at hand, (1, L, D)."""
    h, w = table.grid
    first, rest = table.value[:, : table.extra], table.value[:, table.extra :]
    width = rest.shape[2]
    as_map = np.ascontiguousarray(rest.reshape(1, h, w, width).transpose(0, 3, 1, 2))
    source = build.constant(as_map, "positions.table")
    size = size_of(build, table.patches)
    head = build.constant(np.array([1, width], np.int64), "positions.head")
    target = build.node("Concat", [head, size], build.tensor("positions.target"), axis=0)
    none = "" if build.opset >= 13 else build.constant(np.zeros(0, np.float32), "positions.none")
    resized = build.node(
        "Resize",
        [source, none, none, target],
        build.tensor("positions.resized"),
        mode="cubic",
        coordinate_transformation_mode="half_pixel",
        cubic_coeff_a=-0.75,
    )
    flat_shape = build.constant(np.array([1, width, -1], np.int64), "positions.flat")
    flat = build.node("Reshape", [resized, flat_shape], build.tensor("positions.ndl"))
    out = build.node("Transpose", [flat], build.tensor("positions"), perm=[0, 2, 1])
    if table.extra:
        before = build.constant(np.ascontiguousarray(first), "positions.first")
        out = build.node("Concat", [before, out], build.tensor("positions.all"), axis=1)
    return out
