"""Reading an ONNX file without its large weights, which go from the file straight onto a shelf.

Read by the onnx package they are in memory twice. This walks protobuf's wire format down to the graph's weights, lays
the bytes of the large ones on the shelf, and has protobuf parse the rest. What it does not understand is none of its
business: the onnx package then says what is wrong.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from onnx import ModelProto, TensorProto

from infercam.export.graph.shelf import LARGE, Shelf
from infercam.export.runtime import weight_bytes

_GRAPH, _INITIALIZER, _RAW_DATA, _BYTES = 7, 5, 9, 2  # of onnx.proto, and the wire type of what has a length


class _Field(NamedTuple):
    """Where a field begins, and its value, and where that ends."""

    number: int
    wire: int
    start: int
    first: int
    last: int


class _Unreadable(Exception):
    """Not protobuf's wire format."""


def read_light(file: Path, shelf: Shelf) -> ModelProto | None:
    """The model, its large weights on the shelf; None where the file is not in the format. Raises OSError."""
    if not file.stat().st_size:
        return None
    with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            parts = list(_light(data, shelf, 0, len(data), _GRAPH))
        except (_Unreadable, IndexError):
            return None
        try:
            return ModelProto.FromString(b"".join(parts))
        except Exception:  # protobuf's DecodeError is not importable in every version
            return None


def _light(data: mmap.mmap, shelf: Shelf, start: int, end: int, inner: int) -> Iterator[bytes]:
    """The bytes of a model, or of its graph, with places on the shelf in the stead of large weights."""
    for field in _fields(data, start, end):
        if (field.number, field.wire) != (inner, _BYTES) or field.last - field.first <= LARGE:
            yield data[field.start : field.last]
        elif inner == _GRAPH:
            graph = b"".join(_light(data, shelf, field.first, field.last, _INITIALIZER))
            yield _tagged(_GRAPH, graph)
        else:
            yield _weight(data, shelf, field)


def _weight(data: mmap.mmap, shelf: Shelf, field: _Field) -> bytes:
    inside = list(_fields(data, field.first, field.last))
    values = [f for f in inside if f.number == _RAW_DATA]
    if len(values) == 1:
        tensor = TensorProto.FromString(
            b"".join(data[f.start : f.last] for f in inside if f.number != _RAW_DATA)
        )
        size = values[0].last - values[0].first
        if size > LARGE and size == weight_bytes(tensor):
            with memoryview(data)[values[0].first : values[0].last] as view:
                return _tagged(_INITIALIZER, shelf.put(tensor, view).SerializeToString())
    return data[field.start : field.last]


def _tagged(number: int, content: bytes) -> bytes:
    """A field of that many bytes."""
    head, length = bytearray([number << 3 | _BYTES]), len(content)
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(head) + bytes([length]) + content


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    at = start
    while at < end:
        tag, first = _varint(data, at, end)
        wire = tag & 7
        if wire == _BYTES:
            length, first = _varint(data, first, end)
            last = first + length
        elif wire == 0:
            last = _varint(data, first, end)[1]
        elif wire in (1, 5):
            last = first + (8 if wire == 1 else 4)
        else:
            raise _Unreadable
        if last > end:
            raise _Unreadable
        yield _Field(tag >> 3, wire, at, first, last)
        at = last


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Unreadable
