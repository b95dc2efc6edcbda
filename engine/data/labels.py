"""Image-level labels: which classes an image is known to hold, from the files that people have.

| file | what it holds |
|---|---|
| `.json` | `{"classes": [names], "labels": {id: [names or indices]}}`, or `{id: [...]}` |
| `.csv`, `.tsv`, `.txt` | see `engine/data/label_tables.py`: one label a row, several a row, or a column per class |
| `.npy` | psa's `cls_labels.npy`: a pickled dictionary id -> one-hot row; read without running it |
| a folder, or `voc-xml` | VOC annotations, `ID.xml` |
| `coco` | the instance annotations of a COCO tree (`engine/coco`) |

Names are the bundle's; indices count in the file's own `classes` if it has them, else in the bundle's
classes, from 0. One-hot rows of 20 are in VOC's order wherever the bundle knows VOC's names.

A file is parsed when loaded and an image's labels are checked when they are asked for, so that one bad
label fails one image; a table that fits the bundle nowhere is refused when loaded. Keys may be ids or paths, of any
system, relative or absolute: an id is looked up as it is, then by the longest tail of its path that one key has
(label_keys.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.paths import (
    check_folder,
    check_id,
    decode_utf8,
    existing,
    is_file,
    is_folder,
    read_bytes,
)
from infercam.engine.common.safe_pickle import load_npy_dict
from infercam.engine.common.suggest import did_you_mean
from infercam.engine.data import voc
from infercam.engine.data.label_keys import KeyIndex, plain_key, voc_number
from infercam.engine.data.label_tables import Cell, OneHot, as_number, parse_table, split_labels
from infercam.engine.data.voc_xml import read_annotation


def load_labels(
    spec: str | os.PathLike[str] | None,
    classes: Sequence[str],
    *,
    voc_root: str | os.PathLike[str] | None = None,
    difficult: bool = True,
    root: str | os.PathLike[str] | None = None,
) -> Labels:
    """Labels for the bundle's `classes`.

    `spec`: a label file, a folder of VOC annotations, 'voc-xml' (the Annotations of `voc_root`), 'coco' (those of
    `coco`, its tree and split), or None (no labels; every lookup fails). `difficult`: whether VOC objects marked
    so count, as they do in psa's labels. `root`: the folder that ids are below; paths in the file that could be
    several images' are told apart by it. Raises InputError for a file that cannot be read, is none of the forms
    above, or is a table that does not fit the classes.
    """
    names = list(classes)
    if spec is None:
        return Labels("none", None, {}, names)
    if os.fspath(spec) == "voc-xml":
        if voc_root is None:
            raise InputError("labels voc-xml: needs a VOC tree; give its root with --voc")
        return AnnotationLabels(voc.find_root(voc_root) / voc.ANNOTATIONS, names, difficult=difficult)
    if os.fspath(spec) == "coco":
        raise InputError("labels coco: needs a COCO tree; give its root with --coco, and --split")
    path = Path(spec)
    if is_folder(path):
        below = path / voc.ANNOTATIONS
        return AnnotationLabels(below if is_folder(below) else path, names, difficult=difficult)
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise InputError(
            f"{shown(path)}: labels are read from .json, .csv, .tsv, .txt, .npy, or a folder of VOC XML"
        )
    data = read_bytes(path)
    read = parse(path, data, names)
    return Labels(
        read.kind,
        path,
        read.table,
        names,
        file_classes=read.classes,
        sha256=hashlib.sha256(data).hexdigest(),
        root=root,
        notes=read.notes,
    )


class Labels:
    """Labels by image id; `lookup` gives class indices of the bundle."""

    def __init__(
        self,
        kind: str,
        file: Path | None,
        table: Mapping[str, Any],
        classes: list[str],
        *,
        file_classes: list[str] | None = None,
        sha256: str | None = None,
        root: str | os.PathLike[str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.kind = kind
        self.file = file
        self.sha256 = sha256
        self._table = table
        self._classes = classes
        self._index = {name: i for i, name in enumerate(classes)}
        self._file_classes = file_classes
        self._keys = KeyIndex(table, None if root is None else os.fspath(Path(root).absolute()))
        self.notes = list(notes)
        """Lines worth telling the user."""

    def __len__(self) -> int:
        """Number of images that the file names."""
        return len(self._table)

    def describe(self) -> dict[str, Any]:
        """What outputs record: kind, file, its SHA-256, and how many images it names."""
        return {
            "kind": self.kind,
            "file": None if self.file is None else shown(self.file),
            "sha256": self.sha256,
            "images": len(self),
        }

    def lookup(self, item_id: str) -> list[int]:
        """The image's class indices in the bundle, ascending, each once, at least one.

        Raises InputError for an image without labels, with an empty list of them, or with a label that is
        no class of the bundle.
        """
        found = {self._class_index(item_id, label) for label in self._labels(item_id)}
        if not found:
            raise InputError(
                f"{shown(item_id)}: its label list in {self._where} is empty; "
                "name its classes, or leave the image out"
            )
        return sorted(found)

    @property
    def _where(self) -> str:
        return shown(self.file) if self.file is not None else "the command"

    def _labels(self, item_id: str) -> Iterable[str | int]:
        """The image's labels as the file has them; raises InputError where it has none or unusable ones."""
        if self.kind == "none":
            raise InputError(f"{shown(item_id)}: no labels given; use --labels FILE or --labels predict")
        value = self._table[self._key(item_id)]
        if isinstance(value, _Repeated):
            raise self._bad(item_id, "is there twice with different labels")
        if isinstance(value, OneHot):
            return self._one_hot(item_id, value)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return [value]
        if not isinstance(value, list | tuple):
            raise self._bad(
                item_id, f"has {shown(repr(value))[:60]} for labels, not a list of names or indices"
            )
        value = [part for v in value for part in self._parts(v)]
        size = len(self._file_classes or self._classes)
        if len(value) == size > 2 and all(v in (0, 1, "0", "1") for v in value):
            raise self._bad(
                item_id, "has a row of 0s and 1s, which could be indices; name its classes instead"
            )
        return value

    def _parts(self, label: Any) -> list[Any]:
        return split_labels(label, self._index) if isinstance(label, Cell) else [label]

    def _key(self, item_id: str) -> str:
        number = voc_number(item_id) if self.kind == "npy" else None
        for name in (item_id, number):
            keys = self._keys.find(name) if name is not None else []
            if len(keys) == 1:
                other = self._keys.other_owner(keys[0], item_id)
                if other is not None:
                    raise self._bad(
                        item_id,
                        f"would have the labels of {shown(keys[0])}, as {shown(other)} has; write paths with folders",
                    )
                return keys[0]
            if keys:
                raise self._bad(
                    item_id,
                    f"could be {shown(keys[0])} or {shown(keys[1])}; write its path from --images or --root",
                )
        first = next(iter(self._table), None)
        like = "" if first is None else f" (whose first image is {shown(first)[:80]})"
        raise InputError(
            f"{shown(item_id)}: no labels in {self._where}{like}; add them, leave the image out, "
            "or use --labels predict"
        )

    def _one_hot(self, item_id: str, row: OneHot) -> list[str | int]:
        columns = row.columns or self._columns(len(row.values))
        if columns is None:
            raise self._bad(
                item_id, f"has {len(row.values)} columns, for a bundle of {len(self._classes)} classes"
            )
        if not np.isin(row.values, (0, 1)).all():
            raise self._bad(item_id, "has other values than one 0 or 1 for each class")
        return [columns[int(i)] for i in np.flatnonzero(row.values)]

    def _columns(self, count: int) -> Sequence[str] | None:
        """The classes that the columns of a one-hot row without names stand for."""
        if count == len(voc.CLASSES) and self._index.keys() >= set(voc.CLASSES):
            return voc.CLASSES
        return self._classes if count == len(self._classes) else None

    def _class_index(self, item_id: str, label: Any) -> int:
        """The bundle's index of a name, or of an index into the file's classes."""
        if isinstance(label, str) and label in self._index:
            return self._index[label]
        number = _as_index(label, self.kind)
        if number is None:
            raise self._unknown(item_id, label)
        names = self._file_classes or self._classes
        if not 0 <= number < len(names):
            whose = "the file's" if self._file_classes else "the bundle's"
            raise self._bad(
                item_id, f"has label {number}, outside {whose} {len(names)} classes (0 is the first)"
            )
        if names[number] not in self._index:
            raise self._unknown(item_id, names[number])
        return self._index[names[number]]

    def _bad(self, item_id: str, what: str) -> InputError:
        return InputError(f"{shown(item_id)}: in {self._where} it {what}")

    def _unknown(self, item_id: str, label: Any) -> InputError:
        head = ", ".join(self._classes[:2])
        hint = did_you_mean(label, self._classes)
        return InputError(
            f"{shown(item_id)}: label {shown(repr(label))[:80]} is not one of the bundle's "
            f"{len(self._classes)} classes ({head}{', …' if len(self._classes) > 2 else ''}){hint}"
        )


