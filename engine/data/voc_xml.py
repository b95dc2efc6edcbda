"""VOC annotations: the names of the objects in an image, and their boxes, from its XML."""

from __future__ import annotations

import os
from typing import Any
from xml.parsers import expat

from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.paths import read_bytes

_ANNOTATION_BYTES = 16 << 20
_NAME_LENGTH = 1000  # of a class in an annotation
_DEPTH = 100
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_annotation(file: str | os.PathLike[str]) -> list[tuple[str, bool]]:
    """(class name, difficult) of every object of a VOC annotation, in order, without its named parts.

    Document type definitions are refused, so that no entity can be defined, expanded or fetched. Raises
    InputError for what cannot be read or is no annotation.
    """
    return [(name, difficult) for name, difficult, _ in read_objects(file)]


def read_objects(file: str | os.PathLike[str]) -> list[tuple[str, bool, tuple[int, int, int, int] | None]]:
    """As `read_annotation`, each with its box (x0, y0, x1, y1) in pixels from 0, borders included, where it has one.

    VOC counts from 1; some tools write fractions, which are rounded.
    """
    data = read_bytes(file, _ANNOTATION_BYTES)
    reader = _AnnotationReader()
    try:
        reader.parser.Parse(data, True)
    except expat.ExpatError as e:
        raise InputError(f"{shown(file)}: not XML: {e}") from None
    except ValueError as e:
        raise InputError(f"{shown(file)}: {e}") from None
    if reader.root != "annotation":
        raise InputError(f"{shown(file)}: not a VOC annotation (its root is <{shown(reader.root)}>)")
    return [
        (o.get("name", "").strip(), o.get("difficult", "0").strip() == "1", _box(o)) for o in reader.objects
    ]


def _box(found: dict[str, str]) -> tuple[int, int, int, int] | None:
    try:
        x0, y0, x1, y1 = (round(float(found[side])) - 1 for side in _SIDES)
    except (KeyError, ValueError, OverflowError):
        return None
    return (x0, y0, x1, y1) if x0 <= x1 and y0 <= y1 else None


class _AnnotationReader:
    """Collects the text of <name> and <difficult> right below <object>, and the sides of its own <bndbox>; parts have
    names and boxes one level deeper."""

    def __init__(self) -> None:
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True  # else every line of a text is a call of its own
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.root = ""
        self.objects: list[dict[str, str]] = []
        self._path: list[str] = []

    def _doctype(self, *_: Any) -> None:
        raise ValueError("has a document type definition, which VOC annotations have not; refused")

    def _start(self, tag: str, _: Any) -> None:
        self.root = self.root or tag
        self._path.append(tag)
        if len(self._path) > _DEPTH:
            raise ValueError("nested too deeply")
        if self._path[1:] == ["object"]:
            self.objects.append({})

    def _end(self, _: str) -> None:
        self._path.pop()

    def _text(self, text: str) -> None:
        plain = len(self._path) == 3 and self._path[2] in ("name", "difficult")
        of_box = len(self._path) == 4 and self._path[2] == "bndbox" and self._path[3] in _SIDES
        if self._path[1:2] == ["object"] and (plain or of_box):
            known = self.objects[-1].get(self._path[-1], "")
            if len(known) + len(text) > _NAME_LENGTH:
                raise ValueError(f"<{self._path[-1]}> has more than {_NAME_LENGTH} characters")
            self.objects[-1][self._path[-1]] = known + text
