"""The map store: a folder of response maps, the contract between `engine` (writes) and `trainer` (reads).

    STORE/
      store.json        schema_version, format, dtype, classes, created, tools, settings (validated when read)
      index.jsonl       one line per finished image: {"id", "fingerprint", "bytes", "turn"} (image_index.py)
      index-*.jsonl     instead, of writers that have a file each: `index-3-of-8.jsonl` is shard 3's of 8
      <id>.npz          one file per image, self-describing (formats/npz.py); '/' in an id makes folders
      <id>.npy          instead, in the formats of other tools (formats/psa.py, formats/irn.py)

`settings` records the run: the recipe as a dictionary, the label source, the bundle's hash, the source of
the images. Every `.npz` repeats its own, because a store may be resumed with other settings; store.json
has those of the latest run.

Writing is safe against kill -9 at any moment: a file gets its final name only when complete, and its
index line is appended (O_APPEND, one write) only after that. So a line vouches for its file; a file
without a line was made in the last instant before a kill and is made again. A torn last line is ignored
and ended by the next writer. The last line of an id counts. Several threads and processes may write to one
store; two that write the same id both write a whole file, and the later one stays.

Appending is atomic among the processes of one host, not among hosts on a network file system: there each writer
has an index of its own (`shard`), and whoever opens the store reads `index.jsonl` and every part; of an id that is
in several the line of the highest turn counts (see image_index.py), so that nothing hangs on the hosts' clocks,
and a store may be written by 8 shards, then 4, then one process, each going on from all before it. store.json is
written only where it would change. A store behind a URI (data/storage.py) has the same files; what is appended here
is there a part for every few hundred images, made one when its writer ends (remote_index.py).

The formats psa and irn are pickles. They are read, by an unpickler that knows plain arrays only, where
the caller names the format, never because a folder says so.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from infercam.engine.common.atomic import TEMP_PREFIX, remove_abandoned
from infercam.engine.common.errors import StoreError
from infercam.engine.common.paths import is_file, regular_bytes
from infercam.engine.common.validation import first_problem
from infercam.engine.data.storage import LocalStorage, Storage, open_storage
from infercam.engine.store.formats.added import added_codec, added_names
from infercam.engine.store.formats.irn import IrnCodec
from infercam.engine.store.formats.npz import NpzCodec
from infercam.engine.store.formats.psa import PsaCodec
from infercam.engine.store.image_index import INDEX, DiskFullError, Entry, ImageIndex, cannot_write, part_name
from infercam.engine.store.record import Codec, Decoded, MapRecord, as_float32

__all__ = ["INDEX", "DiskFullError", "MapRecord", "MapStore", "StoreInfo", "codec_of", "formats"]

SCHEMA_VERSION = 1
INFO = "store.json"
INFO_BYTES = 64 << 20  # far more than any; it is read whole
STALE_SECONDS = 3600.0  # a temporary file older than this has lost its writer

_OWN: dict[str, Codec] = {"npz": NpzCodec(), "psa": PsaCodec(), "irn": IrnCodec()}


def formats() -> tuple[str, ...]:
    """The map formats by name: our own, then what other packages bring (formats/added.py)."""
    return (*_OWN, *(name for name in added_names() if name not in _OWN))


def codec_of(fmt: str) -> Codec:
    """The format's codec. Raises StoreError for an unknown format, or one whose package cannot be loaded."""
    try:
        found = _OWN.get(fmt) or added_codec(fmt)
    except ImportError as e:
        raise StoreError(f"map format {fmt!r} cannot be loaded: {e}") from None
    if found is None:
        raise StoreError(f"unknown map format {fmt!r}; choose one of {', '.join(formats())}")
    return found


