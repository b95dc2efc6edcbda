"""CUDA graphs of the backend's stream, by cuda-python (pycuda has none): what was enqueued once is launched again as
a whole, with the addresses that it had."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from infercam.engine.common.errors import BackendError, MissingExtra
from infercam.engine.device.driver import Driver


class CapturedGraph(Protocol):
    """Work that was captured; its addresses must stay valid."""

    def launch(self) -> None: ...
    def close(self) -> None:
        """Only when it does not run."""
        ...


class Capture(Protocol):
    def __call__(self, enqueue: Callable[[], None]) -> CapturedGraph:
        """What `enqueue` gives the stream, as a graph; it does not run. Raises BackendError, as `enqueue` does."""
        ...


class CudaCapture:
    """See Capture. Raises MissingExtra without cuda-python."""

    def __init__(self, driver: Driver) -> None:
        try:
            self._cuda: Any = importlib.import_module("cuda.bindings.driver")
        except ImportError:
            raise MissingExtra("cuda-bindings", "graphs", "launching by CUDA graphs") from None
        self._stream = self._cuda.CUstream(driver.stream)

    def __call__(self, enqueue: Callable[[], None]) -> CapturedGraph:
        cuda = self._cuda
        mode = (
            cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        )  # other threads go on as they like
        self.call(cuda.cuStreamBeginCapture, self._stream, mode)
        try:
            enqueue()
        except BaseException:
            _, graph = cuda.cuStreamEndCapture(self._stream)  # or the stream would never run again
            cuda.cuGraphDestroy(graph)
            raise
        (graph,) = self.call(cuda.cuStreamEndCapture, self._stream)
        try:
            (executable,) = self.call(cuda.cuGraphInstantiate, graph, 0)
        finally:
            cuda.cuGraphDestroy(graph)
        return _CudaGraph(self, executable)

    def launch(self, executable: Any) -> None:
        self.call(self._cuda.cuGraphLaunch, executable, self._stream)

    def destroy(self, executable: Any) -> None:
        self._cuda.cuGraphExecDestroy(executable)

    def call(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
        """What it returns beside its code; raises BackendError where that is none of success."""
        code, *results = function(*arguments)
        if code != self._cuda.CUresult.CUDA_SUCCESS:
            raise BackendError(f"CUDA graphs: {function.__name__}: {getattr(code, 'name', code)}")
        return tuple(results)


class _CudaGraph:
    def __init__(self, capture: CudaCapture, executable: Any) -> None:
        self._capture, self._executable = capture, executable

    def launch(self) -> None:
        self._capture.launch(self._executable)

    def close(self) -> None:
        self._capture.destroy(self._executable)


class Replay:
    """The graph of one piece of work.

    The first time at some addresses it is enqueued plainly, which also settles what a runtime puts off until then;
    the second time it is captured. What cannot be captured goes on plainly.
    """

    def __init__(self, capture: Capture, driver: Driver) -> None:
        self._capture, self._driver = capture, driver
        self._addresses: Hashable = None
        self._graph: CapturedGraph | None = None
        self.refused: str | None = None
        """Why it cannot be captured."""

    @property
    def settled(self) -> bool:
        """Whether it was captured, or cannot be."""
        return self._graph is not None or self.refused is not None

    def run(self, addresses: Hashable, enqueue: Callable[[], None]) -> None:
        """Enqueue the work, in one way or the other; raises what `enqueue` raises."""
        if addresses != self._addresses:
            self.close()
        elif not self.settled:
            try:
                self._graph = self._capture(enqueue)
            except BackendError as e:
                self.refused = str(e)
        if self._graph is None:
            enqueue()
        else:
            self._graph.launch()
        self._addresses = addresses

    def close(self) -> None:
        """Let the graph go, once it does not run."""
        graph, self._graph, self._addresses = self._graph, None, None
        if graph is not None:
            self._driver.record().wait()
            graph.close()
