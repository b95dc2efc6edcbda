"""The method's kernels, as calls: what backends/device.py does with images, tiles, masks and maps on the device.

Every call packs small descriptors, uploads them and launches kernels over all its items at once; nothing waits
for the device, and nothing is read back but by `read_results`. Results do not depend on how items are batched.
Twins: host_ops.py and reference.py; with the same responses they agree to float32 rounding.

What lies on the device (all pointers 256-byte aligned, as the pool gives them):
  image       H×W×3 uint8, RGB, rows dense
  picture     a tile resized to one network size: `picture_nbytes`; kept over mirror and iterations
  erased      h×w uint8 at tile size, 1 = erased
  accumulated K planes of float32 at tile size: `maps_nbytes`
  low         K×h'×w' float32, dense: one scale's ReLU'd response, plus that of its mirrored view, un-mirrored
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle import InputSpec
from ..geometry import Box
from ..runners.protocol import InputType, OutputShape
from ..task import Advanced
from .driver import Bytes, Driver, Pointer

Size = tuple[int, int]
"""Height and width."""


class Workspace(Protocol):
    """Device memory in stream order: what is freed may be given to work enqueued later."""

    def allocate(self, nbytes: int) -> Pointer:
        """At least 256-byte aligned; raises DeviceOutOfMemory."""
        ...

    def free(self, pointer: Pointer) -> None: ...


class Uploads(Protocol):
    """Small host data on its way to the device."""

    def send(self, target: Pointer, data: Bytes) -> None:
        """Enqueue a copy of `data` to the device; `data` itself may be reused at once (it was staged)."""
        ...


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


class Low(NamedTuple):
    """Summed responses of one scale."""

    pointer: Pointer
    size: Size


class Accumulate(NamedTuple):
    """One iteration of a tile: sum its views at tile size, normalise, accumulate, update the mask."""

    tile: Size
    classes: int
    """K."""
    lows: Sequence[Low]
    """In the order of the scales."""
    quantile: float = 1.0
    """Recipe.peak_quantile."""
    floor: NDArray[np.float32] | None = None
    """(K,) least value to divide by: peak_floor * peak * views.count (float32); None: 0."""
    accumulated: Pointer = 0
    """`maps_nbytes(classes, tile)`, read and written; 0 for a probe or a pass that only finds the centres."""
    erased: Pointer = 0
    """`tile` uint8, read and written; 0 with `accumulated`."""
    first: bool = True
    """First iteration: `accumulated` and `erased` are only written."""
    mode: Literal["max", "sum", "mean"] = "max"
    """Recipe.accumulate."""
    threshold: float = 0.7
    locate: bool = False
    """Find the centre of mass of each class's normalised map."""


class Part(NamedTuple):
    """A tile's accumulated maps and their place in the image."""

    accumulated: Pointer
    box: Box
    takes: Sequence[int]
    """Positions among the K classes that the united map takes from it."""
    iterations: int
    """How many were accumulated."""


class Unite(NamedTuple):
    """Make an image's maps from its tiles."""

    size: Size
    """The image's."""
    classes: int
    """K."""
    parts: Sequence[Part]
    """Tiles; none where probes found nothing."""
    whole: Part | None = None
    """The whole image's own maps."""
    join: Literal["only", "max", "mean"] = "only"
    """How `whole`, where given, joins the tiles': `only` it counts (there were no tiles), or as Recipe.whole."""
    weight: float = 0.5
    """Of `whole` in `mean`."""
    mode: Literal["max", "sum", "mean"] = "max"
    """Recipe.accumulate: a sum is divided by its own maximum, a mean by the iterations."""


def picture_nbytes(size: Size) -> int:
    """Bytes of a picture: the sums of its channels, then 3×h×w uint8 in the network's channel order."""
    raise NotImplementedError


def maps_nbytes(classes: int, tile: Size) -> int:
    """Bytes of `classes` planes at tile size; each plane begins at a multiple of 16 bytes."""
    raise NotImplementedError


def results_nbytes(items: Sequence[Accumulate]) -> int:
    """Bytes that `Ops.accumulate` writes at `results`."""
    raise NotImplementedError


def read_results(items: Sequence[Accumulate], data: Bytes) -> list[Advanced]:
    """What `Ops.accumulate` wrote, once copied to the host: newly erased pixels, peaks, centres of each item."""
    raise NotImplementedError


class Ops:
    """Launches the kernels. `workspace` gives what a call needs for itself (freed before it returns, in stream
    order). Any call may raise DeviceOutOfMemory; then it has launched nothing, but may have written scratch."""

    def __init__(self, driver: Driver, spec: InputSpec, workspace: Workspace, uploads: Uploads) -> None:
        raise NotImplementedError

    def resize(self, items: Sequence[Resize]) -> None:
        """Pictures as Pillow makes them (bicubic, antialiased when shrinking), bit for bit."""
        raise NotImplementedError

    def erase(self, slots: Sequence[Slot], size: Size, out: Pointer, input_type: InputType) -> None:
        """Write the network's input, len(slots)×3×h×w: normalised, mirrored, erased pixels filled with the
        picture's mean (method.md §3 step 1)."""
        raise NotImplementedError

    def gather(self, items: Sequence[Gather], response: Pointer, shape: OutputShape) -> None:
        """From the response N×C×h'×w' of a batch to the tiles' `low` maps."""
        raise NotImplementedError

    def accumulate(self, items: Sequence[Accumulate], results: Pointer) -> None:
        """Advance each tile by one iteration (§3 steps 2 to 4); see `results_nbytes`, `read_results`."""
        raise NotImplementedError

    def unite(self, item: Unite, out: Pointer) -> None:
        """Write the image's maps, K×H×W float32, dense (§2)."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what is held between calls (the normalisation table)."""
        raise NotImplementedError
