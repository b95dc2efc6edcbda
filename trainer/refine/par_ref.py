"""Pixel-adaptive refinement pixel by pixel, in float64. Twin of par.py at stride 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infercam.trainer.refine.settings import ParConfig


def pixel_adaptive_ref(
    image: NDArray[np.uint8], maps: NDArray[np.floating], config: ParConfig
) -> NDArray[np.float64]:
    """Maps K×h×w after the steps; image h×w×3. Literal: what is beyond the border is the nearest pixel within."""
    height, width = image.shape[:2]
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    around = np.array([(d * dy, d * dx) for d in sorted(set(config.dilations)) for dy, dx in steps])
    distance = np.hypot(around[:, 0], around[:, 1])
    by_distance = _softmax(-((distance / distance.std(ddof=1) / config.colour_reach) ** 2))
    colours, found = image.astype(np.float64), maps.astype(np.float64)
    neighbours = np.empty((height, width, len(around), 2), int)
    weights = np.empty((height, width, len(around)))
    for y in range(height):
        for x in range(width):
            there = np.clip(around + np.array((y, x)), 0, (height - 1, width - 1))
            seen = colours[there[:, 0], there[:, 1]]
            spread = seen.std(axis=0, ddof=1)
            far = np.zeros_like(
                seen
            )  # a channel in which the neighbours are all alike tells none from another
            np.divide(seen - colours[y, x], spread * config.colour_reach, out=far, where=spread > 1e-6)
            weights[y, x] = _softmax(-(far**2).mean(axis=1)) + config.distance_share * by_distance
            neighbours[y, x] = there
    weights /= 1 + config.distance_share
    for _ in range(config.iterations):
        found = (found[:, neighbours[..., 0], neighbours[..., 1]] * weights).sum(axis=-1)
    return found


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.exp(scores - scores.max())
    return np.asarray(found / found.sum())
