"""Class names: from a file, from a model's own metadata, or made up from the number of classes."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path

from infercam.engine.errors import ExportError
from infercam.engine.voc import CLASSES as VOC

_KEYS = ("classes", "names", "class_names", "labels")


def read_classes(file: Path) -> list[str]:
    """Names from a text file (one a line), a JSON list, or a JSON object with "classes".

    Blank lines at the end of a text file are ignored. Raises ExportError.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "is not UTF-8 text"
        raise ExportError(f"{file}: cannot read class names: {reason}") from None
    if text.lstrip()[:1] in ("[", "{"):
        try:
            names = _as_names(json.loads(text))
        except json.JSONDecodeError as e:
            raise ExportError(f"{file}: is not valid JSON: {e}") from None
        if names is None:
            raise ExportError(f'{file}: expected a JSON list of names, or {{"classes": [names]}}')
        return names
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise ExportError(f"{file}: holds no class names")
    if "" in lines:
        raise ExportError(f"{file}: line {lines.index('') + 1} is empty; one class name a line is expected")
    return lines


def default_classes(count: int, metadata: Mapping[str, str] | None = None) -> tuple[list[str], str]:
    """Names for `count` classes, and where they come from: the model's metadata, VOC for 20, or class_0, …"""
    for key in _KEYS:
        names = _parse(metadata[key]) if metadata and key in metadata else None
        if names is not None and len(names) == count == len(set(names)):
            return names, f"the model's metadata '{key}'"
    if count == len(VOC):
        return list(VOC), "the order of PASCAL VOC"
    return [f"class_{i}" for i in range(count)], "numbered; give names with --classes"


def _parse(text: str) -> list[str] | None:
    """A JSON or Python literal list or {index: name}, or names separated by commas or lines."""
    for read in (json.loads, ast.literal_eval):
        try:
            return _as_names(read(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    parts = text.splitlines() if "\n" in text.strip() else text.split(",")
    return [p.strip() for p in parts if p.strip()] or None


def _as_names(value: object) -> list[str] | None:
    if isinstance(value, dict) and "classes" in value:
        value = value["classes"]
    if isinstance(value, dict) and value and all(str(k).isdigit() for k in value):
        ordered = {int(k): v for k, v in value.items()}
        if sorted(ordered) != list(range(len(ordered))):
            return None
        value = [ordered[i] for i in range(len(ordered))]
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
        return [str(v) for v in value]
    return None
