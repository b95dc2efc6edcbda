"""SIGTERM and SIGINT as a request to stop at the next safe place."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def caught_signals(first: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
    """Collects the signals, for a loop to look at between two steps; a second one ends at once.

    first: called when the first one comes, for example to say so.
    Signals reach the main thread only: elsewhere the list stays empty.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def handle(number: int, _: Any) -> None:
        if caught:
            raise SystemExit(128 + number)
        caught.append(number)
        first()

    before = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ended_by_signals(said: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the process (128 + its number), children with it, once `said` was called."""

    def end(number: int, _: Any) -> None:
        said()
        raise SystemExit(128 + number)

    before = {s: signal.signal(s, end) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
