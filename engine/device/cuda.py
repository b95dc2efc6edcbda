"""The driver protocol on a real GPU, by pycuda.

The device's primary context is shared with TensorRT, ONNX Runtime and PyTorch, so that pointers and the stream may
be handed to them. It is retained once per process and never released before the end: others may still use it.
A thread must not end with a context on pycuda's stack (pycuda aborts the process then), so it is pushed for the
duration of `current()` only.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from infercam.engine.common.errors import MissingExtra
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
from infercam.engine.device.probe import Probe, probe

OLDEST = (7, 5)
"""Compute capability that the kernels are written for."""
PLAIN_SHARED_BYTES = 48 << 10
"""A kernel that wants more shared memory has to say so beforehand."""
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for other libraries' default stream
STICKY = (
    "illegal",  # memory access, instruction, address space
    "unspecified launch failure",
    "misaligned address",
    "device-side assert",
    "launch timed out",
    "hardware stack error",
    "uncorrectable",
    "context is destroyed",
)
"""Of what the driver says when a context is broken for good."""

_contexts: dict[int, Any] = {}
atexit.register(_contexts.clear)


class CudaEvent:
    """See driver.Event."""

    def __init__(self, driver: CudaDriver, event: Any) -> None:
        self._driver = driver
        self._event = event

    def done(self) -> bool:
        return bool(self._driver.call("waiting for the GPU", self._event.query))

    def wait(self) -> None:
        self._driver.call("waiting for the GPU", self._event.synchronize)


class CudaDriver:
    """See driver.Driver. `device`: its number, as CUDA counts (after CUDA_VISIBLE_DEVICES).

    Raises MissingExtra without pycuda; DeviceError where there is no driver, no such GPU, or one that cannot be used.
    """

    name = "cuda"

    def __init__(self, device: int = 0) -> None:
        found = probe()
        _check_device(found, device)
        self._cuda = _import_pycuda(found)
        self._device_number = device
        self._thread = threading.local()
        self._allocations: dict[Pointer, Any] = {}
        self._module: Any = None
        self._functions: dict[str, Any] = {}
        self._prepared: dict[tuple[str, str], Any] = {}
        self._context, self._device = self._retain()
        with self.current():
            self._stream = self.call("making a stream", self._cuda.Stream, NON_BLOCKING)
        flags = self._cuda.event_flags
        self._event_flags = int(flags.DISABLE_TIMING) | int(flags.BLOCKING_SYNC)

    def _retain(self) -> tuple[Any, Any]:
        self.call("cuInit", self._cuda.init)
        device = self.call("opening the GPU", self._cuda.Device, self._device_number)
        if self._device_number not in _contexts:
            try:
                _contexts[self._device_number] = device.retain_primary_context()
            except self._cuda.Error as e:
                raise DeviceError(
                    f"GPU {self._device_number} ({device.name()}) cannot be used: {_said(e)}; another process may "
                    "hold it alone (compute mode EXCLUSIVE_PROCESS) or fill its memory: see nvidia-smi"
                ) from None
        return _contexts[self._device_number], device

    @property
    def stream(self) -> int:
        return int(self._stream.handle)

    @contextmanager
    def current(self) -> Iterator[None]:
        depth = getattr(self._thread, "depth", 0)
        if not depth:
            self.call("making the context current", self._context.push)
        self._thread.depth = depth + 1
        try:
            yield
        finally:
            self._thread.depth = depth
            if not depth:
                self._context.pop()

    def info(self) -> DeviceInfo:
        with self.current():
            free, total = self.call("asking for free memory", self._cuda.mem_get_info)
        version = self._cuda.get_driver_version()
        major, minor = self._device.compute_capability()
        return DeviceInfo(
            self._device.name(), (major, minor), total, free, f"{version // 1000}.{version % 1000 // 10}"
        )

    # -- memory --------------------------------------------------------------------------------------------
    def allocate(self, nbytes: int) -> Pointer:
        block = self.call(f"allocating {nbytes >> 20} MiB", self._cuda.mem_alloc, nbytes)
        pointer = int(block)
        self._allocations[pointer] = block
        return pointer

    def free(self, pointer: Pointer) -> None:
        block = self._allocations.pop(pointer)
        self.call("freeing memory", block.free)

    def pinned(self, nbytes: int) -> Bytes:
        array: Bytes = self.call(
            f"page-locking {nbytes >> 20} MiB", self._cuda.pagelocked_empty, (nbytes,), np.uint8
        )
        return array

    def copy_in(self, target: Pointer, source: Bytes) -> None:
        self.call("copying to the GPU", self._cuda.memcpy_htod_async, target, source, self._stream)

    def copy_out(self, target: Bytes, source: Pointer) -> None:
        self.call("copying from the GPU", self._cuda.memcpy_dtoh_async, target, source, self._stream)

    def copy(self, target: Pointer, source: Pointer, nbytes: int) -> None:
        self.call("copying on the GPU", self._cuda.memcpy_dtod_async, target, source, nbytes, self._stream)

    def zero(self, pointer: Pointer, nbytes: int) -> None:
        self.call("clearing memory", self._cuda.memset_d8_async, pointer, 0, nbytes, self._stream)

    # -- work ----------------------------------------------------------------------------------------------
    def record(self) -> CudaEvent:
        event = self.call("recording an event", self._cuda.Event, self._event_flags)
        self.call("recording an event", event.record, self._stream)
        return CudaEvent(self, event)

    def launch(
        self, kernel: str, grid: Dim, block: Dim, arguments: Sequence[Argument], shared_bytes: int = 0
    ) -> None:
        signature = "".join("P" if isinstance(a, int) else a.dtype.char for a in arguments)
        function = self._prepared.get((kernel, signature)) or self._prepare(kernel, signature)
        if shared_bytes > PLAIN_SHARED_BYTES:
            attribute = self._cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
            self.call(kernel, function.set_attribute, attribute, shared_bytes)
        self.call(
            kernel,
            function.prepared_async_call,
            grid,
            block,
            self._stream,
            *(a if isinstance(a, int) else a.item() for a in arguments),
            shared_size=shared_bytes,
        )

    def _prepare(self, kernel: str, signature: str) -> Any:
        """The kernel, ready to take arguments of those types: one struct code each, "P" a pointer."""
        if self._module is None:
            image = compiler.cubin(self.info().compute_capability)
            self._module = self.call("loading the kernels", self._cuda.module_from_buffer, image)
        function = self.call(kernel, self._module.get_function, kernel)
        function.prepare(list(signature))
        self._prepared[kernel, signature] = function
        return function

    def describe(self) -> dict[str, Any]:
        info = self.info()
        return {
            "driver": self.name,
            "gpu": info.name,
            "compute_capability": "{}.{}".format(*info.compute_capability),
            "memory": info.total_memory,
            "driver_version": info.driver_version,
            "pycuda_built_for": ".".join(map(str, self._cuda.get_version()[:2])),
        }

    def close(self) -> None:
        """Free the memory that is still held; the context stays, for others in this process may use it."""
        with self.current():
            for block in self._allocations.values():
                with suppress(self._cuda.Error):
                    block.free()
            self._allocations.clear()
            self._prepared.clear()
            self._module = self._stream = None

    def call(self, what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """`function(...)`, its errors as ours; `what` says in a few words what was being done."""
        try:
            return function(*arguments, **named)
        except self._cuda.MemoryError:
            raise DeviceOutOfMemory(f"{what}: no memory of that size is left on the GPU") from None
        except self._cuda.Error as e:
            said = _said(e)
            if any(sign in said for sign in STICKY):
                raise DeviceLost(f"the GPU failed ({what}: {said}); start again to go on") from None
            raise DeviceError(f"{what}: {said}") from None


def _check_device(found: Probe, device: int) -> None:
    if not 0 <= device < len(found.gpus):
        raise DeviceError(f"no GPU {device}: there are {len(found.gpus)}, counted from 0")
    gpu = found.gpus[device]
    if gpu.compute_capability < OLDEST:
        raise DeviceError(
            "GPU {} ({}) has compute capability {}.{}; {}.{} or later is needed".format(
                device, gpu.name, *gpu.compute_capability, *OLDEST
            )
        )


def _import_pycuda(found: Probe) -> Any:
    try:
        import pycuda.driver as cuda
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] == "pycuda":
            raise MissingExtra("pycuda", "gpu", "running on the GPU") from None
        raise DeviceError(f"pycuda cannot be loaded: {e}") from None
    except ImportError as e:
        raise DeviceError(
            f"pycuda cannot be loaded ({_said(e)}); build it again for this machine: "
            "pip install --force-reinstall --no-cache-dir pycuda"
        ) from None
    built = tuple(cuda.get_version()[:2])
    if built[0] > found.cuda[0]:
        raise DeviceError(
            "the NVIDIA driver is too old: it runs CUDA {}.{}, pycuda was built for {}.{}; update the driver, or "
            "build pycuda with an older toolkit".format(*found.cuda, *built)
        )
    return cuda


def _said(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()
