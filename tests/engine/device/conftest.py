"""For the tests of the device engine: an Engine over the emulated device and a network on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from infercam.engine.api import Engine
from infercam.engine.backends.device import DeviceBackend
from infercam.engine.bundle import Bundle
from tests.cuda_emulator.driver import EmulatedDriver
from tests.engine.device.host_runner import HostRunner

BUDGET = 64 << 20
MakeEngine = Callable[..., Engine]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where shapes are remembered: not in the user's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
