"""What a call of ops.py is given: plain descriptions of work, packed there into the kernels' structs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infercam.engine.device.driver import Pointer
from infercam.engine.method.geometry import Box

Size = tuple[int, int]
"""Height and width."""


class Resize(NamedTuple):
    """Make the picture of a tile at one network size."""

    image: Pointer
    image_width: int
    box: Box
    """The tile's place in the image."""
    size: Size
    """The network's."""
    picture: Pointer
    """Written: `picture_nbytes(size)`."""


class Slot(NamedTuple):
    """One place of a batch: which picture goes there, and what is erased of it."""

    picture: Pointer
    mirrored: bool = False
    erased: Pointer = 0
    """0 in a tile's first iteration: nothing is."""
    tile: Size = (0, 0)
    """Size of `erased`."""
    chain: Sequence[Size] = ()
    """The sizes that the mask is resized to one after the other, before the network's (which is not repeated
    here); empty but for Recipe.mask_cascade."""
    mask_mirrored: bool = True
    """A mirrored view is masked with the mirrored mask (Recipe.mask_mirrored)."""


class Gather(NamedTuple):
    """Keep the present classes of a batch's response: `low` = ReLU(plain) + un-mirrored ReLU(mirrored)."""

    low: Pointer
    classes: Sequence[int]
    """Indices into the network's classes (K)."""
    plain: int = -1
    """Slot of the plain view; -1: not in this batch."""
    mirrored: int = -1
    """Slot of the mirrored view; -1: not in this batch."""
    add: bool = False
    """To what an earlier batch left in `low` (the other view of the pair). Never two items of one call on one
    `low`: a pair that is in one batch is one item."""


class Cut(NamedTuple):
    """One window of a view as the network sees it."""

    whole: Pointer
    """The view: 3×`size`, written by Ops.erase."""
    size: Size
    at: Size
    """First pixel (y, x) of the window."""


class Part(NamedTuple):
    """A window's response, and its place in the view's."""

    slot: int
    mirrored: bool
    at: Size
    """First cell (y, x), in the mirror image's orientation where it is a window of that."""
    rows: NDArray[np.float32]
    columns: NDArray[np.float32]
    """What its cells count for, see windows.shares."""


class Patch(NamedTuple):
    """Add windows' responses to a view's: ReLU, weighted, the mirror image's un-mirrored. Never two of one call on
    one `low`."""

    low: Pointer
    size: Size
    """Of `low`, in cells."""
    classes: Sequence[int]
    """Indices into the network's classes (K)."""
    parts: list[Part]


class LowResponse(NamedTuple):
    """Summed responses of one scale."""

    pointer: Pointer
    size: Size


class Accumulate(NamedTuple):
    """One iteration of a tile: sum its views at tile size, normalise, accumulate, update the mask."""

    tile: Size
    classes: int
    """K."""
    lows: Sequence[LowResponse]
    """In the order of the scales."""
    quantile: float = 1.0
    """Recipe.peak_quantile."""
    floor: NDArray[np.float32] | None = None
    """(K,) least value to divide by: peak_floor * peak * views.count (float32); None: 0."""
    accumulated: Pointer = 0
    """`maps_nbytes(classes, tile)`, read and written; 0 for a probe or a pass that only finds the centres."""
    erased: Pointer = 0
    """`mask_nbytes(tile)`, read and written; 0 with `accumulated`."""
    first: bool = True
    """First iteration: `accumulated` and `erased` are only written."""
    mode: Literal["max", "sum", "mean"] = "max"
    """Recipe.accumulate."""
    threshold: float = 0.7
    locate: bool = False
    """Find the centre of mass of each class's normalised map."""
    compete: bool = False
    """Recipe.compete."""


class UnitePart(NamedTuple):
    """A tile's accumulated maps and their place in the image."""

    accumulated: Pointer
    box: Box
    takes: Sequence[int]
    """Positions among the K classes that the united map takes from it."""
    iterations: int
    """How many were accumulated."""


class UniteCall(NamedTuple):
    """Make an image's maps from its tiles."""

    size: Size
    """The image's."""
    classes: int
    """K."""
    parts: Sequence[UnitePart]
    """Tiles; none where probes found nothing."""
    whole: UnitePart | None = None
    """The whole image's own maps."""
    join: Literal["only", "max", "mean"] = "only"
    """How `whole`, where given, joins the tiles': `only` it counts (there were no tiles), or as Recipe.whole."""
    weight: float = 0.5
    """Of `whole` in `mean`."""
    mode: Literal["max", "sum", "mean"] = "max"
    """Recipe.accumulate: a sum is divided by its own maximum, a mean by the iterations."""
