"""One network of the zoo, exported and compared.

The way is `module` (`from_torch`), `dynamo` or `traced` (PyTorch's exporters with free sizes, then `export_onnx`),
or `file` (tf2onnx, then `export_onnx`). What is compared is mean(response) + bias of the written bundle (its scores
where the map is customary), in ONNX Runtime, with the network's own logits, on noise of several sizes where the
bundle takes any.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from infercam.benchmarks.zoo.families import Member
from infercam.benchmarks.zoo.networks import ONE_SIZE, Specimen, build
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import ExportError
from infercam.export import export_onnx, from_torch
from infercam.export.compare import relative_error
from infercam.export.runtime import GraphSession, RunError

WRONG = 1e-3
"""Relative difference from the library's own logits from which on an export counts as wrong."""
FILE = "model.onnx"
_PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "scale": 1 / 255}


def attempt(member: Member, way: str, folder: Path) -> dict[str, Any]:
    """The outcome (`free`, `fixed`, `refused`, `wrong`, `wrong file`: the exporter's file is what differs from the
    network, not the bundle from the file; `traceback`), its reason and figures; `apart`: CPU seconds of
    this process that are not the export's."""
    network = build(member)
    limit = "" if way == "module" else _saved(network, member, way, folder / FILE)
    apart = time.process_time()
    try:
        bundle = _exported(network, member, way, folder)
    except ExportError as e:
        return {"outcome": "refused", "reason": str(e).replace(str(folder), "…"), "apart": apart}
    except Exception as e:  # what a user would see as a traceback
        where = traceback.extract_tb(e.__traceback__)[-1]
        reason = f"{type(e).__name__}: {e} ({Path(where.filename).name}:{where.lineno})"
        return {"outcome": "traceback", "reason": reason, "apart": apart}
    apart -= time.process_time()
    manifest = bundle.manifest
    spec = manifest.input
    error, where_worst = _worst(bundle, network.logits, network.pixels)
    outcome = "free" if spec.height is None else "fixed"
    reason = ""
    if not error <= WRONG:
        outcome, reason = "wrong", f"differs by {error:.2g} at {where_worst}"
        if way != "module":
            kept, _ = _worst(bundle, _of_file(folder / FILE), network.pixels)
            outcome = "wrong file" if kept <= WRONG else outcome
            reason += f", from the file itself by {kept:.2g}"
    apart += time.process_time()
    return {
        "outcome": outcome,
        "reason": reason,
        "apart": apart,
        "error": float(f"{error:.2g}"),
        "size": None if spec.height is None else [spec.height, spec.width],
        "smallest": spec.smallest,
        "multiple": spec.multiple,
        "stride": manifest.stride,
        "notes": [*([limit] if limit else []), *manifest.source.get("notes", [])],
    }


def _saved(network: Specimen, member: Member, way: str, file: Path) -> str:
    """Write the file, of one size where the exporter writes none of free sizes; then its reason, else nothing."""
    try:
        network.save(file, way, member.size)
    except Exception as e:  # the library's exporters raise anything
        if member.library == "keras":
            raise
        network.save(file, way + ONE_SIZE, member.size)
        return f"the exporter writes no file of free sizes: {type(e).__name__}: {str(e)[:100]}"
    return ""


def _of_file(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    """What the file computes: an exporter's own fault is none of the surgery's."""
    session = GraphSession(file, threads=1)

    def logits(x: np.ndarray) -> np.ndarray:
        try:
            return session.run(x)[0]
        except RunError as e:
            raise ValueError(str(e)) from None

    return logits


def _exported(network: Specimen, member: Member, way: str, folder: Path) -> Bundle:
    classes = [f"class {i}" for i in range(network.classes)]
    out, size = folder / "bundle", (member.size, member.size)
    if way == "module":
        return from_torch(network.module, out, classes=classes, example_size=size, **_PLAIN)
    return export_onnx(folder / FILE, out, classes=classes, **_PLAIN | {"scale": network.pixels / 255})


def _worst(bundle: Bundle, logits: Callable[[np.ndarray], np.ndarray], pixels: float) -> tuple[float, str]:
    """The largest relative difference from the network's own logits, and at which shape."""
    session = GraphSession(bundle.graph(), threads=1)
    worst, where = float("nan"), "no size"
    for seed, (n, h, w) in enumerate(_shapes(bundle)):
        x = np.random.default_rng(seed).standard_normal((n, 3, h, w), dtype=np.float32) * np.float32(pixels)
        try:
            theirs = logits(x)
        except (AssertionError, RuntimeError, ValueError):  # a module of one size, its bundle of any
            continue
        scores, response, *bias = session.run(x)
        if bundle.manifest.decomposition == "mean":
            scores = response.astype(np.float64).mean(axis=(2, 3))
            scores += bias[0] if bundle.manifest.per_image_bias else np.array(bundle.manifest.bias)
        error = relative_error(scores, theirs)
        if not error <= worst:
            worst, where = error, f"{n}x3x{h}x{w}"
    return worst, where


def _shapes(bundle: Bundle) -> list[tuple[int, int, int]]:
    spec = bundle.manifest.input
    n = 2 if spec.dynamic_batch else 1
    if spec.height is not None and spec.width is not None:
        return [(1, spec.height, spec.width), (n, spec.height, spec.width)]

    def near(side: int) -> int:
        return max(spec.smallest, -(-side // spec.multiple) * spec.multiple)

    return [(n, near(224), near(224)), (1, near(231), near(317)), (1, near(288), near(192))]
