"""Our own format: a compressed NumPy archive with two members and no pickle.

    meta.json    UTF-8 JSON: schema_version, id, classes, names, dtype, shape, fingerprint, settings, meta
    delta.npy    (K, H, W) uint8, or uint16 (the bits of float16): every pixel minus its prediction

The prediction is left + above - above-left, modulo 256 (or 65536): CAMs are bilinearly upsampled, so what
remains is mostly -1, 0 and 1 and deflates to about 60 % of what the plain values do, faster. Two cumulative
sums undo it. Any program that has NumPy reads a file so:

    f = np.load("2007_000063.npz")
    meta = json.loads(f["meta.json"])
    d = f["delta"]
    q = d.cumsum(1, dtype=d.dtype).cumsum(2, dtype=d.dtype)
    maps = q / np.float32(255) if meta["dtype"] == "uint8" else q.view(np.float16)

uint8 is rounded to the nearest 1/255, except that what is above 0 stays above 0 (at 1/255), so that the
support of a map, and the share of object pixels with any activation, are exact.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from infercam.engine.common.errors import StoreError
from infercam.engine.common.paths import regular_bytes
from infercam.engine.store.record import Codec, Decoded, MapRecord, checked_maps

SCHEMA_VERSION = 1
_LEVEL = 4  # measured on VOC maps: 28 KB in 3 ms; level 1 36 KB in 1.5 ms, level 6 25 KB in 10 ms
_META, _DELTA = "meta.json", "delta.npy"
_STORED = {"uint8": np.uint8, "float16": np.uint16}
_HEADER_BYTES = 4096  # of an .npy file
META_BYTES = 64 << 20
MAP_BYTES = 2 << 30
"""Most that one file's metadata and maps may unpack to: a small file that unpacks to more is no map."""


class NpzCodec(Codec):
    suffix = ".npz"
    dtypes = ("uint8", "float16")
    pickled = False

    def encode(self, record: MapRecord, dtype: str, envelope: dict[str, Any]) -> bytes:
        maps = checked_maps(record)
        meta = {
            "schema_version": SCHEMA_VERSION,
            "id": record.id,
            "classes": [int(c) for c in record.classes],
            "names": list(record.names),
            "dtype": dtype,
            "shape": list(maps.shape),
            **envelope,
            "meta": record.meta,
        }
        try:
            text = json.dumps(meta, ensure_ascii=False, separators=(",", ":"))
        except (TypeError, ValueError) as e:
            raise StoreError(f"{record.id}: its metadata is not JSON: {e}") from None
        array = io.BytesIO()
        np.lib.format.write_array(array, _filter(quantise(maps, dtype)), allow_pickle=False)
        return _zip({_META: text.encode(), _DELTA: array.getvalue()})

    def decode(self, file: Path) -> Decoded:
        try:
            with zipfile.ZipFile(io.BytesIO(regular_bytes(file, MAP_BYTES))) as archive:
                meta = json.loads(_member(archive, _META, META_BYTES))
                version = meta["schema_version"]
                if version > SCHEMA_VERSION:
                    raise StoreError(
                        f"{file}: schema {version} is newer than this infercam; upgrade infercam"
                    )
                maps = _maps(archive, meta)
            return Decoded(
                classes=_classes(meta["classes"], len(maps)),
                names=[str(n) for n in meta["names"]],
                maps=maps,
                meta=dict(meta["meta"]),
                settings=dict(meta.get("settings", {})),
            )
        except FileNotFoundError:
            raise StoreError(f"{file}: missing; run again to make it") from None
        except OSError as e:
            raise StoreError(f"{file}: cannot be read: {e.strerror or e}") from None
        except StoreError:
            raise
        except Exception as e:  # zip, zlib, JSON and NumPy's header each fail in their own ways
            raise _corrupt(file, e) from None


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """One member, whole; ValueError where it says that it is larger than `limit`, or is packed in another way."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed by method {info.compress_type}")
    if info.file_size > limit:
        raise ValueError(f"{name} unpacks to {info.file_size} bytes, more than fits its shape")
    with archive.open(info) as f:
        return f.read(limit)  # the reader gives no more than the member's own size, and checks its sum


def _maps(archive: zipfile.ZipFile, meta: dict[str, Any]) -> np.ndarray:
    """The stored maps, K×H×W; what unpacks to more than the shape in the metadata is not unpacked."""
    stored = _STORED[meta["dtype"]]
    size = np.dtype(stored).itemsize * math.prod(_shape(meta["shape"]))
    if size > MAP_BYTES:
        raise ValueError(f"maps of {size} bytes are over the limit of {MAP_BYTES}")
    raw = io.BytesIO(_member(archive, _DELTA, size + _HEADER_BYTES))
    delta = np.lib.format.read_array(raw, allow_pickle=False)
    if list(delta.shape) != meta["shape"] or delta.dtype != stored:
        raise ValueError("its array does not fit its metadata")
    maps = _unfilter(delta)
    if meta["dtype"] == "uint8":
        return maps
    maps = maps.view(np.float16)
    if not ((maps >= 0) & (maps <= 1)).all():
        raise ValueError("its maps leave 0..1")
    return maps


def _shape(shape: Any) -> list[int]:
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"impossible shape {str(shape)[:40]}")
    return shape


def _classes(classes: Any, count: int) -> list[int]:
    if not all(type(c) is int and c >= 0 for c in classes) or len({*classes}) != len(classes):
        raise ValueError("its classes are not indices, each once")
    if len(classes) != count:
        raise ValueError("its array does not fit its metadata")
    return list(classes)


def _corrupt(file: Path, reason: BaseException) -> StoreError:
    return StoreError(f"{file}: corrupt ({reason or type(reason).__name__}); delete it and run again")


def quantise(maps: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 maps in [0, 1] to uint8 or float16.

    The error is at most 1/510 for uint8, but for values below 1/510, which become 1/255 unless they are 0;
    2^-12 for float16.
    """
    if dtype == "float16":
        half = maps.astype(np.float16)
        # float16 ends at 6e-8: what is above 0 stays above 0 here too
        return np.where((half == 0) & (maps > 0), np.float16(6e-8), half)
    if dtype == "uint8":
        levels = np.rint(maps * np.float32(255)).astype(np.uint8)
        np.maximum(levels, maps > 0, out=levels)
        return levels
    raise StoreError(f"maps cannot be stored as {dtype}; choose uint8 or float16")


def _filter(stored: np.ndarray) -> np.ndarray:
    """Planar prediction, modulo the integer's range; its own inverse is two cumulative sums."""
    bits = stored.view(np.uint16) if stored.dtype == np.float16 else stored
    delta = bits.copy()
    delta[:, :, 1:] -= bits[:, :, :-1]
    rows = delta.copy()
    delta[:, 1:] -= rows[:, :-1]
    return delta


def _unfilter(delta: np.ndarray) -> np.ndarray:
    bits = np.cumsum(delta, axis=1, dtype=delta.dtype)
    np.cumsum(bits, axis=2, dtype=delta.dtype, out=bits)
    return bits


def _zip(members: dict[str, bytes]) -> bytes:
    """A zip archive without time stamps: equal contents give equal bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, _LEVEL)
    return out.getvalue()
