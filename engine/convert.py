"""`infercam convert`: the maps of a store, or of another tool's folder, into a store of another format.

One image at a time, so memory does not grow with the list; what is already converted and unchanged is
skipped; a file that fails is listed and the rest goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import voc
from .errors import InfercamError, MissingExtra, StoreError
from .formats.record import MapRecord
from .mapstore import INFO, DiskFullError, MapStore
from .paths import is_file, read_text


@dataclass
class ConvertSummary:
    """What a conversion did: counts, bytes written, and (id, reason) of every failure."""

    written: int = 0
    skipped: int = 0
    bytes: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        failures = [{"id": id, "reason": reason} for id, reason in self.failures]
        return {**vars(self), "failures": failures}


def open_source(path: str | os.PathLike[str], fmt: str, class_file: Path | None = None) -> MapStore:
    """A store, or a folder that another tool filled, opened to be converted.

    A folder without store.json takes its class names from `class_file` (one a line, or a JSON list), or
    those of PASCAL VOC. Raises StoreError where `path` is neither.
    """
    if (Path(path) / INFO).exists():
        if class_file is not None:
            raise StoreError(f"{path}: a map store names its own classes; leave --classes away")
        return MapStore.open(path, fmt)
    if fmt == "npz":
        raise StoreError(f"{path}: no {INFO}; not a map store (name its format with --from psa or irn)")
    classes = voc.CLASSES if class_file is None else read_classes(class_file)
    return MapStore.open_foreign(path, fmt, list(classes))


def read_classes(file: Path) -> list[str]:
    """Class names in index order: a JSON list, or one a line (blank lines skipped); raises InfercamError.

    `voc` and `coco`, where there is no such file, are those data sets' own.
    """
    if str(file) in ("voc", "coco") and not is_file(file):
        from .coco.categories import CLASSES

        return list(voc.CLASSES if str(file) == "voc" else CLASSES)
    text = read_text(file)
    if not text.lstrip().startswith("["):
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            names = json.loads(text)
        except ValueError as e:
            raise StoreError(f"{file}: not a JSON list of class names: {e}") from None
    if not names or not all(isinstance(n, str) for n in names) or len(set(names)) != len(names):
        raise StoreError(f"{file}: needs class names, each once: one a line or a JSON list")
    return names


def convert(
    source: MapStore,
    target: str | os.PathLike[str],
    fmt: str,
    dtype: str = "uint8",
    *,
    progress: Callable[[], None] | None = None,
) -> ConvertSummary:
    """Write every image of `source` into a store at `target`, made or resumed; `progress` is called for each.

    Raises StoreError where the target cannot be opened, is the source, or the disk is full; MissingExtra
    for irn without torch. Everything that concerns one image is in the summary's failures instead.
    """
    if Path(target).resolve() == source.path.resolve():
        raise StoreError(f"{target}: is the source itself; convert into another folder")
    origin = {"format": source.info.format, "dtype": source.info.dtype, "path": str(source.path)}
    settings = {**source.info.settings, "converted_from": origin}
    store = MapStore.create_or_open(
        target, fmt=fmt, dtype=dtype, classes=source.info.classes, settings=settings
    )
    summary = ConvertSummary()
    for id in source.ids():
        try:
            _convert_one(source, store, id, summary)
        except (MissingExtra, DiskFullError):
            raise
        except InfercamError as e:
            summary.failures.append((id, str(e)))
        if progress:
            progress()
    return summary


def _convert_one(source: MapStore, store: MapStore, id: str, summary: ConvertSummary) -> None:
    fingerprint = _fingerprint(source, id)
    if store.done(id, fingerprint):
        summary.skipped += 1
        return
    record: MapRecord = source.read(id)
    summary.bytes += store.write(record, fingerprint)
    summary.written += 1


def _fingerprint(source: MapStore, id: str) -> str:
    """Changes when the source file does: converting again redoes what was made anew."""
    file = source.file(id)
    try:
        status = file.stat()
    except OSError as e:
        raise StoreError(f"{file}: cannot be read: {e.strerror or e}") from None
    return f"convert:{source.info.format}:{status.st_size}:{status.st_mtime_ns}"
