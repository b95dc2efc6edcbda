"""ONNX graphs that keep a weight where they should not, written in protobuf's wire format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

EXTERNAL = 1  # TensorProto.DataLocation


def hostile_graphs(good: bytes, secret: Path) -> Iterator[tuple[str, bytes]]:
    """(what it does, the file): the good graph with one more weight, which lies outside.

    secret: a file outside the graph's folder, in the folder above it. In protobuf a message that comes twice is
    merged, so what is appended becomes part of the good graph.
    """
    link = secret.parent / "linked.bin"
    if not link.exists():
        link.symlink_to(secret)
    places = {
        "a path up": f"../{secret.name}",
        "an absolute path": str(secret),
        "a path down and up": f"sub/../../{secret.name}",
        "a file that is not listed": "beside.bin",
        "another system's path": f"..\\{secret.name}",
        "no path": "",
        "ONNX Runtime's own tag for memory": "*/_ORT_MEM_ADDR_/*",
        "a device": "/dev/zero",
        "a path relative to the process": os.path.relpath(secret),
    }
    for what, location in places.items():
        yield f"with a weight at {what}", good + _model(_tensor(location))
    up = places["a path up"]
    for where, wrap in _WRAPPERS.items():
        yield f"with a weight outside, in {where}", good + wrap(_tensor(up))
    yield "with a weight outside, marked late", good + _model(_tensor(up, marked=False)) + _model(_mark())
    yield "of a nesting without end", good + _nested(20_000) + b"location"
    yield "with a key named twice", good + _model(_tensor(up, twice=True))
    yield "that is cut in the weight's path", (good + _model(_tensor(up)))[:-4]


# -- the wire format: field numbers of onnx.proto ------------------------------------------------------------


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _tensor(location: str, marked: bool = True, twice: bool = False) -> bytes:
    """A TensorProto of 4 floats: dims 1, data_type 2, name 8, external_data 13, data_location 14."""
    entries = [(b"location", location.encode()), (b"offset", b"0"), (b"length", b"16")]
    head = _varint(1 << 3) + b"\4" + _varint(2 << 3) + b"\1" + _field(8, b"outside")
    data = b""
    for key, value in entries:
        first = _field(1, b"harmless") if twice else b""
        data += _field(13, first + _field(1, key) + _field(2, value))
    return head + data + (_mark() if marked else b"")


def _mark() -> bytes:
    return _varint(14 << 3) + bytes([EXTERNAL])


def _model(tensor: bytes) -> bytes:
    return _field(7, _field(5, tensor))  # graph.initializer


def _attribute(number: int, content: bytes) -> bytes:
    """A model with a Constant node whose attribute has that field."""
    node = _field(2, b"outside_out") + _field(4, b"Constant")
    return _field(7, _field(1, node + _field(5, _field(1, b"value") + _field(number, content))))


def _nested(depth: int) -> bytes:
    """Graphs in attributes of nodes of graphs."""
    content = b""
    for _ in range(min(depth, 300)):
        content = _field(1, _field(5, _field(6, content)))
    return _field(7, content)


_WRAPPERS: dict[str, Callable[[bytes], bytes]] = {
    "a constant": lambda t: _attribute(5, t),
    "a list of constants": lambda t: _attribute(10, t),
    "a subgraph": lambda t: _attribute(6, _field(5, t)),
    "a list of subgraphs": lambda t: _attribute(11, _field(5, t)),
    "a sparse weight": lambda t: _field(7, _field(15, _field(1, t))),
    "a sparse constant": lambda t: _attribute(22, _field(1, t)),
    "a function": lambda t: _field(25, _field(7, _field(5, _field(5, t)))),
    "training": lambda t: _field(20, _field(1, _field(5, t))),
}
