"""The network behind device/runner.py: Runner, on the emulated device: ONNX Runtime on the CPU over its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort

from infercam.engine.bundle import Bundle
from infercam.engine.device.driver import Pointer
from infercam.engine.device.runner import InputType, OutputShape, Runner
from infercam.engine.method.backend import OutOfMemory
from tests.cuda_emulator.driver import EmulatedDriver


class HostRunner(Runner):
    """Runs a bundle's fp32 graph in the emulated stream's order.

    before: called with each batch's input (N×3×h×w) when it is enqueued; may raise what a runner raises.
    most: views in one run. memory: views that "fit": a larger batch is OutOfMemory.
    """

    name = "host"
    precision = "fp32"

    def __init__(
        self,
        bundle: Bundle,
        driver: EmulatedDriver,
        input_type: InputType = "float32",
        most: int = 1 << 20,
        memory: int = 1 << 20,
        before: Callable[[int], None] | None = None,
    ) -> None:
        self.input_type = input_type
        self.batches: list[int] = []
        self.closed = False
        self._driver = driver
        self._most = most
        self._memory = memory
        self._before = before
        self._shapes: dict[tuple[int, int], OutputShape] = {}
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            str(bundle.graph("fp32")), options, providers=["CPUExecutionProvider"]
        )
        self._manifest = bundle.manifest

    def response_shape(self, height: int, width: int) -> OutputShape:
        if (height, width) not in self._shapes:
            x = np.zeros((1, 3, height, width), np.float32)
            self._shapes[height, width] = OutputShape(*self._run("response", x).shape[1:])
        return self._shapes[height, width]

    def max_batch(self, height: int, width: int) -> int:
        return self._most

    def respond(self, batch: int, height: int, width: int, image: Pointer, response: Pointer) -> None:
        if batch > self._memory:
            raise OutOfMemory(f"{batch} views do not fit")
        if self._before is not None:
            self._before(batch)
        self.batches.append(batch)
        self._enqueue("response", (batch, 3, height, width), image, response)

    def scores(self, batch: int, height: int, width: int, image: Pointer, scores: Pointer) -> None:
        self._enqueue("scores", (batch, 3, height, width), image, scores)

    def _enqueue(self, output: str, shape: tuple[int, ...], source: Pointer, target: Pointer) -> None:
        nbytes = int(np.prod(shape)) * np.dtype(self.input_type).itemsize

        def work() -> None:
            x = self._driver.view(source, nbytes).view(self.input_type).reshape(shape)
            assert np.isfinite(x).all(), "the input was not all written"
            # one by one: ONNX Runtime's own results depend on the batch in the last bit
            out = np.concatenate([self._run(output, v[None].astype(np.float32)) for v in x])
            self._driver.view(target, out.nbytes)[:] = np.ascontiguousarray(out).reshape(-1).view(np.uint8)

        self._driver.enqueue(work)

    def _run(self, output: str, x: np.ndarray) -> Any:
        return self._session.run([output], {self._manifest.input.name: x})[0]

    def describe(self) -> dict[str, Any]:
        return {"runner": self.name}

    def close(self) -> None:
        self.closed = True
