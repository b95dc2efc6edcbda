"""What a backend must offer. A backend holds images, tiles, masks and maps where its network runs, and does the
numerics; the scheduler only ever sees shapes, counts and centres. `submit` may be asynchronous: results come back
through `collect`, one turn late if that keeps the device busy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from infercam.engine.bundle import Manifest
from infercam.engine.common.errors import BackendError, InputError
from infercam.engine.method.geometry import ViewSizes
from infercam.engine.method.recipe import Mode, Recipe
from infercam.engine.method.task import Done, ImageTask, Tile, Work
from infercam.engine.method.trace import Inspected


class OutOfMemory(BackendError):
    """A batch did not fit in the device's memory; the scheduler halves the batch and goes on."""


class ViewRefused(InputError):
    """The network does not run on views of that size; the picture is too small or too large for it."""


@dataclass(frozen=True)
class Limits:
    """What a backend can take."""

    batch_pixels: int
    """Network pixels in one batch; a single view may exceed it."""
    batch_views: int = 64
    memory: int = 512 << 20
    """Bytes for images in flight; one image may exceed it alone."""
    images: int = 64
    """Images in flight."""
    patience: int = 8
    """Turns that the oldest view may be passed over for a fuller batch."""
    few_batches: bool = False
    """Whether every new (views, height, width) costs preparing: then the shapes of a ladder (Recipe.ladder) are run
    in two batch sizes each, filled up with blank views."""
    keeps: int = 0
    """So many (views, height, width) stay ready, the least recently run goes; 0: none, or a new one costs nothing.
    Batches of those go before others of equal right."""


class Preparing(NamedTuple):
    """How far a backend has come in getting ready."""

    done: int
    total: int
    """Shapes that earlier runs met, as far as there is room to keep them ready."""


class Backend(Protocol):
    """Runs `Work`; see engine/method/task.py for what each kind asks and reports.

    A backend keeps what it needs on `ImageTask.state` and `Tile.state` and drops it in `release`. It must give the
    same maps whatever the batches were (to 1e-5), and reports a batch that did not fit as `OutOfMemory`.
    """

    name: str
    manifest: Manifest

    @property
    def precision(self) -> str:
        """Of the network's graph: fp32, fp16, int8, …"""
        ...

    @property
    def limits(self) -> Limits:
        """Batch size and memory that suit this machine."""
        ...

    @property
    def sizes(self) -> ViewSizes:
        """Of the views that the graph takes."""
        ...

    def estimate(self, image: ImageTask) -> int:
        """Bytes that the image will hold while in flight."""
        ...

    def preparing(self, recipe: Recipe, mode: Mode) -> Iterator[Preparing]:
        """Get ready, step by step, for the batches that earlier runs of that recipe had; may be left at any step.

        Nothing where nothing is known, or where a new shape costs nothing. The thread that submits calls it.
        """
        ...

    def remember(self) -> None:
        """Note in the user's cache folder what batches there were, for later runs; may be called again and again."""
        ...

    def has_room(self) -> bool:
        """True while another unit of work may be submitted without waiting."""
        ...

    def submit(self, work: Work) -> None:
        """Start a unit of work."""
        ...

    def collect(self) -> list[Done]:
        """Wait for at least one submitted unit to end; empty only if nothing is in flight."""
        ...

    def inspect(self, tile: Tile) -> Inspected:
        """A tile's maps and mask, copied to the host; to be called between `collect` and the next `submit`, after an
        iteration of a tile that contributes to maps (not a centre pass, not a probe)."""
        ...

    def release(self, image: ImageTask) -> None:
        """Drop all that is held for the image."""
        ...

    def scores(self, pixels: NDArray[np.uint8], ladder: bool = False) -> NDArray[np.float32]:
        """Logits (C,) of one H×W×3 picture, at its own size or at the ladder's nearest; from any thread."""
        ...

    def describe(self) -> dict[str, object]:
        """Name, providers, versions, threads: recorded beside results."""
        ...

    def close(self) -> None:
        """Wait for what is in flight and free everything."""
        ...
