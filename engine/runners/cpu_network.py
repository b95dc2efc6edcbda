"""What a network runtime must offer to the CPU backends: arrays in, arrays out, called from several threads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infercam.engine.bundle import AFFINITY_OUTPUT, Manifest
from infercam.engine.common.errors import BundleError

Float = NDArray[np.float32]


class CpuNetwork(Protocol):
    """One network, whose every run takes one core: the backend's threads run it beside each other."""

    def run(self, outputs: list[str], x: Float) -> list[NDArray[Any]]:
        """The outputs of these names for N×3×h×w float32, normalised.

        Raises ViewRefused where the network does not run on that size; what says that memory was short is passed on.
        """
        ...

    def describe(self) -> dict[str, object]:
        """Versions and settings: recorded beside results."""
        ...


def check_names(manifest: Manifest, graph: Path, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """What the manifest calls input and outputs must be the graph's: the manifest itself has no hash.

    Raises BundleError.
    """
    affinity = [] if manifest.affinity is None else [AFFINITY_OUTPUT]
    pairs = (
        ("input", [manifest.input.name], set(inputs)),
        ("output", [manifest.response, manifest.scores, *affinity], set(outputs)),
    )
    for what, wanted, found in pairs:
        for name in wanted:
            if name not in found:
                raise BundleError(f"{graph}: has no {what} '{name}', as the manifest says; export it again")
