"""The maps of psa, SEAM and SC-CAM: one `.npy` per image, a pickled `{class index: H×W float32}`.

They read it with `np.load(file, allow_pickle=True).item()`. The format has no room for names or settings,
and an image without classes loses its size. Reading goes through the restricted unpickler.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from infercam.engine.common.errors import StoreError
from infercam.engine.common.safe_pickle import load_npy_dict
from infercam.engine.store.record import Codec, Decoded, MapRecord, checked_maps


class PsaCodec(Codec):
    suffix = ".npy"
    dtypes = ("float32",)
    pickled = True

    def encode(self, record: MapRecord, dtype: str, envelope: dict[str, Any]) -> bytes:
        maps = checked_maps(record)
        return pickled_npy({int(c): m for c, m in zip(record.classes, maps, strict=True)})

    def decode(self, file: Path) -> Decoded:
        content = load_npy_dict(file)
        classes = [class_index(file, key) for key in content]
        for value in content.values():
            if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind != "f":
                raise StoreError(f"{file}: not psa maps ({{class index: H×W floats}}); is it another format?")
        if len({value.shape for value in content.values()}) > 1:
            raise StoreError(f"{file}: its maps differ in size; make it again")
        maps = list(content.values())
        stack = np.stack(maps) if maps else np.zeros((0, 0, 0), np.float32)
        return Decoded(classes=classes, maps=finite(file, stack))


def finite(file: Path, maps: np.ndarray) -> np.ndarray:
    """Foreign maps as float32; raises StoreError naming the file where a value is no number."""
    if not np.isfinite(maps).all():
        raise StoreError(f"{file}: its maps hold values that are not finite; make it again")
    return maps.astype(np.float32)


def class_index(file: Path, key: Any) -> int:
    """A key of a foreign file as a class index; raises StoreError naming the file."""
    if isinstance(key, bool) or not isinstance(key, int) or key < 0:
        raise StoreError(f"{file}: key {key!r} is not a class index; is it another format?")
    return key


def pickled_npy(content: dict[Any, Any]) -> bytes:
    """What `np.save(file, content)` writes."""
    out = io.BytesIO()
    np.save(out, np.array(content, dtype=object), allow_pickle=True)
    return out.getvalue()
