"""The maps of irn: one `.npy` per image, a pickled dictionary as its step/make_cam.py writes it.

    keys        torch int64 (K,): class indices, background not counted
    cam         torch float32 (K, ceil(H/4), ceil(W/4)), on the CPU: the maps at stride 4
    high_res    ndarray float32 (K, H, W): the maps

irn's own readers call `.cuda()` on `cam`, so writing needs torch; reading does not. The writer is the trainer's
(trainer/photos/irn.py, found by added.py). `cam` is `high_res` sampled bilinearly (align_corners=False, not
antialiased), as irn samples its network's output, and is not normalised a second time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from infercam.engine.common.errors import MissingExtra, StoreError
from infercam.engine.common.safe_pickle import load_npy_dict
from infercam.engine.store.formats.added import added_codec
from infercam.engine.store.formats.psa import class_index, finite
from infercam.engine.store.record import Codec, Decoded, MapRecord


class IrnCodec(Codec):
    suffix = ".npy"
    dtypes = ("float32",)
    pickled = True

    def encode(self, record: MapRecord, dtype: str, envelope: dict[str, Any]) -> bytes:
        try:
            writer = added_codec("irn")
        except ImportError:
            writer = None
        if writer is None:
            raise MissingExtra("torch", "train", "writing maps in irn's format")
        return writer.encode(record, dtype, envelope)

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
