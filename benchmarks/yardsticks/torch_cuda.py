"""PyTorch behind the runner protocol: the yardstick for the other runtimes, on the very same device backend.

The module works on the backend's pointers, wrapped as tensors without a copy, on the backend's stream. Each saving
has a switch of its own: half precision weights, channels_last, CUDA graphs per (batch, shape).

    backend = torch_cuda_backend(module, classes, spec, CudaDriver(), half=True, channels_last=True)

On a CPU device the pointers are host memory: so the code is tested where there is no GPU.
"""

from __future__ import annotations

import copy
import ctypes
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from infercam.engine.backends.device import DeviceBackend
from infercam.engine.bundle import Bundle, FileEntry, InputSpec, Manifest
from infercam.engine.device.driver import Driver, Pointer
from infercam.engine.device.runner import ANY_NUMBER, InputType, OutputShape, Runner
from infercam.engine.method.backend import OutOfMemory

Shape = tuple[int, ...]
GRAPHS = 48
"""CUDA graphs kept; each holds the memory of its input and output."""
GRAPH_AFTER = 2
"""Runs of a (batch, shape) before it is captured: most shapes of tiles never come again."""


class _Response(nn.Module):
    """The response before ReLU, float32 whatever the trunk computes in: its last layer is small and decides all."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, module: nn.Module, half: bool) -> None:
        super().__init__()
        module = copy.deepcopy(module).eval()
        self.plain = not hasattr(module, "features")
        if not self.plain:
            head: Any = module.fc8 if hasattr(module, "fc8") else module.classifier
            weight = head.weight.detach().float()
            self.register_buffer("weight", weight.reshape(*weight.shape[:2], 1, 1))
            self.register_buffer("bias", None if head.bias is None else head.bias.detach().float())
        self.trunk: Any = module.half() if half else module
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.plain:
            return self.trunk.forward_cam(x).float()  # type: ignore[no-any-return]
        return F.conv2d(self.trunk.features(x).float(), self.weight)

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Logits N×C."""
        if self.plain:
            return self.trunk(x).float()  # type: ignore[no-any-return]
        pooled = self.trunk.features(x).float().mean((2, 3), keepdim=True)
        return F.conv2d(pooled, self.weight, self.bias).flatten(1)


