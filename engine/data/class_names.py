"""Class names: from a file, from a model's own metadata, or made up from the number of classes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from infercam.engine.common.errors import InputError
from infercam.engine.common.paths import is_file, read_text
from infercam.engine.data.coco_categories import CLASSES as COCO
from infercam.engine.data.voc import CLASSES as VOC

DATA_SETS = {"voc": VOC, "coco": COCO}
_KEYS = ("classes", "names", "class_names", "labels")
_NUMBERED = re.compile(r"""(\d{1,6})\s*:\s*(?:'(.*)'|"(.*)"|([^'"].*?))\s*,?""")
"""A line of a Python or YAML dictionary: 0: 'cat',"""


def read_classes(file: Path, *, repeated: bool = False) -> list[str]:
    """Class names in index order: one a line, `0: 'cat',` lines, a JSON list, or an object of names by index.

    An object may have them as its "classes" or "id2label" (a model's config.json). `voc` and `coco`, where there is
    no such file, are those data sets' own. Blank lines are skipped. With `repeated`, a name may stand there twice,
    for `unique_names` to mend. Raises InputError.
    """
    if str(file) in DATA_SETS and not is_file(file):
        return list(DATA_SETS[str(file)])
    text = read_text(file)
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines() if line.strip()]
    if text.lstrip()[:1] in ("[", "{"):
        names = _from_json(file, text)
    else:
        names = _numbered(file, lines) or lines
    if not names:
        raise InputError(f"{file}: holds no class names")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None and not repeated:
        raise InputError(f"{file}: names {twice!r} twice")
    return names


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, with a number on those that came before: ImageNet's second `crane` becomes `crane (2)`."""
    taken, found = set(names), set[str]()
    unique: list[str] = []
    for name in names:
        number = 2
        other = name
        while other in found or (other != name and other in taken):
            other, number = f"{name} ({number})", number + 1
        found.add(other)
        unique.append(other)
    return unique


def _from_json(file: Path, text: str) -> list[str]:
    try:
        names = _as_names(json.loads(text))
    except (ValueError, RecursionError) as e:
        names = _as_literal(text)
        if names is None:
            raise InputError(f"{file}: is not valid JSON: {e}") from None
    if names is None:
        raise InputError(
            f'{file}: expected a JSON list of names, {{"classes": [names]}}, or names by index from 0 without gaps'
        )
    return names


def _as_literal(text: str) -> list[str] | None:
    """Names of a Python dictionary or list, as torchvision's and ImageNet's lists are printed."""
    try:
        return _as_names(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _numbered(file: Path, lines: list[str]) -> list[str] | None:
    """Names of lines that all are `0: 'cat',`; None where they are not."""
    found = [_NUMBERED.fullmatch(line) for line in lines]
    pairs = [(int(one[1]), one[2] or one[3] or one[4] or "") for one in found if one]
    if not pairs or len(pairs) < len(lines):
        return None
    if sorted(index for index, _ in pairs) != list(range(len(pairs))):
        raise InputError(
            f"{file}: its lines 'INDEX: NAME' should have every index from 0 to {len(pairs) - 1} once"
        )
    return [name for _, name in sorted(pairs)]


def default_classes(count: int, metadata: Mapping[str, str] | None = None) -> tuple[list[str], str]:
    """Names for `count` classes, and where they come from: the model's metadata, VOC for 20, or class_0, …"""
    for key in _KEYS:
        names = _parse(metadata[key]) if metadata and key in metadata else None
        if names is not None and len(names) == count:
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
    if isinstance(value, dict):
        value = next((value[key] for key in ("classes", "id2label") if key in value), value)
    if isinstance(value, dict) and value and all(str(k).isdigit() for k in value):
        ordered = {int(k): v for k, v in value.items()}
        if sorted(ordered) != list(range(len(ordered))):
            return None
        value = [ordered[i] for i in range(len(ordered))]
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
        return [str(v) for v in value]
    return None
