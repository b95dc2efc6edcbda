"""The random walk as psa computes it: the dense N×N transition matrix, squared. Twin of random_walk.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infercam.trainer.affinity.random_walk import search_offsets
from infercam.trainer.affinity.settings import RADIUS


def transition_ref(
    affinity: NDArray[np.floating], beta: float = 8, radius: int = RADIUS, border: str = "all"
) -> NDArray[np.floating]:
    """T (N, N) of one image's (P, h, w) affinities, in their type: columns of A = affinity^beta sum to 1."""
    _, height, width = affinity.shape
    matrix = np.eye(height * width, dtype=affinity.dtype)
    reach = radius - 1
    for y in range(height):
        for x in range(width):
            if border == "psa" and not (y < height - reach and reach <= x < width - reach):
                continue
            for p, (dy, dx) in enumerate(search_offsets(radius)):
                if y + dy < height and 0 <= x + dx < width:
                    a, b = y * width + x, (y + dy) * width + x + dx
                    matrix[a, b] = matrix[b, a] = affinity[p, y, x] ** beta
    matrix /= matrix.sum(axis=0, keepdims=True)
    return matrix


def walk_ref(
    affinity: NDArray[np.floating],
    maps: NDArray[np.floating],
    *,
    beta: float = 8,
    log2_steps: int = 8,
    radius: int = RADIUS,
    border: str = "all",
) -> NDArray[np.floating]:
    """Maps (K, h, w) after the walk: x T^(2^log2_steps) by `log2_steps` squarings of T."""
    matrix = transition_ref(affinity, beta, radius, border)
    for _ in range(log2_steps):
        matrix = matrix @ matrix
    return (maps.reshape(len(maps), -1) @ matrix).reshape(maps.shape)
