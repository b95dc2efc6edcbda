"""What the pixels become before they are fed: as the user says, else as the graph shows, else as ImageNet's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infercam.engine.bundle import Triple
from infercam.engine.common.errors import ExportError

if TYPE_CHECKING:
    from infercam.export.graph.surgery import ResponseGraph

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
_PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and std of pixels that are only scaled


@dataclass(frozen=True)
class Pixels:
    """What the user gave of `(pixel * scale - mean) / std`; None: nothing."""

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    scale: float | None = None

    @property
    def given(self) -> bool:
        return not (self.mean is None and self.std is None and self.scale is None)

    def filled(
        self, mean: Triple = IMAGENET_MEAN, std: Triple = IMAGENET_STD, scale: float = 1 / 255
    ) -> tuple[Sequence[float], Sequence[float], float]:
        """With these in place of what was not given."""
        return (
            mean if self.mean is None else self.mean,
            std if self.std is None else self.std,
            scale if self.scale is None else self.scale,
        )


def input_pixels(
    graph: ResponseGraph, user: Pixels
) -> tuple[tuple[Sequence[float], Sequence[float], float], list[str]]:
    """Mean, std and scale, with notes where the graph says something about them.

    Raises ExportError where the source takes uint8 and the user wants anything but plain pixels.
    """
    own = graph.normalisation
    if graph.whole_numbers:
        found = user.filled(*_PLAIN, 1.0)
        if any(found[0]) or set(found[1]) != {1} or found[2] != 1:
            raise ExportError(
                f"input '{graph.input_name}' is uint8: it takes the pixels 0..255 as they are; leave --mean, --std "
                "and --scale out"
            )
        return found, [f"input '{graph.input_name}' was uint8: it takes the same numbers as float32 now"]
    if own is None or user.given:
        return user.filled(), []
    if own.scale is None:
        note = (
            f"the graph begins with {own.nodes}, which may be its own normalisation; ImageNet's is put before it: "
            "if it takes plain pixels, give --mean 0 --std 1 --scale 1 (or 1/255)"
        )
        return user.filled(), [note]
    top, scale = ("255", "1") if own.scale == 1 else ("1", "1/255")
    note = (
        f"the graph normalises its input by itself ({own.nodes}): it is given pixels of 0..{top} (--mean 0 --std 1 "
        f"--scale {scale}), not ImageNet's normalisation; --mean, --std and --scale say otherwise"
    )
    return user.filled(*_PLAIN, own.scale), [note]
