"""Where a source or a store lies: a folder of this machine, or behind a URI (`s3://`, `gs://`, `hdfs://`, …).

Only what a run needs of a folder: whole files by their name in it. Remote ones are in remote.py.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from infercam.engine.common.atomic import atomic_write

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: pathlib folds two; two letters: not a drive


class Storage(Protocol):
    """A folder. Its methods raise OSError (FileNotFoundError for a file that is not there)."""

    remote: bool
    """Whether looking at one file is a request to a server."""

    @property
    def path(self) -> Path:
        """The folder on this machine; raises StoreError for a remote one."""
        ...

    def where(self, name: str) -> str:
        """A file as messages name it."""
        ...

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, data: bytes) -> None:
        """The file becomes `data` at once and whole, or stays what it was."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes; None where there is no such file."""
        ...

    def remove(self, name: str) -> None: ...

    def files(self, start: str = "") -> Iterator[tuple[str, int]]:
        """(name, bytes) of every file in the folder and below, names with '/' from the folder on; with `start`,
        of those in the folder itself whose names begin so."""
        ...


class LocalStorage:
    """A folder of this machine, or of a file system mounted on it."""

    remote = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def where(self, name: str) -> str:
        return str(self.path / name)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        with atomic_write(self.path / name) as f:
            f.write(data)

    def size(self, name: str) -> int | None:
        try:
            return (self.path / name).stat().st_size
        except (OSError, ValueError):  # ValueError: a name that no file can have
            return None

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def files(self, start: str = "") -> Iterator[tuple[str, int]]:
        for file in self.path.glob(f"{glob.escape(start)}*" if start else "**/*"):
            if file.is_file():
                yield file.relative_to(self.path).as_posix(), file.stat().st_size


def is_uri(text: str | os.PathLike[str]) -> bool:
    """Whether a command line's path is a URI; `file:` ones count."""
    return _URI.match(os.fspath(text)) is not None


def open_storage(where: str | os.PathLike[str] | Storage) -> Storage:
    """A path or URI as a place; raises StoreError for a URI that cannot be opened, MissingExtra without pyarrow."""
    if not isinstance(where, str | os.PathLike):
        return where
    if not is_uri(where):
        return LocalStorage(where)
    from infercam.engine.data.remote import RemoteStorage

    return RemoteStorage.open(os.fspath(where))
