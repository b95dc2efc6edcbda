"""Reading the pickled `.npy` dictionaries of other tools without running what a pickle may contain.

psa, SEAM, SC-CAM and irn store maps and labels with `np.save(file, {...})`, which pickles the dictionary;
`np.load(..., allow_pickle=True)` would call whatever the file names. This module reads such files with an
unpickler that knows a dozen names (those NumPy and torch write for arrays, scalars and tensors) and puts
an inert stand-in of its own behind each of them: no NumPy or torch code is called with the pickle's
arguments, torch is not needed to read a tensor, and any other name is refused.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from infercam.engine.common.errors import InfercamError, StoreError, shown
from infercam.engine.common.paths import os_reason, regular_bytes

_KINDS = "biufSU"  # plain data only: no objects, records or voids inside the dictionary
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


def load_npy_dict(
    path: str | os.PathLike[str], *, allow_torch: bool = False, error: type[InfercamError] = StoreError
) -> dict[Any, Any]:
    """Read a `.npy` file that holds one pickled dictionary (psa's `cls_labels.npy`, psa or irn maps).

    Keys are str, int or NumPy scalars made plain; values are ndarrays (read-only where they share the
    file's bytes), plain numbers, strings, None, or lists, tuples and dictionaries of these. With
    `allow_torch`, CPU tensors are accepted too and returned as ndarrays; torch is not imported.

    Raises `error` (StoreError, unless told otherwise) with one line that names the file, where it cannot
    be read, is not such a dictionary, or asks for anything beyond plain arrays.
    """
    file = Path(path)
    try:
        raw = regular_bytes(file)
    except OSError as e:
        raise error(f"{shown(file)}: {os_reason(e)}") from None
    try:
        value = _parse(raw, allow_torch)
    except _Refused as e:
        raise error(f"{shown(file)}: refused: {shown(e)}") from None
    except Exception as e:  # a pickle may fail in any way it likes; none of them is our traceback
        raise error(f"{shown(file)}: not a NumPy file holding a dictionary ({shown(e)})") from None
    if not isinstance(value, dict):
        raise error(f"{shown(file)}: holds a {type(value).__name__}, not a dictionary")
    return value


class _Refused(Exception):
    """The pickle asks for something that plain data does not need."""


def _parse(raw: bytes, allow_torch: bool) -> Any:
    stream = io.BytesIO(raw)
    version = np.lib.format.read_magic(stream)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise _Refused(f".npy version {version} is not used for dictionaries")
    shape, _, dtype = read_header(stream)
    if dtype != np.dtype(object):
        raise _Refused(f"it is a plain array of {dtype}, not a pickled dictionary")
    if shape != ():
        raise _Refused(f"it is an array of shape {shape}, not one dictionary")
    body = raw[stream.tell() :]
    _check_memo(body)
    return _Resolver().plain(_Unpickler(io.BytesIO(body), _names(allow_torch)).load())


def _check_memo(body: bytes, pickles: int = 1) -> None:
    """Refuse memo indices beyond the data's length: the unpickler would allocate that many slots."""
    stream = io.BytesIO(body)
    for _ in range(pickles):
        for op, arg, _pos in pickletools.genops(stream):
            if op.name in ("LONG_BINPUT", "PUT") and isinstance(arg, int) and arg > len(body):
                raise _Refused("its memo index is out of proportion to the file")


class _Name:
    """What a permitted global stands for: callable by the pickle, but nothing it could change."""

    __slots__ = ("_call",)
    _call: Callable[..., Any] | None

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        if self._call is None:
            raise _Refused("it calls a class that is only named in plain data")
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _Refused("it tries to change a function")

    def __setstate__(self, state: Any) -> None:
        raise _Refused("it tries to change a function")


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, names: dict[tuple[str, str], _Name]) -> None:
        super().__init__(stream, encoding="latin1")  # Python 2 pickles hold array bytes as str
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[module, name]
        except KeyError:
            raise _Refused(f"it asks for {module}.{name}, which plain arrays do not need") from None


class _Dtype:
    """Stand-in for a pickled dtype; its state is only the byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not code[:1].isalpha() or not (code[1:] or "0").isdigit():
            raise _Refused(f"it holds data of type {code!r}")
        self.dtype = np.dtype(code)
        if self.dtype.kind not in _KINDS + "O":
            raise _Refused(f"it holds data of type {code!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subarray, names, fields = state[:5]
        if (subarray, names, fields) != (None, None, None) or order not in ("<", ">", "=", "|"):
            raise _Refused("it holds structured data")
        self.dtype = self.dtype.newbyteorder(order)

    def read(self, raw: Any, count: int) -> np.ndarray:
        if isinstance(raw, str):
            raw = raw.encode("latin1")
        if not isinstance(raw, bytes | bytearray) or self.dtype.kind not in _KINDS:
            raise _Refused(f"an array of {self.dtype} has no plain bytes")
        if len(raw) != count * self.dtype.itemsize:
            raise _Refused("an array's bytes do not match its shape")
        return np.frombuffer(raw, self.dtype, count)


class _Array:
    """Stand-in for `_reconstruct(ndarray, (0,), b'b')`, filled by its state."""

    __slots__ = ("value",)

    def __init__(self, *_: Any) -> None:
        self.value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype):
            raise _Refused("an array has no dtype")
        if dtype.dtype.kind == "O":  # only the outer array of np.save(file, {...}): one object, no shape
            if shape != () or not isinstance(raw, list) or len(raw) != 1:
                raise _Refused("it holds an array of objects")
            self.value = raw[0]
            return
        shape = _sizes(shape)
        self.value = dtype.read(raw, math.prod(shape)).reshape(shape, order="F" if fortran else "C")


def _sizes(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise _Refused(f"impossible shape {shape!r}")
    return shape


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Protocol 5's `numpy._core.numeric._frombuffer`."""
    if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise _Refused("an array has no dtype")
    return dtype.read(raw, math.prod(_sizes(shape))).reshape(shape, order=order)


def _scalar(dtype: Any, raw: Any) -> Any:
    if not isinstance(dtype, _Dtype):
        raise _Refused("a number has no dtype")
    return dtype.read(raw, 1)[0].item()


def _encode(text: Any, codec: Any) -> bytes:
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise _Refused(f"it encodes text as {codec!r}")
    return text.encode("latin1")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """`torch._utils._rebuild_tensor_v2` onto an ndarray: a copy of the strided view, bounds checked."""
    size, stride = _sizes(size), _sizes(stride)
    if not isinstance(storage, np.ndarray) or type(offset) is not int or offset < 0:
        raise _Refused("a tensor has no storage")
    if len(size) != len(stride):
        raise _Refused("a tensor's sizes and strides differ in number")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else 0
    # An expanded view (stride 0) could be any size: refuse more elements than the storage holds.
    if (count and last >= storage.size) or count > storage.size:
        raise _Refused("a tensor reaches beyond its storage")
    strides = [s * storage.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


class _StorageUnpickler(_Unpickler):
    """One pickle of torch's legacy stream, whose storage is named by a persistent id."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, {("torch", name): _Name() for name in _STORAGES})
        self.kinds = {id(value): key[1] for key, value in self._names.items()}

    def persistent_load(self, pid: Any) -> tuple[np.dtype, int]:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and type(pid[4]) is int):
            raise _Refused("its tensor storage is not one that torch.save writes")
        return np.dtype(_STORAGES[self.kinds[id(pid[1])]]), pid[4]


def _storage(raw: Any) -> np.ndarray:
    """`torch.storage._load_from_bytes`: magic, protocol, system, storage, keys, then count and elements."""
    if not isinstance(raw, bytes):
        raise _Refused("a tensor has no bytes")
    _check_memo(raw, pickles=5)
    stream = io.BytesIO(raw)
    magic, _, system, described, _ = (_StorageUnpickler(stream).load() for _ in range(5))
    if magic != _TORCH_MAGIC or not isinstance(system, dict) or not system.get("little_endian"):
        raise _Refused("its tensor storage is not one that torch.save writes on a little-endian machine")
    dtype, count = described
    if int.from_bytes(stream.read(8), "little") != count or len(raw) - stream.tell() < count * dtype.itemsize:
        raise _Refused("a tensor's storage is cut short")
    return np.frombuffer(raw, dtype, count, stream.tell())


def _names(allow_torch: bool) -> dict[tuple[str, str], _Name]:
    """The permitted globals; NumPy 2 renamed `numpy.core` to `numpy._core`."""
    found: dict[tuple[str, str], Callable[..., Any] | None] = {
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
    }
    for core in ("numpy.core", "numpy._core"):
        found[f"{core}.multiarray", "_reconstruct"] = _Array
        found[f"{core}.multiarray", "scalar"] = _scalar
        found[f"{core}.numeric", "_frombuffer"] = _from_buffer
    if allow_torch:
        found["torch._utils", "_rebuild_tensor_v2"] = _tensor
        found["torch.storage", "_load_from_bytes"] = _storage
        found["collections", "OrderedDict"] = lambda: {}  # a tensor's (empty) backward hooks
    return {key: _Name(call) for key, call in found.items()}


class _Resolver:
    """Replaces the stand-ins by ndarrays; each container once, so that shared ones cannot multiply."""

    MAX_DEPTH = 6

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}

    def plain(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, _Array):
            return self.plain(value.value, depth + 1)
        if value is None or isinstance(value, str | bytes | int | float | np.ndarray):
            return value
        if depth > self.MAX_DEPTH:
            raise _Refused("it is nested too deeply")
        if isinstance(value, dict | list | tuple):
            if id(value) not in self._seen:
                self._seen[id(value)] = self._container(value, depth + 1)
            return self._seen[id(value)]
        raise _Refused(f"it holds a {type(value).__name__}")

    def _container(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return {self._key(key): self.plain(item, depth) for key, item in value.items()}
        return type(value)(self.plain(item, depth) for item in value)

    @staticmethod
    def _key(key: Any) -> str | int:
        if not isinstance(key, str | int):
            raise _Refused(f"it has a key of type {type(key).__name__}")
        return key
