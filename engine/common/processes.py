"""Work spread over spawned processes, results in order, only a few pieces under way at any time."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from infercam.engine.common.cores import available_cores
from infercam.engine.common.errors import StoreError

T = TypeVar("T")
R = TypeVar("R")

_MOST = 16


def chosen_workers(asked: int | None, items: int, inline: int) -> int:
    """How many processes: `asked`, or one a core; one for fewer than `inline` items, done before others start."""
    if asked is not None:
        return max(asked, 1)
    return 1 if items < inline else min(available_cores(), _MOST)


def map_in_processes(task: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`map(task, items)` in `workers` processes (1: in this one); `task` is sent along with every item.

    Raises what `task` raises, where its result would have been, and StoreError where a process dies.
    """
    if workers == 1:
        yield from map(task, items)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(task, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise StoreError("a worker process died (out of memory?); try again with --workers 1") from None
        finally:
            for future in waiting:
                future.cancel()


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal; it is for the parent to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
