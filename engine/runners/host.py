"""A runner as a plain function of arrays on the host: for checks and tests, not for speed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infercam.engine.device.driver import Driver
from infercam.engine.device.runner import Runner

Float = NDArray[np.float32]


class HostNetwork:
    """N×3×h×w float32 -> response N×C×h'×w' float32 (reference.Network): copies in, runs, copies out, waits."""

    def __init__(self, runner: Runner, driver: Driver) -> None:
        self._runner = runner
        self._driver = driver

    def __call__(self, x: Float) -> Float:
        with self._driver.current():
            batch = self._runner.max_batch(x.shape[2], x.shape[3])
            return np.concatenate([self._run(x[i : i + batch]) for i in range(0, len(x), batch)])

    def _run(self, x: Float) -> Float:
        driver, (n, _, height, width) = self._driver, x.shape
        source = np.ascontiguousarray(x, self._runner.input_type).view(np.uint8).ravel()
        out = np.empty((n, *self._runner.response_shape(height, width)), np.float32)
        image = driver.allocate(source.nbytes)
        try:
            response = driver.allocate(out.nbytes)
            try:
                driver.copy_in(image, source)
                self._runner.respond(n, height, width, image, response)
                driver.copy_out(out.view(np.uint8).ravel(), response)
                driver.record().wait()
            finally:
                driver.free(response)
        finally:
            driver.free(image)
        return out
