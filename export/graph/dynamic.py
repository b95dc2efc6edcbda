"""Making batch, height and width of a graph free, and finding out by running it whether they are.

A model is often exported at one size, with that size baked into reshapes. Each claim that a dimension is free is
tested: the graph is run at several sizes and batches (`_probe`), a picture's scores must not depend on what
else is in its batch, and the map must grow with the picture and cover it, no more. What fails stays fixed, and the
node that prevents it is noted. Where only multiples of some side run, or cover the picture, those are free. Sizes
that the source does not declare are first tried in a process of their own (trials.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import ModelProto, NodeProto

from infercam.engine.common.errors import ExportError
from infercam.export.graph.index import Graph, Shape, label
from infercam.export.graph.relax import Dims, Free, baking_node, free_input, relax
from infercam.export.graph.trials import LARGE_STEP, Trials, noise, smallest_side
from infercam.export.runtime import RunError

Size = tuple[int, int]

_BASES = (64, 128, 224, 256, 192, 299, 320, 384, 448, 512)
"""Sides tried where the model declares none."""
USUAL = (224, 256, 192, 299, 320, 384, 448, 512, 64, 128)
"""Sides tried, in this order, where a size must be chosen for good."""
_MULTIPLES = (16, 32, 64, 96, 128, 192, 224, 256, 384)
_BATCH = 3
_BEYOND = 1.5
"""Cells that a response may reach beyond the picture: rounding up gives less than one, a pad in the graph more."""
_SHORT = 3
"""Cells that it may lack: convolutions without padding lose some at the border."""
_FEWEST_CELLS = 4
_LARGEST_CELL = 48
"""Pixels of a cell, of networks that were not cut short: theirs have at most 32."""
_TELLING = 7
"""Cells that a map must have grown by, in both directions, to tell the stride of a small picture at once."""


@dataclass
class Sizes:
    """The graph with what could be freed freed; `height`/`width` None: any size from `smallest` up."""

    model: ModelProto
    stride: int
    dynamic_batch: bool
    height: int | None
    width: int | None
    base: Size
    """At which it was seen to run."""
    smallest: int = 1
    multiple: int = 1
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SizeWishes:
    """What is known of the size that a graph should have."""

    size: Size | None = None
    """Height and width to fix."""
    own: Size | None = None
    """The source's own, where its input does not declare one."""
    free: bool = True
    """Whether other sizes are tried at all."""
    batch: bool = True
    """Whether other batches are."""


class _Prevented(Exception):
    """Why a dimension cannot be free."""


@dataclass(frozen=True)
class _Found:
    """A graph whose height and width (and batch, unless `no_batch` says why not) are free, and where it runs: sides
    from `smallest` up, multiples of `multiple`; `base` is a cheap one of them."""

    model: ModelProto
    base: Size
    multiple: int
    smallest: int
    stride: int
    no_batch: str | None = None

    def __str__(self) -> str:
        return f"are multiples of {self.multiple}"


def find_sizes(model: ModelProto, picture: str, *, classes: int, wishes: SizeWishes = SizeWishes()) -> Sizes:
    """Free as many of batch, height and width as really work; with a wish for one size, only the batch.

    `model` has the outputs `scores` and `response`. Raises ExportError if it does not even run as declared, or at
    the size wished for, or where its response is a single cell.
    """
    n = _declared(model, picture)[0] or 1
    free = wishes.free and not wishes.size
    found, problem = _free_sizes(model, picture, classes) if free else (None, "")
    all_free = found is not None and found.no_batch is None
    size = found.base if found is not None and all_free else chosen_size(model, picture, wishes)
    notes = [f"height and width {found or 'fixed at {}x{}'.format(*size)}: {problem}"] if problem else []
    batch = wishes.batch and not all_free
    freed = _free_batch(model, picture, Dims(n, *size), classes, notes) if batch else None
    if found is not None and freed is not None:
        notes.append(
            f"height and width fixed at {size[0]}x{size[1]} (batch is free instead): {found.no_batch}"
        )
        found = None
    if found is not None:
        return Sizes(
            model=found.model,
            stride=found.stride,
            dynamic_batch=found.no_batch is None,
            height=None,
            width=None,
            base=found.base,
            smallest=found.smallest,
            multiple=found.multiple,
            notes=notes,
        )
    if declared_size(model, picture) is None:
        _refuse_or_note_one_size(model, size, notes)
    final = freed or _freed(model, picture, Dims(n, *size), batch=False, size=False)
    stride = _fixed_stride(final, n, size, classes, notes)
    return Sizes(final, stride, freed is not None, *size, base=size, notes=notes)


