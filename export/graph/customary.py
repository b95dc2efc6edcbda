"""The customary response map of a class-token head, for which no exact one exists.

A class token has no position, so that no map of it has the scores as its mean. By custom the patch tokens of the same
block take its place: the response at a patch is what the head, its norms included, makes of that patch's token,
without the biases behind its last norm or activation. Where the head is linear it is one matrix, and a part of it
that reads the mean of the patch tokens (heads over [class token; mean]) keeps its exact map. Several class tokens
whose heads are averaged (distillation) are each replaced so. The scores stay the classifier's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from infercam.engine.common.errors import ExportError
from infercam.export.graph.attention import class_attention
from infercam.export.graph.building import NodeBuilder, joined_maps, maps_of, on_grid, patch_tokens, size_of
from infercam.export.graph.head import Head
from infercam.export.graph.index import Graph, fresh_name, label
from infercam.export.graph.pooling import Pooling


def write_customary(
    build: NodeBuilder, head: Head, rows: Sequence[int] | None, response: str, *, attention: bool = False
) -> np.ndarray:
    """Add the nodes that make `response` (N, C, h, w); returns the bias of the last linear layer (C,), float64.

    rows: the classes to keep, in order. attention: the response times the last block's attention from the class
    tokens to the patches, averaged over heads, of mean 1 over all tokens.
    Raises ExportError where no linear layer follows the class token, or the attention cannot be found.
    """
    tokens = [p for p in head.poolings if p.token is not None]
    if head.weight is None:
        raise ExportError(
            f"{label(tokens[0].node)}: no linear layer after the class token; this looks like a feature extractor, "
            "not a classifier"
        )
    bias = head.bias if rows is None else head.bias[rows]
    out = build.tensor("customary") if attention else response
    if head.stages:
        _through_the_head(build, head, rows, out)
    else:
        weight = head.weight if rows is None else head.weight[rows]
        kernel = build.constant(weight.astype(np.float32)[:, :, None, None], "response.weight")
        features = joined_maps(build, maps_of(build, head.poolings))
        build.node("Conv", [features, kernel], out, kernel_shape=[1, 1])
    if attention:
        build.node("Mul", [out, class_attention(build, tokens)], response)
    return bias


def own_scores(
    build: NodeBuilder, logits: str, classes: int, rows: Sequence[int] | None, scores: str
) -> None:
    """The classifier's own logits as (N, C)."""
    shape = build.constant(np.array([-1, classes], np.int64), "scores.shape")
    if rows is None:
        build.node("Reshape", [logits, shape], scores)
        return
    flat = build.node("Reshape", [logits, shape], build.tensor("scores.all"))
    build.node("Gather", [flat, build.constant(np.array(rows, np.int64), "scores.rows")], scores, axis=1)


def _through_the_head(build: NodeBuilder, head: Head, rows: Sequence[int] | None, out: str) -> None:
    """The head over all patch tokens, without its bias."""
    if not all(p.token is not None for p in head.poolings):
        other = next(p for p in head.poolings if p.token is None)
        raise ExportError(
            f"{label(head.stages[0].node)}: is not linear, and both a class token and {label(other.node)} go through "
            "it: there is no customary response map; --method recipro takes any head, at one size"
        )
    p = head.poolings[0]
    logits = head_over(build, head, patch_tokens(build, p))
    shift = build.constant(-head.bias.astype(np.float32)[None], "customary.bias")
    plain = build.node("Add", [logits, shift], build.tensor("customary.plain"))
    if rows is not None:
        kept = build.constant(np.array(rows, np.int64), "customary.rows")
        plain = build.node("Gather", [plain, kept], build.tensor("customary.kept"), axis=1)
    rows_to_map(build, plain, p, len(head.bias if rows is None else rows), out)


def head_over(build: NodeBuilder, head: Head, tokens: str) -> str:
    """What the head makes (N·P, C) of tokens (N, P, D), as of so many images' class tokens: its nodes again."""
    graph = Graph(build.model)
    names = {leaf.tensor: _as_leaf(build, tokens, leaf.shape) for leaf in head.leaves}
    for node in head.nodes:
        copied_for_rows(build, graph, node, names)
    shape = build.constant(np.array([-1, len(head.bias)], np.int64), "customary.shape")
    return build.node("Reshape", [names[head.logits], shape], build.tensor("customary.logits"))


def _as_leaf(build: NodeBuilder, flat: str, shape: tuple[int, ...]) -> str:
    target = build.constant(np.array([-1, *shape[1:]], np.int64), "customary.shape")
    return build.node("Reshape", [flat, target], build.tensor("customary.token"))


def copied_for_rows(build: NodeBuilder, graph: Graph, node: NodeProto, names: dict[str, str]) -> None:
    """A copy of a node for another batch, of which reshapes may know nothing; `names`: tensors and their copies'."""
    copy = NodeProto()
    copy.CopyFrom(node)
    for i, name in enumerate(node.input):
        copy.input[i] = names.get(name, name)
    for i, name in enumerate(node.output):
        if name:
            copy.output[i] = names[name] = fresh_name(build.model, f"{name}.patches")
    copy.name = f"infercam/{copy.output[0]}"
    if node.op_type == "Reshape":
        shape = graph.shape(node.output[0]) or (None,)
        if not all(isinstance(d, int) for d in shape[1:]):
            raise ExportError(f"{label(node)}: cannot tell the shape that it makes of a class token")
        copy.input[1] = build.constant(np.array([-1, *shape[1:]], np.int64), "customary.shape")
        del copy.attribute[:]
    build.model.graph.node.append(copy)


def rows_to_map(build: NodeBuilder, flat: str, p: Pooling, classes: int, out: str) -> None:
    """(N·P, C) as a map (N, C, h, w)."""
    shape = build.node("Shape", [p.features], build.tensor("customary.tokens"))
    first = build.constant(np.array([0], np.int64), "customary.first")
    batch = build.node("Gather", [shape, first], build.tensor("customary.batch"), axis=0)
    rest = build.constant(np.array([-1, classes], np.int64), "customary.rest")
    target = build.node("Concat", [batch, rest], build.tensor("customary.target"), axis=0)
    rows = build.node("Reshape", [flat, target], build.tensor("customary.rows"))
    turned = build.node("Transpose", [rows], build.tensor("customary.ncp"), perm=[0, 2, 1])
    build.node("Identity", [on_grid(build, turned, size_of(build, p.like))], out)
