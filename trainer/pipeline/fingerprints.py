"""What a step's inputs are known by: hashes that change when they do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from infercam.engine.bundle import sha256_file
from infercam.engine.common.errors import InputError
from infercam.trainer.loop.config import StageConfig
from infercam.trainer.photos.photos import Photos


def photo_hash(photos: Photos) -> str:
    """Of the ids, the files' sizes and the labels; what a photo lacks is for the steps to say."""
    digest = hashlib.sha256()
    for item_id in photos:
        path = photos.path(item_id)
        try:
            labels: list[int] | None = photos.labels(item_id)
        except InputError:
            labels = None
        digest.update(json.dumps([item_id, path.stat().st_size if path.is_file() else None, labels]).encode())
    return digest.hexdigest()


def file_hash(file: Path | None) -> str | None:
    """SHA-256 of a file; raises InputError where there is none."""
    if file is None:
        return None
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    return sha256_file(file)


def folder_hash(folder: Path | None) -> str | None:
    """Of the names and sizes of the PNGs in a folder; raises InputError where there is none."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = sorted((f.relative_to(folder).as_posix(), f.stat().st_size) for f in folder.rglob("*.png"))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def plain(config: StageConfig) -> dict[str, Any]:
    """A stage's settings less those that only say where to compute."""
    return config.model_dump(mode="json", exclude=set(config.machine))
