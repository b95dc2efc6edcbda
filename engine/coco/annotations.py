"""An instances_*.json, parsed once into a small database that is kept and looked into image by image.

    CACHE/KEY.sqlite    tables meta, images, objects (a region as COCO's compressed run lengths), strays

The JSON is streamed, so making it takes little memory however large the file, and what is read later is one
image's rows. It is kept in $XDG_CACHE_HOME/infercam/coco (by default below ~/.cache) under a key made from the
file's path, and made again where the file's size or time, or the schema, is another. It is written under another
name first, so a kill leaves none; two processes that make it at once both do, and the later one's stays.

What is wrong with one image or annotation is kept beside it as a line of text, and does not stop the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from infercam.engine.coco.json_stream import JsonObject
from infercam.engine.coco.regions import RegionError, encode, pixels, tools
from infercam.engine.common.atomic import TEMP_PREFIX
from infercam.engine.common.cache import cache_folder
from infercam.engine.common.errors import InputError, StoreError, shown
from infercam.engine.common.paths import check_id, os_reason
from infercam.engine.data.coco_categories import CATEGORIES, mask_values
from infercam.engine.data.images import without_suffix
from infercam.engine.evaluation.histogram import MAX_CLASSES

SCHEMA_VERSION = 2
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


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image of the file; `problem` is why it cannot have a mask, or None."""

    id: int
    """The file's, or a number that stands for its text."""
    name: str
    """Its id here: the file name without suffix."""
    file: str
    height: int
    width: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class CocoObject:
    """One annotation; `problem` says why it cannot be painted: no `region`, or no known `category`."""

    id: int | str
    category: int | None
    crowd: bool
    area: float
    region: bytes | None
    problem: str | None


class Annotations:
    """What an annotation file says, by image; see `Annotations.open`. May be sent to other processes."""

    def __init__(self, file: Path, database: Path) -> None:
        self.file = file
        self._database = database
        self._lock = threading.Lock()
        with self._lock:
            self._meta = dict(self._connection.execute("SELECT key, value FROM meta"))
        self.sha256: str = self._meta["sha256"]
        self.categories = {int(id): name for id, name in json.loads(self._meta["categories"]).items()}
        """Category id -> name, ascending."""
        self.classes = list(self.categories.values())
        """Names by class index."""
        self.values = mask_values(self.categories)
        """Category id -> mask value, from 1."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Annotations, (self.file, self._database)  # a connection has no copy

    @classmethod
    def open(cls, file: str | os.PathLike[str], progress: Callable[[int], None] | None = None) -> Annotations:
        """Read an annotation file, or what was made of it before.

        progress: called with numbers of bytes while the file is parsed; not at all where it was before.

        Raises InputError where it cannot be read, is no JSON, or names no usable categories; StoreError where what
        was made of it cannot be kept; MissingExtra without pycocotools.
        """
        source = Path(file)
        tools()
        try:
            stamp = _stamp(source)
        except OSError as e:
            raise InputError(f"{shown(source)}: {os_reason(e)}") from None
        key = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:32]
        database = cache_folder("coco") / f"{key}.sqlite"
        if not _is_current(database, stamp):
            _make(source, stamp, database, progress)
        return cls(source, database)

    @property
    def official(self) -> bool:
        """Whether the categories are COCO's 80."""
        return self.categories == CATEGORIES

    def names(self, *, empty: bool = False) -> list[str]:
        """The images' ids, by ascending image id; with `empty` also those without annotations.

        Those that cannot be read at all (`problem`) are among them.
        """
        return self._column("name", empty)

    def files(self, *, empty: bool = False) -> list[str]:
        """The images' file names, in the order of `names`."""
        return self._column("file", empty)

    def broken(self) -> set[str]:
        """The ids of images that cannot have a mask: something is wrong with them or with an annotation."""
        query = """SELECT name FROM images WHERE problem IS NOT NULL UNION
                   SELECT name FROM images JOIN objects ON objects.image = images.id
                   WHERE objects.problem IS NOT NULL"""
        return {name for (name,) in self._rows(query)}

    def strays(self) -> list[tuple[str, str]]:
        """(name, reason) of entries that belong to no image of the file."""
        return list(self._rows("SELECT name, reason FROM strays"))

    def image(self, name: str) -> CocoImage:
        """One image; raises InputError for an id that the file does not have."""
        rows = self._rows("SELECT id, name, file, height, width, problem FROM images WHERE name = ?", name)
        if not rows:
            raise InputError(f"{shown(name)}: not an image of {shown(self.file)}")
        return CocoImage(*rows[0])

    def objects(self, image: CocoImage) -> list[CocoObject]:
        """Its annotations, in the file's order."""
        rows = self._rows(
            "SELECT id, category, crowd, area, region, problem FROM objects WHERE image = ? ORDER BY place",
            image.id,
        )
        return [CocoObject(id, category, bool(crowd), *others) for id, category, crowd, *others in rows]

    def _column(self, name: str, empty: bool) -> list[str]:
        where = "" if empty else "WHERE EXISTS (SELECT 1 FROM objects WHERE objects.image = images.id)"
        return [value for (value,) in self._rows(f"SELECT {name} FROM images {where} ORDER BY id")]

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.Error as e:
                raise StoreError(f"{self._database}: cannot be read ({e}); remove it and run again") from None

    @cached_property
    def _connection(self) -> sqlite3.Connection:
        return _connect(self._database)


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)


def _stamp(file: Path) -> str:
    status = file.stat()
    return f"{SCHEMA_VERSION} {status.st_size} {status.st_mtime_ns}"


def _is_current(database: Path, stamp: str) -> bool:
    if not database.is_file():
        return False
    try:
        connection = _connect(database)
        try:
            found = connection.execute("SELECT value FROM meta WHERE key = 'stamp'").fetchone()
        finally:
            connection.close()
    except sqlite3.Error:  # damaged, or something else of that name: made again
        return False
    return found == (stamp,)


def _make(source: Path, stamp: str, database: Path, progress: Callable[[int], None] | None) -> None:
    """Parse `source` into `database`."""
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMP_PREFIX, dir=database.parent)
        os.close(handle)
    except OSError as e:
        raise StoreError(f"{database.parent}: cannot be written: {e.strerror}; set XDG_CACHE_HOME") from None
    made = Path(name)
    try:
        connection = sqlite3.connect(made, isolation_level=None)
        try:
            _Parser(source, connection).run(stamp, progress)
        finally:
            connection.close()
        made.replace(database)
    except (sqlite3.Error, OSError) as e:
        made.unlink(missing_ok=True)
        raise StoreError(f"{database.parent}: {e}; free some space there, or set XDG_CACHE_HOME") from None
    except BaseException:
        made.unlink(missing_ok=True)
        raise


class _Parser:
    """From the JSON's entries to rows; sizes of images are held while it runs (about 100 bytes each)."""

    def __init__(self, source: Path, connection: sqlite3.Connection) -> None:
        self.source = source
        self.execute = connection.execute
        self.script = connection.executescript
        self.sizes: dict[int, tuple[int, int] | None] = {}
        self.files: dict[str, int | str] = {}
        self.numbers: dict[str, int] = {}
        self.passed: list[str] = []
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
                f"{where}: none of its {len(self.passed)} images can be used; the first: {self.passed[0]}"
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
        if not self.sizes:  # else it is never asked for
            self.passed.append(f"{shown(name)}: {shown(reason)}")
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
