"""Writing a bundle: verified first, then in one step (stub)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infercam.engine.bundle import Bundle, InputSpec

from .surgery import ResponseGraph


def write_bundle(
    out: Path,
    graph: ResponseGraph,
    *,
    classes: Sequence[str],
    input_spec: InputSpec,
    multi_label: bool,
    source: Mapping[str, Any],
    source_scores: Callable[[np.ndarray], np.ndarray],
    images: Sequence[np.ndarray] = (),
    tolerance: float = 1e-4,
    name: str | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Check `graph` against its source, then write the bundle folder `out`.

    `source_scores` takes a float32 (N, 3, H, W) array, normalised as `input_spec` says, and returns the
    source's own logits (N, C); it raises `verify.SourceLimit` for a shape that the source cannot run.
    `images` are (H, W, 3) uint8 RGB arrays to check on besides the built-in ones.
    """
    raise NotImplementedError
