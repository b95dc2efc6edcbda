"""Which nodes average over all positions of a map or of a sequence of tokens, and what they average."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from onnx import NodeProto

from infercam.engine.common.errors import ExportError
from infercam.export.graph.index import Graph, attributes, label

Layout = Literal["NCHW", "NHWC", "NLD", "NDL"]  # the last two: token sequences, channels last / first
_REDUCTIONS = ("ReduceMean", "ReduceSum")
POOLS = ("GlobalAveragePool", "AveragePool", *_REDUCTIONS)


@dataclass(frozen=True)
class Pooling:
    """A pooling node, and the map or the tokens that it reads; `window` is that of an AveragePool."""

    node: NodeProto
    features: str
    layout: Layout
    window: tuple[int, ...] | None = None
    notes: list[str] = field(default_factory=list)
    token: int | None = None
    """Not a mean but this token of the sequence (class_token.py), of which the first `extra` are no patches; the
    others have the grid of the map `like`."""
    extra: int = 0
    like: str = ""

    def renamed(self, old: str, new: str) -> Pooling:
        """With another name for one of the tensors."""
        features, like = (new if x == old else x for x in (self.features, self.like))
        return replace(self, features=features, like=like)

    @property
    def sums(self) -> bool:
        """Whether it gives the sum instead of the mean."""
        return self.node.op_type == "ReduceSum"


def channel_axis(layout: Layout) -> int:
    return {"NCHW": 1, "NHWC": 3, "NLD": 2, "NDL": 1}[layout]


def pooling(graph: Graph, node: NodeProto) -> Pooling | None:
    """What a pooling node pools, None if the node is none; raises ExportError if it pools anything else."""
    if node.op_type == "GlobalAveragePool":
        layout: Layout = "NDL" if graph.rank(node.input[0]) == 3 else "NCHW"
        found = Pooling(node, node.input[0], layout)
    elif node.op_type in _REDUCTIONS:
        found = _reduction(graph, node)
    elif node.op_type == "AveragePool":
        found = _average_pool(graph, node)
    else:
        return None
    features, layout = _resolve(graph, found.features, found.layout)
    return replace(found, features=features, layout=layout)


def _reduction(graph: Graph, node: NodeProto) -> Pooling:
    """One ReduceMean, or several in a row (`x.mean(3).mean(2)`), over the positions of a map or of tokens."""
    tensor, axes = _mean_axes(graph, node)
    while (before := graph.producer.get(tensor)) is not None and before.op_type == node.op_type:
        source, inner = _mean_axes(graph, before)
        kept = bool(attributes(before).get("keepdims", 1))
        # axes of `tensor` in terms of `source`
        left = [a for a in range(graph.rank(source) or 4) if kept or a not in inner]
        if max(axes, default=0) >= len(left):
            raise ExportError(f"{label(node)}: '{tensor}' has no axis {max(axes)}")
        axes = inner | {left[a] for a in axes}
        tensor = source
    rank = graph.rank(tensor)
    layouts: dict[tuple[int, tuple[int, ...]], Layout] = {
        (4, (2, 3)): "NCHW",
        (4, (1, 2)): "NHWC",
        (3, (1,)): "NLD",
        (3, (2,)): "NDL",
    }
    found = layouts.get((rank or 0, tuple(sorted(axes))))
    if found is None:
        does = "sums" if node.op_type == "ReduceSum" else "averages"
        raise ExportError(
            f"{label(node)}: {does} axes {sorted(axes)} of a tensor of rank {rank or 'unknown'}, "
            "which is not a pooling over all positions"
        )
    sizes = [d for a, d in enumerate(graph.shape(tensor) or ()) if a in axes]
    notes: list[str] = []
    if node.op_type == "ReduceSum" and all(isinstance(d, int) for d in sizes):
        notes = [
            f"{label(node)}: sum over {'x'.join(map(str, sizes))} positions made a mean over all there are"
        ]
    return Pooling(node, tensor, found, notes=notes)


def _mean_axes(graph: Graph, node: NodeProto) -> tuple[str, set[int]]:
    """The tensor a reduction reads and its axes, counted from 0 (an attribute, or an input since opset 18)."""
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


def _average_pool(graph: Graph, node: NodeProto) -> Pooling:
    at = attributes(node)
    kernel = tuple(at.get("kernel_shape", ()))
    shape = graph.shape(node.input[0])
    layout: Layout = "NDL" if len(kernel) == 1 else "NCHW"
    spatial = None if shape is None else tuple(shape[2:])
    name = "x".join(map(str, kernel))
    if any(at.get("pads", [])):
        raise ExportError(f"{label(node)}: pads its {name} window, so it is not a global average pooling")
    if spatial == kernel:
        note = f"{label(node)}: {name} window of the whole map made global"
        return Pooling(node, node.input[0], layout, notes=[note])
    if spatial is not None and all(isinstance(s, int) for s in spatial):
        size = "x".join(map(str, spatial))
        raise ExportError(f"{label(node)}: averages {name} windows of a {size} map, not the whole map")
    note = f"{label(node)}: {name} window taken for the whole map and made global"
    return Pooling(node, node.input[0], layout, kernel, [note])


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
