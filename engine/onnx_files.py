"""Which other files an ONNX file would have read with it: asked before ONNX Runtime or TensorRT opens it.

A graph may keep its weights elsewhere ("external data": a path, an offset, a length). Whoever wrote the file
chose that path, and the runtime would open it. This module walks the file in protobuf's wire format, without
the onnx package: it goes down only where a tensor can be, steps over weights without reading them, and refuses
what is nested deeper or has more fields than any classifier.
"""

from __future__ import annotations

import mmap
from collections.abc import Container, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from infercam.engine.common.errors import BundleError, shown

MAX_DEPTH = 100  # protobuf's own limit
MAX_FIELDS = 5_000_000  # some seconds; the largest published classifiers have some ten thousands

_LOCATION = b"location"
_DTYPES = {1: "f4", 2: "u1", 3: "i1", 5: "i2", 6: "i4", 7: "i8", 10: "f2", 11: "f8"}
"""TensorProto.DataType -> NumPy's, of the types that both have."""

# Message -> field number -> message: where a tensor can be in a ModelProto (onnx.proto), and nothing else.
_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


class _Malformed(Exception):
    """Not protobuf's wire format, or out of all proportion."""


def external_locations(file: Path) -> list[str]:
    """Every path that the tensors of an ONNX file name for their data, as written, each once.

    Raises BundleError, one line, for a file that cannot be read or is not in protobuf's format. A file that
    nowhere holds the word `location`, which every such path needs, is not walked.
    """
    try:
        with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(_LOCATION) < 0:
                return []
            return list(dict.fromkeys(_Walk(data).locations("model", 0, len(data), 0)))
    except OSError as e:
        raise BundleError(f"{shown(file)}: cannot be read: {e.strerror or e}") from None
    except (_Malformed, ValueError) as e:  # ValueError: an empty file cannot be mapped
        raise BundleError(f"{shown(file)}: not an ONNX file ({e})") from None


def check_external(root: Path, graph: str, listed: Container[str]) -> None:
    """Refuse a graph of a bundle whose weights lie in a file that the manifest does not list.

    root: the bundle's folder. graph: the file's name below it. listed: names below `root` whose hashes have
    been checked. Raises BundleError naming the graph and the path.
    """
    for location in external_locations(root / graph):
        path = PurePosixPath(location)
        plain = location and not path.is_absolute() and ".." not in path.parts and "\\" not in location
        if not plain or str(PurePosixPath(graph).parent / path) not in listed:
            raise BundleError(
                f"{shown(root / graph)}: keeps weights in {shown(repr(location))[:120]}, which is no file of "
                "the bundle; refuse to read it"
            )


class ExternalWeight(NamedTuple):
    """A weight whose data lie in another file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    location: str
    offset: int
    nbytes: int


def external_weights(file: Path) -> list[ExternalWeight]:
    """The weights of an ONNX file that are kept elsewhere, of the types that NumPy has; raises BundleError."""
    try:
        with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return list(_Walk(data).weights())
    except OSError as e:
        raise BundleError(f"{shown(file)}: cannot be read: {e.strerror or e}") from None
    except (_Malformed, ValueError) as e:
        raise BundleError(f"{shown(file)}: not an ONNX file ({e})") from None


class _Walk:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._fields = 0

    def locations(self, message: str, start: int, end: int, depth: int) -> Iterator[str]:
        if depth > MAX_DEPTH:
            raise _Malformed("nested too deeply")
        if message == "entry":
            yield from self._entry(start, end)
            return
        parts = _PARTS[message]
        for number, first, last in self._fields_of(start, end):
            if number in parts:
                yield from self.locations(parts[number], first, last, depth + 1)

    def _entry(self, start: int, end: int) -> Iterator[str]:
        key, value = self._pair(start, end)
        if key == _LOCATION:
            yield value.decode("utf-8", "backslashreplace")

    def _pair(self, start: int, end: int) -> tuple[bytes, bytes]:
        """A StringStringEntryProto (key = 1, value = 2); of a field that comes twice the last one counts."""
        found = {1: b"", 2: b""}
        for number, first, last in self._fields_of(start, end):
            if number in found:
                found[number] = self._data[first:last]
        return found[1], found[2]

    def weights(self) -> Iterator[ExternalWeight]:
        """Of the model's graph (7) the initializers (5)."""
        for number, first, last in self._fields_of(0, len(self._data)):
            for inner, begin, end in self._fields_of(first, last) if number == 7 else ():
                if inner == 5 and (weight := self._weight(begin, end)) is not None:
                    yield weight

    def _weight(self, start: int, end: int) -> ExternalWeight | None:
        """A TensorProto (dims 1, data_type 2, name 8, external_data 13); None: its data are in it."""
        shape: list[int] = []
        name, kind, external = b"", 0, dict[bytes, bytes]()
        for number, wire, first, last in self._all_fields(start, end):
            if number == 1:  # packed or not
                shape += [first] if wire == 0 else self._varints(first, last)
            elif number == 2 and wire == 0:
                kind = first
            elif number == 8 and wire == 2:
                name = self._data[first:last]
            elif number == 13 and wire == 2:
                external.update([self._pair(first, last)])
        if not external or kind not in _DTYPES:
            return None
        location, offset = external.get(_LOCATION, b"").decode(), int(external.get(b"offset", b"0"))
        dtype = np.dtype(_DTYPES[kind])
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return ExternalWeight(name.decode(), dtype, tuple(shape), location, offset, nbytes)

    def _varints(self, start: int, end: int) -> Iterator[int]:
        while start < end:
            value, start = self._varint(start, end)
            yield value

    def _fields_of(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(number, first byte, past the last) of a message's length-delimited fields; others are passed over."""
        for number, wire, first, last in self._all_fields(start, end):
            if wire == 2:
                yield number, first, last

    def _all_fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(number, wire type, first byte, past the last) of a message's fields; of a varint its value, and
        nothing."""
        at = start
        while at < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise _Malformed("more fields than a classifier has")
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            if wire == 2:
                length, at = self._varint(at, end)
                if length > end - at:
                    raise _Malformed("cut short")
                yield number, 2, at, at + length
                at += length
            elif wire == 0:
                value, at = self._varint(at, end)
                yield number, 0, value, 0
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            else:
                raise _Malformed(f"wire type {wire}")
        if at > end:
            raise _Malformed("cut short")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise _Malformed("cut short")
