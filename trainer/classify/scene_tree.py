"""The demo's scenes as photos to train on: drawn once, kept as VOC trees beside the run."""

from __future__ import annotations

import json
from pathlib import Path

from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.common.progress import JobProgress
from infercam.engine.demo.scenes import write_voc_tree

TRAIN_SEED = 1
VALIDATION_SEED = 2
"""First seed of training and validation scenes; `infercam demo` draws its own from others."""


def scene_tree(root: Path, count: int, seed: int) -> Path:
    """A VOC tree of scenes (seed, 0) to (seed, count - 1), all in its split `train`; drawn where it is not
    there yet. Raises InputError where `root` holds another number of scenes, StoreError where it cannot be
    written."""
    labels = root / "labels.json"  # written last
    if labels.exists():
        try:
            held = len(json.loads(labels.read_text(encoding="utf-8"))["labels"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{labels}: damaged; delete {root} to have its scenes drawn again") from None
        if held != count:
            raise InputError(f"{root}: holds {held} scenes, not {count}; delete it, or choose another folder")
        return root
    with JobProgress(f"{root.name} scenes", count) as bar:
        try:
            write_voc_tree(root, count, seed, train=count, progress=lambda _: bar.advance(1))
        except OSError as e:
            raise StoreError(f"{root}: cannot be written: {e.strerror}") from None
    return root
