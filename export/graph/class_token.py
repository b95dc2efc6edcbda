"""Class-token heads: which token of a transformer's sequence a classifier reads, and where its patch tokens are.

Such a head has no exact response map, since the class token has no position. The customary one puts the patch tokens
of the same block through what reads the class token (customary.py). Class tokens (one, or one more for distillation)
and registers stand before the patches, whose number and grid are those of the convolution that embeds them.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from infercam.engine.common.errors import ExportError
from infercam.export.graph.index import Graph, attributes, label
from infercam.export.graph.pooling import Pooling
from infercam.export.graph.tokens import patch_embedding

MOST_EXTRA = 64
"""Class tokens and registers that a sequence may begin with; published models have up to 20 (a class each)."""


def class_token(graph: Graph, node: NodeProto, tensor: str) -> Pooling | None:
    """The sequence that `node` takes the class token `tensor` (N, D) or (N, 1, D) from; None if it does no such
    thing.

    Raises ExportError where the patches do not come last.
    """
    position = _picked(graph, node, tensor)
    if position is None:
        return None
    tokens = str(node.input[0])
    patches = patch_embedding(graph, tokens)
    extra = None if patches is None else extra_tokens(graph, tokens, patches)
    if patches is None or not extra or not 0 <= position < extra:
        return None
    _check_order(graph, tokens, patches)
    return Pooling(node, tokens, "NLD", token=position, extra=extra, like=patches)


def extra_tokens(graph: Graph, tokens: str, patches: str) -> int | None:
    """How many tokens more than patches the sequence has, at every size; None where it is no such sequence."""
    shape, grid = graph.shape(tokens), graph.shape(patches)
    sizes = (shape[1], *grid[2:]) if shape and grid else ()
    if len(sizes) == 3 and all(isinstance(d, int) for d in sizes):
        counts = {sizes[0] - sizes[1] * sizes[2]}  # type: ignore[operator]
    else:
        runs = graph.observed(
            [tokens, patches], [tokens]
        ).runs  # the value: or a known shape is all that runs
        counts = {r.shapes[tokens][1] - r.shapes[patches][2] * r.shapes[patches][3] for r in runs}
    count = next(iter(counts)) if len(counts) == 1 else -1
    return count if 0 <= count <= MOST_EXTRA else None


def _picked(graph: Graph, node: NodeProto, tensor: str) -> int | None:
    """Which position of a sequence (N, L, D) a node picks, counted from 0."""
    if not node.input or graph.rank(node.input[0]) != 3:
        return None
    at = attributes(node)
    if node.op_type == "Gather":
        index = graph.constant(node.input[1])
        along = int(at.get("axis", 0)) % 3 == 1
        return int(index.ravel()[0]) if along and index is not None and index.size == 1 else None
    if node.op_type == "Slice":
        return _of_slice(graph, node)
    if node.op_type == "Split" and int(at.get("axis", 0)) % 3 == 1:
        sizes = [graph.shape(o) for o in node.output]
        widths = [s[1] if s else None for s in sizes]
        k = list(node.output).index(tensor)
        before = [w for w in widths[:k] if isinstance(w, int)]
        return sum(before) if widths[k] == 1 and len(before) == k else None
    return None


def _of_slice(graph: Graph, node: NodeProto) -> int | None:
    at = attributes(node)
    if "starts" in at:
        starts, ends, axes = at["starts"], at["ends"], at.get("axes")
    else:
        axes = graph.constant(node.input[3]) if len(node.input) > 3 else None
        if axes is None or [int(a) % 3 for a in axes.ravel()] != [1]:
            return None
        starts, ends = (_told(graph, i) for i in node.input[1:3])
    if starts is None or ends is None or axes is None or [int(a) % 3 for a in axes] != [1]:
        return None
    start, end = int(starts[0]), int(ends[0])
    return start if end == start + 1 else None


def _told(graph: Graph, name: str) -> np.ndarray | None:
    """The one value of a bound: a constant, or made of sizes and the same in all runs (of PiT's class tokens)."""
    value = graph.constant(name)
    if value is None and graph.follows_sizes(name):
        seen = [run.values[name] for run in graph.observed([], [name]).runs]
        value = seen[0] if seen and all(np.array_equal(v, seen[0]) for v in seen) else None
    return None if value is None else value.ravel()


def _check_order(graph: Graph, tokens: str, patches: str) -> None:
    """Refuse a sequence in which class tokens or registers follow the patches."""
    for node in graph.ancestors(tokens):
        if node.op_type != "Concat" or graph.rank(node.output[0]) != 3:
            continue
        if int(attributes(node).get("axis", 0)) % 3 != 1:
            continue
        fixed = [graph.constant(i) is not None or graph.follows_sizes(i) for i in node.input]
        if fixed[-1] and not all(fixed):  # all: a table of positions in the making
            raise ExportError(
                f"{label(node)}: puts tokens after the patches of {label(graph.producer[patches])}; a response map "
                "needs them before: [class token, registers, patches]"
            )
