"""A response map of any head, on request: Recipro-CAM (Byun, Lee, "Recipro-CAM", 2022, section 3), forward only.

Of the last feature map one position is kept and all others are zeros; what the head then answers, less what it
answers to an empty map, is the response at that position:

    response[:, c, y, x] = head(f at (y, x) alone)_c - head(0)_c          (N, C, h, w)

The head runs once a position, all of them in one batch, so that one picture needs (h·w + 1) · K · h · w numbers for
its features alone. Where that is over `MOST_BYTES` the export is refused; height and width are fixed and the batch is
1, so that a run never takes more. Of a mean and a linear layer it is the class activation map, divided by h·w.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from onnx import NodeProto

from infercam.engine.common.errors import ExportError
from infercam.export.graph.building import NodeBuilder, sliced
from infercam.export.graph.customary import copied_for_rows
from infercam.export.graph.head import Head, strip_activation
from infercam.export.graph.index import Graph, attributes
from infercam.export.graph.pooling import Pooling

MOST_BYTES = 512 << 20


def recipro_head(graph: Graph, output: str) -> Head:
    """Everything behind the last feature map (N, K, h, w) that all of the picture's way to `output` goes through.

    Raises ExportError where there is no such map.
    """
    logits, activation = strip_activation(graph, output)
    needed = {id(n) for n in graph.ancestors(logits)}
    behind: list[NodeProto] = []
    for node in reversed(graph.proto.node):
        if id(node) not in needed:
            continue
        if _is_map(graph, node) and _cuts(graph, node.output[0], behind):
            classes = _classes(graph, logits)
            pooling = Pooling(node, node.output[0], "NCHW")
            return Head(logits, [pooling], None, np.zeros(classes), activation, nodes=behind[::-1])
        behind.append(node)
    raise ExportError(
        f"no feature map (N, channels, h, w) before '{logits}' that everything goes through: there is nothing whose "
        "positions --method recipro could keep one by one"
    )


def _is_map(graph: Graph, node: NodeProto) -> bool:
    shape = graph.shape(node.output[0])
    if shape is None or len(shape) != 4 or any(d == 1 for d in shape[2:]):
        return False
    turned = node.op_type == "Transpose" and tuple(attributes(node).get("perm", ())) == (0, 2, 3, 1)
    return not turned and graph.constant(node.output[0]) is None and not graph.follows_sizes(node.output[0])


def _cuts(graph: Graph, tensor: str, behind: Sequence[NodeProto]) -> bool:
    """Whether the nodes behind read nothing of the picture but this tensor and each other."""
    made = {tensor, *(o for n in behind for o in n.output)}
    read = {i for n in behind for i in n.input if i}
    return tensor in read and all(
        i in made or graph.constant(i) is not None or graph.follows_sizes(i) for i in read
    )


def _classes(graph: Graph, logits: str) -> int:
    shape = graph.shape(logits)
    if shape is None or not all(isinstance(d, int) for d in shape[1:]):
        raise ExportError(f"cannot tell how many classes '{logits}' has")
    return prod(d for d in shape[1:] if isinstance(d, int))


def write_recipro(build: NodeBuilder, head: Head, rows: Sequence[int] | None, response: str) -> None:
    """Add the nodes that make `response`, of a graph whose input has one size; raises ExportError where its features
    are too many."""
    features = head.poolings[0].features
    graph = Graph(build.model)
    shape = graph.shape(features) or ()
    if len(shape) != 4 or not all(isinstance(d, int) for d in shape[1:]):
        raise ExportError(f"cannot tell the size of the feature map '{features}'")
    channels, h, w = (int(d or 0) for d in shape[1:])
    positions = h * w
    size = 4 * (positions + 1) * channels * positions
    if size > MOST_BYTES:
        raise ExportError(
            f"the last feature map has {h}x{w} positions of {channels} channels: keeping each alone takes "
            f"{size >> 20} MB for one picture (at most {MOST_BYTES >> 20}); give a smaller --size"
        )
    keep = np.concatenate([np.eye(positions), np.zeros((1, positions))]).astype(np.float32)
    masks = build.constant(
        keep.reshape(positions + 1, 1, h, w), "recipro.masks"
    )  # the last one keeps nothing
    rows_of_maps = build.node("Mul", [features, masks], build.tensor("recipro.kept"))  # a batch of 1
    names = {features: rows_of_maps}
    for node in head.nodes:
        copied_for_rows(build, graph, node, names)
    classes = len(head.bias)
    flat = build.constant(np.array([positions + 1, classes], np.int64), "recipro.shape")
    answers = build.node("Reshape", [names[head.logits], flat], build.tensor("recipro.answers"))
    alone, empty = sliced(build, answers, 0, 0, positions), sliced(build, answers, 0, positions)
    gained = build.node("Sub", [alone, empty], build.tensor("recipro.gained"))
    if rows is not None:
        kept = build.constant(np.array(rows, np.int64), "recipro.rows")
        gained = build.node("Gather", [gained, kept], build.tensor("recipro.wanted"), axis=1)
    turned = build.node("Transpose", [gained], build.tensor("recipro.turned"), perm=[1, 0])
    count = classes if rows is None else len(rows)
    target = build.constant(np.array([1, count, h, w], np.int64), "recipro.map")
    build.node("Reshape", [turned, target], response)
