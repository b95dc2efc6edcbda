"""How busy the device is, how long the host works, and what the device could do at best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from infercam.benchmarks.gpu.kernels import profiled
from infercam.engine.device.driver import Driver, Event


class WaitingDriver:
    """A driver that knows how long the host has waited for its events: the rest of the time the host worked."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.waited = 0.0
        """Seconds."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def record(self) -> Event:
        return _TimedEvent(self._driver.record(), self)


class _TimedEvent:
    def __init__(self, event: Event, driver: WaitingDriver) -> None:
        self._event = event
        self._driver = driver

    def done(self) -> bool:
        return self._event.done()

    def wait(self) -> None:
        began = time.perf_counter()
        self._event.wait()
        self._driver.waited += time.perf_counter() - began


def busy_share(work: Callable[[], Any]) -> dict[str, Any]:
    """Share of the time from the first kernel to the last in which something ran, and what took it longest."""
    spans = profiled(work)
    if not spans:
        return {"error": "the profiler saw nothing on the GPU"}
    covered = union(((begin, end) for _, begin, end in spans))
    wall = max(end for _, _, end in spans) - min(begin for _, begin, _ in spans)
    by_name: dict[str, float] = {}
    for name, begin, end in spans:
        by_name[name[:80]] = by_name.get(name[:80], 0.0) + end - begin
    longest = sorted(by_name.items(), key=lambda item: -item[1])[:12]
    return {
        "busy_share": covered / wall,
        "seconds": wall / 1e6,
        "longest": {name: round(spent / covered, 4) for name, spent in longest},
    }


def union(spans: Iterable[tuple[float, float]]) -> float:
    """Length that intervals cover together."""
    covered, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered


def copy_rate(nbytes: int, device: str) -> float:
    """Bytes read and written a second by copies of `nbytes` on the device."""
    import torch

    source = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / _best(lambda: target.copy_(source), device)


def matmul_rate(side: int, device: str) -> float:
    """Half-precision multiply-adds a second, times two, of square matrices: the arithmetic floor's rate."""
    import torch

    a = torch.randn(side, side, device=device).to(torch.float16)
    b = torch.randn(side, side, device=device).to(torch.float16)
    out = torch.empty_like(a)
    return 2 * side**3 / _best(lambda: torch.mm(a, b, out=out), device)


def _best(work: Callable[[], Any], device: str, repeats: int = 20, rounds: int = 5) -> float:
    """Seconds of one call, the best of some rounds (the clock rises only after a while)."""
    import torch

    cuda = device.startswith("cuda")
    best = float("inf")
    for _ in range(rounds):
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeats if cuda else 1):
            work()
        if cuda:
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - began) / (repeats if cuda else 1))
    return best
