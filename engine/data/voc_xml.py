"""VOC annotations: the names of the objects in an image, from its XML."""

from __future__ import annotations

import os
from typing import Any
from xml.parsers import expat

from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.paths import read_bytes

_ANNOTATION_BYTES = 16 << 20
_NAME_LENGTH = 1000  # of a class in an annotation
_DEPTH = 100


def read_annotation(file: str | os.PathLike[str]) -> list[tuple[str, bool]]:
    """(class name, difficult) of every object of a VOC annotation, in order, without its named parts.

    Document type definitions are refused, so that no entity can be defined, expanded or fetched. Raises
    InputError for what cannot be read or is no annotation.
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
    return [(o.get("name", "").strip(), o.get("difficult", "0").strip() == "1") for o in reader.objects]


class _AnnotationReader:
    """Collects the text of <name> and <difficult> right below <object>; parts have names one level deeper."""

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
        if len(self._path) == 3 and self._path[1] == "object" and self._path[2] in ("name", "difficult"):
            known = self.objects[-1].get(self._path[2], "")
            if len(known) + len(text) > _NAME_LENGTH:
                raise ValueError(f"<{self._path[2]}> has more than {_NAME_LENGTH} characters")
            self.objects[-1][self._path[2]] = known + text
