"""From the entries of an instances_*.json to the rows of a database (annotations.py), one at a time.

What cannot be used is a row too, with the reason: an image or annotation that is broken, an entry passed over.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infercam.engine.coco.json_stream import JsonObject
from infercam.engine.coco.regions import RegionError, encode, pixels
from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.paths import check_id
from infercam.engine.data.images import without_suffix
from infercam.engine.evaluation.histogram import MAX_CLASSES

_MAX_SIDE, _MAX_PIXELS = 1 << 16, 1 << 27
_LONGEST_ID = 1000
_TEXTS = -(1 << 62)  # numbers that stand for ids of text begin here: no other id does
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE images (id INTEGER PRIMARY KEY, name TEXT, file TEXT, height INTEGER, width INTEGER, problem TEXT);
CREATE TABLE objects (place INTEGER PRIMARY KEY, id, image INTEGER, category, crowd INTEGER,
                      area REAL, region BLOB, problem TEXT);
CREATE TABLE strays (name TEXT, reason TEXT);
CREATE TABLE waiting (raw TEXT);
"""
_INDEXES = """
DROP TABLE waiting;
CREATE INDEX images_by_name ON images (name);
CREATE INDEX objects_by_image ON objects (image);
"""


class AnnotationParser:
    """From the JSON's entries to rows; sizes of images are held while it runs (about 100 bytes each)."""

    def __init__(self, source: Path, connection: sqlite3.Connection) -> None:
        self.source = source
        self.execute = connection.execute
        self.script = connection.executescript
        self.sizes: dict[int, tuple[int, int] | None] = {}
        self.files: dict[str, int | str] = {}
        self.numbers: dict[str, int] = {}
        self.passed, self.first_passed = 0, ""
        self.categories: dict[int | str, str] = {}
        self.place = 0

    def run(self, stamp: str, progress: Callable[[int], None] | None) -> None:
        # A file that is thrown away when anything goes wrong needs no journal.
        self.script(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_TABLES} BEGIN;")
        stream = JsonObject(self.source, progress)
        take = {"images": self._image, "annotations": self._annotation, "categories": self._category}
        for key, entry in stream.elements():
            if key in take:
                take[key](entry)
        for (raw,) in self.execute("SELECT raw FROM waiting ORDER BY rowid"):
            self._annotation(json.loads(raw), last=True)
        self._check()
        self._unknown_categories()
        categories = json.dumps(dict(sorted(self._numbered_categories().items())))
        for item in (("stamp", stamp), ("sha256", stream.sha256), ("categories", categories)):
            self.execute("INSERT INTO meta VALUES (?, ?)", item)
        self.script(_INDEXES)  # commits first

    def _check(self) -> None:
        """Raise InputError for a file without images or categories, and for categories that cannot be classes."""
        where, names = shown(self.source), list(self.categories.values())
        if not self.sizes and self.passed:
            raise InputError(
                f"{where}: none of its {self.passed} images can be used; the first: {self.first_passed}"
            )
        if not self.sizes or not names:
            what = "categories" if self.sizes else "images"
            raise InputError(f"{where}: has no {what}; a file instances_SPLIT.json of COCO is needed")
        if len(names) > MAX_CLASSES:
            raise InputError(f"{where}: has {len(names)} categories; masks of 8 bits allow {MAX_CLASSES}")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            ids = ", ".join(str(id) for id, name in self.categories.items() if name == twice)
            raise InputError(
                f"{where}: categories {shown(ids)} have one name, {shown(repr(twice))}; rename or unite them"
            )

    def _category(self, entry: Any) -> None:
        id, name = _identity(entry, "id"), entry.get("name") if isinstance(entry, dict) else None
        if id is None or not isinstance(name, str) or not name or self.categories.get(id, name) != name:
            raise InputError(f"{shown(self.source)}: category {str(entry)[:60]} has no id or name of its own")
        self.categories[id] = name

    def _image(self, entry: Any) -> None:
        id, file = _identity(entry, "id"), entry.get("file_name") if isinstance(entry, dict) else None
        if id is None or not isinstance(file, str):
            self._pass_over(f"image {str(entry)[:60]}", "it has no id or file_name")
            return
        try:
            file = _relative(file)
        except InputError as e:
            self._pass_over(f"image {id}", str(e))
            return
        name, number = without_suffix(file), self._number(id)
        if number in self.sizes:
            self._pass_over(name, f"another image has its id {id}")
            return
        height, width = _integer(entry, "height") or 0, _integer(entry, "width") or 0
        problem = None
        if not (0 < height < _MAX_SIDE and 0 < width < _MAX_SIDE and height * width <= _MAX_PIXELS):
            problem = f"its size in {shown(self.source.name)} is {width}×{height}"
        elif self.files.setdefault(name, id) != id:
            self._pass_over(name, f"images {self.files[name]} and {id} have one file name")
            self.sizes[number] = None
            return
        self.sizes[number] = None if problem else (height, width)
        row = (number, name, file, height, width, problem)
        self.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)", row)

    def _annotation(self, entry: Any, last: bool = False) -> None:
        id, named = _identity(entry, "id"), _identity(entry, "image_id")
        if id is None or named is None:
            self._stray(f"annotation {str(entry)[:60]}", "it has no id or image_id")
            return
        image = self._number(named)
        if image not in self.sizes:
            if last:
                self._stray(f"annotation {id}", f"there is no image {named}")
            else:  # its image may yet come
                self.execute("INSERT INTO waiting VALUES (?)", (json.dumps(entry),))
            return
        size, region, area, problem = self.sizes[image], None, 0.0, None
        if size is not None:
            try:
                region = encode(entry.get("segmentation"), *size)
                area = _area(entry, region, size)
            except RegionError as e:
                problem = f"annotation {id} {e}"
        category, crowd = _identity(entry, "category_id"), entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            problem = f"annotation {id} has iscrowd {str(crowd)[:20]}, not 0 or 1"
        row = (self.place, id, image, category, int(crowd == 1), area, region, problem)
        self.execute("INSERT INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        self.place += 1

    def _number(self, id: int | str) -> int:
        """An image's number here: its id, or one that stands for its text."""
        return id if isinstance(id, int) else self.numbers.setdefault(id, _TEXTS + len(self.numbers))

    def _numbered_categories(self) -> dict[int, str]:
        """The categories by number; those with text for an id follow the others, in the file's order."""
        found = {id: name for id, name in self.categories.items() if isinstance(id, int)}
        following = max([0, *found]) + 1
        for id, name in self.categories.items():
            if isinstance(id, str):
                found[following] = name
                self.execute("UPDATE objects SET category = ? WHERE category = ?", (following, id))
                following += 1
        return found

    def _unknown_categories(self) -> None:
        """Once all are known: the last thing in COCO's files."""
        self.execute("CREATE TEMP TABLE known (id PRIMARY KEY)")
        for id in self.categories:
            self.execute("INSERT INTO known VALUES (?)", (id,))
        self.execute(
            """UPDATE objects SET problem = 'annotation ' || id || ' has category ' || ifnull(category, 'none') ||
               ', which the file does not name', category = NULL
               WHERE category IS NULL OR category NOT IN (SELECT id FROM known)"""
        )

    def _pass_over(self, name: str, reason: str) -> None:
        """An image that cannot be used."""
        self.passed += 1
        self.first_passed = self.first_passed or f"{shown(name)}: {shown(reason)}"
        self._stray(name, reason)

    def _stray(self, name: str, reason: str) -> None:
        self.execute("INSERT INTO strays VALUES (?, ?)", (shown(name), shown(reason)))


def _relative(file: str) -> str:
    """A file_name as a path below the images' folder, in its plain form; Windows' backslashes become /.

    Raises InputError for an absolute one, and as `check_id`.
    """
    path = file.replace("\\", "/")
    if re.match("[A-Za-z]:/", path):
        raise InputError(
            f"id {shown(repr(file))[:200]} is absolute; write it relative to the folder of the images"
        )
    return check_id(path)


def _identity(entry: Any, key: str) -> int | str | None:
    """An id: a whole number of 64 bits, also where it is written as text, or text; or None."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        return _integer(entry, key)
    if not value or len(value) > _LONGEST_ID:
        return None
    plain = re.fullmatch("0|-?[1-9][0-9]{0,17}", value)
    return int(value) if plain else value


def _integer(entry: Any, key: str) -> int | None:
    """A whole number of 64 bits, or None."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if type(value) is int and -(1 << 63) <= value < 1 << 63 else None


def _area(entry: dict[str, Any], region: bytes, size: tuple[int, int]) -> float:
    """The annotation's own figure, by which objects are ordered; counted where it has none."""
    area = entry.get("area")
    if isinstance(area, int | float) and 0 < area < 1e18:
        return float(area)
    return float(pixels(region, *size))
