"""The device driver protocol by CuPy, for benchmarks on machines where pycuda is not at hand.

driver = CupyDriver()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from infercam.engine.common.errors import BackendError
from infercam.engine.device import compile as compiler
from infercam.engine.device.driver import (
    Argument,
    Bytes,
    DeviceError,
    DeviceInfo,
    DeviceLost,
    DeviceOutOfMemory,
    Dim,
    Pointer,
)

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
STICKY = (700, 710, 715, 716, 717, 718, 719)
"""Codes of faults in a kernel, after which the context is broken."""


class CupyEvent:
    """See driver.Event."""

    def __init__(self, driver: CupyDriver, event: Any) -> None:
        self._driver = driver
        self._event = event

    def done(self) -> bool:
        return bool(self._driver.call("waiting for the GPU", lambda: self._event.done))

    def wait(self) -> None:
        self._driver.call("waiting for the GPU", self._event.synchronize)


class CupyDriver:
    """See driver.Driver. CuPy works in the device's primary context, as PyTorch does."""

    name = "cupy"

    def __init__(self, device: int = 0) -> None:
        try:
            import cupy
        except ImportError as e:
            raise BackendError(f"the cupy driver needs CuPy for this machine's CUDA: {e}") from None
        self._cupy = cupy
        self._runtime = cupy.cuda.runtime
        self._number = device
        self._device = cupy.cuda.Device(device)
        self._allocations: set[Pointer] = set()
        self._module: Any = None
        self._functions: dict[str, Any] = {}
        with self.current():
            self._stream = self.call("making a stream", lambda: cupy.cuda.Stream(non_blocking=True))

    @property
    def stream(self) -> int:
        return int(self._stream.ptr)

    @contextmanager
    def current(self) -> Iterator[None]:
        with self._device:
            yield

    def info(self) -> DeviceInfo:
        with self.current():
            free, total = self.call("asking for free memory", self._runtime.memGetInfo)
            name = self._runtime.getDeviceProperties(self._number)["name"]
            version = self._runtime.driverGetVersion()
        capability = self._device.compute_capability  # "90", "120"
        return DeviceInfo(
            name.decode() if isinstance(name, bytes) else str(name),
            (int(capability[:-1]), int(capability[-1])),
            total,
            free,
            f"{version // 1000}.{version % 1000 // 10}",
        )

    def allocate(self, nbytes: int) -> Pointer:
        pointer = int(self.call(f"allocating {nbytes >> 20} MiB", self._runtime.malloc, nbytes))
        self._allocations.add(pointer)
        return pointer

    def free(self, pointer: Pointer) -> None:
        self._allocations.remove(pointer)
        self.call("freeing memory", self._runtime.free, pointer)

    def pinned(self, nbytes: int) -> Bytes:
        memory = self.call("page-locking memory", self._cupy.cuda.alloc_pinned_memory, nbytes)
        return np.frombuffer(memory, np.uint8, nbytes)

    def copy_in(self, target: Pointer, source: Bytes) -> None:
        kind = self._runtime.memcpyHostToDevice
        self._copy(target, source.ctypes.data, source.nbytes, kind)

    def copy_out(self, target: Bytes, source: Pointer) -> None:
        self._copy(target.ctypes.data, source, target.nbytes, self._runtime.memcpyDeviceToHost)

    def _copy(self, target: int, source: int, nbytes: int, kind: int) -> None:
        self.call("copying", self._runtime.memcpyAsync, target, source, nbytes, kind, self._stream.ptr)

    def zero(self, pointer: Pointer, nbytes: int) -> None:
        self.call("clearing memory", self._runtime.memsetAsync, pointer, 0, nbytes, self._stream.ptr)

    def record(self) -> CupyEvent:
        event = self.call("an event", lambda: self._cupy.cuda.Event(block=True, disable_timing=True))
        self.call("recording an event", event.record, self._stream)
        return CupyEvent(self, event)

    def launch(
        self, kernel: str, grid: Dim, block: Dim, arguments: Sequence[Argument], shared_bytes: int = 0
    ) -> None:
        if kernel not in self._functions:
            if self._module is None:
                self._module = self._cupy.cuda.function.Module()
                self.call(
                    "loading the kernels", self._module.load, compiler.cubin(self.info().compute_capability)
                )
            self._functions[kernel] = self.call(kernel, self._module.get_function, kernel)
        values = [np.uint64(a) if isinstance(a, int) else a for a in arguments]
        self.call(kernel, self._functions[kernel], grid, block, values, shared_bytes, self._stream)

    def describe(self) -> dict[str, Any]:
        info = self.info()
        return {
            "driver": self.name,
            "gpu": info.name,
            "compute_capability": "{}.{}".format(*info.compute_capability),
            "memory": info.total_memory,
            "driver_version": info.driver_version,
            "cupy": self._cupy.__version__,
        }

    def close(self) -> None:
        with self.current():
            for pointer in list(self._allocations):
                with suppress(DeviceError):
                    self.free(pointer)
            self._functions.clear()
            self._module = None

    def call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(...)`, its errors as the protocol's."""
        try:
            return function(*arguments)
        except self._runtime.CUDARuntimeError as e:
            if e.status == OUT_OF_MEMORY:
                raise DeviceOutOfMemory(f"{what}: no memory of that size is left on the GPU") from None
            lost = DeviceLost if e.status in STICKY else DeviceError
            raise lost(f"{what}: {str(e).splitlines()[0]}") from None
        except self._cupy.cuda.driver.CUDADriverError as e:
            raise DeviceError(f"{what}: {str(e).splitlines()[0]}") from None
