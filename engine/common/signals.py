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

    with handled(handle):
        yield caught


@contextmanager
def ended_by_signals(said: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the process (128 + its number), children with it, once `said` was called."""

    def end(number: int, _: Any) -> None:
        said()
        raise SystemExit(128 + number)

    with handled(end):
        yield


@contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """SIGTERM and SIGINT go to `handler`; afterwards to whom they went before."""
    before = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
