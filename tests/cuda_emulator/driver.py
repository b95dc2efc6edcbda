"""`EmulatedDriver`: engine/device/driver.py's protocol on the CPU, strict where a GPU is not.

Device memory is host memory, full of 0xff when new (NaN, -1) and between guard bytes; whatever pointer is given
must lie in what is allocated. Work is done at once, or, `deferred`, as late as the stream's order allows: when an
event is waited for. Then a pinned buffer that is reused or read too early shows as a wrong result.
"""

from __future__ import annotations

import bisect
import ctypes
import functools
import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infercam.engine.device.driver import (
    Argument,
    Bytes,
    DeviceError,
    DeviceInfo,
    DeviceOutOfMemory,
    Dim,
    Pointer,
)
from tests.cuda_emulator import build

SANITIZED = os.environ.get("INFERCAM_EMULATOR") == "sanitized"
GUARD = 0 if SANITIZED else 256  # the sanitizer has its own, and stops at the first wrong access
_LOCK = threading.Lock()  # the emulator runs one kernel at a time


@functools.cache
def default_library() -> Path:
    """The engine's kernels, compiled; the test is skipped where there is no C++ compiler."""
    if build.compiler() is None:
        pytest.skip("needs a C++ compiler (g++ or CXX) to run the kernels on the CPU")
    return build.library(sanitized=SANITIZED)


class EmulatedEvent:
    def __init__(self, driver: EmulatedDriver, at: int) -> None:
        self._driver = driver
        self._at = at

    def done(self) -> bool:
        """Every question lets the device do one more piece of work."""
        if self._driver.executed < self._at:
            self._driver.execute(self._driver.executed + 1)
        return self._driver.executed >= self._at

    def wait(self) -> None:
        self._driver.execute(self._at)