def _free_sizes(model: ModelProto, picture: str, classes: int) -> tuple[_Found | None, str]:
    """Any size, or any multiple of one, or None; and what prevents that any size runs, if something does."""
    n, h, w = _declared(model, picture)
    if h and w:
        base = (h, w)
    else:
        # Of a model that bakes nothing the graph that is tried next: loading another takes seconds.
        free = model if n or h or w else _freed(model, picture, Dims(1, 64, 64), batch=True, size=True)
        with Trials(free, n or 1) as trials:
            base = _first_that_runs(trials, [(h or side, w or side) for side in _BASES])
    try:
        return _try_sizes(model, picture, Dims(n or 1, *base), classes, 1), ""
    except _Prevented as e:
        return _multiples(model, picture, n or 1, classes) if h is None and w is None else None, str(e)


def _try_sizes(model: ModelProto, picture: str, dims: Dims, classes: int, multiple: int) -> _Found:
    """Free batch, height and width, or the latter two alone."""
    try:
        return _try(model, picture, dims, classes, batch=True, multiple=multiple)
    except _Prevented as e:
        return replace(_try(model, picture, dims, classes, multiple=multiple), no_batch=str(e))


def _multiples(model: ModelProto, picture: str, n: int, classes: int) -> _Found | None:
    """The least side whose multiples all run, of a model that declares no size."""
    with Trials(model, n) as trials:
        sides = {m: m * -(-_BASES[0] // m) for m in _MULTIPLES}
        more = {m: (s + m, s + (2 if m < LARGE_STEP else 1) * m) for m, s in sides.items()}
        runs = [m for m, s in sides.items() if trials.runs(s, s) and trials.runs(*more[m])]
    for multiple in runs:
        try:
            return _try_sizes(model, picture, Dims(n, sides[multiple], sides[multiple]), classes, multiple)
        except _Prevented:
            continue
    return None


def _free_batch(
    model: ModelProto, picture: str, dims: Dims, classes: int, notes: list[str]
) -> ModelProto | None:
    """The graph with a free batch; None, with a note, where it is 1 for good."""
    try:
        return _try(model, picture, dims, classes, batch=True).model
    except _Prevented as e:
        if dims.n != 1:
            raise ExportError(
                f"the batch of {dims.n} cannot be made free ({e}); export the model with a batch of 1"
            ) from None
        notes.append(f"batch fixed at 1: {e}")
        return None


def chosen_size(model: ModelProto, picture: str, wishes: SizeWishes) -> Size:
    """The one size of a graph: that wished for, the declared one, its own, or a usual one that runs."""
    n, h, w = _declared(model, picture)
    if wishes.size and any(d not in (None, s) for d, s in zip((h, w), wishes.size, strict=True)):
        raise ExportError(
            f"the model takes {h or 'any'}x{w or 'any'} only, not {wishes.size[0]}x{wishes.size[1]}"
        )
    if wishes.size:
        return wishes.size
    if h and w:
        return h, w
    own = wishes.own or _own_size(model)
    with Trials(model, n or 1) as trials:
        sizes = [(h or side, w or side) for side in USUAL]
        return _first_that_runs(trials, [own, *sizes] if own else sizes)


def _own_size(model: ModelProto) -> Size | None:
    """What a model of free input says of its size: in its metadata, or by what it does to the picture."""
    for entry in model.metadata_props:
        if entry.key in ("imgsz", "image_size", "input_size", "img_size"):
            sides = [int(v) for v in re.findall(r"\d+", entry.value)][-2:]
            if sides and min(sides) >= 1:
                return sides[0], sides[-1]
    found = _brought_to_one_size(model)
    return found[1] if found else None


def _brought_to_one_size(model: ModelProto) -> tuple[NodeProto, Size] | None:
    """A node that resizes or crops every picture to one size, and that size."""
    graph = Graph(model)
    nodes = [n for n in model.graph.node if n.op_type in ("Resize", "Slice") and graph.rank(n.output[0]) == 4]
    for node in nodes:
        shape = graph.shape(node.output[0]) or ()
        if 3 not in (shape[1], shape[3]):
            continue
        if None in shape or any(isinstance(d, str) for d in shape[1:]):
            runs = graph.observed([node.output[0]]).runs
            seen = {r.shapes[node.output[0]][1:]: r.side for r in runs}
            if len(seen) != 1 or len({r.side for r in runs}) < 2:
                continue
            shape = (0, *next(iter(seen)))
        h, w = shape[2:] if shape[1] == 3 else shape[1:3]
        if isinstance(h, int) and isinstance(w, int):
            return node, (h, w)
    return None


def _refuse_or_note_one_size(model: ModelProto, size: Size, notes: list[str]) -> None:
    """Of a graph of fixed size that brings its pictures to one size by itself: what to cut off."""
    found = _brought_to_one_size(model)
    if found is None:
        return
    node, own = found
    text = f"{label(node)} brings every picture to {own[0]}x{own[1]}"
    cure = "export the model without it, and any size may run"
    if node.op_type == "Slice" and own != size:
        raise ExportError(f"{text} by cutting, which a map of {size[0]}x{size[1]} pixels cannot show: {cure}")
    notes.append(f"{text}: {cure}")


def _first_that_runs(trials: Trials, sizes: list[Size]) -> Size:
    """Raises ExportError, naming the sizes tried, where none does."""
    problem = None
    for size in sizes:
        problem = trials.problem(*size)
        if problem is None:
            return size
    tried = ", ".join(f"{h}x{w}" for h, w in dict.fromkeys(sizes))
    raise ExportError(
        f"the graph does not run at any of the sizes tried ({tried}): {problem}; give one with --size HxW"
    )


def _declared(model: ModelProto, picture: str) -> tuple[int | None, int | None, int | None]:
    shape: Shape = Graph(model).shape(picture) or (None,) * 4
    n, h, w = (d if isinstance(d, int) and d > 0 else None for d in (shape[0], shape[2], shape[3]))
    return n, h, w


def declared_size(model: ModelProto, picture: str) -> Size | None:
    """Height and width of the picture, where both are numbers."""
    _, h, w = _declared(model, picture)
    return (h, w) if h and w else None


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


def _try(
    model: ModelProto, picture: str, dims: Dims, classes: int, *, batch: bool = False, multiple: int = 0
) -> _Found:
    """Free the batch, or height and width (in multiples of `multiple`), or both, and run; raises _Prevented."""
    size = bool(multiple)
    freed = _freed(model, picture, dims, batch=batch, size=size)
    found = _Found(freed, (dims.h, dims.w), max(multiple, 1), 1, 0)
    try:
        with Trials(freed, dims.n) as trials:
            if size:
                found = _measured(trials, found, dims, classes)
            for n, h, w in _shapes(dims.n, found, batch=batch):
                _probe(trials, n, h, w, classes, compare=batch, stride=found.stride)
        return found
    except RunError as e:
        raise _Prevented(str(e)) from None
    except _Prevented as e:
        if "node '" in str(e):
            raise
        node = baking_node(freed, picture, dims, batch=batch, size=size)
        raise _Prevented(f"{e}, because of {label(node)}" if node is not None else str(e)) from None


def _measured(trials: Trials, found: _Found, dims: Dims, classes: int) -> _Found:
    """With the least side that runs, a base near it, for that is cheap, and the stride."""
    _probe(trials, dims.n, dims.h, dims.w, classes, compare=False, stride=0)
    smallest = smallest_side(trials, min(found.base), found.multiple)
    side = max(smallest, found.multiple * -(-_BASES[0] // found.multiple))
    base = (side, side) if side < min(found.base) else found.base
    stride = _measured_stride(trials, Dims(dims.n, *base), classes, found.multiple)
    return replace(found, smallest=smallest, base=base, stride=stride)


def _shapes(n: int, found: _Found, *, batch: bool) -> Iterator[tuple[int, int, int]]:
    """Shapes to probe; with a free size (a stride), maps 1, 2 and 3 cells larger, so that windows show, and sizes
    that are one pixel more than a multiple of nearly anything, so that pads do."""
    (h, w), s, m = found.base, found.stride, found.multiple
    sizes = [(h, w)]
    if m >= LARGE_STEP:
        sizes += [(h + m, w), (h, w + m)]
    elif m > 1:
        sizes += [(h + m, w + 2 * m), (h + 2 * m, w + m)]
    elif s:
        sizes += [(h + s, w + 2 * s), (h + 2 * s + 1, w + 3 * s + s // 2)]
        sizes += [(h + 3 * s + s // 2 + 1, w + s), (h + 1, w + 1)]
    yield from ((n if not batch else 1, *size) for size in sizes)
    if batch:
        yield from ((_BATCH, *size) for size in sizes[:2])


def _probe(
    graph: Trials, n: int, h: int, w: int, classes: int, *, compare: bool, stride: int
) -> tuple[int, int]:
    """Run one shape and check the outputs; returns the response's height and width."""
    x = noise(n, h, w)
    scores, response = _run(graph, x)
    if scores.shape != (n, classes) or response.shape[:2] != (n, classes) or response.ndim != 4:
        raise _Prevented(
            f"a batch of {n} at {h}x{w} gives scores {scores.shape} and a response {response.shape}"
        )
    mh, mw = response.shape[2:]
    if stride and not all(-_SHORT <= m - side / stride <= _BEYOND for m, side in ((mh, h), (mw, w))):
        raise _Prevented(f"the response is {mh}x{mw} for a picture of {h}x{w} (stride {stride})")
    if compare and n > 1:
        for i in (0, n - 1):
            single, _ = _run(graph, x[i : i + 1])
            if not np.allclose(single[0], scores[i], rtol=1e-3, atol=1e-3 * float(np.abs(scores).max())):
                raise _Prevented("a picture's scores depend on the others in its batch")
    return mh, mw


def _run(graph: Trials, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    try:
        scores, response = graph.run(x)[:2]
    except RunError as e:
        n, _, h, w = x.shape
        raise _Prevented(f"a batch of {n} at {h}x{w} fails in {e}") from None
    return scores, response


def _measured_stride(graph: Trials, dims: Dims, classes: int, multiple: int = 1) -> int:
    """Input pixels per response cell, from how much the map grows with the picture, in both directions."""
    n, h, w = dims.n, dims.h, dims.w
    mh, mw = _probe(graph, n, h, w, classes, compare=False, stride=0)
    for side in (224, 448) if max(h, w) < 224 else (224,):  # multiples of 7, 14, 16 and 32
        step = -(-side // multiple) * multiple
        tall = _probe(graph, n, h + step, w, classes, compare=False, stride=0)[0]
        wide = _probe(graph, n, h, w + step, classes, compare=False, stride=0)[1]
        if tall - mh == wide - mw >= _TELLING and step % (tall - mh) == 0:
            break
    if tall <= mh or wide <= mw:
        raise _Prevented(f"the response stays {mh}x{mw} when the picture grows by {step} pixels")
    down, across = step / (tall - mh), step / (wide - mw)
    if down != across or abs(down - round(down)) > 0.05 * down:
        raise _Prevented(f"the response has {down:g} pixels a row but {across:g} a column")
    return round(down)


def _fixed_stride(model: ModelProto, n: int, size: Size, classes: int, notes: list[str]) -> int:
    """Stride of a graph that runs at one size only; raises ExportError where its response is no map."""
    try:
        with Trials(model, n) as trials:
            mh, mw = _probe(trials, n, *size, classes, compare=False, stride=0)
    except _Prevented as e:
        raise ExportError(f"the response graph does not work at {size[0]}x{size[1]}: {e}") from None
    if mh * mw == 1:
        raise ExportError(
            f"the response is a single cell at {size[0]}x{size[1]} pixels: what is pooled has no positions left, so "
            "there is no response map (a classifier that flattens its last map, as VGG and AlexNet do, has none); "
            "--method recipro takes the map before that, at one size"
        )
    if min(mh, mw) < _FEWEST_CELLS:
        notes.append(
            f"warning: the response has only {mh}x{mw} cells at {size[0]}x{size[1]} pixels: maps will be coarse"
        )
    elif max(size[0] / mh, size[1] / mw) > _LARGEST_CELL:
        notes.append(
            f"warning: the response has {mh}x{mw} cells at {size[0]}x{size[1]} pixels, one for more than "
            f"{_LARGEST_CELL}: maps are coarse, or lack the border that a convolution without padding cut off, and "
            "are stretched over the picture"
        )
    notes.append(
        f"warning: the size is fixed: larger views than {size[0]}x{size[1]} are seen in overlapping windows, which "
        "costs as many runs (--set windows=false: pictures stretched to it)"
    )
    down, across = size[0] / mh, size[1] / mw
    # Convolutions without padding lose a few rows at the border (299 pixels give 8 rows at stride 32).
    stride = round(down) if down == round(down) else 2 ** round(np.log2(down))
    if abs(size[1] / stride - mw) > _SHORT or abs(size[0] / stride - mh) > _SHORT:
        raise ExportError(
            f"the response is {mh}x{mw} for {size[0]}x{size[1]} pixels: {down:g} a row, {across:g} a column"
        )
    return int(stride)
