"""Random walk over pairwise affinities (Ahn & Kwak, CVPR 2018; method.md §4)."""

from __future__ import annotations

RADIUS = 5


def search_offsets(radius: int = RADIUS) -> list[tuple[int, int]]:
    """The (dy, dx) of a node's forward neighbours, in psa's order: 34 for radius 5.

    Half of the plane (the other half is the same pairs seen from their other end): first (0, 1..radius-1),
    then for each dy = 1..radius-1 every dx from -(radius-1) on, all with dy² + dx² < radius².
    """
    right = [(0, dx) for dx in range(1, radius)]
    below = [
        (dy, dx)
        for dy in range(1, radius)
        for dx in range(1 - radius, radius)
        if dy * dy + dx * dx < radius * radius
    ]
    return right + below
