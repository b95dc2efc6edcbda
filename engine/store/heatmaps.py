"""Overlays to look at: the photo under a colour map, one panel per class (`--heatmaps DIR`)."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.store.record import MapRecord

COLOUR_MAP = cv2.COLORMAP_INFERNO  # perceptually even: equal steps of activation look equal
_OPACITY = 0.75  # of full activation; the photo shows through in proportion to what is missing
_PANEL = 640  # longest side of a panel, pixels
_COLUMNS = 3
_CAPTION = 22
_GAP = 4


def overlay(image: np.ndarray, record: MapRecord) -> np.ndarray:
    """The photo with each class's map laid over it.

    Args:
        image: (H, W, 3) uint8 RGB, the size of the maps.
        record: its maps; `record.meta["scores"]` (K floats), where present, is written beside the names.

    Returns uint8 RGB: panels of at most 640 pixels, three in a row, each under a caption with the class's
    name, score and peak; the photo alone where there is no class. Raises InputError where sizes differ.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"{record.id}: an overlay needs an RGB picture of 8 bits, not {image.shape}")
    if len(record.maps) and record.maps.shape[1:] != image.shape[:2]:
        (h, w), (mh, mw) = image.shape[:2], record.maps.shape[1:]
        raise InputError(f"{record.id}: the picture is {w}×{h}, its maps are {mw}×{mh}")
    photo = _shrunk(image)
    if not len(record.maps):
        return _captioned(photo, "no class")
    return _grid([_panel(photo, record, k) for k in range(len(record.maps))])


def write_overlay(
    folder: str | os.PathLike[str], image: np.ndarray, record: MapRecord, suffix: str = ".jpg"
) -> Path:
    """Write one overlay atomically and return its path; suffix: .jpg or .png.

    Raises StoreError where it cannot be written, InputError as `overlay`.
    """
    if suffix not in (".jpg", ".png"):
        raise InputError(f"overlays are written as .jpg or .png, not {suffix!r}")
    parts = record.id.split("/")
    if any(p in ("", ".", "..") for p in parts) or "\\" in record.id or "\0" in record.id:
        raise InputError(f"{record.id!r}: cannot name a file; use plain names joined by '/'")
    file = Path(folder, *parts[:-1], parts[-1] + suffix)
    done, data = cv2.imencode(suffix, cv2.cvtColor(overlay(image, record), cv2.COLOR_RGB2BGR))
    if not done:
        raise StoreError(f"{file}: OpenCV cannot encode the overlay")
    try:
        with atomic_write(file) as f:
            f.write(data.tobytes())
    except OSError as e:
        raise StoreError(f"{file}: cannot be written: {e.strerror or e}") from None
    return file


def blend(photo: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 and (H, W) in [0, 1] to the coloured photo; zero activation leaves it as it is."""
    levels = np.rint(np.clip(activation, 0, 1) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, COLOUR_MAP), cv2.COLOR_BGR2RGB)
    share = (_OPACITY * np.clip(activation, 0, 1))[..., None].astype(np.float32)
    return np.rint(photo * (1 - share) + colours * share).astype(np.uint8)


def _shrunk(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    scale = _PANEL / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _panel(photo: np.ndarray, record: MapRecord, k: int) -> np.ndarray:
    activation: np.ndarray = np.asarray(record.maps[k], dtype=np.float32)
    height, width = photo.shape[:2]
    if activation.shape != (height, width):
        activation = cv2.resize(activation, (width, height), interpolation=cv2.INTER_AREA)
    scores = record.meta.get("scores")
    text = record.names[k]
    if isinstance(scores, list | tuple) and len(scores) == len(record.names):
        text += f"  score {float(scores[k]):.2f}"
    return _captioned(blend(photo, activation), f"{text}  peak {float(record.maps[k].max()):.2f}")


def _captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture under a black strip of text; the text shrinks to the width (OpenCV draws ASCII only)."""
    strip = np.zeros((_CAPTION, picture.shape[1], 3), np.uint8)
    text = text.encode("ascii", "replace").decode()
    size = 0.5
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    size *= min(1.0, (strip.shape[1] - 8) / max(width, 1))
    if size > 0.1:
        cv2.putText(strip, text, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), 1, cv2.LINE_AA)
    return np.vstack([strip, picture])


def _grid(panels: list[np.ndarray]) -> np.ndarray:
    height, width = panels[0].shape[:2]
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    size = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    canvas = np.full(size, 255, np.uint8)
    for i, panel in enumerate(panels):
        y, x = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        canvas[y : y + height, x : x + width] = panel
    return canvas
