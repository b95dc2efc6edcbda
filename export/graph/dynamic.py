"""Making batch, height and width of a graph free, and finding out by running it whether they are.

A model is often exported at one size, with that size baked into reshapes. Each claim that a dimension is free is
tested: the graph is run at several sizes and batches (`_probe`), a picture's scores must not depend on what
else is in its batch, and the map must grow with the picture. What fails stays fixed, and the node
that prevents it is noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto

from infercam.engine.common.errors import ExportError
from infercam.export.graph.index import Graph, Shape, label
from infercam.export.graph.relax import Dims, Free, baking_node, free_input, relax
from infercam.export.runtime import GraphSession, RunError

_BASES = (64, 128, 224, 299, 384)  # heights tried, smallest first, where the model declares none
_BATCH = 3


@dataclass
class Sizes:
    """The graph with what could be freed freed; `height`/`width` None: any size."""

    model: ModelProto
    stride: int
    dynamic_batch: bool
    height: int | None
    width: int | None
    smallest: tuple[int, int]
    notes: list[str] = field(default_factory=list)


class _Prevented(Exception):
    """Why a dimension cannot be free."""


def find_sizes(model: ModelProto, picture: str, *, classes: int) -> Sizes:
    """Free as many of batch, height and width as really work.

    `model` has the outputs `scores` and `response`. Raises ExportError if it does not even run as declared.
    """
    declared = _declared(model, picture)
    n, h, w = declared
    notes: list[str] = []
    session = _session(model)
    base = _base_size(session, n or 1, h, w)
    free_size = free_batch = None
    # One thing at a time, so that the note says what prevents which.
    try:
        stride = _try(model, picture, Dims(n or 1, *base), classes, batch=False, size=True)
        free_size = True
    except _Prevented as e:
        notes.append(f"height and width fixed at {base[0]}x{base[1]}: {e}")
        free_size = False
        stride = _fixed_stride(session, n or 1, base, classes)
    try:
        _try(model, picture, Dims(n or 1, *base), classes, batch=True, size=False)
        free_batch = True
    except _Prevented as e:
        free_batch = False
        if n not in (None, 1):
            raise ExportError(
                f"the batch of {n} cannot be made free ({e}); export the model with a batch of 1"
            ) from None
        notes.append(f"batch fixed at 1: {e}")
    if free_batch and free_size:
        try:
            _try(model, picture, Dims(n or 1, *base), classes, batch=True, size=True)
        except _Prevented as e:
            free_size = False
            notes.append(f"height and width fixed at {base[0]}x{base[1]} (batch is free instead): {e}")
    final = _freed(model, picture, Dims(n or 1, *base), batch=free_batch, size=free_size)
    return Sizes(
        model=final,
        stride=stride,
        dynamic_batch=free_batch,
        height=None if free_size else base[0],
        width=None if free_size else base[1],
        smallest=base,
        notes=notes,
    )


def _declared(model: ModelProto, picture: str) -> tuple[int | None, int | None, int | None]:
    shape: Shape = Graph(model).shape(picture) or (None,) * 4
    n, h, w = (d if isinstance(d, int) and d > 0 else None for d in (shape[0], shape[2], shape[3]))
    return n, h, w


def _session(model: ModelProto) -> GraphSession:
    try:
        return GraphSession(model)
    except RunError as e:
        raise ExportError(f"ONNX Runtime cannot load the graph: {e}") from None


def _base_size(session: GraphSession, n: int, h: int | None, w: int | None) -> tuple[int, int]:
    """A size at which the graph runs as it was declared, the smallest of a few."""
    failure: RunError | None = None
    for base in _BASES:
        size = (h or base, w or base)
        try:
            session.run(_noise(n, *size))
            return size
        except RunError as e:
            failure = e
        if h and w:
            break
    raise ExportError(f"the graph does not run, not even as declared: {failure}")


def _noise(n: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3, h, w), dtype=np.float32)


def _freed(model: ModelProto, picture: str, dims: Dims, *, batch: bool, size: bool) -> ModelProto:
    """A copy with the given dimensions free: reshapes relaxed, the input's and outputs' shapes symbolic."""
    copy = ModelProto()
    copy.CopyFrom(model)
    n, h, w = _declared(model, picture)
    # What was exported free bakes nothing, and its reshapes are better left as their author wrote them.
    fixed = Free(batch=batch and n is not None, size=size and None not in (h, w))
    relax(copy, picture, dims, baked=fixed, free=Free(batch or n is None, size or None in (h, w)))
    free_input(copy, picture, dims, batch=batch, size=size)
    return copy


def _try(model: ModelProto, picture: str, dims: Dims, classes: int, *, batch: bool, size: bool) -> int:
    """Free the dimensions and run; returns the measured stride (0 if only the batch is free)."""
    freed = _freed(model, picture, dims, batch=batch, size=size)
    try:
        session = GraphSession(freed)
        batches = (1, _BATCH) if batch else (dims.n,)
        stride = _measured_stride(session, dims, classes) if size else 0
        for n, h, w in _shapes(dims, batches, stride):
            _probe(session, n, h, w, classes, compare=batch, stride=stride)
        return stride
    except RunError as e:
        raise _Prevented(str(e)) from None
    except _Prevented as e:
        if "node '" in str(e):
            raise
        node = baking_node(freed, picture, dims, batch=batch, size=size)
        raise _Prevented(f"{e}, because of {label(node)}" if node is not None else str(e)) from None


def _shapes(dims: Dims, batches: tuple[int, ...], stride: int) -> Iterator[tuple[int, int, int]]:
    """Shapes to probe; with a free size (a stride), maps 1, 2 and 3 cells larger, so that windows show."""
    h, w, s = dims.h, dims.w, stride
    for n in batches:
        yield n, h, w
        if stride:
            yield n, h + s, w + 2 * s
            yield n, h + 2 * s + 1, w + 3 * s + s // 2
            yield n, h + 3 * s + s // 2 + 1, w + s


def _probe(
    session: GraphSession, n: int, h: int, w: int, classes: int, *, compare: bool, stride: int
) -> tuple[int, int]:
    """Run one shape and check the outputs; returns the response's height and width."""
    x = _noise(n, h, w)
    scores, response = _run(session, x)
    if scores.shape != (n, classes) or response.shape[:2] != (n, classes) or response.ndim != 4:
        raise _Prevented(
            f"a batch of {n} at {h}x{w} gives scores {scores.shape} and a response {response.shape}"
        )
    mh, mw = response.shape[2:]
    if stride and max(abs(mh - h / stride), abs(mw - w / stride)) > 3:
        raise _Prevented(f"the response is {mh}x{mw} for a picture of {h}x{w} (stride {stride})")
    if compare and n > 1:
        for i in range(n):
            single, _ = _run(session, x[i : i + 1])
            if not np.allclose(single[0], scores[i], rtol=1e-3, atol=1e-3 * float(np.abs(scores).max())):
                raise _Prevented("a picture's scores depend on the others in its batch")
    return mh, mw