class StoreInfo(BaseModel):
    """`store.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    format: str = Field(description="one of formats()")
    dtype: Literal["uint8", "float16", "float32"]
    classes: list[str] = Field(min_length=1, description="names by index; background is not among them")
    created: str = Field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))
    tools: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("format")
    @classmethod
    def _known(cls, fmt: str) -> str:
        if fmt not in formats():
            raise ValueError(f"{fmt!r} is not one of {', '.join(formats())}; another package may bring it")
        return fmt


class MapStore:
    """An open store; made by `create_or_open`, `open` or `open_foreign`. Safe to share among threads."""

    def __init__(self, place: Storage, info: StoreInfo, *, indexed: bool = True, shard: str = "") -> None:
        self.place = place
        self.info = info
        self.shard = shard
        self._codec = codec_of(info.format)
        self._index = _index(place, shard, self._codec.suffix) if indexed else None
        # Of two threads that write one id, the later file must have the later line; others need not wait.
        self._by_id = [threading.Lock() for _ in range(64)]

    @property
    def path(self) -> Path:
        """The store's folder; raises StoreError where it is not on this machine."""
        return self.place.path

    @classmethod
    def create_or_open(
        cls,
        path: str | os.PathLike[str] | Storage,
        *,
        fmt: str = "npz",
        dtype: str = "uint8",
        classes: list[str],
        settings: dict[str, Any],
        shard: str = "",
    ) -> MapStore:
        """Open `path` (or a URI) for writing, making it where it does not exist; sweeps what killed writers left.

        shard: names the index file of its own that this writer has, for example 3-of-8; without: index.jsonl.
        `dtype` is uint8 or float16 for npz; psa and irn are always float32. Opening an existing store
        with other `settings` records the new ones: which images are kept is decided by fingerprints.
        Raises StoreError where the store has another format, dtype or classes, or cannot be written.
        """
        place = open_storage(path)
        wanted = _wanted(place, fmt, dtype, classes, settings)
        try:
            if not place.remote:
                place.path.mkdir(parents=True, exist_ok=True)
            there = read_info(place) if place.size(INFO) is not None else None
            if there is not None:
                wanted = _compatible(place, there, wanted)
            if wanted != there:  # shards do not fight over it
                place.write(INFO, (wanted.model_dump_json(indent=1) + "\n").encode())
            if not place.remote:
                sweep_stale(place.path)
        except OSError as e:
            raise cannot_write(place.where(INFO), e) from None
        return cls(place, wanted, shard=shard)

    @classmethod
    def open(cls, path: str | os.PathLike[str] | Storage, fmt: str | None = None) -> MapStore:
        """Open an existing store, also one behind a URI, for reading (writing works too).

        Where its files are pickles (psa, irn), `fmt` must say so. Raises StoreError where `path` is not a
        store, is of a newer schema, or is of another format than `fmt`.
        """
        root = open_storage(path)
        info = read_info(root)
        if fmt is not None and fmt != info.format:
            raise StoreError(f"{root}: holds {info.format} maps, not {fmt}; name that format")
        if fmt is None and codec_of(info.format).pickled:
            raise StoreError(
                f"{root}: holds pickled {info.format} maps; say --format {info.format} to read them"
            )
        return cls(root, info)

    @classmethod
    def open_foreign(cls, path: str | os.PathLike[str], fmt: str, classes: list[str]) -> MapStore:
        """Open, for reading only, a folder of maps that another tool wrote: no store.json, no index.

        Every file with the format's suffix is an image. Raises StoreError where `path` is no folder.
        """
        root = Path(path)
        if not root.is_dir():
            raise StoreError(f"{root}: no such folder")
        codec = codec_of(fmt)
        info = _validated(root, {"format": fmt, "dtype": codec.dtypes[0], "classes": classes})
        return cls(LocalStorage(root), info, indexed=False)

    def __reduce__(self) -> tuple[Any, ...]:
        indexed = self._index is not None
        return _reopen, (type(self), self.place, self.info, indexed, self.shard)  # a lock has no copy

    def file(self, id: str) -> Path:
        """The file of an image; raises StoreError for an id that would leave the store, or a remote store."""
        return self.path / self.name(id)

    def name(self, id: str) -> str:
        """The file of an image from the store's folder on; raises StoreError for an id that would leave it."""
        parts = id.split("/")
        if any(p in ("", ".", "..") or p.startswith(TEMP_PREFIX) for p in parts) or "\\" in id or "\0" in id:
            raise StoreError(f"{id!r}: cannot name a file of a map store; use plain names joined by '/'")
        return id + self._codec.suffix

    def write(self, record: MapRecord, fingerprint: str) -> int:
        """Store one image, replacing what was there; returns the file's bytes.

        `fingerprint` names the settings that decide the maps (see `done`). Raises StoreError where the
        record does not fit the store or cannot be written (DiskFullError where no space is left); then
        nothing is left under its name but what was there before.
        """
        if self._index is None:
            raise StoreError(f"{self.path}: has no {INFO}; infercam only reads folders of other tools")
        with self._by_id[hash(record.id) % len(self._by_id)]:
            size = self.write_file(record, fingerprint)
            self._index.append(record.id, fingerprint, size)
        return size

    def write_file(self, record: MapRecord, fingerprint: str) -> int:
        """As `write`, but for the index line: that is `record_done`'s, in the process that has the index."""
        name = self.name(record.id)
        self._check_classes(record)
        envelope = {"fingerprint": fingerprint, "settings": self.info.settings}
        data = self._codec.encode(record, self.info.dtype, envelope)
        try:
            self.place.write(name, data)
        except OSError as e:
            raise cannot_write(self.place.where(name), e) from None
        return len(data)

    def record_done(self, id: str, fingerprint: str, size: int) -> None:
        """The index line of a file that another process wrote (`write_file`)."""
        assert self._index is not None
        self._index.append(id, fingerprint, size)

    def close(self) -> None:
        """Write what of the index still waits; a store on this machine has nothing that waits."""
        if self._index is not None:
            self._index.close()

    def done(self, id: str, fingerprint: str) -> bool:
        """Whether the image's file is there, complete, and was made with that fingerprint. One stat."""
        entry = self._index.get(id) if self._index else None
        if entry is None or entry.fingerprint != fingerprint:
            return False
        try:
            # a remote index was held against the folder's listing when it was read
            return self.place.remote or self.place.size(self.name(id)) == entry.bytes
        except StoreError:
            return False

    def fingerprint(self, id: str) -> str:
        """What decides an image's maps, for those who derive something from them; '' where there are none.

        As given to `write`; in a folder of another tool, the file's size and time.
        """
        if self._index is not None:
            entry = self._index.get(id)
            return entry.fingerprint if entry else ""
        try:
            status = self.file(id).stat()
        except OSError:
            return ""
        return f"{status.st_size} {status.st_mtime_ns}"

    def read(self, id: str) -> MapRecord:
        """One image's maps as float32 in [0, 1]; raises StoreError naming the file."""
        found = self.read_stored(id)
        names = found.names or [self.info.classes[c] for c in found.classes]
        return MapRecord(id, found.classes, names, as_float32(found.maps), found.meta, found.settings)

    def read_stored(self, id: str) -> Decoded:
        """As `read`, with the maps as they are stored: uint8 (value / 255), float16 or float32."""
        found = self._decode_remote(id) if self.place.remote else self._codec.decode(self.file(id))
        if any(c >= len(self.info.classes) for c in found.classes):
            file = self.place.where(self.name(id))
            raise StoreError(f"{file}: class {max(found.classes)} is beyond the store's classes")
        return found

    def _decode_remote(self, id: str) -> Decoded:
        name = self.name(id)
        with tempfile.TemporaryDirectory(prefix="infercam-") as folder:
            copy = Path(folder, "map" + self._codec.suffix)
            try:
                copy.write_bytes(self.place.read(name))
                return self._codec.decode(copy)
            except FileNotFoundError:
                raise StoreError(f"{self.place.where(name)}: missing; run again to make it") from None
            except OSError as e:
                raise StoreError(f"{self.place.where(name)}: cannot be read: {e.strerror or e}") from None
            except StoreError as e:
                raise StoreError(str(e).replace(str(copy), self.place.where(name))) from None

    def __contains__(self, id: object) -> bool:
        if not isinstance(id, str):
            return False
        return self.place.size(self.name(id)) is not None if self.place.remote else is_file(self.file(id))

    def ids(self) -> list[str]:
        """The images whose files are there, in the order in which they were finished (sorted if foreign)."""
        if self._index is not None and self._index.exists():
            return [id for id in self._index.ids() if self.place.remote or is_file(self.file(id))]
        suffix = self._codec.suffix
        found = (f.relative_to(self.path).as_posix() for f in self.path.rglob(f"*{suffix}"))
        return sorted(id.removesuffix(suffix) for id in found if not Path(id).name.startswith(TEMP_PREFIX))

    def __len__(self) -> int:
        return len(self.ids())

    def __iter__(self) -> Iterator[MapRecord]:
        return (self.read(id) for id in self.ids())

    def _check_classes(self, record: MapRecord) -> None:
        for index, name in zip(record.classes, record.names, strict=False):
            if not 0 <= index < len(self.info.classes) or self.info.classes[index] != name:
                raise StoreError(f"{record.id}: class {index} ({name!r}) is not one of the store's classes")


