"""Adding files to a bundle that exists: each step leaves a bundle that loads, whenever the process is killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from onnx import ModelProto

from infercam.engine.bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    Manifest,
    PrecisionReport,
    RuntimeReport,
    file_entry,
    read_manifest,
)
from infercam.engine.common.atomic import TEMP_PREFIX, atomic_write
from infercam.engine.common.errors import ExportError
from infercam.export.runtime import save
from infercam.export.writing.bundle_writer import tool_versions


def put_graph(root: Path, precision: str, model: ModelProto, report: PrecisionReport) -> Path:
    """Write `model` into the bundle at `root` as its graph of that precision; returns its path.

    New files first, under names that nothing uses; then the manifest in one step; then what it no longer lists is
    deleted. Raises ExportError where the folder cannot be written, BundleError for a bad manifest.
    """
    try:
        return _put(root, precision, model, report)
    except OSError as e:
        raise ExportError(f"{root}: cannot write the {precision} graph: {e.strerror or e}") from None


def _put(root: Path, precision: str, model: ModelProto, report: PrecisionReport) -> Path:
    name = _free_name(root, precision)
    folder = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=root))
    try:
        entries = {}
        for file in save(model, folder / name):
            entries[file.name] = file_entry(file)
            with file.open("rb") as f:
                os.fsync(f.fileno())
            file.replace(root / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    old = read_manifest(root)  # as it is now: making the graph took a while
    stale = _files_of(old, precision)
    _rewrite(
        root,
        old,
        {
            "graphs": old.graphs | {precision: name},
            "files": {k: v for k, v in old.files.items() if k not in stale} | entries,
            "precisions": old.precisions | {precision: report},
            "tools": old.tools | {f"{precision} {k}": v for k, v in tool_versions().items() if k in _MADE_BY},
        },
    )
    for file_name in stale - set(entries):
        (root / file_name).unlink(missing_ok=True)
    return root / name


def put_runtime(root: Path, report: RuntimeReport) -> None:
    """Record what a runtime's own arithmetic does to the maps, in place of an earlier record of the same.

    Raises ExportError where the manifest cannot be written, BundleError for a bad one.
    """
    old = read_manifest(root)
    same = (report.runtime, report.precision)
    others = [r for r in old.runtimes if (r.runtime, r.precision) != same]
    try:
        _rewrite(root, old, {"runtimes": [*others, report]})
    except OSError as e:
        raise ExportError(f"{root}: cannot write the manifest: {e.strerror or e}") from None


def _rewrite(root: Path, old: Manifest, changes: dict[str, Any]) -> None:
    """Put the manifest in one step, in today's schema: what an earlier one lacked is written out."""
    manifest = old.model_copy(update={"schema_version": SCHEMA_VERSION, **changes})
    with atomic_write(root / MANIFEST, "w") as f:
        f.write(manifest.model_dump_json(indent=2) + "\n")


_MADE_BY = ("infercam", "onnx", "onnxruntime", "onnxruntime-gpu")


def _free_name(root: Path, precision: str) -> str:
    names = [f"response.{precision}.onnx", *(f"response.{precision}.{i}.onnx" for i in range(2, 1000))]
    return next(n for n in names if not (root / n).exists() and not (root / f"{n}.data").exists())


def _files_of(manifest: Manifest, precision: str) -> set[str]:
    """Files of the present graph of that precision that no other graph uses."""
    name = manifest.graphs.get(precision)
    if name is None or name in [g for p, g in manifest.graphs.items() if p != precision]:
        return set()
    return {name, f"{name}.data"} & set(manifest.files)
