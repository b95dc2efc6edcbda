"""The user's cache folder: what can be made again, kept from run to run.

An entry begins with the hash of its content: one that is damaged, or half written by an older program, counts as
missing. Several processes may write one; each renames a whole file into place.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import StoreError
from infercam.engine.common.paths import regular_bytes


def cache_folder(name: str) -> Path:
    """`$XDG_CACHE_HOME/infercam/NAME`, by default below ~/.cache; not made here.

    A relative XDG_CACHE_HOME is ignored, as its specification asks.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "infercam" / name


def cache_file(name: str, what: bytes, suffix: str) -> Path:
    """In that folder the file of `what` (a path, a command), found again by whoever names the same; not made here."""
    return cache_folder(name) / f"{hashlib.sha256(what).hexdigest()[:32]}{suffix}"


def read_entry(entry: Path) -> bytes | None:
    """An entry's content; None where it is missing, unreadable, empty or damaged."""
    try:
        data = regular_bytes(entry)
    except OSError:
        return None
    content = data[32:]
    return content if content and hashlib.sha256(content).digest() == data[:32] else None


def write_entry(entry: Path, content: bytes) -> bool:
    """Keep it; whether it was kept: a cache that cannot be written only costs making things again."""
    try:
        with atomic_write(entry) as f:
            f.write(hashlib.sha256(content).digest() + content)
    except (OSError, StoreError):
        return False
    return True
