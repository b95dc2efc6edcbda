"""`infercam convert`: the maps of a store, or of another tool's folder, into a store of another format.

One image at a time, so memory does not grow with the list; what is already converted and unchanged is
skipped; a file that fails is listed and the rest goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infercam.engine.common.errors import InfercamError, MissingExtra, StoreError
from infercam.engine.store.mapstore import DiskFullError, MapStore
from infercam.engine.store.record import MapRecord


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
