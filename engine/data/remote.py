"""Folders behind a URI, through pyarrow's file systems: `s3://`, `gs://`, `hdfs://`, `abfs://`, `file://`.

Options are written into the URI as pyarrow has them (`s3://bucket/maps?region=eu-west-1&scheme=http&
endpoint_override=host:9000`); credentials come from the environment, as the tools of each store have them.
"""

from __future__ import annotations

import errno
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infercam.engine.common.atomic import TEMP_PREFIX
from infercam.engine.common.errors import MissingExtra, StoreError, shown

# An object appears whole when its upload ends; elsewhere a file is written beside its name and then moved.
_WHOLE_OBJECTS = ("s3", "gcs", "abfs")


class RemoteStorage:
    """A folder of a pyarrow file system; see storage.Storage. Travels to other processes."""

    remote = True

    def __init__(self, filesystem: Any, base: str, uri: str) -> None:
        self._fs = filesystem
        self._base = base.rstrip("/")
        self._uri = uri.rstrip("/")

    @classmethod
    def open(cls, uri: str) -> RemoteStorage:
        """Raises StoreError for a URI that pyarrow does not know or cannot use, MissingExtra without pyarrow."""
        uri = re.sub(r"^([^:/]+):/(?!/)", r"\1://", uri)  # pathlib folds the two slashes
        try:
            from pyarrow import ArrowException
            from pyarrow.fs import FileSystem
        except ImportError:
            raise MissingExtra(
                "pyarrow", "cluster", f"reading and writing {urlsplit(uri).scheme}://"
            ) from None
        shown_uri = re.sub(r"//[^/@]*@", "//", uri.partition("?")[0])  # neither options nor credentials
        try:
            filesystem, base = FileSystem.from_uri(uri)
        except (ArrowException, OSError, ValueError) as e:
            raise StoreError(f"{shown_uri}: {reason(e)}") from None
        if not base.strip("/"):
            raise StoreError(f"{shown_uri}: names no bucket or folder")
        return cls(filesystem, base, shown_uri)

    def __str__(self) -> str:
        return self._uri

    @property
    def path(self) -> Path:
        raise StoreError(
            f"{self._uri}: is not on this machine; copy it first, for example with "
            "python -c \"from pyarrow.fs import copy_files; copy_files('URI', 'FOLDER')\""
        )

    def where(self, name: str) -> str:
        return f"{self._uri}/{name}"

    def read(self, name: str) -> bytes:
        with _os_errors(), self._fs.open_input_stream(f"{self._base}/{name}", compression=None) as f:
            return bytes(f.read())

    def write(self, name: str, data: bytes) -> None:
        target = f"{self._base}/{name}"
        with _os_errors():
            if self._fs.type_name in _WHOLE_OBJECTS:
                self._put(target, data)
                return
            folder, last = posixpath.split(target)
            self._fs.create_dir(folder, recursive=True)
            temporary = f"{folder}/{TEMP_PREFIX}{last}"  # one writer for a name (a shard, a worker's image)
            self._put(temporary, data)
            self._fs.move(temporary, target)

    def _put(self, path: str, data: bytes) -> None:
        with self._fs.open_output_stream(path, compression=None) as f:
            f.write(data)

    def size(self, name: str) -> int | None:
        with _os_errors():
            size = self._fs.get_file_info(f"{self._base}/{name}").size
        return None if size is None else int(size)

    def remove(self, name: str) -> None:
        try:
            with _os_errors():
                self._fs.delete_file(f"{self._base}/{name}")
        except FileNotFoundError:
            pass

    def files(self, start: str = "") -> Iterator[tuple[str, int]]:
        from pyarrow.fs import FileSelector, FileType

        with _os_errors():
            selector = FileSelector(self._base, allow_not_found=True, recursive=not start)
            found = self._fs.get_file_info(selector)
        for info in found:
            name = info.path[len(self._base) + 1 :]
            if info.type == FileType.File and name.startswith(start):
                yield name, int(info.size)


class _os_errors:
    """What pyarrow raises becomes OSError with a message of one line."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, "no such file") from None
        if isinstance(error, OSError):
            raise OSError(error.errno or errno.EIO, reason(error)) from None
        if isinstance(error, ValueError):  # ArrowInvalid among them
            raise OSError(errno.EINVAL, reason(error)) from None


def reason(error: BaseException) -> str:
    """The first line of an error of pyarrow, which may be pages long."""
    text = str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
    return shown(text.strip().split("\n")[0][:300]) or type(error).__name__
