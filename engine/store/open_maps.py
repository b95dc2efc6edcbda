"""Opening maps, whoever made them: a map store of ours, or a folder that psa or irn filled."""

from __future__ import annotations

import os
from pathlib import Path

from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.data import voc
from infercam.engine.data.class_names import read_classes
from infercam.engine.store.mapstore import INFO, MapStore, formats


def known_format(fmt: str, option: str) -> str:
    """The name of a map format; raises InputError, which lists them."""
    if fmt not in formats():
        raise InputError(f"{option} is one of {', '.join(formats())}, not {fmt!r}")
    return fmt


def open_maps(
    path: str | os.PathLike[str],
    fmt: str | None = None,
    classes: Path | None = None,
    option: str = "--format",
) -> MapStore:
    """The maps in a folder: a map store, or with `fmt` psa or irn another tool's.

    classes: the class names of a folder without store.json (a file, `voc` or `coco`; default: PASCAL VOC's).
    option: what the command line calls `fmt`. Raises InputError for an unknown format, StoreError where there are
    no such maps.
    """
    if fmt is None and classes is None:
        return MapStore.open(path)
    fmt = known_format(fmt or "npz", option)
    if (Path(path) / INFO).exists():
        if classes is not None:
            raise StoreError(f"{path}: a map store names its own classes; leave --classes away")
        return MapStore.open(path, fmt)
    if fmt == "npz":
        raise StoreError(f"{path}: no {INFO}; not a map store (name its format with {option} psa or irn)")
    return MapStore.open_foreign(path, fmt, voc.CLASSES if classes is None else read_classes(classes))