def _run(session: GraphSession, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    try:
        scores, response = session.run(x)
    except RunError as e:
        n, _, h, w = x.shape
        raise _Prevented(f"a batch of {n} at {h}x{w} fails in {e}") from None
    return scores, response


def _measured_stride(session: GraphSession, dims: Dims, classes: int) -> int:
    """Input pixels per response cell, from how much the map grows with the picture, in both directions."""
    n, h, w = dims.n, dims.h, dims.w
    step = 448 if max(h, w) < 224 else 224  # multiples of 7, 14, 16 and 32
    mh, mw = _probe(session, n, h, w, classes, compare=False, stride=0)
    tall = _probe(session, n, h + step, w, classes, compare=False, stride=0)[0]
    wide = _probe(session, n, h, w + step, classes, compare=False, stride=0)[1]
    if tall <= mh or wide <= mw:
        raise _Prevented(f"the response stays {mh}x{mw} when the picture grows by {step} pixels")
    down, across = step / (tall - mh), step / (wide - mw)
    if down != across or abs(down - round(down)) > 0.05 * down:
        raise _Prevented(f"the response has {down:g} pixels a row but {across:g} a column")
    return round(down)


def _fixed_stride(session: GraphSession, n: int, size: tuple[int, int], classes: int) -> int:
    """Stride of a graph that runs at one size only."""
    try:
        mh, mw = _probe(session, n, *size, classes, compare=False, stride=0)
    except _Prevented as e:
        raise ExportError(f"the response graph does not work as declared: {e}") from None
    down, across = size[0] / mh, size[1] / mw
    # Convolutions without padding lose a few rows at the border (299 pixels give 8 rows at stride 32).
    stride = round(down) if down == round(down) else 2 ** round(np.log2(down))
    if abs(size[1] / stride - mw) > 3 or abs(size[0] / stride - mh) > 3:
        raise ExportError(
            f"the response is {mh}x{mw} for {size[0]}x{size[1]} pixels: {down:g} a row, {across:g} a column"
        )
    return int(stride)
