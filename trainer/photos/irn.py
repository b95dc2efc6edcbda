"""Writing the maps of irn, whose files hold torch tensors; registered as `infercam.map_formats` in pyproject.toml.

The format is described, and read, in engine/store/formats/irn.py.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from infercam.engine.store.formats.irn import IrnCodec
from infercam.engine.store.formats.psa import pickled_npy
from infercam.engine.store.record import MapRecord, checked_maps

_STRIDE = 4


class IrnWriter(IrnCodec):
    """The engine's codec of irn with the half that needs torch."""

    def encode(self, record: MapRecord, dtype: str, envelope: dict[str, Any]) -> bytes:
        maps = checked_maps(record)
        content = {
            "keys": torch.tensor([int(c) for c in record.classes], dtype=torch.int64),
            "cam": torch.from_numpy(strided(maps)),
            "high_res": maps,
        }
        return pickled_npy(content)


def strided(maps: np.ndarray) -> np.ndarray:
    """(K, H, W) to (K, ceil(H/4), ceil(W/4)), float32: irn's `get_strided_size(size, 4)`."""
    height, width = ((n - 1) // _STRIDE + 1 for n in maps.shape[1:])
    out = np.empty((len(maps), height, width), np.float32)
    for source, target in zip(maps, out, strict=True):
        cv2.resize(source, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    return out
