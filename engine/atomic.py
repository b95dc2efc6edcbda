"""Writing files so that a kill at any moment leaves either the old file or the new one, never half of it."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

if sys.platform != "win32":
    import fcntl

TEMP_PREFIX = ".tmp-"
_UMASK = os.umask(0)  # can only be read by setting it, for the whole process: once, before there are threads
os.umask(_UMASK)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; rename it over `path` when the block ends without an exception.

    The temporary file is locked until it has its name, so that nobody sweeps it away as stale (see `in_use`).
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=TEMP_PREFIX, dir=target.parent)
    try:
        encoding = None if "b" in mode else "utf-8"
        with _locked(fd):
            with os.fdopen(fd, mode, encoding=encoding) as f:
                yield f
            Path(name).chmod(0o666 & ~_UMASK)  # mkstemp makes 0600
            Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def in_use(temporary: Path) -> bool:
    """Whether a writer, of this machine at least, is still at a temporary file; its age cannot tell: clocks jump."""
    if sys.platform == "win32":  # an open file cannot be removed there anyway
        return False
    fd = os.open(temporary, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(fd)
    return False


@contextlib.contextmanager
def _locked(fd: int) -> Iterator[None]:
    """Hold the file's lock beyond the closing of `fd`, whose duplicate shares it."""
    if sys.platform == "win32":
        yield
        return
    held = os.dup(fd)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: age alone decides there
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(held)
