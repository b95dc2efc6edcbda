"""A Driver (engine/device/driver.py) whose device memory is the host's: for what needs pointers and no kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from infercam.engine.device.driver import Argument, Bytes, DeviceInfo, DeviceOutOfMemory, Dim, Pointer


class _Past:
    """An event behind work that is done: everything here happens at once."""

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class HostDriver:
    """`budget`: bytes that may be allocated at a time."""

    name = "host"

    def __init__(
        self,
        gpu: str = "NVIDIA H100",
        compute_capability: tuple[int, int] = (9, 0),
        budget: int = 1 << 30,
    ) -> None:
        self.gpu, self.compute_capability, self.budget = gpu, compute_capability, budget
        self.blocks: dict[Pointer, Bytes] = {}
        self.closed = False
        self._depth = 0

    stream = 0x57

    @contextmanager
    def current(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def info(self) -> DeviceInfo:
        return DeviceInfo(self.gpu, self.compute_capability, self.budget, self.budget - self.held, "13.1")

    @property
    def held(self) -> int:
        return sum(b.nbytes for b in self.blocks.values())

    def allocate(self, nbytes: int) -> Pointer:
        assert self._depth, "no context is current"
        if self.held + nbytes > self.budget:
            raise DeviceOutOfMemory(f"{nbytes} bytes do not fit")
        block = np.full(nbytes, 0xA5, np.uint8)  # never zeros by luck
        pointer = int(block.ctypes.data)
        self.blocks[pointer] = block
        return pointer

    def free(self, pointer: Pointer) -> None:
        self.blocks.pop(pointer).fill(0xDD)

    def view(self, pointer: Pointer, nbytes: int) -> Bytes:
        """The bytes at a pointer, which must lie within one allocation."""
        for start, block in self.blocks.items():
            if start <= pointer and pointer + nbytes <= start + block.nbytes:
                return block[pointer - start : pointer - start + nbytes]
        raise AssertionError(f"{nbytes} bytes at {pointer:#x} are not device memory")

    def pinned(self, nbytes: int) -> Bytes:
        return np.empty(nbytes, np.uint8)

    def copy_in(self, target: Pointer, source: Bytes) -> None:
        self.view(target, source.nbytes)[:] = source

    def copy_out(self, target: Bytes, source: Pointer) -> None:
        assert target.flags.c_contiguous
        ctypes.memmove(target.ctypes.data, self.view(source, target.nbytes).ctypes.data, target.nbytes)

    def copy(self, target: Pointer, source: Pointer, nbytes: int) -> None:
        self.view(target, nbytes)[:] = self.view(source, nbytes)

    def zero(self, pointer: Pointer, nbytes: int) -> None:
        self.view(pointer, nbytes)[:] = 0

    def record(self) -> _Past:
        return _Past()

    def launch(
        self, kernel: str, grid: Dim, block: Dim, arguments: Sequence[Argument], shared_bytes: int = 0
    ) -> None:
        raise NotImplementedError("no kernels here")

    def describe(self) -> dict[str, Any]:
        return {"driver": self.name}

    def close(self) -> None:
        self.closed = True