class TorchRunner(Runner):
    """See device/runner.py: Runner.

    module: `features` with a linear layer `fc8` or `classifier`, or else `forward_cam` (and `forward` for scores).
    enqueue: runs a function in the order of an emulated stream (a CPU device only).
    """

    name = "torch-cuda"

    def __init__(
        self,
        module: nn.Module,
        driver: Driver,
        device: str = "cuda",
        *,
        half: bool = True,
        channels_last: bool = True,
        graphs: bool = False,
        enqueue: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.precision = "fp16" if half else "fp32"
        self.input_type: InputType = "float16" if half else "float32"
        self.graphs = graphs and self.device.type == "cuda"
        self.channels_last = channels_last
        self._dtype = torch.float16 if half else torch.float32
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._enqueue = enqueue
        self._shape_of = _Response(module, half=False).to("meta")
        network: Any = _Response(module, half).to(self.device)
        self._network: _Response = network.to(memory_format=self._format)
        self._shapes: dict[tuple[int, int], OutputShape] = {}
        self.prepared: set[Shape] = set()
        """Shapes that were run at least once, N×3×h×w: each was paid for."""
        self._seen: Counter[Shape] = Counter()
        self._captured: OrderedDict[Shape, _Graph] = OrderedDict()
        self._stream: Any = None
        if self.device.type == "cuda":
            external: Any = torch.cuda.ExternalStream
            self._stream = external(driver.stream, device=self.device)
            self._memory = torch.cuda.graph_pool_handle() if self.graphs else None

    # -- the protocol --------------------------------------------------------------------------------------
    def prepare(self, batch: int, height: int, width: int) -> bool:
        """By a run on a blank batch: cuDNN keeps the plans of all shapes; with graphs it is captured at once."""
        shape = (batch, 3, height, width)
        if shape not in self.prepared:

            def work() -> None:
                self._network(self._laid_out(torch.zeros(shape, dtype=self._dtype, device=self.device)))
                if self.graphs:
                    self._capture(shape)

            self._run(work)
            self.prepared.add(shape)
        return True

    def response_shape(self, height: int, width: int) -> OutputShape:
        if (height, width) not in self._shapes:
            with torch.inference_mode():
                out = self._shape_of(torch.empty(1, 3, height, width, device="meta"))
            self._shapes[height, width] = OutputShape(*out.shape[1:])
        return self._shapes[height, width]

    def max_batch(self, height: int, width: int) -> int:
        return ANY_NUMBER

    def respond(self, batch: int, height: int, width: int, image: Pointer, response: Pointer) -> None:
        shape = (batch, 3, height, width)
        out = (batch, *self.response_shape(height, width))
        self._run(lambda: self._respond(shape, image, out, response))
        self.prepared.add(shape)

    def scores(self, batch: int, height: int, width: int, image: Pointer, scores: Pointer) -> None:
        shape, out = (batch, 3, height, width), (batch, self.response_shape(height, width).classes)

        def work() -> None:
            x = self._tensor(image, shape, self._dtype)
            self._tensor(scores, out, torch.float32).copy_(self._network.scores(self._laid_out(x)))

        self._run(work)

    def describe(self) -> dict[str, Any]:
        return {
            "runner": self.name,
            "torch": torch.__version__,
            "precision": self.precision,
            "channels_last": self.channels_last,
            "graphs": self.graphs,
        }

    def close(self) -> None:
        self._captured.clear()

    # -- the work ------------------------------------------------------------------------------------------
    def _run(self, work: Callable[[], None]) -> None:
        def on_stream() -> None:
            with torch.inference_mode(), self._on_stream():
                work()

        if self._enqueue is not None:
            self._enqueue(on_stream)
            return
        try:
            on_stream()
        except torch.OutOfMemoryError:
            self._captured.clear()
            torch.cuda.empty_cache()
            raise OutOfMemory("PyTorch has no memory left on the GPU for a batch of this size") from None

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        if self._stream is None:
            yield
        else:
            with torch.cuda.stream(self._stream):
                yield

    def _respond(self, shape: Shape, image: Pointer, out: Shape, response: Pointer) -> None:
        x = self._tensor(image, shape, self._dtype)
        target = self._tensor(response, out, torch.float32)
        graph = self._graph(shape) if self.graphs else None
        if graph is not None:
            graph.run(x, target)
        else:
            target.copy_(self._network(self._laid_out(x)))

    def _laid_out(self, x: torch.Tensor) -> torch.Tensor:
        return x.contiguous(memory_format=self._format)

    def _graph(self, shape: Shape) -> _Graph | None:
        """The graph of that batch and shape; None until it has come up often enough."""
        known = self._captured.get(shape)
        if known is not None:
            self._captured.move_to_end(shape)
            return known
        self._seen[shape] += 1
        return None if self._seen[shape] < GRAPH_AFTER else self._capture(shape)

    def _capture(self, shape: Shape) -> _Graph:
        graph = _Graph(self._network, shape, self._dtype, self._format, self._stream, self._memory)
        self._captured[shape] = graph
        if len(self._captured) > GRAPHS:
            self._captured.popitem(last=False)
        return graph

    def _tensor(self, pointer: Pointer, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        """The memory at `pointer` as a tensor, without a copy."""
        if self.device.type == "cuda":
            return torch.as_tensor(_CudaMemory(pointer, shape, dtype), device=self.device)
        nbytes = math.prod(shape) * dtype.itemsize
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))
        return torch.from_numpy(raw).view(dtype).view(shape)


class _Graph:
    """One captured forward pass; its input and output stay where they are."""

    def __init__(
        self, network: _Response, shape: Shape, dtype: torch.dtype, layout: Any, stream: Any, memory: Any
    ) -> None:
        self._input = torch.zeros(shape, dtype=dtype, device="cuda").contiguous(memory_format=layout)
        network(self._input)  # cuDNN chooses its algorithms outside the capture
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream, pool=memory):
            self._output = network(self._input)

    def run(self, x: torch.Tensor, target: torch.Tensor) -> None:
        self._input.copy_(x)
        self._graph.replay()
        target.copy_(self._output)


class _CudaMemory:
    """Device memory as torch.as_tensor takes it."""

    def __init__(self, pointer: Pointer, shape: Shape, dtype: torch.dtype) -> None:
        self.__cuda_array_interface__ = {
            "data": (pointer, False),
            "shape": shape,
            "typestr": {torch.float16: "<f2", torch.float32: "<f4"}[dtype],
            "version": 3,
        }


def module_bundle(classes: Sequence[str], spec: InputSpec, stride: int, name: str = "module") -> Bundle:
    """A bundle in memory alone, for a module that was never exported: its manifest is what a backend reads."""
    file = "response.onnx"
    manifest = Manifest(
        name=name,
        classes=list(classes),
        stride=stride,
        input=spec,
        bias=[0.0] * len(classes),
        graphs={"fp32": file},
        files={file: FileEntry(sha256="0" * 64, size=0)},
    )
    return Bundle(Path(name), manifest)


def torch_cuda_backend(
    module: nn.Module,
    bundle: Bundle,
    driver: Driver,
    device: str = "cuda",
    *,
    budget: int | None = None,
    batch_pixels: int | None = None,
    depth: int = 3,
    **options: Any,
) -> DeviceBackend:
    """The device backend over a PyTorch module; options: see TorchRunner."""
    with driver.current():
        runner = TorchRunner(module, driver, device, **options)
    return DeviceBackend(bundle, driver, runner, budget, batch_pixels, depth)