class AnnotationLabels(Labels):
    """VOC annotations, read one by one: the names of the objects of FOLDER/ID.xml."""

    def __init__(self, folder: Path, classes: list[str], *, difficult: bool = True) -> None:
        check_folder(folder, "; it should hold VOC annotations, ID.xml")
        super().__init__("voc-xml", folder, {}, classes)
        self.difficult = difficult

    def describe(self) -> dict[str, Any]:
        """What outputs record; the annotations are not hashed (nor counted: they are read as needed)."""
        return {"kind": self.kind, "file": shown(self.file), "sha256": None, "difficult": self.difficult}

    def _labels(self, item_id: str) -> list[str | int]:
        assert self.file is not None
        plain = check_id(item_id)
        for name in dict.fromkeys([plain, plain.rpartition("/")[2]]):
            file = existing(self.file / f"{name}.xml")
            if not is_file(file):
                continue
            try:
                return [label for label, hard in read_annotation(file) if self.difficult or not hard]
            except InputError as e:
                raise InputError(f"{shown(item_id)}: {e}") from None
        raise InputError(f"{shown(item_id)}: no labels in {self._where} (no {shown(plain)}.xml)")


class _Repeated:
    """Stands for the labels of an id that a file names twice, differently."""


_REPEATED = _Repeated()


