"""What one file of a map store holds, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from infercam.engine.common.errors import StoreError

#: Maps may leave [0, 1] by this much (a float32 rounding, never more) and are clipped; beyond it they are refused.
RANGE_TOLERANCE = 1e-3


@dataclass(eq=False)
class MapRecord:
    """The response maps of one image.

    Attributes:
        id: the image's name in its source, '/' allowed.
        classes: K class indices (0-based, background not counted).
        names: the K class names, in the same order.
        maps: float32, shape (K, H, W), within [0, 1].
        meta: anything JSON can hold about this image, for example `scores` (K floats) or `iterations`.
        settings: the settings of the run that made the maps, as the store's file records them; ignored
            when writing (the store adds its own).
    """

    id: str
    classes: list[int]
    names: list[str]
    maps: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """A file's contents before its maps are made float32.

    `maps` is (K, H, W), uint8 (value / 255), float16 or float32; `names` is None where the format has
    no room for them.
    """

    classes: list[int]
    maps: np.ndarray
    names: list[str] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


class Codec(ABC):
    """One file format; stateless, so that threads and processes may share it."""

    suffix: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]]
    pickled: ClassVar[bool]

    @abstractmethod
    def encode(self, record: MapRecord, dtype: str, envelope: dict[str, Any]) -> bytes:
        """The bytes of one file; `envelope` (JSON) is kept where the format has room for it."""

    @abstractmethod
    def decode(self, file: Path) -> Decoded:
        """Read one file; raises StoreError naming it where it is missing, corrupt or refused."""


def as_float32(maps: np.ndarray) -> np.ndarray:
    """Stored maps as float32 in [0, 1]; the same array where it is that already."""
    if maps.dtype == np.uint8:
        return maps.astype(np.float32) / np.float32(255)
    return maps.astype(np.float32, copy=False)


def checked_maps(record: MapRecord) -> np.ndarray:
    """The record's maps as float32 clipped to [0, 1].

    Raises StoreError where shape and classes disagree, or a value is not finite or clearly out of range:
    storing those would hide a fault of the engine.
    """
    maps = np.asarray(record.maps, dtype=np.float32)
    if maps.ndim != 3 or len(maps) != len(record.classes) or len(record.names) != len(record.classes):
        raise StoreError(
            f"{record.id}: maps of shape {maps.shape} for {len(record.classes)} classes and "
            f"{len(record.names)} names; give one H×W map and one name per class"
        )
    if len(set(record.classes)) != len(record.classes):
        raise StoreError(f"{record.id}: a class has two maps; unite them before writing")
    if maps.size:
        low, high = float(maps.min()), float(maps.max())
        if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):  # also true for NaN
            raise StoreError(f"{record.id}: map values from {low:g} to {high:g}; normalise them to 0..1")
    return maps.clip(0, 1)