def _reopen(cls: type[MapStore], place: Storage, info: StoreInfo, indexed: bool, shard: str) -> MapStore:
    return cls(place, info, indexed=indexed, shard=shard)


class _Index(Protocol):
    """See ImageIndex."""

    def exists(self) -> bool: ...
    def get(self, id: str) -> Entry | None: ...
    def ids(self) -> list[str]: ...
    def append(self, id: str, fingerprint: str, size: int) -> None: ...
    def close(self) -> None: ...


def _index(place: Storage, shard: str, suffix: str) -> _Index:
    if place.remote:
        from infercam.engine.store.remote_index import RemoteIndex

        return RemoteIndex(place, shard, suffix)
    return ImageIndex(place.path / part_name(shard), parts=True)


def read_info(root: Storage) -> StoreInfo:
    """Read and validate `root/store.json`; raises StoreError naming it."""
    file = root.where(INFO)
    try:
        raw = json.loads(root.read(INFO) if root.remote else regular_bytes(Path(file), INFO_BYTES))
    except FileNotFoundError:
        raise StoreError(f"{root}: no {INFO}; not a map store (make one with: infercam run)") from None
    except NotADirectoryError:
        raise StoreError(f"{root}: is a file, not a map store") from None
    except (OSError, ValueError, RecursionError) as e:
        raise StoreError(f"{file}: cannot be read: {e}") from None
    schema = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(schema, int):
        raise StoreError(f"{file}: has no schema_version; not a map store")
    if schema > SCHEMA_VERSION:
        raise StoreError(f"{file}: schema {schema} is newer than this infercam reads; upgrade infercam")
    return _validated(file, raw)