@dataclass(frozen=True)
class _Parsed:
    kind: str
    table: dict[str, Any]
    classes: list[str] | None = None
    notes: Sequence[str] = ()


def _parse_json(path: Path, data: bytes, names: list[str]) -> _Parsed:
    try:
        raw = json.loads(decode_utf8(data, path), object_pairs_hook=_once_each)
    except json.JSONDecodeError as e:
        raise InputError(f"{shown(path)}: not JSON: {e.msg} (line {e.lineno}, column {e.colno})") from None
    except (ValueError, RecursionError) as e:  # an integer of thousands of digits, nesting without end
        raise InputError(f"{shown(path)}: not usable JSON: {shown(e)}") from None
    classes = None
    if isinstance(raw, dict) and isinstance(raw.get("labels"), dict):
        classes = raw.get("classes")
        raw = raw["labels"]
    elif isinstance(raw, dict) and raw.keys() >= {"classes", "labels"}:
        raise InputError(f"{shown(path)}: its 'labels' should be one {{id: [labels]}}")
    if not isinstance(raw, dict):
        raise InputError(f"{shown(path)}: should hold {{id: [labels]}}, but holds a {type(raw).__name__}")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
        raise InputError(f"{shown(path)}: its 'classes' is not a list of names")
    if classes is not None and len(set(classes)) != len(classes):
        raise InputError(f"{shown(path)}: its 'classes' names a class twice")
    return _Parsed("json", _plain_keys(raw.items()), classes)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return _plain_keys(pairs, key=lambda k: k)


def _parse_table(path: Path, data: bytes, names: list[str]) -> _Parsed:
    spaces = path.suffix.lower() == ".txt"
    table, notes = parse_table(decode_utf8(data, path), path, names, spaces=spaces)
    return _Parsed("csv", _plain_keys(table.items()), notes=notes)


def _parse_npy(path: Path, data: bytes, names: list[str]) -> _Parsed:
    rows: dict[str, Any] = {}
    for key, row in load_npy_dict(path, error=InputError).items():
        row = np.asarray(row)
        plain = row.ndim == 1 and row.dtype.kind in "biuf"
        rows[str(key)] = OneHot(row) if plain else {"shape": row.shape}  # refused when looked up
    return _Parsed("npy", _plain_keys(rows.items()))


_PARSERS: dict[str, Callable[[Path, bytes, list[str]], _Parsed]] = {
    ".json": _parse_json,
    ".csv": _parse_table,
    ".tsv": _parse_table,
    ".txt": _parse_table,
    ".npy": _parse_npy,
}


def _plain_keys(pairs: Iterable[tuple[str, Any]], key: Callable[[str], str] | None = None) -> dict[str, Any]:
    """Keys in their plain form; one that comes twice, with different labels, is marked."""
    table: dict[str, Any] = {}
    for name, labels in pairs:
        plain = key(name) if key is not None else plain_key(name)
        known = table.setdefault(plain, labels)
        if known is not labels and (isinstance(labels, OneHot) or known != labels):
            table[plain] = _REPEATED
    return table


def _as_index(label: Any, kind: str) -> int | None:
    """The number a label is; tables hold text only, so digits are a number there."""
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    if kind == "csv" and isinstance(label, str):
        number = as_number(label)
        return None if number is None or number < 0 else number
    return None
