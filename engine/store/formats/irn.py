"""The maps of irn: one `.npy` per image, a pickled dictionary as its step/make_cam.py writes it.

    keys        torch int64 (K,): class indices, background not counted
    cam         torch float32 (K, ceil(H/4), ceil(W/4)), on the CPU: the maps at stride 4
    high_res    ndarray float32 (K, H, W): the maps

irn's own readers call `.cuda()` on `cam`, so writing needs torch; reading does not. `cam` is `high_res`
sampled bilinearly (align_corners=False, not antialiased), as irn samples its network's output, and is not
normalised a second time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from infercam.engine.common.errors import MissingExtra, StoreError
from infercam.engine.common.safe_pickle import load_npy_dict
from infercam.engine.store.formats.psa import class_index, finite, pickled_npy
from infercam.engine.store.record import Codec, Decoded, MapRecord, checked_maps

_STRIDE = 4


class IrnCodec(Codec):
    suffix = ".npy"
    dtypes = ("float32",)
    pickled = True

    def encode(self, record: MapRecord, dtype: str, envelope: dict[str, Any]) -> bytes:
        try:
            import torch
        except ImportError:
            raise MissingExtra("torch", "train", "writing maps in irn's format") from None
        maps = checked_maps(record)
        content = {
            "keys": torch.tensor([int(c) for c in record.classes], dtype=torch.int64),
            "cam": torch.from_numpy(strided(maps)),
            "high_res": maps,
        }
        return pickled_npy(content)

    def decode(self, file: Path) -> Decoded:
        content = load_npy_dict(file, allow_torch=True)
        keys, maps = content.get("keys"), content.get("high_res")
        if (
            not isinstance(keys, np.ndarray)
            or not isinstance(maps, np.ndarray)
            or keys.dtype.kind not in "iu"
            or maps.dtype.kind != "f"
            or maps.ndim != 3
            or keys.shape != (len(maps),)
        ):
            raise StoreError(f"{file}: not irn maps (keys, cam, high_res); is it another format?")
        classes = [class_index(file, key) for key in keys.tolist()]
        return Decoded(classes=classes, maps=finite(file, maps))


def strided(maps: np.ndarray) -> np.ndarray:
    """(K, H, W) to (K, ceil(H/4), ceil(W/4)), float32: irn's `get_strided_size(size, 4)`."""
    height, width = ((n - 1) // _STRIDE + 1 for n in maps.shape[1:])
    out = np.empty((len(maps), height, width), np.float32)
    for source, target in zip(maps, out, strict=True):
        cv2.resize(source, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    return out
