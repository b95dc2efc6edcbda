"""Optional simplification of a response graph with onnxslim, kept only if it changes nothing that matters."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from onnx import ModelProto

from infercam.export.compare import relative_error
from infercam.export.graph.index import Graph
from infercam.export.graph.surgery import ResponseGraph
from infercam.export.runtime import GraphSession, RunError

MAX_BYTES = 1 << 30  # onnxslim serialises the model several times
_TOLERANCE = 1e-5
_BATCH_NORM = ("FusionConvBN", "FusionConvTransposeBN")  # onnxslim's names


def simplify(graph: ResponseGraph, *, fold_batch_norm: bool = True) -> ResponseGraph:
    """Fold constants and fuse nodes; if that fails or changes results, the graph as it was, with a note."""
    try:
        import onnxslim
    except ImportError:
        return _kept(graph, "onnxslim is not installed")
    if graph.model.ByteSize() > MAX_BYTES:
        return _kept(graph, "the model is over 1 GB")
    copy = ModelProto()
    copy.CopyFrom(graph.model)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        slimmed = onnxslim.slim(copy, skip_fusion_patterns=None if fold_batch_norm else list(_BATCH_NORM))
    except BaseException as e:  # it ends the process with SystemExit on some graphs
        if isinstance(e, KeyboardInterrupt):
            raise
        return _kept(graph, f"onnxslim failed ({type(e).__name__}: {str(e)[:120]})")
    finally:
        logging.disable(level)
    if not isinstance(slimmed, ModelProto):
        return _kept(graph, "onnxslim gave no model")
    difference = _difference(graph, slimmed)
    if difference is not None:
        return _kept(graph, difference)
    del slimmed.graph.value_info[:]
    return replace(graph, model=slimmed)


def _kept(graph: ResponseGraph, why: str) -> ResponseGraph:
    return replace(graph, notes=[*graph.notes, f"not simplified: {why}"])


def _difference(graph: ResponseGraph, slimmed: ModelProto) -> str | None:
    """What the simplified graph does differently, or None."""
    names = [o.name for o in slimmed.graph.output], [i.name for i in Graph(slimmed).image_inputs()]
    if names != ([o.name for o in graph.model.graph.output], [graph.input_name]):
        return f"onnxslim changed the inputs or outputs to {names}"
    h, w = (graph.height, graph.width) if graph.height else graph.base
    shapes = [(1, h, w)]
    if graph.dynamic_batch:
        shapes.append((2, h, w))
    if graph.height is None:
        more = (33, 20) if graph.multiple == 1 else (graph.multiple, 2 * graph.multiple)
        shapes.append((1, graph.base[0] + more[0], graph.base[1] + more[1]))
    rng = np.random.default_rng(0)
    try:
        before, after = GraphSession(graph.model), GraphSession(slimmed)
        for n, rows, columns in shapes:
            x = rng.standard_normal((n, 3, rows, columns), dtype=np.float32)  # type: ignore[arg-type]
            for ours, theirs in zip(before.run(x), after.run(x), strict=True):
                if ours.shape != theirs.shape or not relative_error(ours, theirs) <= _TOLERANCE:
                    return "onnxslim changed the results"
    except RunError as e:
        return f"the simplified graph does not run: {e}"
    return None
