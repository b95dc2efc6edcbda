"""Page-locked host memory between the host and the device: what is copied asynchronously must stay put until the
copy has ended, so host data passes through buffers that are reused only behind an event."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from infercam.engine.device.driver import Bytes, Driver, Event, Pointer
from infercam.engine.device.pool import size_class

SEGMENT = 4 << 20
LIMIT = 256 << 20
ALIGNMENT = 64


class Uploads:
    """Host to device (ops.Uploads): data is copied into a segment of page-locked memory and from there.

    `send` waits for the device only if it has `limit` bytes of uploads still to take.
    """

    def __init__(self, driver: Driver, segment: int = SEGMENT, limit: int = LIMIT) -> None:
        self._driver = driver
        self._size = segment
        self._most = max(2, limit // segment)
        self._segment = driver.pinned(segment)
        self._filled = 0
        self._busy: deque[tuple[Event, Bytes]] = deque()
        self._count = 1
        self.nbytes = 0
        """Sent so far."""

    def send(self, target: Pointer, data: Bytes) -> None:
        """Enqueue a copy of `data` (contiguous) to the device; `data` itself may be reused at once."""
        flat = data.reshape(-1).view(np.uint8)
        self.nbytes += flat.size
        begin = 0
        while begin < flat.size:
            if self._filled >= self._size:
                self._turn()
            end = min(flat.size, begin + self._size - self._filled)
            staged = self._segment[self._filled : self._filled + end - begin]
            np.copyto(staged, flat[begin:end])
            self._driver.copy_in(target + begin, staged)
            self._filled += -(-staged.size // ALIGNMENT) * ALIGNMENT
            begin = end

    def _turn(self) -> None:
        """Leave the full segment to the device and take another."""
        self._busy.append((self._driver.record(), self._segment))
        event, oldest = self._busy[0]
        if not event.done() and self._count < self._most:
            self._segment = self._driver.pinned(self._size)
            self._count += 1
        else:
            event.wait()
            self._busy.popleft()
            self._segment = oldest
        self._filled = 0

    def close(self) -> None:
        """Drop the buffers; the device must be done with them."""
        self._busy.clear()
        self._segment = np.empty(0, np.uint8)


class Landing(NamedTuple):
    """A place in host memory for a copy from the device."""

    data: Bytes
    buffer: Bytes
    """What `data` is the beginning of."""


class Downloads:
    """Device to host: page-locked buffers that are taken before a copy and given back once it was read.

    Buffers are kept for reuse up to `limit` bytes. What is larger than that alone is not page-locked: its copy
    then waits for the device, but the host's memory is not tied up.
    """

    def __init__(self, driver: Driver, limit: int = LIMIT) -> None:
        self._driver = driver
        self._limit = limit
        self._idle: dict[int, list[Bytes]] = {}
        self._kept = 0
        self.nbytes = 0
        """Fetched so far."""

    def reserve(self, nbytes: int) -> Landing:
        """A place for `nbytes`; to be given back in any case."""
        if nbytes > self._limit:
            buffer = np.empty(nbytes, np.uint8)
        else:
            size = size_class(nbytes)
            idle = self._idle.get(size)
            if idle:
                buffer = idle.pop()
                self._kept -= size
            else:
                buffer = self._driver.pinned(size)
        return Landing(buffer[:nbytes], buffer)

    def fetch(self, landing: Landing, source: Pointer) -> None:
        """Enqueue the copy: `landing.data` is there once an event recorded after this is done."""
        self._driver.copy_out(landing.data, source)
        self.nbytes += landing.data.size

    def give_back(self, landing: Landing) -> None:
        """The content has been read."""
        size = landing.buffer.size
        if self._kept + size <= self._limit:
            self._kept += size
            self._idle.setdefault(size, []).append(landing.buffer)

    def close(self) -> None:
        """Drop the buffers; the device must be done with them."""
        self._idle.clear()
        self._kept = 0
