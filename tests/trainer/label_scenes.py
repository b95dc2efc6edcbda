"""Three small photos with maps and masks, as `infercam run` and VOC would have them; for the label commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from infercam.engine.evaluation.label_png import write_label
from infercam.engine.store.mapstore import MapRecord, MapStore

CLASSES = ["cat", "dog", "cow"]
SIZES = {"a": (41, 58), "b": (48, 64), "c/d": (37, 40)}


def write_scenes(root: Path) -> Path:
    """ROOT/photos/ID.png, ROOT/maps (a store), ROOT/masks/ID.png: a bright square is a cow, a dark one a cat."""
    store = MapStore.create_or_open(root / "maps", classes=CLASSES, settings={}, dtype="float16")
    rng = np.random.default_rng(0)
    for number, (id, (h, w)) in enumerate(SIZES.items()):
        image = rng.integers(90, 110, (h, w, 3)).astype(np.uint8)
        mask = np.zeros((h, w), np.uint8)
        boxes = {2: (slice(6, 26), slice(5, 21)), 0: (slice(10, 32), slice(26, 38))}
        classes = [2] if number == 0 else [0, 2]
        for c in classes:
            image[boxes[c]] = rng.integers(0, 20, 3) + (200 if c == 2 else 0)
            mask[boxes[c]] = c + 1
        maps = np.stack([_blob(h, w, boxes[c]) for c in classes])
        file = root / "photos" / f"{id}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
        write_label(root / "masks" / f"{id}.png", mask)
        store.write(MapRecord(id, classes, [CLASSES[c] for c in classes], maps), "made")
    return root


def _blob(h: int, w: int, box: tuple[slice, slice]) -> np.ndarray:
    """A blurred bump about the box: a response map that leaks over its edges."""
    y, x = np.mgrid[:h, :w]
    cy, cx = ((s.start + s.stop - 1) / 2 for s in box)
    near = ((y - cy) / (box[0].stop - box[0].start)) ** 2 + ((x - cx) / (box[1].stop - box[1].start)) ** 2
    return np.exp(-((5 * near) ** 2)).astype(np.float32)
