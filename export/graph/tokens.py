"""The grid of a transformer's tokens: which height and width a sequence of patches has."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from infercam.engine.common.errors import ExportError
from infercam.export.graph.index import Graph, label
from infercam.export.graph.pooling import Layout

_MERGES = 6  # a Swin halves its grid three times; more than six never occurs


@dataclass(frozen=True)
class Grid:
    """Either fixed (h, w), or that of the map `like` (N, C, h, w) at run time, divided by `over` (rounded up)."""

    fixed: tuple[int, int] | None
    like: str = ""
    over: int = 1


def token_grid(graph: Graph, tokens: str, layout: Layout) -> Grid:
    """Grid of the token sequence `tokens`, from the convolution that embeds the patches.

    A sequence 4, 16, … times shorter than the embedding's map comes from patch merging (Swin) and has that
    grid halved as often. Raises ExportError if the tokens are not exactly one grid (a class token in the mean).
    """
    shape = graph.shape(tokens)
    length = None if shape is None else shape[1 if layout == "NLD" else 2]
    patches = patch_embedding(graph, tokens)
    if patches is None:
        return _square(graph, tokens, length)
    spatial = (graph.shape(patches) or (None,) * 4)[2:]
    h, w = spatial
    if not (isinstance(length, int) and isinstance(h, int) and isinstance(w, int)):
        return _merged(graph, tokens, layout, patches)
    if length == h * w:
        return Grid(None, patches)
    for k in range(1, _MERGES):
        step = 2**k
        if length * step * step == h * w and h % step == 0 and w % step == 0:
            return Grid((h // step, w // step))
    raise ExportError(_no_grid(graph, tokens, length, patches, (h, w)))


def _merged(graph: Graph, tokens: str, layout: Layout, patches: str) -> Grid:
    """Of free size: how often the patches were merged is seen in runs; a model that pads rounds up."""
    over = 1
    for run in graph.observed([tokens, patches]).runs:
        length = run.shapes[tokens][1 if layout == "NLD" else 2]
        h, w = run.shapes[patches][2:]
        steps = [2**k for k in range(_MERGES) if -(-h // 2**k) * -(-w // 2**k) == length]
        if not steps:
            raise ExportError(_no_grid(graph, tokens, length, patches, (h, w)))
        over = max(over, steps[0])
    return Grid(None, patches, over)


def _no_grid(graph: Graph, tokens: str, length: int, patches: str, size: tuple[int, int]) -> str:
    maker, (h, w) = graph.producer[patches], size
    if h * w < length <= h * w + 8:
        return (
            f"the mean over '{tokens}' takes {length} tokens, {length - h * w} more than the {h}x{w} patches of "
            f"{label(maker)}: a class token is averaged in, which has no position"
        )
    return f"'{tokens}' has {length} tokens, which is no grid of the {h}x{w} patches of {label(maker)}"


def patch_embedding(graph: Graph, tokens: str) -> str | None:
    """Output of the nearest 2-D convolution before the tokens."""
    for node in graph.ancestors(tokens):
        if node.op_type == "Conv" and graph.rank(node.output[0]) == 4:
            return str(node.output[0])
    return None


def _square(graph: Graph, tokens: str, length: object) -> Grid:
    """Without a convolution only a square picture's grid can be told."""
    inputs = graph.image_inputs()
    shape = graph.shape(inputs[0].name) if inputs else None
    square = shape is not None and len(shape) == 4 and isinstance(shape[2], int) and shape[2] == shape[3]
    if square and isinstance(length, int) and isqrt(length) ** 2 == length:
        return Grid((isqrt(length), isqrt(length)))
    raise ExportError(
        f"cannot tell the grid of the tokens '{tokens}': no patch embedding convolution before them; "
        "export the model with a convolution as patch embedding"
    )
