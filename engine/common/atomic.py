"""Writing files so that a kill at any moment leaves either the old file or the new one, never half of it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from infercam.engine.common.errors import StoreError, shown

if sys.platform != "win32":
    import fcntl

TEMP_PREFIX = ".tmp-"
UMASK = os.umask(0)  # can only be read by setting it, for the whole process: once, before there are threads
os.umask(UMASK)
"""The user's, as it was when the process began: whoever needs it takes it from here."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; rename it over `path` when the block ends without an exception.

    The temporary file is locked until it has its name: see `remove_abandoned`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    fd, name = _locked_temporary(target.parent)
    try:
        encoding = None if "b" in mode else "utf-8"
        with _kept_locked(fd):
            with os.fdopen(fd, mode, encoding=encoding) as f:
                yield f
            Path(name).chmod(0o666 & ~UMASK)  # mkstemp makes 0600
            Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(file: Path, text: str) -> None:
    """The whole text, or nothing; raises StoreError, one line."""
    try:
        with atomic_write(file, "w") as f:
            f.write(text)
    except OSError as e:
        raise StoreError(f"{shown(file)}: cannot be written: {e.strerror or e}") from None


def write_json(file: Path, content: Any) -> None:
    """As `write_text`, indented; NaN and infinities are refused (ValueError)."""
    write_text(file, json.dumps(content, indent=1, allow_nan=False) + "\n")


def remove_abandoned(temporary: Path) -> bool:
    """Remove a temporary file unless its writer, of this machine at least, is still at it; whether it was removed.

    A file's age alone cannot tell: clocks jump, and a file server has its own.
    """
    if sys.platform == "win32":  # a file that is open cannot be removed there
        with contextlib.suppress(PermissionError):
            temporary.unlink()
            return True
        return False
    fd = os.open(temporary, os.O_RDWR | os.O_NONBLOCK)
    try:
        if not _lock(fd, wait=False):
            return False
        temporary.unlink()  # before the lock is let go: the writer looks whether its file is still there
        return True
    finally:
        os.close(fd)


def _locked_temporary(folder: Path) -> tuple[int, str]:
    """A new temporary file, locked; another one where a sweep took it before it was."""
    while True:
        fd, name = tempfile.mkstemp(prefix=TEMP_PREFIX, dir=folder)
        if sys.platform == "win32":
            return fd, name
        _lock(fd, wait=True)
        if Path(name).exists():
            return fd, name
        os.close(fd)


def _lock(fd: int, wait: bool) -> bool:
    """False where another holds it. A file system without locks lets everybody pass: only age decides there."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def _kept_locked(fd: int) -> Iterator[None]:
    """The file's lock beyond the closing of `fd`: a duplicate shares it."""
    if sys.platform == "win32":
        yield
        return
    held = os.dup(fd)
    try:
        yield
    finally:
        os.close(held)
