"""What moves through the scheduler: an image, its tiles, and the units of work done on them.

Only decisions live here (boxes, counters, which views are due). Pixels, masks and maps belong to the backend,
which hangs them on `Tile.state` and `ImageTask.state`, in host or device memory as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infercam.engine.method.geometry import ANY_SIZE, Box, ViewSizes
from infercam.engine.method.recipe import Mode, Recipe, Views
from infercam.engine.method.trace import Trace
from infercam.engine.method.windows import Cover


@dataclass(eq=False)
class ImageTask:
    """One image on its way through the method. `classes` are indices into the bundle's classes."""

    id: str
    pixels: NDArray[np.uint8]
    classes: list[int]
    recipe: Recipe
    """What of it holds for so many classes."""
    mode: Mode = "both"
    seq: int = 0
    """Order of arrival; the older image goes first."""
    tiles: list[Tile] = field(default_factory=list)
    open_tiles: int = 0
    in_flight: int = 0
    """Units of work handed to the backend and not yet reported."""
    iterations: list[int] = field(default_factory=list)
    """Of each tile that has finished."""
    failed: Exception | None = None
    trace: Trace | None = None
    """Where its steps are noted; None: they are not."""
    state: Any = None

    def __post_init__(self) -> None:
        self.recipe = self.recipe.of(len(self.classes))

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


@dataclass(eq=False)
class Tile:
    """A part of an image (or the whole) and how far its erasing has come."""

    image: ImageTask
    box: Box
    takes: tuple[int, ...]
    """Positions in image.classes whose maps the united map takes from this tile; empty for a centre pass."""
    iterations: int
    """At most this many."""
    whole: bool = False
    """Covers the whole image and is united as such (Recipe.whole)."""
    locates: bool = False
    """Its first iteration gives the centres of mass and the raw peak."""
    peak: NDArray[np.float32] | None = None
    """The whole image's raw peak per class and view (K,), once known; see Recipe.peak_floor."""
    views: Views = field(default_factory=Views)
    """Views of the iteration under way."""
    iteration: int = 0
    """Iterations finished; -1 while a probe is under way."""
    pending: int = 0
    """Views of this iteration still without a response."""
    state: Any = None


class View(NamedTuple):
    """One input of the network: a tile at a scale, mirrored or not, or a window of that."""

    tile: Tile
    scale: int
    """Position in tile.views.scales."""
    mirrored: bool
    shape: tuple[int, int]
    """Network height and width."""
    whole: tuple[int, int]
    """Height and width of the whole view; `shape` but for windows."""
    at: tuple[int, int] = (0, 0)
    """First pixel (y, x) of the window in the view, mirrored if that is."""

    @property
    def windowed(self) -> bool:
        """Whether the network sees only a part of it."""
        return self.shape != self.whole

    @property
    def pixels(self) -> int:
        return self.shape[0] * self.shape[1]


def covers(tile: Tile, sizes: ViewSizes = ANY_SIZE) -> list[Cover]:
    """The tile's present views, one a scale."""
    height, width, recipe = tile.box.height, tile.box.width, tile.image.recipe
    return [sizes.cover(height, width, scale, recipe) for scale in tile.views.scales]


def view_shapes(tile: Tile, sizes: ViewSizes = ANY_SIZE) -> list[tuple[int, int]]:
    """Height and width of the tile's present views, one a scale."""
    return [cover.size for cover in covers(tile, sizes)]


def views_of(tile: Tile, sizes: ViewSizes = ANY_SIZE) -> list[View]:
    """What the network is to see in the tile's present iteration, at sizes that it takes."""
    out = []
    for i, cover in enumerate(covers(tile, sizes)):
        for mirrored in (False, True)[: 1 + tile.views.mirror]:
            out += [View(tile, i, mirrored, cover.window, cover.size, at) for at in cover.places]
    return out


@dataclass(frozen=True)
class Respond:
    """Run the network on views of equal shape and keep each response with its tile."""

    views: list[View]
    blank: int = 0
    """Views to fill the batch up with, whose response nobody wants: so that a shape has few batch sizes."""

    @property
    def slots(self) -> int:
        """Views of the batch as the network runs it."""
        return len(self.views) + self.blank


@dataclass(frozen=True)
class Advance:
    """All responses of a tile's iteration are there: sum, normalise, accumulate, update the mask."""

    tile: Tile


@dataclass(frozen=True)
class Unite:
    """All tiles of an image are done: make its maps."""

    image: ImageTask


@dataclass(frozen=True, eq=False)
class Infer:
    """Run the network on inputs as they are. No image of the method's: the scheduler knows nothing of it."""

    x: NDArray[np.float32]
    """N×3×H×W, normalised."""


Work = Respond | Advance | Unite | Infer


class Inferred(NamedTuple):
    """The network's outputs."""

    response: NDArray[np.float32]
    """N×C×h×w, before ReLU, without the linear layer's bias."""
    scores: NDArray[np.float32]
    """N×C."""


class Advanced(NamedTuple):
    """What the host learns of a tile's iteration; all else stays on the device."""

    erased: int
    """Newly erased pixels."""
    peak: NDArray[np.float32]
    """Raw peak per class, summed over views (K,); see Recipe.peak_quantile."""
    centres: list[tuple[int, int]]
    """Centre of mass (y, x) per class; empty unless tile.locates and this was its first iteration."""


@dataclass(frozen=True)
class Done:
    """A unit of work that has ended: `result` is None (Respond), Advanced, the maps (Unite), or Inferred."""

    work: Work
    result: Any = None
    error: Exception | None = None
