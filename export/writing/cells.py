"""How many cells the response has for a side of so many pixels: found by running the graph, written as arithmetic.

A chain of convolutions and poolings of a total stride s has one cell more where the picture is s pixels longer, so
what holds of s sides in a row holds of all. That the graph is such a chain is not taken on trust: what its smallest
sides tell is compared with larger ones. So a runtime on a GPU, where a run at a new size costs a tenth of a second
and more, is never run to ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd

import numpy as np

from infercam.engine.bundle import ResponseCells
from infercam.export.graph.surgery import ResponseGraph
from infercam.export.graph.trials import Size, Trials, noise
from infercam.export.runtime import RunError

_CHECKS = 12
"""Sizes of up to _REACH strides beyond the smallest,"""
_REACH = 8
_FEWEST = 2
"""or of so many multiples that run,"""
_LARGE = 2
"""and some about as large as pictures are."""


class UnknownCells(Exception):
    """Why there is no such arithmetic."""


def find_cells(graph: ResponseGraph) -> ResponseCells:
    """The arithmetic, checked; raises UnknownCells where the graph does not keep to any, or cannot be run."""
    with Trials(graph.model) as trials:
        known = [size for size in trials.seen if graph.height is None and graph.takes(*size)]
        try:
            cells = _learnt(trials, graph)
            checked = set()
            for height, width in _sizes(graph, known):
                said, is_so = cells.size(height, width, graph.stride), _response(trials, height, width)
                if said != is_so:
                    raise UnknownCells(f"{height}x{width} pixels give {is_so} cells, smaller ones say {said}")
                checked.add((height, width))
        except RunError as e:
            raise UnknownCells(f"the graph fails: {e}") from None
    return cells.model_copy(update={"checked": cells.checked + len(checked)})


def _learnt(trials: Trials, graph: ResponseGraph) -> ResponseCells:
    """What the smallest sides tell, one for each remainder."""
    stride = graph.stride
    if graph.height is not None and graph.width is not None:
        rows, columns = _response(trials, graph.height, graph.width)
        own = {"rows": [rows - graph.height // stride], "columns": [columns - graph.width // stride]}
        return ResponseCells(step=stride, checked=1, **own)
    step = gcd(stride, graph.multiple)
    count = stride // step
    rows_of, columns_of = [0] * count, [0] * count
    for i in range(count):
        height, width = _side(graph, i), _side(graph, (i + count // 2) % count)
        rows, columns = _response(trials, height, width)
        rows_of[height % stride // step] = rows - height // stride
        columns_of[width % stride // step] = columns - width // stride
    return ResponseCells(step=step, rows=rows_of, columns=columns_of, checked=count)


def _side(graph: ResponseGraph, more: int) -> int:
    """The smallest side that the graph takes and `more` steps."""
    return max(graph.smallest, graph.multiple) + more * graph.multiple


def _sizes(graph: ResponseGraph, known: Sequence[Size] = ()) -> Iterator[Size]:
    """Sizes to check at, the same every time: those at which the graph was run before, which cost nothing, and as
    many fewer others."""
    if graph.height is not None:
        return
    yield from known
    rng = np.random.default_rng(0)
    # Eight multiples of 224 would be 2016 pixels.
    most = max(_FEWEST, _REACH * graph.stride // graph.multiple)
    yield _side(graph, 0), _side(graph, most)
    yield _side(graph, most - 1), _side(graph, 0)
    for down, across in rng.integers(0, most, (max(_CHECKS - len(known), _FEWEST), 2)):
        yield _side(graph, int(down)), _side(graph, int(across))
    if any(max(size) > max(graph.base) for size in known):
        return
    most = max(graph.base) // graph.multiple
    for down, across in rng.integers(most // 2, max(1, most) + most // 2, (_LARGE, 2)):
        yield _side(graph, int(down)), _side(graph, int(across))


def _response(trials: Trials, height: int, width: int) -> Size:
    if (height, width) in trials.seen:
        return trials.seen[height, width]
    shape = trials.run(noise(1, height, width))[1].shape
    return int(shape[2]), int(shape[3])
