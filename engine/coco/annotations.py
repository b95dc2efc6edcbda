"""An instances_*.json, parsed once into a small database that is kept and looked into image by image.

    CACHE/KEY.sqlite    tables meta, images, objects (a region as COCO's compressed run lengths), strays

The JSON is streamed, so making it takes little memory however large the file, and what is read later is one
image's rows. It is kept in $XDG_CACHE_HOME/infercam/coco (by default below ~/.cache) under a key made from the
file's path, and made again where the file's size or time, or the schema, is another. It is written under another
name first, so a kill leaves none; two processes that make it at once both do, and the later one's stays.

What is wrong with one image or annotation is kept beside it as a line of text, and does not stop the others.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from infercam.engine.coco.parsing import AnnotationParser
from infercam.engine.coco.regions import tools
from infercam.engine.common.atomic import TEMP_PREFIX
from infercam.engine.common.cache import cache_file
from infercam.engine.common.errors import InputError, StoreError, shown
from infercam.engine.common.paths import os_reason
from infercam.engine.data.coco_categories import CATEGORIES, mask_values

SCHEMA_VERSION = 2


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
        database = cache_file("coco", os.fsencode(source.resolve()), ".sqlite")
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
            AnnotationParser(source, connection).run(stamp, progress)
        finally:
            connection.close()
        made.replace(database)
    except (sqlite3.Error, OSError) as e:
        made.unlink(missing_ok=True)
        raise StoreError(f"{database.parent}: {e}; free some space there, or set XDG_CACHE_HOME") from None
    except BaseException:
        made.unlink(missing_ok=True)
        raise
