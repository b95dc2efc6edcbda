"""A line of a list, as tools write it: a picture's path or id, quoted or not, and what stands behind it.

img/x.jpg 3        my photo.jpg cat        "img/x.jpg",3        'img/x.jpg'<tab>'masks/x.png'        "img/x" 3
"""

from __future__ import annotations

import re
from typing import NamedTuple

from infercam.engine.data.images import SUFFIXES

_SUFFIX = "|".join(s[1:] for s in sorted(SUFFIXES))
_PICTURE_THEN = re.compile(rf"(.+?\.(?:{_SUFFIX}))[\s,;]+(\S.*)", re.IGNORECASE)
"""The first column ends like a picture, so names with spaces need no quoting."""
_TEXT = r"""(?:"(?:[^"]|"")+"|'[^']+')"""
_QUOTED_THEN = re.compile(rf"({_TEXT})(?:[\s,;]+(\S.*)?)?")
_CELL = re.compile(rf"{_TEXT}(?=[\s,;]|$)|[^\s,;]+")


class ListLine(NamedTuple):
    """image: without quotes. rest: what stands behind it, as it is written; '' where nothing does."""

    image: str
    rest: str


def split_line(line: str) -> ListLine | None:
    """A stripped line whose first column is plain to see: it is quoted, or ends like a picture. Else None."""
    quoted = _QUOTED_THEN.fullmatch(line)
    if quoted is not None:
        return ListLine(unquoted(quoted[1]), quoted[2] or "")
    pair = _PICTURE_THEN.fullmatch(line)
    return None if pair is None else ListLine(pair[1], pair[2])


def cells(rest: str) -> list[str]:
    """What stands behind the picture: one cell, unless quotes say that there are several."""
    rest = rest.strip()
    if rest[:1] not in ("'", '"'):
        return [rest] if rest else []
    return [unquoted(cell) for cell in _CELL.findall(rest)]


def unquoted(text: str) -> str:
    """Without the quotes around the whole of it."""
    if not re.fullmatch(_TEXT, text):
        return text
    return text[1:-1].replace('""', '"') if text[0] == '"' else text[1:-1]


def is_comment(line: str) -> bool:
    """Whether a line of a table is a comment: `# words`, not the id `#12`."""
    return re.match(r"\s*#(?:[\s#!]|$)", line) is not None
