"""Pieces of device memory that a runner needs for itself."""

from __future__ import annotations

from typing import Protocol

from infercam.engine.device.driver import DeviceOutOfMemory, Driver, Pointer
from infercam.engine.method.backend import OutOfMemory


class Memory(Protocol):
    """Where scratch memory comes from: a Driver, or a pool over one."""

    def allocate(self, nbytes: int) -> Pointer: ...
    def free(self, pointer: Pointer) -> None: ...


class GrowingBlock:
    """One piece of device memory that grows; only the stream's work uses it."""

    def __init__(self, driver: Driver, memory: Memory) -> None:
        self._driver, self._memory = driver, memory
        self._pointer: Pointer | None = None
        self.nbytes = 0

    def at_least(self, nbytes: int) -> Pointer:
        """Its address, after it has grown where needed; raises OutOfMemory and is empty then."""
        if self._pointer is None or nbytes > self.nbytes:
            if self._pointer is not None:
                self._driver.record().wait()  # work in flight may still use it; growing is rare
                self.release()
            try:
                self._pointer = self._memory.allocate(max(nbytes, 256))
            except DeviceOutOfMemory as e:
                raise OutOfMemory(str(e)) from None
            self.nbytes = max(nbytes, 256)
        return self._pointer

    def release(self) -> None:
        if self._pointer is not None:
            self._memory.free(self._pointer)
        self._pointer, self.nbytes = None, 0
