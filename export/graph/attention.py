"""A transformer's self-attention as a tensor of its graph: from the class token to the patches, and among patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from infercam.engine.common.errors import ExportError
from infercam.export.graph.building import NodeBuilder, on_grid, size_of, sliced
from infercam.export.graph.index import Graph, attributes, label, opset
from infercam.export.graph.pooling import Pooling

_FUSED = ("Attention", "MultiHeadAttention")


def self_attentions(graph: Graph, tokens: str) -> list[NodeProto]:
    """The softmaxes over the sequence that `tokens` (N, L, D) depend on, in the graph's order, last block last.

    Each makes (N, heads, L, L), (N·heads, L, L) or (N, L, L). Raises ExportError where attention is one operator,
    which gives no weights.
    """
    before = graph.ancestors(tokens)
    fused = next((n for n in before if n.op_type in _FUSED), None)
    if fused is not None:
        raise ExportError(
            f"{label(fused)}: attention as one operator gives no weights; export the model with opset 22 or older, "
            "where it is a product, a softmax and a product"
        )
    softmaxes = [n for n in before if n.op_type == "Softmax" and _over_the_last(graph, n)]
    known = {id(n) for n in softmaxes if _is_square(graph, n, tokens)}
    return [n for n in graph.proto.node if id(n) in known]


def _over_the_last(graph: Graph, node: NodeProto) -> bool:
    rank = graph.rank(node.output[0])
    default = -1 if opset(graph.model) >= 13 else 1
    return rank in (3, 4) and int(attributes(node).get("axis", default)) % rank == rank - 1


def _is_square(graph: Graph, node: NodeProto, tokens: str) -> bool:
    """Whether a softmax is over all pairs of tokens; what inference does not tell is seen in runs."""
    shape, sequence = graph.shape(node.output[0]), graph.shape(tokens)
    sizes = (*shape[-2:], sequence[1]) if shape and sequence else (None,)
    if all(isinstance(d, int) for d in sizes):
        return len(set(sizes)) == 1
    runs = graph.observed([node.output[0], tokens], [tokens]).runs
    return bool(runs) and all(set(r.shapes[node.output[0]][-2:]) == {r.shapes[tokens][1]} for r in runs)


def class_attention(build: NodeBuilder, tokens: Sequence[Pooling]) -> str:
    """(N, 1, h, w): the last block's attention from these class tokens to the patches, averaged over heads, times the
    number of tokens, so that views of all sizes weigh the same."""
    p = tokens[0]
    graph = Graph(build.model)
    found = self_attentions(graph, p.features)
    if not found:
        raise ExportError(f"no self-attention over the tokens '{p.features}': leave --attention out")
    weights = mean_over_heads(build, found[-1].output[0], graph.rank(found[-1].output[0]) or 0, p.features)
    picked = build.constant(np.array([t.token for t in tokens], np.int64), "attention.class")
    rows = build.node("Gather", [weights, picked], build.tensor("attention.rows"), axis=1)
    row = reduced(build, "ReduceMean", rows, 1, keep=True)
    length = build.node("Cast", [_dim(build, p.features, 1)], build.tensor("attention.length"), to=1)
    scaled = build.node("Mul", [sliced(build, row, 2, p.extra), length], build.tensor("attention.scaled"))
    return on_grid(build, scaled, size_of(build, p.like))


def mean_over_heads(build: NodeBuilder, weights: str, rank: int, tokens: str) -> str:
    """Attention weights as (N, L, L)."""
    if rank == 3:  # heads in the batch, those of one image one after the other
        length = _dim(build, tokens, 1)
        minus = build.constant(np.array([-1], np.int64), "attention.heads")
        target = build.node(
            "Concat",
            [_dim(build, tokens, 0), minus, length, length],
            build.tensor("attention.target"),
            axis=0,
        )
        weights = build.node("Reshape", [weights, target], build.tensor("attention.by_head"))
    return reduced(build, "ReduceMean", weights, 1, keep=False)


def reduced(build: NodeBuilder, op: str, tensor: str, axis: int, *, keep: bool) -> str:
    """A mean (or another reduction than a sum) over one axis."""
    out = build.tensor("attention.mean")
    if build.opset < 18:
        return build.node(op, [tensor], out, axes=[axis], keepdims=int(keep))
    axes = build.constant(np.array([axis], np.int64), "attention.axes")
    return build.node(op, [tensor, axes], out, keepdims=int(keep))


def _dim(build: NodeBuilder, tensor: str, axis: int) -> str:
    """One of a tensor's sizes, int64 (1,)."""
    shape = build.node("Shape", [tensor], build.tensor("attention.shape"))
    index = build.constant(np.array([axis], np.int64), "attention.axis")
    return build.node("Gather", [shape, index], build.tensor("attention.dim"), axis=0)


def write_affinity(build: NodeBuilder, p: Pooling, blocks: int, out: str) -> None:
    """Add `out` (N, P, P): how much patches attend to each other, averaged over heads and the last blocks, and over
    both directions: (A + Aᵀ) / 2. Class tokens and registers are left out, so that rows do not sum to 1.

    Raises ExportError where there are fewer blocks of self-attention over the tokens that are pooled.
    """
    graph = Graph(build.model)
    tokens, extra = _sequence(graph, p)
    found = self_attentions(graph, tokens) if graph.rank(tokens) == 3 else []
    if len(found) < blocks:
        raise ExportError(
            f"--affinity {blocks}: the graph has {len(found)} blocks of self-attention over the tokens '{tokens}'"
        )
    means = [
        mean_over_heads(build, n.output[0], graph.rank(n.output[0]) or 0, tokens) for n in found[-blocks:]
    ]
    total = means[0] if blocks == 1 else build.node("Sum", means, build.tensor("affinity.sum"))
    patches = sliced(build, sliced(build, total, 1, extra), 2, extra)
    turned = build.node("Transpose", [patches], build.tensor("affinity.turned"), perm=[0, 2, 1])
    both = build.node("Add", [patches, turned], build.tensor("affinity.both"))
    half = build.constant(np.array(0.5 / blocks, np.float32), "affinity.half")
    build.node("Mul", [both, half], out)


def _sequence(graph: Graph, p: Pooling) -> tuple[str, int]:
    """The whole sequence that a head pools patches of, and how many tokens of it are none."""
    node = graph.producer.get(p.features)
    if p.token is None and p.layout == "NLD" and node is not None and node.op_type == "Slice":
        starts = graph.constant(node.input[1]) if len(node.input) > 1 else None
        if starts is not None and starts.size == 1:
            return str(node.input[0]), int(starts.ravel()[0])
    return p.features, p.extra
