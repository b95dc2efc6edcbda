"""What can be read of a TensorRT-RTX plan without a driver. Deserialising needs one, so the bytes are looked at.

The layout is not documented: this is how version 1.7 writes it, for tests only.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

CARDS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121", "later")
_MAGIC, _LENGTH, _VERSION, _TARGETS, _BODY = b"vtrt", 16, 24, 32, 64
_DIMS = re.compile(rb"\x01\x80\x09\x80\x01\x00\x04\x00{7}(.{32})", re.DOTALL)
"""The tag of a shape of four dimensions, and these."""


class PlanContents(NamedTuple):
    """version: of TensorRT-RTX, as 1.7.1.116. shapes: of the profiles, smallest, best and largest in turn."""

    version: str
    targets: tuple[str, ...]
    shapes: list[tuple[int, ...]]
    body: bytes


def read_plan(data: bytes) -> PlanContents:
    """Raises AssertionError for what is no plan, or not whole."""
    assert data.startswith(_MAGIC)
    assert struct.unpack_from("<Q", data, _LENGTH)[0] == len(data)
    bits = data[_TARGETS]
    shapes = [struct.unpack("<4q", found) for found in _DIMS.findall(data[_BODY:])]
    return PlanContents(
        ".".join(map(str, data[_VERSION : _VERSION + 4])),
        tuple(card for i, card in enumerate(CARDS) if bits >> i & 1),
        [s for s in shapes if s[1] == 3 and min(s) > 0],
        data[_BODY:],
    )
