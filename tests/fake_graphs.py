"""A stand-in for capturing CUDA graphs (engine/device/graphs.py: Capture): meanwhile the stand-in for TensorRT puts
its work aside, and a launch does it, in the driver's stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class FakeCapture:
    """`log`: what was done, as `capture`, `launch`, `close`. `trt`: the stand-in, whose `state` is the test's."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.log: list[str] = []

    def __call__(self, enqueue: Callable[[], None]) -> _Captured:
        state = self.trt.state
        state.captured = []
        try:
            enqueue()
            self.log.append("capture")
            return _Captured(state.captured, state.driver, self.log)
        finally:
            state.captured = None


class _Captured:
    def __init__(self, work: list[Callable[[], None]], driver: Any, log: list[str]) -> None:
        self._work, self._driver, self._log = work, driver, log

    def launch(self) -> None:
        self._log.append("launch")
        for one in self._work:
            getattr(self._driver, "enqueue", lambda now: now())(one)

    def close(self) -> None:
        self._log.append("close")
