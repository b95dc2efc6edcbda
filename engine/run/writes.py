"""Results on their way to the store: written by threads behind a bounded queue, or each in its turn."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from infercam.engine.api import Result

WRITES_WAITING = 8


class WritesInTurn:
    """Each result is written before the next one is asked for."""

    def __init__(self, write: Callable[[Result], None]) -> None:
        self.put = write

    def close(self) -> None:
        """Nothing waits."""


class Writes:
    """Writer threads behind a bounded queue; their first error is raised by the next `put`, or by `close`."""

    def __init__(self, write: Callable[[Result], None], threads: int = 1) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="infercam-write")
        self._room = threading.Semaphore(WRITES_WAITING + threads - 1)
        self._error: BaseException | None = None

    def put(self, result: Result) -> None:
        self._room.acquire()
        if self._error is not None:
            raise self._error
        self._pool.submit(self._write, result).add_done_callback(self._ended)

    def _ended(self, future: Future[None]) -> None:
        self._error = self._error or future.exception()
        self._room.release()

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        if self._error is not None:
            raise self._error
