"""The index of a store that cannot be appended to: parts written as whole objects, made one at the end.

A writer keeps its lines for a while and then puts them as `index-WRITER.000001.jsonl`, and so on; when it closes it
puts `index-WRITER.jsonl` (or `index.jsonl`) with all of its lines and removes its parts. What a kill loses are the
lines that still waited: those images are made again. Each shard is one writer; a writer at a time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from infercam.engine.common.errors import StoreError
from infercam.engine.data.storage import Storage
from infercam.engine.store.image_index import (
    Entry,
    LoadedIndex,
    cannot_write,
    index_line,
    merge,
    next_turn,
    parse_lines,
    part_name,
)

PART_LINES = 500
PART_SECONDS = 30.0
_FILES = re.compile(r"index(-[^/]+)?\.jsonl")


class RemoteIndex(LoadedIndex):
    """As image_index.ImageIndex, on any place. Loading it lists the folder once and leaves out the images whose
    files are missing or of another size, so that no image needs a request of its own."""

    def __init__(self, place: Storage, shard: str, suffix: str) -> None:
        super().__init__()
        self._place = place
        self._whole = part_name(shard)
        self._part = re.compile(rf"index-{re.escape(shard or '0')}\.(\d{{6,}})\.jsonl")
        self._part_name = f"index-{shard or '0'}.{{:06d}}.jsonl"
        self._suffix = suffix
        self._parts = 0
        self._waiting: list[str] = []
        self._since = 0.0

    def exists(self) -> bool:
        return True

    def append(self, id: str, fingerprint: str, size: int) -> None:
        with self._lock:
            entries = self._load()
            entry = Entry(self._shared.setdefault(fingerprint, fingerprint), size, self._turn)
            entries.pop(id, None)
            entries[id] = entry
            if not self._waiting:
                self._since = time.monotonic()
            self._waiting.append(index_line(id, entry))
            if len(self._waiting) >= PART_LINES or time.monotonic() - self._since >= PART_SECONDS:
                self._put_part()

    def close(self) -> None:
        """Put what waits, and make this writer's parts one."""
        with self._lock:
            if self._waiting:
                self._put_part()
            if not self._parts:
                return
            own = self._own()
            entries: dict[str, Entry] = {}
            for name in own:
                merge(entries, self._read(name))
            lines = "".join(index_line(id, entry) for id, entry in entries.items())
            self._put(self._whole, lines)
            for name in own:
                if name != self._whole:
                    self._place.remove(name)
            self._parts = 0

    def _own(self) -> list[str]:
        names = [self._part_name.format(n + 1) for n in range(self._parts)]
        return [n for n in [self._whole, *names] if self._place.size(n) is not None]

    def _put_part(self) -> None:
        self._put(self._part_name.format(self._parts + 1), "".join(self._waiting))
        self._parts += 1
        self._waiting.clear()

    def _put(self, name: str, text: str) -> None:
        try:
            self._place.write(name, text.encode())
        except OSError as e:
            raise cannot_write(self._place.where(name), e) from None

    def _read(self, name: str) -> dict[str, Entry]:
        try:
            return parse_lines(self._place.read(name).splitlines(keepends=True), self._shared.setdefault)
        except FileNotFoundError:  # its writer has just made its parts one
            return {}
        except OSError as e:
            raise StoreError(f"{self._place.where(name)}: cannot be read: {e.strerror or e}") from None

    def _load(self) -> dict[str, Entry]:
        if self._entries is None:
            try:
                listing = list(self._place.files())
            except OSError as e:
                raise StoreError(f"{self._place}: cannot be listed: {e.strerror or e}") from None
            found: dict[str, Entry] = {}
            for name, _ in listing:
                if _FILES.fullmatch(name):
                    merge(found, self._read(name))
                if own := self._part.fullmatch(name):  # left by a killed writer: the next part comes after it
                    self._parts = max(self._parts, int(own[1]))
            self._turn = next_turn(found)
            self._entries = dict(self._there(found, listing))
        return self._entries

    def _there(self, found: dict[str, Entry], listing: list[tuple[str, int]]) -> Iterable[tuple[str, Entry]]:
        for name, size in listing:
            id = name.removesuffix(self._suffix)
            if id != name and id in found and found[id].bytes in (size, -1):
                yield id, found[id]
