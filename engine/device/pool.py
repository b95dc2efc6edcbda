"""Device memory with a budget, in stream order.

All work goes to one stream, so a block that is freed on the host while the device still reads it may be handed out
at once: whatever is enqueued next runs after that reading. Nothing here waits for the device but a trim.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from infercam.engine.device.driver import DeviceError, DeviceOutOfMemory, Driver, Pointer

SMALLEST = 512
STEPS = 8
"""Size classes per doubling: a block is at most an eighth larger than was asked for."""
SLACK = 1.5
"""A free block serves a request down to its size over this."""
SHARE = 0.7
"""Of the device's free memory that is the budget where none is given; the rest is the network's and others'."""


@dataclass
class PoolStats:
    """Bytes, but for the counts. `used` and `cached` are rounded up to size classes."""

    used: int = 0
    """Handed out."""
    cached: int = 0
    """Freed, kept for reuse."""
    peak: int = 0
    """Most that was held of the device at once, handed out or cached."""
    peak_used: int = 0
    """Most that was handed out at once."""
    allocations: int = 0
    """Calls to the driver."""
    reuses: int = 0
    trims: int = 0
    """Times that cached blocks went back to the driver to make room."""

    @property
    def held(self) -> int:
        return self.used + self.cached


class Pool:
    """Blocks of device memory, at most `budget` bytes of it (default: SHARE of what is free now)."""

    def __init__(self, driver: Driver, budget: int | None = None) -> None:
        self._driver = driver
        self.budget = int(driver.info().free_memory * SHARE) if budget is None else budget
        self.stats = PoolStats()
        self._sizes: dict[Pointer, int] = {}
        self._used: set[Pointer] = set()
        self._free: dict[int, list[Pointer]] = {}
        self._free_sizes: list[int] = []
        """Keys of `_free`, ascending."""

    def allocate(self, nbytes: int) -> Pointer:
        """A block of at least `nbytes`, 256-byte aligned, its content undefined.

        Raises DeviceOutOfMemory where the budget or the device has no room, even without the cached blocks.
        """
        size = size_class(nbytes)
        pointer = self._reuse(size)
        if pointer is None:
            pointer = self._allocate(size)
        self._used.add(pointer)
        self.stats.used += self._sizes[pointer]
        self.stats.peak = max(self.stats.peak, self.stats.held)
        self.stats.peak_used = max(self.stats.peak_used, self.stats.used)
        return pointer

    def free(self, pointer: Pointer) -> None:
        """Take a block back; work enqueued later may get it while earlier work still reads it."""
        self._used.remove(pointer)  # KeyError: freed twice, or never ours
        size = self._sizes[pointer]
        self.stats.used -= size
        self.stats.cached += size
        if size not in self._free:
            bisect.insort(self._free_sizes, size)
            self._free[size] = []
        self._free[size].append(pointer)

    @contextmanager
    def scratch(self, *sizes: int) -> Iterator[list[Pointer]]:
        """Blocks for the work enqueued within; all of them or DeviceOutOfMemory."""
        blocks: list[Pointer] = []
        try:
            for nbytes in sizes:
                blocks.append(self.allocate(nbytes))
            yield blocks
        finally:
            for pointer in blocks:
                self.free(pointer)

    def trim(self, wanted: int | None = None) -> int:
        """Give cached blocks back to the driver, the largest first, until `wanted` bytes are (None: all).

        Returns how many bytes that were. The driver waits for the device to do this.
        """
        given = 0
        while self._free_sizes and (wanted is None or given < wanted):
            size = self._free_sizes[-1]
            pointer = self._pop(size)
            del self._sizes[pointer]
            self._driver.free(pointer)
            given += size
        return given

    def close(self) -> None:
        """Free everything, what is still handed out too."""
        for pointer in self._sizes:
            with suppress(DeviceError):  # of a lost device nothing can be freed, nor needs to be
                self._driver.free(pointer)
        for known in (self._sizes, self._used, self._free, self._free_sizes):
            known.clear()
        self.stats.used = self.stats.cached = 0

    def _reuse(self, size: int) -> Pointer | None:
        at = bisect.bisect_left(self._free_sizes, size)
        if at == len(self._free_sizes) or self._free_sizes[at] > SLACK * size:
            return None
        self.stats.reuses += 1
        return self._pop(self._free_sizes[at])

    def _pop(self, size: int) -> Pointer:
        """A cached block of exactly that class; the last one freed is the likeliest to be in the L2 cache."""
        blocks = self._free[size]
        pointer = blocks.pop()
        if not blocks:
            del self._free[size]
            self._free_sizes.remove(size)
        self.stats.cached -= size
        return pointer

    def _allocate(self, size: int) -> Pointer:
        over = self.stats.held + size - self.budget
        if over > self.stats.cached:
            raise DeviceOutOfMemory(
                f"{size >> 20} MiB more would pass the budget of {self.budget >> 20} MiB of device memory "
                f"({self.stats.used >> 20} MiB in use)"
            )
        if over > 0:
            self.stats.trims += 1
            self.trim(over)
        try:
            pointer = self._driver.allocate(size)
        except DeviceOutOfMemory:
            if not self.stats.cached:
                raise
            self.stats.trims += 1
            self.trim()
            pointer = self._driver.allocate(size)
        self._sizes[pointer] = size
        self.stats.allocations += 1
        return pointer


def size_class(nbytes: int) -> int:
    """`nbytes` rounded up to a size that blocks have: STEPS per doubling, multiples of 256 from SMALLEST on."""
    if nbytes <= SMALLEST:
        return SMALLEST
    step = max(256, (1 << (nbytes - 1).bit_length()) // (2 * STEPS))
    return -(-nbytes // step) * step
