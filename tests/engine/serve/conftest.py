"""The server's fixtures; see serving.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from infercam.engine.api import Engine
from infercam.engine.bundle import Bundle
from infercam.engine.serve.bounds import Bounds
from infercam.engine.serve.hosted import Hosts
from tests.engine import tiny
from tests.engine.serve.serving import Gate, Served, served


@pytest.fixture(scope="session")
def server(tiny_bundle: Bundle) -> Iterator[Served]:
    """The usual one, shared by all tests that leave it as it is."""
    with served(Hosts.load([tiny_bundle.path], "fast", threads=2), Bounds(queue=64, pixels=100_000)) as it:
        yield it


@pytest.fixture
def gated(tiny_bundle: Bundle) -> Iterator[Callable[..., tuple[Served, Gate]]]:
    """`gated(queue=…, timeout=…)`: a server of its own whose engine can be held up."""
    with ExitStack() as stack:

        def make(**bounds: Any) -> tuple[Served, Gate]:
            hosts, backend = Hosts(), Gate(tiny_bundle)
            hosts.add(Engine(tiny_bundle, backend))
            it = stack.enter_context(served(hosts, Bounds(**bounds), drain=2))
            stack.callback(backend.open.set)
            return it, backend

        yield make


@pytest.fixture(scope="session")
def picture() -> Any:
    return tiny.picture(30, 40, 2)
