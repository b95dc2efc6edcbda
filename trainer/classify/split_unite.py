"""Split & unite as augmentation (method/README.md §6): tiles of a training image, and the centres of their cuts.

A tile is what the inference would infer separately (method/README.md §2): the image cut at the centres of mass of
its classes' response maps, with the overlap of the recipe. Centres come from a map store, or from the
classifier under training; they are kept in files, so that a resumed run cuts where an undisturbed one would.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError, StoreError, shown
from infercam.engine.common.prefetch import prefetch
from infercam.engine.method.geometry import Box, split_boxes
from infercam.engine.method.host_ops import centre_of_mass
from infercam.engine.method.recipe import RECIPES
from infercam.engine.store.mapstore import MapStore
from infercam.trainer.classify.settings import Split
from infercam.trainer.photos.photos import Photos

Centre = tuple[int, int]
Centres = dict[str, list[Centre]]
"""id -> (y, x) in pixels of the image, one for each of its labels in their order."""

LEAST_SIDE = 32
"""A tile with a shorter side shows nothing of what its image's labels say, and is not used."""


def tiles(height: int, width: int, centres: Sequence[Centre], split: Split = "released") -> list[Box]:
    """The tiles of an H×W image, cut at the centres of its classes; the whole image where none is left."""
    placed = split_boxes(height, width, list(centres), RECIPES[split])
    large = [p.box for p in placed if min(p.box.height, p.box.width) >= LEAST_SIDE]
    return large or [Box(0, 0, height, width)]


def map_centres(maps: NDArray[np.float32], height: int, width: int) -> list[Centre]:
    """Centres of mass of maps (K×h×w, any size, not negative), enlarged to H×W as the engine does."""
    up = (cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in maps)
    return [centre_of_mass(m) for m in up]


def middle(height: int, width: int, count: int) -> list[Centre]:
    """What stands for centres before there are maps: the image's own, as for an empty map (method/README.md §2)."""
    return [(height // 2, width // 2)] * count


def store_centres(store: MapStore, photos: Photos) -> Centres:
    """Centres of every photo's labels in a map store.

    Raises InputError where the store lacks a photo (saying how many), a label's map, or has maps of another size.
    """
    missing = [i for i in photos if i not in store]
    if missing:
        raise InputError(
            f"{store.path}: has no maps of {len(missing)} of {len(photos)} images ({shown(missing[0])}, …); "
            "make them with: infercam run"
        )

    def read(item_id: str) -> tuple[str, list[Centre]]:
        record, labels = store.read(item_id), photos.labels(item_id)
        if record.maps.shape[1:] != photos.size(item_id):
            raise InputError(
                f"{shown(item_id)}: its maps are {record.maps.shape[1:]}, the image is {photos.size(item_id)}"
            )
        if not set(labels) <= set(record.classes):
            raise InputError(f"{shown(item_id)}: {store.path} has no map of some of its labels")
        return item_id, [centre_of_mass(record.maps[record.classes.index(c)]) for c in labels]

    return dict(prefetch(read, photos.ids))


def save_centres(file: Path, centres: Centres) -> None:
    """Write centres as JSON, atomically; raises StoreError."""
    try:
        with atomic_write(file, "w") as f:
            json.dump(centres, f)
    except OSError as e:
        raise StoreError(f"{file}: cannot be written: {e.strerror}") from None


def load_centres(file: Path) -> Centres:
    """Centres that `save_centres` wrote; raises InputError."""
    try:
        raw: Mapping[str, list[list[int]]] = json.loads(file.read_text(encoding="utf-8"))
        return {item_id: [(int(y), int(x)) for y, x in points] for item_id, points in raw.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        raise InputError(f"{file}: damaged; delete it and run the same command again") from None
