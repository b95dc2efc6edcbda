"""What a process has begun and not ended. Only one that was killed leaves the list behind: whoever does the same work
next does what is on it one at a time, in a process that may die (child.py).

    ["begun", key]  ["ended", key]  ["killer", key]    one JSON a line, appended

A killer is what ended its process although it was alone: it stays listed, and is never done among others.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path

_LONGEST = 1 << 20  # bytes; a list of a server is begun anew then, as soon as nothing is in flight


class InFlight:
    """The list of one process, in `file`. Safe to share among threads: each line is one write.

    It is a help and no more: where the file cannot be made or written, nothing is noted.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.suspects, self._killers = _read(file)
        """Keys that were in flight when an earlier process was killed, killers among them."""
        self._open: set[str] = set()
        self._lock = threading.Lock()
        self._descriptor, self._written = -1, 0
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            self._written = file.stat().st_size

    def begin(self, key: str) -> None:
        with self._lock:
            self._open.add(key)
            self._note("begun", key)

    def end(self, key: str) -> None:
        with self._lock:
            self._open.discard(key)
            self._killers.discard(key)
            self.suspects.discard(key)
            self._note("ended", key)
            if not self._open and self._written > _LONGEST:
                self._begin_anew()

    def killed(self, key: str) -> None:
        """It was alone and ended its process."""
        with self._lock:
            self._open.discard(key)
            self._killers.add(key)
            self.suspects.add(key)
            self._note("killer", key)

    def close(self) -> None:
        """The process ends by itself: nothing is in flight. Killers are kept for the next one."""
        with self._lock, contextlib.suppress(OSError):  # a list too many costs time, nothing else
            if self._killers:
                self._begin_anew()
            else:
                self.file.unlink(missing_ok=True)
            os.close(self._descriptor)

    def _begin_anew(self) -> None:
        os.ftruncate(self._descriptor, 0)
        self._written = 0
        for key in sorted(self._killers):
            self._note("killer", key)

    def _note(self, what: str, key: str) -> None:
        with contextlib.suppress(OSError):  # a full disk, say: whoever writes the results tells
            self._written += os.write(self._descriptor, (json.dumps([what, key]) + "\n").encode())


def _read(file: Path) -> tuple[set[str], set[str]]:
    """Keys that were begun and not ended, or are killers; and the killers."""
    begun: set[str] = set()
    killers: set[str] = set()
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return begun, killers
    for line in lines:
        try:
            what, key = json.loads(line)
        except (ValueError, TypeError):
            continue  # torn
        (begun.discard if what == "ended" else begun.add)(str(key))
        (killers.add if what == "killer" else killers.discard)(str(key))
    return begun, killers
