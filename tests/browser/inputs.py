"""Small runs to report on: synthetic scenes, maps drawn from their masks, and what a canvas shows as labels."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from infercam.engine.data import voc
from infercam.engine.demo.scenes import CLASS_NAMES, scene
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.evaluation.label_png import write_label
from infercam.engine.store.mapstore import MapRecord, MapStore

CLASSES = list(CLASS_NAMES)


def maps_of(mask: np.ndarray, seed: int) -> tuple[list[int], np.ndarray]:
    """One rough map for each class of a mask, (K, H, W) float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    classes = [int(v) - 1 for v in np.unique(mask) if 0 < v < 255]
    maps = []
    for c in classes:
        smooth = cv2.GaussianBlur((mask == c + 1).astype(np.float32), (0, 0), 9)
        maps.append(np.clip(smooth * rng.uniform(0.5, 1.2, mask.shape), 0, 1))
    return classes, np.stack(maps).astype(np.float32)


def write_scenes(root: Path, sizes: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """A VOC tree with one scene of each id's size in split `val`; returns the masks."""
    masks = {}
    for number, (id, size) in enumerate(sizes.items()):
        drawn = scene((3, number), size)
        photo = root / "JPEGImages" / f"{id}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.image).save(photo, quality=90)
        write_label(root / "SegmentationClass" / f"{id}.png", drawn.mask)
        masks[id] = drawn.mask
    listing = root / "ImageSets" / "Segmentation" / "val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("".join(f"{id}\n" for id in sizes))
    return masks


def write_run(root: Path, masks: dict[str, np.ndarray], seed: int, classes: list[str] = CLASSES) -> MapStore:
    store = MapStore.create_or_open(
        root, classes=classes, settings={"recipe": {"name": "fast"}, "mode": "both"}
    )
    for number, (id, mask) in enumerate(masks.items()):
        present, maps = maps_of(mask, seed + number)
        order = list(range(len(present)))[::-1]  # a store may hold them in any order
        names = [classes[present[k]] for k in order]
        store.write(MapRecord(id, [present[k] for k in order], names, maps[order]), "test")
    return store


def write_labels(root: Path, masks: dict[str, np.ndarray]) -> LabelFolder:
    """The masks, moved a little, as pseudo labels."""
    folder = LabelFolder.create_or_open(root, CLASSES, {})
    for id, mask in masks.items():
        folder.write(id, np.roll(mask, 5, axis=1), "test")
    return folder


def argmax(
    store: MapStore, id: str, threshold: float, size: tuple[int, int], without: tuple[int, ...] = ()
) -> Any:
    """NumPy's labels: argmax of [threshold, maps] of the maps at `size`, (H, W) uint8."""
    found = store.read_stored(id)
    order = [k for k in np.argsort(found.classes) if found.classes[k] not in without]
    maps = [cv2.resize(found.maps[k], size[::-1], interpolation=cv2.INTER_AREA) for k in order]
    planes = [np.full(size, np.float32(threshold)), *(m.astype(np.float32) / np.float32(255) for m in maps)]
    labels = np.array([0, *(found.classes[k] + 1 for k in order)], np.uint8)
    return labels[np.argmax(np.stack(planes), axis=0)]


def mean_iou(labels: np.ndarray, truth: np.ndarray) -> float:
    """Over the labels that the ground truth holds."""
    valid = truth != 255
    found = []
    for label in np.unique(truth[valid]):
        one, other = (labels == label) & valid, truth == label
        found.append((one & other).sum() / (one | other).sum())
    return float(np.mean(found))


CANVAS = """panel => {
  const canvas = document.querySelector(`[data-panel="${panel}"]`);
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let text = '';
  for (let at = 0; at < pixels.length; at += 8192) text += String.fromCharCode(...pixels.subarray(at, at + 8192));
  return [canvas.width, canvas.height, btoa(text)];
}"""


def shown_labels(page: Any, panel: object) -> np.ndarray:
    """What a canvas of labels shows, (H, W) uint8, by VOC's colours; the page's opacity must be 100."""
    width, height, text = page.evaluate(CANVAS, panel)
    rgba = np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)
    table = np.frombuffer(voc.palette(), np.uint8).reshape(256, 3)
    label_of = {tuple(colour): label for label, colour in enumerate(table.tolist())}
    labels = np.zeros((height, width), np.uint8)
    for colour in np.unique(rgba[rgba[..., 3] > 0].reshape(-1, 4), axis=0):
        label = 255 if tuple(colour[:3]) == (224, 224, 224) else label_of[tuple(int(v) for v in colour[:3])]
        labels[(rgba == colour).all(axis=2)] = label
    return labels


def slide(page: Any, id: str, value: int) -> None:
    """Move a slider as a hand would."""
    page.evaluate(
        """([id, value]) => {
          const slider = document.getElementById(id);
          slider.value = value;
          slider.dispatchEvent(new Event('input'));
        }""",
        [id, value],
    )
