"""Which images of an output folder are finished, and with what settings: `index.jsonl`, its parts, refused writes.

One line a finished image: {"id", "fingerprint", "bytes", "turn"}. In a file the last whole line of an id counts;
a torn line is ignored. Several writers that may not append to one file (hosts on a network file system, an object
store) have a file each, `index-*.jsonl`; which line of an id counts is then decided by `turn`, not by clocks: a
writer that opens the folder takes a number above every one that it finds, so that what was made knowing of an
older line outdoes it. Two lines of one turn that disagree (two runs with other settings at once) vouch for
nothing: the image is made again. Lines of before there were parts have turn 0.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from infercam.engine.common.errors import StoreError

INDEX = "index.jsonl"
PARTS = "index-*.jsonl"


class DiskFullError(StoreError):
    """No space is left: the rest of a run would fail as well."""


class Entry(NamedTuple):
    """What a line says of an image's file."""

    fingerprint: str
    bytes: int
    turn: int


def part_name(tag: str) -> str:
    """The index file of a writer that has one of its own."""
    return f"index-{tag}.jsonl" if tag else INDEX


def parse_lines(lines: Iterable[bytes], share: Callable[[str, str], str]) -> dict[str, Entry]:
    """The entries of one file, the latest last; `share` gives one object for equal fingerprints."""
    entries: dict[str, Entry] = {}
    for line in lines:
        if not line.endswith(b"\n"):
            continue  # torn, or being written right now
        try:
            found = json.loads(line)
            fingerprint = str(found["fingerprint"])
            entry = Entry(share(fingerprint, fingerprint), int(found["bytes"]), int(found.get("turn", 0)))
            id = str(found["id"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue  # a fragment that a later writer ended; its image is made again
        entries.pop(id, None)
        entries[id] = entry
    return entries


def merge(entries: dict[str, Entry], part: dict[str, Entry]) -> None:
    """Take a part into `entries`; the outcome is the same in whatever order the parts come."""
    for id, entry in part.items():
        there = entries.get(id)
        if there is None or entry.turn > there.turn:
            entries.pop(id, None)
            entries[id] = entry
        elif entry.turn == there.turn and entry != there:
            entries[id] = Entry("", -1, entry.turn)  # no file has that size: not done


def index_line(id: str, entry: Entry) -> str:
    line = {"id": id, **entry._asdict()}
    if not entry.turn:
        del line["turn"]
    return json.dumps(line, separators=(",", ":")) + "\n"


def next_turn(entries: dict[str, Entry]) -> int:
    return 1 + max((e.turn for e in entries.values()), default=0)


class LoadedIndex(ABC):
    """An index in memory: id -> Entry, fingerprints shared; loaded when first asked. Safe to share among threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] | None = None
        self._shared: dict[str, str] = {}
        self._turn = 0

    def get(self, id: str) -> Entry | None:
        with self._lock:
            return self._load().get(id)

    def ids(self) -> list[str]:
        with self._lock:
            return list(self._load())

    @abstractmethod
    def _load(self) -> dict[str, Entry]:
        """The entries, read when first asked for; the lock is held."""


class ImageIndex(LoadedIndex):
    """The index of a folder of this machine.

    file: where this writer appends. parts: whether the folder's other index files count too.
    """

    def __init__(self, file: Path, parts: bool = False) -> None:
        super().__init__()
        self._file = file
        self._parts = parts
        self._torn: bool | None = None  # unknown until the first append

    def exists(self) -> bool:
        return any(file.exists() for file in self._files())

    def append(self, id: str, fingerprint: str, size: int) -> None:
        with self._lock:
            if self._parts:
                self._load()  # for the turn
            entry = Entry(self._shared.setdefault(fingerprint, fingerprint), size, self._turn)
            torn = self._ends_torn() if self._torn is None else self._torn
            data = (("\n" if torn else "") + index_line(id, entry)).encode()
            self._torn = True  # until the whole line is known to be there
            try:
                fd = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                try:
                    if os.write(fd, data) < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                finally:
                    os.close(fd)
            except OSError as e:
                raise cannot_write(self._file, e) from None
            self._torn = False
            if self._entries is not None:
                self._entries.pop(id, None)  # the latest is last
                self._entries[id] = entry

    def close(self) -> None:
        """Nothing waits to be written: every `append` is there at once."""

    def _files(self) -> list[Path]:
        folder = self._file.parent
        return [folder / INDEX, *sorted(folder.glob(PARTS))] if self._parts else [self._file]

    def _ends_torn(self) -> bool:
        try:
            with self._file.open("rb") as f:
                f.seek(-1, os.SEEK_END)
                return f.read(1) != b"\n"
        except OSError:  # missing or empty
            return False

    def _load(self) -> dict[str, Entry]:
        if self._entries is None:
            entries: dict[str, Entry] = {}
            for file in self._files():
                if file.exists() and not file.is_file():  # a pipe would wait for ever
                    raise StoreError(f"{file}: is not a regular file")
                try:
                    with file.open("rb") as f:
                        part = parse_lines(f, self._shared.setdefault)
                except FileNotFoundError:
                    continue
                except OSError as e:
                    raise StoreError(f"{file}: cannot be read: {e.strerror or e}") from None
                if entries:
                    merge(entries, part)
                else:
                    entries = part
            self._turn = next_turn(entries) if self._parts else 0
            self._entries = entries
        return self._entries


def cannot_write(file: Path | str, e: OSError) -> StoreError:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"{file}: disk full; free some space and run again to go on from here")
    return StoreError(f"{file}: cannot be written: {e.strerror or e}")
