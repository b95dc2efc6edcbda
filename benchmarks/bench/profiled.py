"""A CPU backend that knows where its worker threads' time goes."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercam.benchmarks.bench.job import BenchJob
from infercam.engine.backends.cpu import CpuBackend
from infercam.engine.backends.openvino import OpenvinoBackend
from infercam.engine.bundle import Bundle
from infercam.engine.method.host_ops import Resized
from infercam.engine.method.resampling import Picture
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

    def restart(self) -> None:
        """Forget what was measured."""
        self.stages.seconds.clear()

    def measured(self) -> dict[str, float]:
        """CPU seconds by stage since the last restart."""
        return dict(self.stages.seconds)

    def _infer(self, output: str, x: NDArray[np.float32]) -> Any:
        with self.stages("network"):
            return super()._infer(output, x)

    def _resize(self, picture: Picture, shape: tuple[int, int]) -> Resized:
        with self.stages("resize"):
            return super()._resize(picture, shape)

    def _write_input(self, view: View, slot: NDArray[np.float32]) -> None:
        with self.stages("normalise and mask"):
            super()._write_input(view, slot)

    def _advance(self, tile: Tile) -> Advanced:
        with self.stages("upsample and accumulate"):
            return super()._advance(tile)

    def _unite(self, image: ImageTask) -> NDArray[np.float32]:
        with self.stages("unite"):
            return super()._unite(image)


class ProfiledOpenvinoBackend(ProfiledCpuBackend, OpenvinoBackend):
    """The same over OpenVINO, which computes on threads of its own: their time is the network's, too."""

    _before = 0.0

    def restart(self) -> None:
        super().restart()
        self._before = _elsewhere()

    def measured(self) -> dict[str, float]:
        found = super().measured()
        return {**found, "network": found.get("network", 0.0) + _elsewhere() - self._before}


def _elsewhere() -> float:
    """CPU seconds so far of this process's threads that are not Python's; 0 where there is no /proc."""
    ours = {thread.native_id for thread in threading.enumerate()}
    ticks = 0
    for folder in Path("/proc/self/task").glob("*"):
        if int(folder.name) not in ours:
            with suppress(OSError):  # it has ended meanwhile
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def profiled_backend(bundle: Bundle, job: BenchJob) -> ProfiledCpuBackend:
    """The one that the job names: cpu or openvino."""
    if job.backend == "openvino":
        return ProfiledOpenvinoBackend(bundle, job.threads, job.precision)
    return ProfiledCpuBackend(bundle, job.threads, job.precision or "fp32")
