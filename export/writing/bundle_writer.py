"""Writing a bundle: verified first, then put in place in one step, so that never half a bundle is left."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from infercam.engine.bundle import (
    MANIFEST,
    Bundle,
    InputSpec,
    Manifest,
    ResponseCells,
    Verification,
    file_entry,
    read_manifest,
)
from infercam.engine.common.atomic import TEMP_PREFIX, UMASK
from infercam.engine.common.errors import BundleError, ExportError
from infercam.engine.common.validation import first_problem
from infercam.engine.data.class_names import unique_names
from infercam.export.graph.dynamic import SizeWishes
from infercam.export.graph.surgery import ResponseGraph
from infercam.export.graph.trials import forget
from infercam.export.runtime import save
from infercam.export.writing.cells import UnknownCells, find_cells
from infercam.export.writing.verify import Disagreement, verify

GRAPH_FILE = "response.onnx"
_TOOLS = ("infercam", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxslim", "numpy", "torch")


def write_bundle(
    out: Path,
    graph: ResponseGraph,
    *,
    classes: Sequence[str],
    input_spec: InputSpec,
    multi_label: bool,
    source: Mapping[str, Any],
    source_scores: Callable[[np.ndarray], np.ndarray],
    images: Sequence[np.ndarray] = (),
    tolerance: float = 1e-4,
    name: str | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Check `graph` against its source, then write the bundle folder `out`; nothing is written if a check fails.

    `source_scores` takes a float32 (N, 3, H, W) array, normalised as `input_spec` says, and returns the
    source's own logits (N, C), before sigmoid or softmax; it raises `verify.SourceLimit` for a shape that the
    source cannot run. `images` are (H, W, 3) uint8 RGB arrays to check on besides the built-in ones. The
    input's name and free dimensions are taken from `graph`, whatever `input_spec` says. Class names that repeat
    are numbered (`unique_names`), with a note. An existing bundle is replaced only with `overwrite`; any other
    folder or file at `out` is never touched.

    Raises ExportError: a check that failed (and by how much), class names that do not fit, `out` in the way
    or not writable.
    """
    out = Path(out)
    _check_classes(classes, graph)
    names = unique_names(classes)
    graph = replace(graph, notes=[*graph.notes, *_renamed(classes, names)])
    _check_target(out, overwrite)
    spec = input_spec.model_copy(
        update={
            "name": graph.input_name,
            "dynamic_batch": graph.dynamic_batch,
            "height": graph.height,
            "width": graph.width,
            "smallest": graph.smallest,
            "multiple": graph.multiple,
        }
    )
    verification = verify(graph, source_scores, spec, images=images, tolerance=tolerance)
    cells: ResponseCells | None = None
    try:
        cells = find_cells(graph)
    except UnknownCells as e:
        graph = replace(
            graph, notes=[*graph.notes, f"GPU runtimes are run once to tell the response's size: {e}"]
        )
    try:
        return _write(
            out, graph, names, spec, multi_label, dict(source), verification, cells, name, overwrite
        )
    except OSError as e:
        raise ExportError(f"{out}: cannot write the bundle: {e.strerror or e}") from None


def write_as_it_agrees(
    sources: Iterable[Callable[[SizeWishes], ResponseGraph]],
    write: Callable[[ResponseGraph], Bundle],
    wishes: SizeWishes,
) -> Bundle:
    """Write the response graph of the first source that has one and agrees with it, for any size where that runs;
    where none agrees, that of the first for its own size.

    Sizes are free if a graph runs at those tried; whether it then computes what the source does, only the source
    can say. Raises what both raise: of several sources, about the first.
    """
    try:
        return _first_that_agrees(sources, write, wishes)
    finally:
        forget()


