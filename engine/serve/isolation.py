"""Requests that may end the process: those that were in flight when an earlier one of this service was killed (by the
network's runtime, or for want of memory). Their like is done in a process of its own from then on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from infercam.engine.common.cache import cache_file
from infercam.engine.common.child import Child, ChildDied
from infercam.engine.common.in_flight import InFlight
from infercam.engine.live import LiveEngine
from infercam.engine.run.settings import EngineSpec
from infercam.engine.serve.refusals import Refusal

Ask = Literal["submit", "scores", "infer"]
"""The methods of LiveEngine that run the network."""


def in_flight_file(bundles: Iterable[Path], port: int) -> Path:
    """Where a service notes what is in flight: found again by the next one with the same bundles and port."""
    what = " ".join([*(str(path.absolute()) for path in bundles), str(port)])
    return cache_file("serve", what.encode(), ".txt")


def key_of(picture: np.ndarray) -> str:
    """Names a picture, or a network's input, by its content."""
    return hashlib.blake2b(np.ascontiguousarray(picture).data, digest_size=16).hexdigest()


class ServiceIsolation:
    """Which pictures are suspect, and the process that they are done in."""

    def __init__(self, file: Path) -> None:
        self._list = InFlight(file)
        self._child = Child(f"{__name__}:respond")

    def suspects(self, key: str) -> bool:
        return key in self._list.suspects

    @contextmanager
    def watched(self, key: str) -> Iterator[None]:
        """The picture is in flight."""
        self._list.begin(key)
        try:
            yield
        finally:
            self._list.end(key)

    def alone(self, key: str, engine: EngineSpec, ask: Ask, *args: Any) -> Any:
        """What LiveEngine would answer; raises Refusal 422 where the process ends of it. On an I/O thread."""
        try:
            return self._child.ask(engine, ask, args)
        except ChildDied as e:
            self._list.killed(key)
            raise Refusal(
                422, f"this picture ends the process that runs the network ({e.how}); is it too small for it?"
            ) from None

    def harmless(self, key: str) -> None:
        """All that was asked about the picture was answered: it is no suspect any more."""
        self._list.end(key)

    def close(self) -> None:
        self._child.close()
        self._list.close()


@cache
def _live(spec: EngineSpec) -> LiveEngine:
    """The child's."""
    return LiveEngine(spec.load())


def respond(spec: EngineSpec, ask: Ask, args: tuple[Any, ...]) -> Any:
    """In the child: one question to an engine like the service's."""
    return getattr(_live(spec), ask)(*args).result()
