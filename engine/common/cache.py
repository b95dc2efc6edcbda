"""The user's cache folder: what can be made again, kept from run to run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


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
