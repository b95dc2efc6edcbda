"""Which images of an output folder are finished, and with what settings: `index.jsonl`, and refused writes."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

from .errors import StoreError


class DiskFullError(StoreError):
    """No space is left: the rest of a run would fail as well."""


class ImageIndex:
    """`index.jsonl` in memory: id -> (fingerprint, bytes), fingerprints shared; loaded when first asked."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._entries: dict[str, tuple[str, int]] | None = None
        self._shared: dict[str, str] = {}
        self._torn: bool | None = None  # unknown until the first append

    def exists(self) -> bool:
        return self._file.exists()

    def get(self, id: str) -> tuple[str, int] | None:
        with self._lock:
            return self._load().get(id)

    def ids(self) -> list[str]:
        with self._lock:
            return list(self._load())

    def append(self, id: str, fingerprint: str, size: int) -> None:
        line = json.dumps({"id": id, "fingerprint": fingerprint, "bytes": size}, separators=(",", ":")) + "\n"
        with self._lock:
            torn = self._ends_torn() if self._torn is None else self._torn
            data = (("\n" if torn else "") + line).encode()
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
                self._put(self._entries, id, fingerprint, size)

    def _ends_torn(self) -> bool:
        try:
            with self._file.open("rb") as f:
                f.seek(-1, os.SEEK_END)
                return f.read(1) != b"\n"
        except OSError:  # missing or empty
            return False

    def _put(self, entries: dict[str, tuple[str, int]], id: str, fingerprint: str, size: int) -> None:
        entries.pop(id, None)  # the latest is last
        entries[id] = (self._shared.setdefault(fingerprint, fingerprint), size)

    def _load(self) -> dict[str, tuple[str, int]]:
        if self._entries is None:
            entries: dict[str, tuple[str, int]] = {}
            try:
                with self._file.open("rb") as f:
                    for line in f:
                        self._parse(entries, line)
            except FileNotFoundError:
                pass
            except OSError as e:
                raise StoreError(f"{self._file}: cannot be read: {e.strerror or e}") from None
            self._entries = entries
        return self._entries

    def _parse(self, entries: dict[str, tuple[str, int]], line: bytes) -> None:
        if not line.endswith(b"\n"):
            return  # torn, or being written right now
        try:
            entry = json.loads(line)
            self._put(entries, str(entry["id"]), str(entry["fingerprint"]), int(entry["bytes"]))
        except (ValueError, KeyError, TypeError):
            return  # a fragment that a later writer ended; its image is made again


def cannot_write(file: Path, e: OSError) -> StoreError:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"{file}: disk full; free some space and run again to go on from here")
    return StoreError(f"{file}: cannot be written: {e.strerror or e}")