class EmulatedDriver:
    """See driver.Driver.

    memory: bytes of the device. seed: of the order of blocks and threads, another at every launch; 0: their own.
    Counted: `launches` by kernel, `bytes_in`, `bytes_out`.
    """

    name = "emulated"

    def __init__(
        self, deferred: bool = False, seed: int = 0, memory: int = 1 << 30, library: Path | None = None
    ) -> None:
        self._lib = build.load(library or default_library())
        self._deferred = deferred
        self._seed = seed
        self._memory = memory
        self._blocks: dict[Pointer, int] = {}
        self._starts: list[Pointer] = []
        self._pinned: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._queue: deque[Callable[[], None]] = deque()
        self.enqueued = self.executed = 0
        self.launches: Counter[str] = Counter()
        self.bytes_in = self.bytes_out = 0

    stream = 1

    def current(self) -> AbstractContextManager[None]:
        return nullcontext()

    def info(self) -> DeviceInfo:
        return DeviceInfo("emulated", (9, 0), self._memory, self._memory - self.used, "0")

    @property
    def used(self) -> int:
        return sum(self._blocks.values())

    # -- memory --------------------------------------------------------------------------------------------
    def allocate(self, nbytes: int) -> Pointer:
        if nbytes <= 0:
            raise DeviceError(f"allocation of {nbytes} bytes")
        if self.used + nbytes > self._memory:
            raise DeviceOutOfMemory(f"{nbytes} bytes more than the emulated device has")
        base = self._lib.emulator_allocate(nbytes + 2 * GUARD)
        ctypes.memset(base, 0xFF, nbytes + 2 * GUARD)
        self._blocks[base + GUARD] = nbytes
        bisect.insort(self._starts, base + GUARD)
        return base + GUARD

    def free(self, pointer: Pointer) -> None:
        if pointer not in self._blocks:
            raise DeviceError(f"free of {pointer:#x}, which is not allocated")
        self.synchronise()  # as the driver does
        self._check_guards(pointer)
        nbytes = self._blocks.pop(pointer)
        self._starts.remove(pointer)
        ctypes.memset(pointer, 0xFF, nbytes)
        self._lib.emulator_free(pointer - GUARD)

    def view(self, pointer: Pointer, nbytes: int) -> Bytes:
        """Device memory as an array, for tests and for a network on the CPU; run it in the stream's order."""
        self._check_range(pointer, nbytes)
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))

    def pinned(self, nbytes: int) -> Bytes:
        out = np.full(nbytes, 0xFF, np.uint8)
        address = out.ctypes.data
        self._pinned[address] = nbytes, weakref.ref(out)
        weakref.finalize(out, self._pinned.pop, address, None)
        return out

    def check(self) -> None:
        """No kernel has written beside an allocation."""
        for pointer in self._blocks:
            self._check_guards(pointer)

    def _check_guards(self, pointer: Pointer) -> None:
        for at in (pointer - GUARD, pointer + self._blocks[pointer]) if GUARD else ():
            if ctypes.string_at(at, GUARD) != b"\xff" * GUARD:
                raise DeviceError(f"written beside the {self._blocks[pointer]} bytes at {pointer:#x}")

    def _check_range(self, pointer: Pointer, nbytes: int) -> None:
        at = bisect.bisect_right(self._starts, pointer) - 1
        start = self._starts[at] if at >= 0 else 0
        if at < 0 or pointer + nbytes > start + self._blocks[start]:
            raise DeviceError(f"{nbytes} bytes at {pointer:#x} are not all in one allocation")

    # -- the stream ----------------------------------------------------------------------------------------
    def enqueue(self, work: Callable[[], None]) -> None:
        """Run `work` on the host in the stream's order."""
        self._queue.append(work)
        self.enqueued += 1
        if not self._deferred:
            self.synchronise()

    def execute(self, until: int) -> None:
        while self.executed < until:
            self.executed += 1  # before: work that fails has been done
            self._queue.popleft()()

    def synchronise(self) -> None:
        self.execute(self.enqueued)

    def record(self) -> EmulatedEvent:
        return EmulatedEvent(self, self.enqueued)

    def copy_in(self, target: Pointer, source: Bytes) -> None:
        _check_host(source)
        self._check_range(target, source.nbytes)
        self.bytes_in += source.nbytes
        address, nbytes = source.ctypes.data, source.nbytes
        alive = self._owner(address, nbytes)
        if alive is None:  # pageable: the driver has its own copy when it returns
            data = source.tobytes()
            self.enqueue(lambda: self._move(target, data, nbytes))
        else:
            self.enqueue(lambda: self._move(target, _still(alive, address), nbytes))

    def copy_out(self, target: Bytes, source: Pointer) -> None:
        _check_host(target)
        self._check_range(source, target.nbytes)
        self.bytes_out += target.nbytes
        address, nbytes = target.ctypes.data, target.nbytes
        alive = self._owner(address, nbytes)
        if alive is None:  # pageable: the driver waits
            self.synchronise()
            self._move(address, source, nbytes)
        else:
            self.enqueue(lambda: self._move(_still(alive, address), source, nbytes))

    def copy(self, target: Pointer, source: Pointer, nbytes: int) -> None:
        self._check_range(target, nbytes)
        self._check_range(source, nbytes)
        self.enqueue(lambda: self._move(target, source, nbytes))

    def zero(self, pointer: Pointer, nbytes: int) -> None:
        self._check_range(pointer, nbytes)
        self.enqueue(lambda: (ctypes.memset(pointer, 0, nbytes), None)[1])

    @staticmethod
    def _move(target: int, source: int | bytes, nbytes: int) -> None:
        ctypes.memmove(target, source, nbytes)

    def _owner(self, address: int, nbytes: int) -> weakref.ref[Any] | None:
        """The pinned array in which this memory lies."""
        for start, (size, alive) in self._pinned.items():
            if start <= address and address + nbytes <= start + size:
                return alive
        return None

    def launch(
        self, kernel: str, grid: Dim, block: Dim, arguments: Sequence[Argument], shared_bytes: int = 0
    ) -> None:
        values = self._arguments(kernel, arguments)
        if not (0 < grid[0] < 2**31 and min(grid) > 0 and max(grid[1:]) < 65536):
            raise DeviceError(f"{kernel}: grid {grid} is invalid")
        if not (min(block) > 0 and np.prod(block) <= 1024 and not shared_bytes):
            raise DeviceError(f"{kernel}: block {block} with {shared_bytes} bytes is invalid")
        self.launches[kernel] += 1
        seed = self._seed and self._seed + sum(self.launches.values())
        self.enqueue(lambda: self._run(kernel, grid, block, values, seed))

    def _arguments(self, kernel: str, arguments: Sequence[Argument]) -> list[Any]:
        sizes = (ctypes.c_size_t * 16)()
        count = self._lib.emulator_arguments(kernel.encode(), sizes, 16)
        if count < 0:
            raise DeviceError(f"no kernel {kernel}")
        given = [np.uint64(a) if isinstance(a, int) else a for a in arguments]
        if [a.nbytes for a in given] != list(sizes)[:count]:
            raise DeviceError(
                f"{kernel}: arguments of {[a.nbytes for a in given]}, not {list(sizes)[:count]} bytes"
            )
        for a in arguments:
            if isinstance(a, int) and a:
                self._check_range(a, 1)
        return [ctypes.create_string_buffer(a.tobytes(), a.nbytes) for a in given]

    def _run(self, kernel: str, grid: Dim, block: Dim, values: list[Any], seed: int) -> None:
        error = ctypes.create_string_buffer(500)
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        dims = [(ctypes.c_uint * 3)(*d) for d in (grid, block)]
        with _LOCK:
            failed = self._lib.emulator_launch(kernel.encode(), *dims, pointers, seed, error, 500)
        if failed:
            raise DeviceError(error.value.decode())
        self.check()

    def describe(self) -> dict[str, Any]:
        return {"driver": self.name}

    def close(self) -> None:
        """Do what is left, check all guards, free everything."""
        self.synchronise()
        for pointer in list(self._blocks):
            self.free(pointer)


def _check_host(array: Bytes) -> None:
    if array.dtype != np.uint8 or not array.flags.c_contiguous:
        raise DeviceError("a copy needs contiguous uint8")


def _still(alive: weakref.ref[Any], address: int) -> int:
    if alive() is None:
        raise DeviceError("pinned memory was let go of before its copy was done")
    return address
