"""The structs of kernels/layouts.cuh as NumPy dtypes, same names and offsets, and how they are packed for one upload.

Pointers are unsigned 64-bit integers. A test compares every offset and size with the C++ compiler's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from infercam.engine.bundle import InputSpec
from infercam.engine.device.driver import Bytes
from infercam.engine.method.host_ops import normalise_table

PLANES_AT = 64
RANK_BINS = 2048
THREADS = 256
MODES = {"max": 0, "sum": 1, "mean": 2}
JOINS = {"none": 0, "only": 1, "max": 2, "mean": 3}


def _struct(**fields: DTypeLike | tuple[DTypeLike, int | tuple[int, ...]]) -> np.dtype[np.void]:
    listed = [(name, *t) if isinstance(t, tuple) else (name, t) for name, t in fields.items()]
    return np.dtype(listed, align=True)


P, I, F = np.uint64, np.int32, np.float32  # noqa: E741

STRUCTS: dict[str, np.dtype[np.void]] = {
    "Picture": _struct(sums=(np.int64, 3), fill=(F, 3), unused=F),
    "Axis": _struct(table=P, source=I, target=I, taps=I, unused=I),
    "ResizeItem": _struct(
        tile=P, middle=P, picture=P, first=P, second=P,
        image_width=I, middle_height=I, middle_width=I, middle_pitch=I, height=I, width=I, columns_first=I, unused=I,
    ),
    "Normalisation": _struct(
        values=(F, (3, 256)), halves=(np.uint16, (3, 256)), rest=(I, (3, 256)),
        first=(np.int64, 3), step=(np.int64, 3), unit=np.float64,
    ),
    "MaskStep": _struct(down=F, across=F, last_row=I, last_column=I),
    "EraseSlot": _struct(
        picture=P, erased=P, tile_width=I, mirrored=I, mask_mirrored=I, steps_at=I, steps=I, unused=I
    ),
    "GatherItem": _struct(low=P, classes_at=I, classes=I, plain=I, mirrored=I, add=I, unused=I),
    "CutItem": _struct(whole=P, height=I, width=I, y=I, x=I),
    "PatchItem": _struct(low=P, classes_at=I, classes=I, height=I, width=I, parts_at=I, parts=I),
    "PatchPart": _struct(slot=I, mirrored=I, y=I, x=I, rows_at=I, columns_at=I),
    "LowMap": _struct(data=P, height=I, width=I),
    "TileItem": _struct(
        total=P, accumulated=P, erased=P, result=P, ranks=P, height=I, width=I, stride=I, classes=I,
        lows_at=I, lows=I, floor_at=I, rank=I, first=I, join=I, locate=I, threshold=F,
    ),
    "RankState": _struct(prefix=np.uint32, below=np.uint32, histogram=(np.uint32, RANK_BINS)),
    "PartItem": _struct(
        maps=P, peaks=P, y0=I, x0=I, height=I, width=I, stride=I, takes_at=I, iterations=F, unused=I
    ),
}  # fmt: skip


class Packet:
    """One upload: `count` structs, then arrays of changing length that they refer to by byte offset."""

    def __init__(self, struct: str, count: int) -> None:
        self._dtype = STRUCTS[struct]
        self._arrays: list[tuple[int, NDArray[Any]]] = []
        self._structs: list[tuple[Any, ...]] = []
        self.nbytes = self._dtype.itemsize * count

    def array(self, data: NDArray[Any]) -> int:
        """Append an array; returns its offset, a multiple of 16."""
        at = -(-self.nbytes // 16) * 16
        self._arrays.append((at, data))
        self.nbytes = at + data.nbytes
        return at

    def struct(self, *fields: Any) -> None:
        """The next struct, its fields in order."""
        self._structs.append(fields)

    def bytes(self) -> Bytes:
        out = np.zeros(self.nbytes, np.uint8)
        structs = np.array(self._structs, self._dtype)
        out[: structs.nbytes] = structs.view(np.uint8)
        for at, data in self._arrays:
            out[at : at + data.nbytes] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        return out


def normalisation(spec: InputSpec) -> Bytes:
    """The struct of that name: host_ops.normalise_table in float32, float16 and fixed point."""
    table = normalise_table(spec)
    # as fine as leaves room for the sum of 2^28 values in 63 bits
    exponent = 62 - 28 - math.ceil(math.log2(max(1.0, float(np.abs(table).max()))))
    out = np.zeros(1, STRUCTS["Normalisation"])
    out["values"] = table
    out["halves"] = table.astype(np.float16).view(np.uint16)
    fixed = np.rint(np.ldexp(table.astype(np.float64), exponent)).astype(np.int64)
    first, step = fixed[:, 0], (fixed[:, 255] - fixed[:, 0]) // 255
    out["first"], out["step"] = first, step
    out["rest"] = fixed - first[:, None] - step[:, None] * np.arange(256)  # of rounding only: some thousands
    out["unit"] = 2.0**-exponent
    return out.view(np.uint8)


def mask_steps(sizes: Sequence[tuple[int, int]]) -> NDArray[np.void]:
    """MaskStep of each resize, the last first, of a mask that goes through `sizes` (the tile's first)."""
    steps = [
        (np.float32(h) / np.float32(height), np.float32(w) / np.float32(width), h - 1, w - 1)
        for (h, w), (height, width) in itertools.pairwise(sizes)
    ]
    return np.array(steps[::-1], STRUCTS["MaskStep"])
