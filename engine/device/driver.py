"""What the engine needs of a GPU. `cuda.py` has it from pycuda; the tests have it from a CPU that runs the same
kernels thread by thread. Pointers are plain integers, so that TensorRT, ONNX Runtime and PyTorch share them.

All work goes to one stream, in order. Errors: DeviceOutOfMemory where memory is short, DeviceError for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.errors import BackendError

Pointer = int
Bytes = NDArray[np.uint8]
Argument = int | np.generic
"""Of a kernel: a pointer (int, passed as 8 bytes) or a NumPy scalar (passed as it is)."""
Dim = tuple[int, int, int]


class DeviceError(BackendError):
    """The GPU or its driver refused; the text says what and what to do."""


class DeviceOutOfMemory(DeviceError):
    """No memory of that size is left on the device, or within the budget."""


class DeviceLost(DeviceError):
    """The device's context is broken (a fault in a kernel, the GPU fell off the bus): nothing more can run in this
    process."""


class DeviceInfo(NamedTuple):
    """What decides which code and which plan fit."""

    name: str
    compute_capability: tuple[int, int]
    total_memory: int
    free_memory: int
    driver_version: str


class Event(Protocol):
    """A point in the stream."""

    def done(self) -> bool:
        """Whether all work before it has ended."""
        ...

    def wait(self) -> None:
        """Block the host until it has."""
        ...


class Driver(Protocol):
    """One device, its primary context, and one stream. Every call is made within `with driver.current():`."""

    name: str

    @property
    def stream(self) -> int:
        """The stream's native handle (a CUstream as integer)."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """The primary context is current in the calling thread within; may be nested."""
        ...

    def info(self) -> DeviceInfo: ...

    def allocate(self, nbytes: int) -> Pointer:
        """At least 256-byte aligned device memory; raises DeviceOutOfMemory."""
        ...

    def free(self, pointer: Pointer) -> None: ...

    def pinned(self, nbytes: int) -> Bytes:
        """Page-locked host memory, freed with the array."""
        ...

    def copy_in(self, target: Pointer, source: Bytes) -> None:
        """Host to device, asynchronous where `source` is pinned; the caller keeps `source` until then."""
        ...

    def copy_out(self, target: Bytes, source: Pointer) -> None:
        """Device to host, likewise."""
        ...

    def copy(self, target: Pointer, source: Pointer, nbytes: int) -> None:
        """Within the device, in the stream's order."""
        ...

    def zero(self, pointer: Pointer, nbytes: int) -> None: ...

    def record(self) -> Event:
        """An event behind all that the stream has been given so far."""
        ...

    def launch(
        self, kernel: str, grid: Dim, block: Dim, arguments: Sequence[Argument], shared_bytes: int = 0
    ) -> None:
        """Run a kernel of `engine/kernels` by name; compiled and loaded when first used."""
        ...

    def describe(self) -> dict[str, Any]: ...

    def close(self) -> None: ...
