"""Optional simplification of a response graph, kept only if it changes nothing that matters.

By onnxslim; a graph of many nodes, over which that takes 2 ms each, by ONNX Runtime's basic level: constants folded,
what does nothing left out, all in operators of ONNX.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import ModelProto

from infercam.export.compare import relative_error
from infercam.export.graph.index import Graph
from infercam.export.graph.shelf import Shelf
from infercam.export.graph.surgery import ResponseGraph
from infercam.export.graph.trials import Trials, noise
from infercam.export.runtime import RunError, save, weights_of, whole, write_basic

MAX_BYTES = 1 << 28  # onnxslim copies and serialises the model several times
_TOLERANCE = 1e-5
_ROUNDS = "2"
"""Of onnxslim, which else goes on until nothing changes: of a Swin's 6179 nodes 2919 are left after one (4.9 CPU
seconds), 2230 after two (6.8), 2136 in the end (11.8)."""
_MANY = 1000
"""Nodes from which on ONNX Runtime does it: the same Swin's are 2497 afterwards, in 1.4 CPU seconds."""
_BATCH_NORM = ("FusionConvBN", "FusionConvTransposeBN")  # onnxslim's names
_BATCH_NORM_ORT = ("ConvBNFusion",)


def simplify(graph: ResponseGraph, *, fold_batch_norm: bool = True) -> ResponseGraph:
    """Fold constants and fuse nodes; if that fails or changes results, the graph as it was, with a note."""
    shelf = Shelf.of(graph.model)
    if weights_of(graph.model) > MAX_BYTES:  # protobuf's ByteSize makes a copy of all
        return _kept(graph, f"the model is over {MAX_BYTES >> 20} MB")
    by, tool = ("ONNX Runtime", _folded) if len(graph.model.graph.node) > _MANY else ("onnxslim", _slimmed)
    try:
        slimmed = tool(graph.model, fold_batch_norm)
    except ImportError:
        return _kept(graph, f"{by} is not installed")
    except BaseException as e:  # onnxslim ends the process with SystemExit on some graphs
        if isinstance(e, KeyboardInterrupt):
            raise
        return _kept(graph, f"{by} failed ({type(e).__name__}: {str(e)[:120]})")
    if not isinstance(slimmed, ModelProto):
        return _kept(graph, f"{by} gave no model")
    del slimmed.graph.value_info[:]
    slimmed = slimmed if shelf is None else shelf.taken(slimmed)
    difference = _difference(graph, slimmed, by)
    if difference is not None:
        return _kept(graph, difference)
    return replace(graph, model=slimmed)


def _slimmed(model: ModelProto, fold_batch_norm: bool) -> object:
    """What onnxslim makes of a copy; raises anything."""
    import onnxslim

    copy = whole(model)
    os.environ.setdefault("ONNXSLIM_MAX_ITER", _ROUNDS)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        return onnxslim.slim(copy, skip_fusion_patterns=None if fold_batch_norm else list(_BATCH_NORM))
    finally:
        logging.disable(level)


def _folded(model: ModelProto, fold_batch_norm: bool) -> ModelProto | None:
    """What ONNX Runtime makes of it; None where that has operators of its own. Raises RunError."""
    with tempfile.TemporaryDirectory(prefix="infercam-") as folder:
        file, out = Path(folder, "model.onnx"), Path(folder, "basic.onnx")
        save(model, file)
        write_basic(file, out, without=() if fold_batch_norm else _BATCH_NORM_ORT)
        found = onnx.load(str(out))
    if any(n.domain not in ("", "ai.onnx") for n in found.graph.node):
        return None
    del found.opset_import[:]  # it lists whatever it knows
    found.opset_import.extend(model.opset_import)
    return found


def _kept(graph: ResponseGraph, why: str) -> ResponseGraph:
    return replace(graph, notes=[*graph.notes, f"not simplified: {why}"])


def _difference(graph: ResponseGraph, slimmed: ModelProto, by: str) -> str | None:
    """What the simplified graph does differently, or None."""
    names = [o.name for o in slimmed.graph.output], [i.name for i in Graph(slimmed).image_inputs()]
    if names != ([o.name for o in graph.model.graph.output], [graph.input_name]):
        return f"{by} changed the inputs or outputs to {names}"
    h, w = graph.base if graph.height is None or graph.width is None else (graph.height, graph.width)
    shapes = [(1, h, w)]
    if graph.dynamic_batch:
        shapes.append((2, h, w))
    if graph.height is None:
        more = (33, 20) if graph.multiple == 1 else (graph.multiple, 2 * graph.multiple)
        shapes.append((1, graph.base[0] + more[0], graph.base[1] + more[1]))
    pictures = [noise(n, rows, columns) for n, rows, columns in shapes]
    try:
        with Trials(graph.model) as trials:
            before = [trials.run(x) for x in pictures]
        with Trials(slimmed) as trials:
            after = [trials.run(x) for x in pictures]
        for x_before, x_after in zip(before, after, strict=True):
            for ours, theirs in zip(x_before, x_after, strict=True):
                if ours.shape != theirs.shape or not relative_error(ours, theirs) <= _TOLERANCE:
                    return f"{by} changed the results"
    except RunError as e:
        return f"the simplified graph does not run: {e}"
    return None
