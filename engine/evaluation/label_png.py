"""Labels of pixels, ground truth and pseudo labels: PNGs of class indices, 0 background, 255 ignored."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.paths import existing, os_reason, regular_bytes
from infercam.engine.data import voc
from infercam.engine.evaluation.histogram import IGNORE
from infercam.engine.store.image_index import cannot_write

PNG = (".png", ".PNG")
"""Suffixes of labels: the first is written."""


def read_mask(file: Path) -> np.ndarray:
    """A label PNG as (H, W) uint8 labels: palette indices or grey values, never colours. `.png` may be `.PNG`.

    Raises InputError for a file that is missing, damaged, or neither palette nor 8-bit grey.
    """
    try:
        data = regular_bytes(existing(file, *PNG[1:]))
        depth = data[24:25]
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            # Pillow stretches grey values of fewer bits to 0..255: they are indices no longer.
            if image.mode != "P" and (image.mode != "L" or depth != b"\x08"):
                raise InputError(
                    f"{shown(file)}: mode {image.mode} of {depth[0]} bits; ground truth is a palette or "
                    "8-bit grey PNG of class indices, not colours"
                )
            return np.asarray(image)
    except InputError:
        raise
    except OSError as e:
        reason = os_reason(e) if e.errno else "not a readable PNG"
        raise InputError(f"{shown(file)}: {reason}") from None
    except Exception as e:  # on damaged files decoders raise nearly anything
        raise InputError(f"{shown(file)}: not a readable PNG ({shown(e)})") from None


def read_label(file: Path, classes: int, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A label PNG, (H, W) uint8, whose values are checked: 0 background, 1..classes, 255 ignored.

    classes: how many object classes there are, background not counted.
    size: the (height, width) that it must have, its photo's.

    Raises InputError naming the file as `read_mask`, and for another size or a value outside the classes.
    """
    label = read_mask(file)
    if size is not None and label.shape != tuple(size):
        (h, w), (want_h, want_w) = label.shape, size
        raise InputError(
            f"{shown(file)}: is {w}×{h}, but its photo {want_w}×{want_h}; make the labels from these photos"
        )
    outside = label[(label > classes) & (label != IGNORE)]
    if outside.size:
        raise InputError(
            f"{shown(file)}: has value {outside.min()}, but there are {classes} classes "
            f"(0 is background, {classes} the last class, {IGNORE} ignored)"
        )
    return label


def write_label(file: Path, label: NDArray[np.uint8]) -> None:
    """Write an (H, W) uint8 label as a PNG with VOC's colours, atomically.

    Raises StoreError (DiskFullError where no space is left).
    """
    if label.ndim != 2 or label.dtype != np.uint8:
        raise ValueError(f"a label is one plane of uint8, not {label.dtype} of shape {label.shape}")
    image = Image.fromarray(label)  # mode L
    image.putpalette(voc.palette())  # becomes P, indices unchanged
    try:
        with atomic_write(file) as f:
            image.save(f, "PNG")
    except OSError as e:
        raise cannot_write(file, e) from None
