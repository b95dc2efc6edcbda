"""A CPU backend that knows where its worker threads' time goes."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercam.engine.backends.cpu import CpuBackend
from infercam.engine.method.host_ops import Resized
from infercam.engine.method.task import Advanced, ImageTask, Tile, View


class Stages:
    """Seconds by stage, summed over threads. A stage inside another is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._inner = threading.local()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        outer = getattr(self._inner, "spent", 0.0)
        self._inner.spent = 0.0
        began = time.thread_time()
        try:
            yield
        finally:
            spent = time.thread_time() - began
            with self._lock:
                self.seconds[stage] += spent - self._inner.spent
            self._inner.spent = outer + spent


class ProfiledCpuBackend(CpuBackend):
    """CpuBackend with the CPU time of network, resizing, masking, accumulating and uniting by itself."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.stages = Stages()

    def _infer(self, output: str, x: NDArray[np.float32]) -> Any:
        with self.stages("network"):
            return super()._infer(output, x)

    def _resize(self, pixels: NDArray[np.uint8], shape: tuple[int, int]) -> Resized:
        with self.stages("resize"):
            return super()._resize(pixels, shape)

    def _write_input(self, view: View, slot: NDArray[np.float32]) -> None:
        with self.stages("normalise and mask"):
            super()._write_input(view, slot)

    def _advance(self, tile: Tile) -> Advanced:
        with self.stages("upsample and accumulate"):
            return super()._advance(tile)

    def _unite(self, image: ImageTask) -> NDArray[np.float32]:
        with self.stages("unite"):
            return super()._unite(image)