def _first_that_agrees(
    sources: Iterable[Callable[[SizeWishes], ResponseGraph]],
    write: Callable[[ResponseGraph], Bundle],
    wishes: SizeWishes,
) -> Bundle:
    refusal: ExportError | None = None
    rejected: tuple[Callable[[SizeWishes], ResponseGraph], str] | None = None
    for graph_of in sources:
        try:
            graph = graph_of(wishes)
        except ExportError as e:
            refusal = refusal or e
            continue
        try:
            return write(graph)
        except Disagreement as e:
            refusal = refusal or e
            if graph.height is None and rejected is None:
                rejected = graph_of, str(e).removeprefix("verification: ")
    if rejected is None:
        assert refusal is not None
        raise refusal
    graph_of, reason = rejected
    fixed = graph_of(replace(wishes, free=False))
    note = f"height and width fixed at {fixed.height}x{fixed.width}: at other sizes {reason}"
    return write(replace(fixed, notes=[note, *fixed.notes]))


def _check_classes(classes: Sequence[str], graph: ResponseGraph) -> None:
    if len(classes) != graph.classes:
        raise ExportError(
            f"{len(classes)} class names for a classifier of {graph.classes} classes; give one name per class"
        )
    if not all(c.strip() for c in classes):
        raise ExportError("a class name is empty")


def _renamed(classes: Sequence[str], names: Sequence[str]) -> list[str]:
    """A note about the names that repeated, if any did."""
    changed = [
        f"{i} is '{new}'" for i, (old, new) in enumerate(zip(classes, names, strict=True)) if new != old
    ]
    if not changed:
        return []
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    return [f"class names repeat, the later ones were numbered: class {', '.join(changed[:5])}{more}"]


def _check_target(out: Path, overwrite: bool) -> None:
    if not (out.exists() or out.is_symlink()):
        return
    if not out.is_dir() or out.is_symlink():
        raise ExportError(f"{out}: is in the way and is not a folder; choose another path")
    if not any(out.iterdir()):
        return
    try:
        read_manifest(out)
    except BundleError:
        if not _looks_like_bundle(out):
            raise ExportError(f"{out}: is a folder that is not a bundle; choose another path") from None
    if not overwrite:
        raise ExportError(f"{out}: a bundle is there already; pass --overwrite to replace it")


def _looks_like_bundle(out: Path) -> bool:
    """A damaged or newer bundle may be replaced too: it has both of a bundle's files."""
    return (out / MANIFEST).is_file() and (out / GRAPH_FILE).is_file()


def _write(
    out: Path,
    graph: ResponseGraph,
    classes: list[str],
    spec: InputSpec,
    multi_label: bool,
    source: dict[str, Any],
    verification: Verification,
    cells: ResponseCells | None,
    name: str | None,
    overwrite: bool,
) -> Bundle:
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=out.parent))
    try:
        files = save(graph.model, folder / GRAPH_FILE)
        try:
            manifest = Manifest(
                name=name or out.name,
                classes=classes,
                multi_label=multi_label,
                stride=graph.stride,
                input=spec,
                bias=[float(b) for b in graph.bias],
                per_image_bias=graph.per_image_bias,
                decomposition=graph.decomposition,
                method=graph.method,
                affinity=graph.affinity,
                graphs={"fp32": GRAPH_FILE},
                files={f.name: file_entry(f) for f in files},
                source={**source, "notes": [*source.get("notes", []), *graph.notes]},
                tools=tool_versions(),
                verification=verification,
                cells=cells,
            )
        except ValidationError as e:
            raise ExportError(f"the manifest is not valid: {first_problem(e)}") from None
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        _share(folder)
        _put_in_place(folder, out, overwrite)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Bundle(out, read_manifest(out))  # its hashes were made of the files as they are


def _share(folder: Path) -> None:
    """Give what tempfile made private the permissions that the user's umask asks for, and flush it to disk."""
    folder.chmod(0o777 & ~UMASK)
    for file in folder.iterdir():
        file.chmod(0o666 & ~UMASK)
        with file.open("rb") as f:
            os.fsync(f.fileno())


def _put_in_place(folder: Path, out: Path, overwrite: bool) -> None:
    """Rename the finished folder to `out`. An old bundle steps aside first and comes back if that fails."""
    _check_target(out, overwrite)  # again: verification took a while
    if not out.exists():
        folder.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=out.parent))
    out.rename(aside / "old")
    try:
        folder.rename(out)
    except BaseException:
        (aside / "old").rename(out)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def tool_versions() -> dict[str, str]:
    """Versions of the installed packages that take part in an export."""
    found = {}
    for package in _TOOLS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
