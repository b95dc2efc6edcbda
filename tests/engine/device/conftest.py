"""For the tests of the device engine: an Engine over the emulated device and a network on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode: so that tests can import host_runner.py

from cuda_emulator.driver import EmulatedDriver
from host_runner import HostRunner
from infercam.engine.api import Engine
from infercam.engine.backends.device import DeviceBackend
from infercam.engine.bundle import Bundle

BUDGET = 64 << 20
MakeEngine = Callable[..., Engine]


@pytest.fixture
def device_engine() -> Iterator[MakeEngine]:
    """`device_engine(bundle, deferred=…, seed=…, budget=…, runner options…)`; all are closed after the test."""
    with ExitStack() as stack:

        def make(
            bundle: Bundle,
            *,
            deferred: bool = True,
            seed: int = 1,
            budget: int = BUDGET,
            batch_pixels: int | None = None,
            depth: int = 3,
            **runner: Any,
        ) -> Engine:
            driver = EmulatedDriver(deferred=deferred, seed=seed)
            host = HostRunner(bundle, driver, **runner)
            backend = DeviceBackend(bundle, driver, host, budget, batch_pixels, depth)
            return stack.enter_context(Engine(bundle, backend))

        yield make
