"""Which images a run has begun and not ended. Only a process that was killed leaves the list behind: the next run of
the same command does what is on it one at a time, in a process that may die (isolated.py).

    OUT/in-flight.txt    (of a shard: in-flight-3-of-8.txt; of a remote store: below the cache folder)
    ["begun", id]  ["ended", id]  ["killer", id]    one JSON a line, appended

A killer is an image whose process died although it was alone: it stays listed, and is never done among others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from infercam.engine.common.cache import cache_folder
from infercam.engine.data.storage import Storage
from infercam.engine.store.image_index import cannot_write


class InFlight:
    """The list of one run. Safe to share among threads: each line is one write."""

    def __init__(self, store: Storage, shard: str = "") -> None:
        self._file = _file(store, shard)
        self.suspects, self._killers = _read(self._file)
        """Ids that were in flight when an earlier run was killed, killers among them."""
        self._killers.intersection_update(self.suspects)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as e:
            raise cannot_write(str(self._file), e) from None

    def begin(self, id: str) -> None:
        self._note("begun", id)

    def end(self, id: str) -> None:
        self._killers.discard(id)
        self._note("ended", id)

    def killed(self, id: str) -> None:
        """It was alone and ended its process."""
        self._killers.add(id)
        self._note("killer", id)

    def close(self) -> None:
        """The run has ended by itself: nothing is in flight. Killers are kept for the next one."""
        os.close(self._descriptor)
        with contextlib.suppress(OSError):  # a list too many makes the next run slower, nothing else
            if self._killers:
                lines = "".join(json.dumps(["killer", id]) + "\n" for id in sorted(self._killers))
                self._file.write_text(lines)
            else:
                self._file.unlink()

    def _note(self, what: str, id: str) -> None:
        with contextlib.suppress(OSError):  # a full disk: the maps' own writer says so
            os.write(self._descriptor, (json.dumps([what, id]) + "\n").encode())


def _file(store: Storage, shard: str) -> Path:
    name = f"in-flight-{shard}.txt" if shard else "in-flight.txt"
    if not store.remote:
        return store.path / name
    key = hashlib.sha256(f"{store} {shard}".encode()).hexdigest()[:32]
    return cache_folder("in-flight") / f"{key}.txt"


def _read(file: Path) -> tuple[set[str], set[str]]:
    """Ids that were begun and not ended, or are killers; and the killers."""
    begun: set[str] = set()
    killers: set[str] = set()
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return begun, killers
    for line in lines:
        try:
            what, id = json.loads(line)
        except (ValueError, TypeError):
            continue  # torn
        (begun.discard if what == "ended" else begun.add)(str(id))
        (killers.add if what == "killer" else killers.discard)(str(id))
    return begun, killers
