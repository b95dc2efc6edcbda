"""What an image and its tiles hold on the device. Every block is the image's, so that releasing it frees all,
however far it had come."""

from __future__ import annotations

from dataclasses import dataclass, field

from infercam.engine.device.descriptors import Size
from infercam.engine.device.driver import Pointer
from infercam.engine.device.pool import Pool


@dataclass
class LowResMap:
    """One scale's responses of the iteration under way."""

    pointer: Pointer
    size: Size
    seen: set[tuple[bool, Size]] = field(default_factory=set)
    """Which views (mirrored or not) and windows (first pixel) are in it: what is tried again is not added twice."""


@dataclass
class TileOnDevice:
    """Hangs on Tile.state."""

    pictures: dict[Size, Pointer] = field(default_factory=dict)
    """A view's size -> the tile at that size."""
    lows: dict[int, LowResMap] = field(default_factory=dict)
    """Position of the scale -> its responses."""
    accumulated: Pointer = 0
    erased: Pointer = 0


class ImageOnDevice:
    """Hangs on ImageTask.state."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._blocks: set[Pointer] = set()
        self.pixels: Pointer = 0

    def allocate(self, nbytes: int) -> Pointer:
        """A block that lives as long as the image, or until `free`; raises DeviceOutOfMemory."""
        pointer = self._pool.allocate(nbytes)
        self._blocks.add(pointer)
        return pointer

    def free(self, pointer: Pointer) -> None:
        self._blocks.remove(pointer)
        self._pool.free(pointer)

    def drop_lows(self, tile: TileOnDevice) -> None:
        """The iteration's responses have been summed."""
        for low in tile.lows.values():
            self.free(low.pointer)
        tile.lows.clear()

    def drop_pictures(self, tile: TileOnDevice) -> None:
        """Nothing more is to be inferred of the tile."""
        for pointer in tile.pictures.values():
            self.free(pointer)
        tile.pictures.clear()

    def release(self) -> None:
        """Free all that is left."""
        for pointer in self._blocks:
            self._pool.free(pointer)
        self._blocks.clear()
