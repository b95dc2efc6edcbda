"""What happened to an image on its way, step by step: for looking at, not for computing with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from infercam.engine.method.geometry import Box


class Traceable(Protocol):
    """What is asked of a tile (task.Tile)."""

    @property
    def box(self) -> Box: ...
    @property
    def takes(self) -> tuple[int, ...]: ...
    @property
    def whole(self) -> bool: ...


class Inspected(NamedTuple):
    """What a backend holds of a tile between two iterations, copied to the host."""

    maps: NDArray[np.float32]
    """K×h×w in 0..1: the tile's maps if its loop ended now."""
    erased: NDArray[np.bool_]
    """h×w at tile size: what the next iteration will not see."""


@dataclass(frozen=True, eq=False)
class Step:
    """A tile after one iteration (engine/method/README.md §3)."""

    erased_share: float
    """Newly erased pixels, as a share of the tile."""
    erased: NDArray[np.bool_]
    """h×w: all that is erased by now."""
    maps: NDArray[np.uint8]
    """K×h×w: the accumulated maps, 0..255. A byte, for there is one for every class, tile and iteration."""


@dataclass(frozen=True, eq=False)
class TracedTile:
    """A part of an image, or the whole, that contributes to its maps."""

    box: Box
    takes: tuple[int, ...]
    """Positions among the image's K classes whose maps come from here."""
    whole: bool
    iterations: list[Step] = field(default_factory=list)


@dataclass(eq=False)
class Trace:
    """All steps of one image; `Result.trace`."""

    centres: list[tuple[int, int]] = field(default_factory=list)
    """Centre of mass (y, x) of each of the K classes; empty where nothing was split."""
    tiles: list[TracedTile] = field(default_factory=list)
    """In the order in which their first iterations ended; a tile where a probe found nothing is not among them."""
    _of: dict[Traceable, TracedTile] = field(default_factory=dict, repr=False)

    def record(self, tile: Traceable, erased: int, inspected: Inspected) -> None:
        """Note the iteration of `tile` that has just ended; erased: its newly erased pixels."""
        traced = self._of.get(tile)
        if traced is None:
            traced = self._of[tile] = TracedTile(tile.box, tile.takes, tile.whole)
            self.tiles.append(traced)
        maps = np.rint(inspected.maps * np.float32(255)).astype(np.uint8)
        traced.iterations.append(Step(erased / tile.box.area, inspected.erased, maps))

    def close(self) -> None:
        """Let go of the tiles: they hold what the backend made of them."""
        self._of.clear()
