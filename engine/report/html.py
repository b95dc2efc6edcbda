"""The page as one file: template, style sheet and scripts of page/ inlined, the data as JSON that runs nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from infercam.engine.common.atomic import atomic_write
from infercam.engine.report.pictures import chunk_json, script_json
from infercam.engine.store.image_index import cannot_write

_OWN = Path(__file__).parent / "page"
_SHARED = Path(__file__).parents[1] / "serve" / "page"  # what the service's page and a report have in common
STYLES = (_SHARED / "base.css", _OWN / "report.css")
SCRIPTS = (
    _SHARED / "png.js",
    _SHARED / "maps.js",
    _SHARED / "dom.js",
    _OWN / "pictures.js",
    _OWN / "charts.js",
    _OWN / "list.js",
    _OWN / "detail.js",
    _OWN / "main.js",
)
_IMPORT = re.compile(r"^import\s[^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=async |function |class |const |let )", re.MULTILINE)


def write_page(file: Path, title: str, data: dict[str, Any], embedded: Iterable[tuple[int, Path]]) -> int:
    """Write the page atomically and return its bytes; chunks are copied one by one. Raises StoreError.

    data: what page/main.js reads. embedded: numbers and files of the chunks that go into the page.
    """
    try:
        with atomic_write(file) as f:
            for piece in _pieces(title, data, embedded):
                f.write(piece.encode())
        return file.stat().st_size
    except OSError as e:
        raise cannot_write(file, e) from None


def _pieces(title: str, data: dict[str, Any], embedded: Iterable[tuple[int, Path]]) -> Iterator[str]:
    style, script = styles(), scripts()
    parts = {
        "title": html.escape(title),
        "policy": html.escape(_policy(style, script)),
        "style": style,
        "script": script,
        "data": script_json(data),
    }
    template = (_OWN / "report.html").read_text(encoding="utf-8")
    for at, piece in enumerate(re.split(r"\{\{(\w+)\}\}", template)):
        if at % 2 == 0:
            yield piece
        elif piece == "chunks":
            yield from _chunks(embedded)
        else:
            yield parts[piece]


def _chunks(embedded: Iterable[tuple[int, Path]]) -> Iterator[str]:
    for number, file in embedded:
        content = chunk_json(file.read_text(encoding="ascii"))
        yield f'<script type="application/json" id="chunk-{number}">{content}</script>\n'


def styles() -> str:
    return "".join(file.read_text(encoding="utf-8") for file in STYLES)


def scripts() -> str:
    """The modules as one: in the order in which they need each other, without imports and exports."""
    return "".join(_EXPORT.sub("", _IMPORT.sub("", f.read_text(encoding="utf-8"))) for f in SCRIPTS)


def _policy(style: str, script: str) -> str:
    """Nothing is loaded but the page's own text and what lies beside it; nothing is sent anywhere."""
    beside = "'self' file:"
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(script)} {beside}",
            f"style-src {_hash(style)}",
            f"img-src data: {beside}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
