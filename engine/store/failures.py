"""`failures.jsonl`: the images of a run that could not be done, and why; the rest of the run went on.

One line a failed image: {"id", "reason"}, of the latest run; absent if none failed. Shards have a file each,
`failures-3-of-8.jsonl`; a run removes those that were written under another division, for it tries their images
again.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time

from infercam.engine.common.errors import InputError, StoreError, shown
from infercam.engine.data.storage import Storage, open_storage
from infercam.engine.store.failure_groups import FailureGroups
from infercam.engine.store.image_index import cannot_write

FAILURES = "failures.jsonl"
_FILES = re.compile(r"failures(-\d+-of-\d+)?\.jsonl")
_PUT_SECONDS = 10.0  # a remote file is written whole: not for every line


def failures_name(shard: str = "") -> str:
    """The file's name, for a shard's tag (3-of-8)."""
    return f"failures-{shard}.jsonl" if shard else FAILURES


class Failures:
    """The list of failed images in `folder` (or behind a URI), begun anew."""

    def __init__(self, folder: str | os.PathLike[str] | Storage, shard: str = "") -> None:
        self._place = open_storage(folder)
        self._name = failures_name(shard)
        self.file = self._place.where(self._name)
        self.groups = FailureGroups()
        """The reasons so far, counted."""
        self._lock = threading.Lock()
        self._lines: list[str] = []  # of a remote file
        self._put_at = -_PUT_SECONDS
        siblings = shard.partition("-")[2]
        try:
            for name, _ in self._place.files("failures"):
                stale = name == self._name or not (siblings and name.endswith(f"-{siblings}.jsonl"))
                if stale and _FILES.fullmatch(name):
                    self._place.remove(name)
        except OSError as e:
            raise StoreError(f"{self.file}: cannot be removed: {e.strerror}") from None

    def add(self, name: str, error: Exception) -> None:
        """List an image; raises StoreError where the list cannot be written."""
        reason = one_line(error)
        line = json.dumps({"id": shown(name), "reason": reason}, ensure_ascii=False) + "\n"
        with self._lock:
            self.groups.add(name, reason)
            try:
                if self._place.remote:
                    self._lines.append(line)
                    if time.monotonic() - self._put_at >= _PUT_SECONDS:
                        self._put()
                else:
                    with (self._place.path / self._name).open("a", encoding="utf-8") as f:
                        f.write(line)
            except OSError as e:
                raise cannot_write(self.file, e) from None

    def close(self) -> None:
        """Write what waits; nothing does on this machine."""
        with self._lock:
            if self._lines:
                try:
                    self._put()
                except OSError as e:
                    raise cannot_write(self.file, e) from None

    def _put(self) -> None:
        self._place.write(self._name, "".join(self._lines).encode())
        self._put_at = time.monotonic()


def read_failures(folder: str | os.PathLike[str] | Storage) -> dict[str, str]:
    """id -> reason, of the latest run and all of its shards; raises StoreError where a list cannot be read."""
    place = open_storage(folder)
    found: dict[str, str] = {}
    try:
        for name, _ in sorted(place.files("failures")):
            if _FILES.fullmatch(name):
                for line in place.read(name).decode(errors="replace").splitlines():
                    try:
                        row = json.loads(line)
                        found[str(row["id"])] = str(row["reason"])
                    except (ValueError, KeyError, TypeError):
                        continue  # torn
    except OSError as e:
        raise StoreError(f"{place}: its failures cannot be read: {e.strerror or e}") from None
    return found


def one_line(error: BaseException) -> str:
    """An error as one line; an unexpected kind is named."""
    text = shown(" ".join(str(error).split())) or type(error).__name__
    return text if isinstance(error, InputError | StoreError) else f"{type(error).__name__}: {text}"
