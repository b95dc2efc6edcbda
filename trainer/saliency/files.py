"""Saliency maps on disk: 8-bit grey PNGs, 0 background to 255 salient, as OAA, EPS and others keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError, StoreError, shown
from infercam.engine.common.paths import check_id
from infercam.engine.data.images import read_image

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]


def saliency_file(folder: Path, item_id: str) -> Path:
    return folder / f"{check_id(item_id)}.png"


def write_saliency(file: Path, saliency: Map) -> None:
    """0..1 as an 8-bit grey PNG (0: background, 255: salient), atomically; raises StoreError."""
    ok, data = cv2.imencode(".png", (saliency * 255 + 0.5).astype(np.uint8))
    assert ok
    try:
        with atomic_write(file) as f:
            f.write(data.tobytes())
    except OSError as e:
        raise StoreError(f"{shown(file)}: cannot be written: {e.strerror}") from None


def read_saliency(file: Path, size: tuple[int, int]) -> Pixels:
    """A saliency PNG as H×W uint8, 0..255, as OAA, EPS and others keep them.

    8-bit grey, or colours that are all grey. One of another size than its photo (height, width) is resized,
    as saliency networks often write a fixed size. Raises InputError, naming the file, where it cannot be read.
    """
    image = read_image(file)
    plane: Any = image[:, :, 0]
    if not (np.array_equal(plane, image[:, :, 1]) and np.array_equal(plane, image[:, :, 2])):
        raise InputError(f"{shown(file)}: has colours; a saliency map is grey, 0 background to 255 salient")
    if plane.shape != size:
        plane = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(plane)
