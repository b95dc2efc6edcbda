"""`pycuda.driver` over the emulated device: names, signatures and rules as in pycuda 2026.1's source
(src/wrapper/wrap_cudadrv.cpp, src/cpp/cuda.hpp, pycuda/driver.py).

Strict where pycuda is: nearly every call needs a context on the calling thread's stack, a thread that ends with one
aborts the process (here: `stacks_left`), and what is passed must have the types that its bindings convert.
"""

from __future__ import annotations

import struct
import threading
from types import ModuleType
from typing import Any

import numpy as np

from tests.cuda_emulator.driver import EmulatedDriver


class Error(Exception):
    pass


class MemoryError(Error):
    pass


class LogicError(Error):
    pass


class LaunchError(Error):
    pass


class RuntimeError(Error):
    pass


class FakeCuda:
    """One device; `module()` gives what stands in sys.modules as pycuda.driver.

    fail: name of a call -> the exception that it raises.
    """

    def __init__(self, memory: int = 1 << 28, built_for: tuple[int, int, int] = (13, 0, 0)) -> None:
        from infercam.engine.device.driver import DeviceOutOfMemory

        self.emulated = EmulatedDriver(deferred=True, seed=2, memory=memory)
        self.out_of_memory = DeviceOutOfMemory
        self.built_for = built_for
        self.fail: dict[str, Exception] = {}
        self.calls: list[str] = []
        self.initialised = False
        self.primary: Context | None = None
        self._local = threading.local()
        self._all_stacks: list[list[Context]] = []

    @property
    def stack(self) -> list[Context]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
            self._all_stacks.append(self._local.stack)
        return self._local.stack

    @property
    def stacks_left(self) -> int:
        return sum(map(len, self._all_stacks))

    def needs_context(self, call: str) -> None:
        self.calls.append(call)
        if not self.initialised:
            raise LogicError(f"{call} failed: initialization error")
        if call in self.fail:
            raise self.fail[call]
        if not self.stack:
            raise LogicError(f"{call} failed: invalid device context")

    def module(self) -> ModuleType:
        cuda = ModuleType("pycuda.driver")
        for error in (Error, MemoryError, LogicError, LaunchError, RuntimeError):
            setattr(cuda, error.__name__, error)
        cuda.event_flags = type("event_flags", (), {"DEFAULT": 0, "BLOCKING_SYNC": 1, "DISABLE_TIMING": 2})  # type: ignore[attr-defined]
        cuda.function_attribute = type("function_attribute", (), {"MAX_DYNAMIC_SHARED_SIZE_BYTES": 8})  # type: ignore[attr-defined]
        for name in ("init", "get_version", "get_driver_version", "mem_get_info", "mem_alloc"):
            setattr(cuda, name, getattr(self, name))
        for name in ("pagelocked_empty", "memcpy_htod_async", "memcpy_dtoh_async", "memset_d8_async"):
            setattr(cuda, name, getattr(self, name))
        cuda.memcpy_dtod_async = self.memcpy_dtod_async  # type: ignore[attr-defined]
        cuda.module_from_buffer = self.module_from_buffer  # type: ignore[attr-defined]
        cuda.Device = lambda ordinal: Device(self, ordinal)  # type: ignore[attr-defined]
        cuda.Stream = lambda flags=0: Stream(self, flags)  # type: ignore[attr-defined]
        cuda.Event = lambda flags=0: Event(self, flags)  # type: ignore[attr-defined]
        return cuda

    # -- module functions
    def init(self, flags: int = 0) -> None:
        self.calls.append("init")
        if "init" in self.fail:
            raise self.fail["init"]
        self.initialised = True

    def get_version(self) -> tuple[int, int, int]:
        return self.built_for

    def get_driver_version(self) -> int:
        return 13000

    def mem_get_info(self) -> tuple[int, int]:
        self.needs_context("mem_get_info")
        info = self.emulated.info()
        return info.free_memory, info.total_memory

    def mem_alloc(self, nbytes: int, /) -> DeviceAllocation:
        self.needs_context("mem_alloc")
        assert type(nbytes) is int
        try:
            return DeviceAllocation(self, self.emulated.allocate(nbytes))
        except self.out_of_memory:
            raise MemoryError("cuMemAlloc failed: out of memory") from None

    def pagelocked_empty(self, shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> np.ndarray:
        self.needs_context("pagelocked_empty")
        assert order == "C" and np.dtype(dtype) == np.uint8
        (nbytes,) = shape
        return self.emulated.pinned(nbytes)

    def memcpy_htod_async(self, dest: int, src: Any, stream: Any = None) -> None:
        self.needs_context("memcpy_htod_async")
        assert type(dest) is int and isinstance(stream, Stream) and memoryview(src).contiguous
        self.emulated.copy_in(dest, src)

    def memcpy_dtoh_async(self, dest: Any, src: int, stream: Any = None) -> None:
        self.needs_context("memcpy_dtoh_async")
        assert type(src) is int and isinstance(stream, Stream)
        assert memoryview(dest).contiguous and not memoryview(dest).readonly
        self.emulated.copy_out(dest, src)

    def memcpy_dtod_async(self, dest: int, src: int, size: int, stream: Any = None) -> None:
        self.needs_context("memcpy_dtod_async")
        assert type(dest) is int and type(src) is int and isinstance(stream, Stream)
        self.emulated.copy(dest, src, size)

    def memset_d8_async(self, dest: int, data: int, size: int, stream: Any = None) -> None:
        self.needs_context("memset_d8_async")
        assert type(dest) is int and data == 0 and isinstance(stream, Stream)
        self.emulated.zero(dest, size)

    def module_from_buffer(self, buffer: bytes, options: Any = (), message_handler: Any = None) -> Module:
        self.needs_context("module_from_buffer")
        assert memoryview(buffer).contiguous
        return Module(self)


class Device:
    def __init__(self, fake: FakeCuda, ordinal: int) -> None:
        if not fake.initialised:
            raise LogicError("cuDeviceGet failed: initialization error")
        if ordinal:
            raise LogicError("cuDeviceGet failed: invalid device ordinal")
        self._fake = fake

    def name(self) -> str:
        return "Fake GPU"

    def compute_capability(self) -> tuple[int, int]:
        return (9, 0)

    def total_memory(self) -> int:
        return self._fake.emulated.info().total_memory

    def retain_primary_context(self) -> Context:
        if "retain_primary_context" in self._fake.fail:
            raise self._fake.fail["retain_primary_context"]
        self._fake.primary = Context(self._fake)
        return self._fake.primary


class Context:
    def __init__(self, fake: FakeCuda) -> None:
        self._fake = fake
        self.handle = 77

    def push(self) -> None:
        self._fake.stack.append(self)

    def pop(self) -> None:
        if not self._fake.stack:
            raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
        self._fake.stack.pop()


class DeviceAllocation:
    def __init__(self, fake: FakeCuda, pointer: int) -> None:
        self._fake, self._pointer = fake, pointer

    def __int__(self) -> int:
        return self._pointer

    def free(self) -> None:
        self._fake.needs_context("free")
        self._fake.emulated.free(self._pointer)


class Stream:
    def __init__(self, fake: FakeCuda, flags: int) -> None:
        fake.needs_context("Stream")
        assert flags == 1  # CU_STREAM_NON_BLOCKING
        self.handle = 4321

    def synchronize(self) -> None: ...


class Event:
    def __init__(self, fake: FakeCuda, flags: int) -> None:
        fake.needs_context("Event")
        assert flags == 3
        self._fake = fake
        self._event: Any = None

    def record(self, stream: Any = None) -> Event:
        self._fake.needs_context("record")
        assert isinstance(stream, Stream)
        self._event = self._fake.emulated.record()
        return self

    def query(self) -> bool:
        self._fake.needs_context("query")
        return self._event.done()

    def synchronize(self) -> Event:
        self._fake.needs_context("synchronize")
        self._event.wait()
        return self


class Module:
    def __init__(self, fake: FakeCuda) -> None:
        self._fake = fake

    def get_function(self, name: str) -> Function:
        self._fake.needs_context("get_function")
        if self._fake.emulated._lib.emulator_arguments(name.encode(), None, 0) < 0:
            raise LogicError("cuModuleGetFunction failed: named symbol not found")
        return Function(self._fake, name)


class Function:
    """pycuda's own `pack` is Python's struct module but for complex types."""

    def __init__(self, fake: FakeCuda, name: str) -> None:
        self._fake, self._name = fake, name
        self.shared = 0

    def prepare(self, arg_types: Any, texrefs: Any = None) -> Function:
        assert all(isinstance(t, str) for t in arg_types)
        self.arg_format = "".join(arg_types)
        return self

    def set_attribute(self, attribute: int, value: int) -> None:
        assert attribute == 8
        self.shared = value

    def prepared_async_call(self, grid: Any, block: Any, stream: Any, *args: Any, **kwargs: Any) -> None:
        self._fake.needs_context("launch")
        assert isinstance(grid, tuple) and isinstance(block, tuple) and isinstance(stream, Stream)
        shared = kwargs.pop("shared_size", 0)
        assert not kwargs and shared <= max(self.shared, 48 << 10)
        struct.pack("@" + self.arg_format, *args)  # raises where a type does not fit
        values = [
            a if code == "P" else np.dtype(code).type(a)
            for code, a in zip(self.arg_format, args, strict=True)
        ]
        self._fake.emulated.launch(self._name, grid, block, values, shared)