def sweep_stale(root: Path, older_than: float = STALE_SECONDS) -> int:
    """Remove the temporary files in `root` and below that no writer has touched for that many seconds.

    Clocks jump, and a file server has its own: a file whose writer still holds it stays, however old it looks.
    """
    removed, limit = 0, time.time() - older_than
    for folder, _, names in os.walk(root):
        for name in names:
            if not name.startswith(TEMP_PREFIX):
                continue
            file = Path(folder, name)
            try:
                if file.stat().st_mtime < limit:
                    removed += remove_abandoned(file)
            except FileNotFoundError:  # its writer has finished in between
                continue
    return removed


def _wanted(root: Storage, fmt: str, dtype: str, classes: list[str], settings: dict[str, Any]) -> StoreInfo:
    codec = codec_of(fmt)
    if codec.pickled:
        dtype = codec.dtypes[0]
    elif dtype not in codec.dtypes:
        raise StoreError(f"{fmt} maps cannot be stored as {dtype}; choose one of {', '.join(codec.dtypes)}")
    tools = {"infercam": version("infercam"), "numpy": np.__version__, "python": platform.python_version()}
    try:
        settings = json.loads(json.dumps(settings))
    except (TypeError, ValueError) as e:
        raise StoreError(f"{root}: the run's settings are not JSON: {e}") from None
    raw = {"format": fmt, "dtype": dtype, "classes": classes, "tools": tools, "settings": settings}
    return _validated(root, raw)


def _validated(where: object, raw: dict[str, Any]) -> StoreInfo:
    try:
        return StoreInfo.model_validate(raw)
    except ValidationError as e:
        raise StoreError(f"{where}: {first_problem(e, INFO)}") from None


def _compatible(root: Storage, there: StoreInfo, wanted: StoreInfo) -> StoreInfo:
    """What store.json says from now on: when it was created stays, settings and tools are the new run's."""
    advice = "write to another folder, or remove this one"
    for what in ("format", "dtype"):
        old, new = getattr(there, what), getattr(wanted, what)
        if old != new:
            raise StoreError(
                f"{root}: already holds {old} maps, not {new}; {advice} (or use infercam convert)"
            )
    if there.classes != wanted.classes:
        raise StoreError(f"{root}: already holds maps of other classes; {advice}")
    return wanted.model_copy(update={"created": there.created})
