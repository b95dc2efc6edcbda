"""Random walk over pairwise affinities (Ahn & Kwak, CVPR 2018; method/README.md §4): T^n applied to response maps.

A node is one cell of the affinity grid (stride 8 of the photo). With the symmetric A = affinity^beta, 1 on its
diagonal, T is A with its columns divided by their sums d, and a map x (a row) becomes x T^n, n = 2^log2_steps.
The reference squares the dense N×N matrix T (random_walk_ref.py). Here T is never formed:

- A map is moved through S = D^-1/2 A D^-1/2, which T is similar to: x T^n = D^-1/2 S^n D^1/2 x. S is symmetric
  with its spectrum in [-1, 1], so t^n may be cut off after K terms of its Chebyshev series; what is left out is
  bounded by the sum of its coefficients. K = 80 to 95 products do for n = 256, to within 1e-5.
- A product is a stencil: each of the 34 offsets and its mirror image is a diagonal of the matrix.

In double precision: rounding an entry of T shifts its eigenvalues, and the power n multiplies that shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from infercam.engine.common.errors import InputError
from infercam.trainer.affinity.labels import with_background
from infercam.trainer.affinity.settings import RADIUS, STRIDE

TOLERANCE = 1e-5
"""Largest error that cutting off the series may make, in units of a map's largest value."""


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


@lru_cache(maxsize=16)
def pairs_inside(height: int, width: int, radius: int = RADIUS, border: str = "all") -> NDArray[np.bool_]:
    """(P, height, width): whether the node at (y, x) has its neighbour at (y + dy, x + dx), offset by offset.

    border 'psa': only from nodes whose whole half-disc of neighbours is inside, as psa's
    `get_indices_of_pairs` crops them; nodes near the left, right and lower border then have few pairs.
    """
    offsets = np.array(search_offsets(radius)).reshape(-1, 2)
    reach = radius - 1
    y = np.arange(height)[:, None] + offsets[:, 0, None, None]
    x = np.arange(width)[None, :] + offsets[:, 1, None, None]
    inside: NDArray[np.bool_] = (y < height) & (x >= 0) & (x < width)
    if border == "psa":
        inside[:, max(height - reach, 0) :] = False
        inside[:, :, :reach] = False
        inside[:, :, max(width - reach, 0) :] = False
    return inside


def walk(
    affinity: Tensor,
    maps: Tensor,
    *,
    beta: float = 8,
    log2_steps: int = 8,
    radius: int = RADIUS,
    border: str = "all",
    tolerance: float = TOLERANCE,
) -> Tensor:
    """Maps after 2^log2_steps steps of the walk, float32, on the affinities' device.

    Args:
        affinity: (P, h, w), or (B, P, h, w) for a batch: of the node at (y, x) and the one at (y + dy, x + dx)
            for each of `search_offsets(radius)`, in [0, 1]. What pairs beyond the grid hold is not looked at.
        maps: (K, h, w), or (B, K, h, w): any number of maps, all carried at once.
        tolerance: how far a value may be from the exact walk's, in units of the map's largest.

    Images of unequal grids go into one batch when padded with affinity 0: the padding stays apart.
    Raises InputError where an affinity is not a number.
    """
    single = affinity.ndim == 3
    if single:
        affinity, maps = affinity[None], maps[None]
    offsets = search_offsets(radius)
    batch, pairs, height, width = affinity.shape
    if pairs != len(offsets) or maps.shape[0] != batch or maps.shape[2:] != affinity.shape[2:]:
        raise ValueError(
            f"affinity {tuple(affinity.shape)} does not fit radius {radius}, maps {tuple(maps.shape)}"
        )
    inside = torch.from_numpy(pairs_inside(height, width, radius, border)).to(affinity.device)
    weights = torch.where(inside, affinity.double(), 0).pow(beta).flatten(2)
    if not torch.isfinite(weights).all():
        raise InputError("an affinity is not a number; the checkpoint may hold NaN")
    matrix = _Matrix(*_distinct_steps(weights, offsets, height, width))
    coefficients = chebyshev_power(2**log2_steps, tolerance / matrix.spread())
    start = maps.to(affinity.device, torch.float64).flatten(2) * matrix.root
    product = _by_stencil if affinity.is_cuda else _by_diagonals
    walked = (product(matrix, start, coefficients) / matrix.root).view(maps.shape).float()
    return walked[0] if single else walked


def chebyshev_power(power: int, tolerance: float) -> list[float]:
    """Chebyshev coefficients c of t^power, cut off so that |t^power - sum c_k T_k(t)| <= tolerance on [-1, 1].

    c_k = 2^(1 - power) binomial(power, (power - k) / 2) for k of power's parity, half of that for k = 0: twice
    the chance of a walk of `power` ±1 steps to end at k. All are positive and sum to 1, so the error is exactly
    the sum of those left out.
    """
    first = power % 2
    current = math.comb(power, power // 2) / 2 ** (power - 1)  # Python divides large integers exactly
    coefficients = [0.0] * (power + 1)
    for k in range(first, power + 1, 2):
        coefficients[k] = current
        current *= (power - k) / (power + k + 2)
    coefficients[0] /= 2
    tail, keep = 0.0, power
    while keep > 1 and tail + coefficients[keep] <= tolerance:
        tail += coefficients[keep]
        keep -= 1
    return coefficients[: keep + 1]


def _distinct_steps(
    weights: Tensor, offsets: list[tuple[int, int]], height: int, width: int
) -> tuple[Tensor, list[int]]:
    """Weights (B, U, N) by how far the neighbour is in the row-by-row numbering of nodes, ascending, 1 to N - 1.

    Offsets that fit the grid nowhere are left out; on grids narrower than 9 two offsets may be one step (of
    which at any node at most one is inside).
    """
    fit = [p for p, (dy, dx) in enumerate(offsets) if dy < height and abs(dx) < width]
    steps, place = np.unique([offsets[p][0] * width + offsets[p][1] for p in fit], return_inverse=True)
    merged = weights.new_zeros(weights.shape[0], len(steps), weights.shape[2])
    merged.index_add_(1, torch.from_numpy(place).to(weights.device), weights[:, fit])
    return merged, [int(step) for step in steps]


class _Matrix:
    """S = D^-1/2 A D^-1/2 of a batch by its diagonals; nodes are numbered row by row, N of them.

    Attributes:
        steps: the P forward neighbours of node i are i + step.
        forward: (B, P, N) S[i, i + step].
        own: (B, N) S[i, i].
        root: (B, 1, N) square root of the column sums of A.
    """

    def __init__(self, weights: Tensor, steps: list[int]) -> None:
        """weights: (B, P, N) A[i, i + step], 0 where node i has no such neighbour."""
        self.steps = steps
        sums = 1 + weights.sum(1)
        for p, step in enumerate(steps):
            sums[:, step:] += weights[:, p, : weights.shape[2] - step]
        self.own = 1 / sums
        self.root = sums.sqrt()[:, None]
        self.forward = weights * self.own.sqrt()[:, None]
        for p, step in enumerate(steps):
            self.forward[:, p, : weights.shape[2] - step] *= self.own.sqrt()[:, step:]

    def spread(self) -> float:
        """By how much an error in the 2-norm over S can grow in one value over T: sqrt(sum d / min d)."""
        sums = self.root.square()
        return (sums.sum(2) / sums.amin(2)).max().sqrt().item()


def _series(times: Callable[[Any], Any], x: Any, coefficients: list[float]) -> Any:
    """sum c_k T_k(S) x by T_k+1 = 2 S T_k - T_k-1; of arrays or tensors alike."""
    before, last = x, times(x)
    total = coefficients[0] * before + coefficients[1] * last
    for c in coefficients[2:]:
        before, last = last, 2 * times(last) - before
        if c:
            total = total + c * last
    return total


def _by_diagonals(matrix: _Matrix, x: Tensor, coefficients: list[float]) -> Tensor:
    """On the CPU: SciPy's diagonal format, map by map (measured faster than CSR and than torch's operations)."""
    from scipy.sparse import dia_array

    count, n = len(matrix.steps), x.shape[2]
    out = np.empty(x.shape)
    for b, rows in enumerate(x.numpy()):
        data = np.zeros((2 * count + 1, n))  # S[i, j] is at column j
        data[:count] = matrix.forward[b].numpy()  # the mirror images: S[j + step, j]
        for k, step in enumerate(matrix.steps):
            data[count + k, step:] = data[k, : n - step]
        data[-1] = matrix.own[b].numpy()
        diagonals = dia_array((data, [*(-s for s in matrix.steps), *matrix.steps, 0]), shape=(n, n))
        for k, row in enumerate(rows):
            out[b, k] = _series(diagonals.__matmul__, row, coefficients)
    return torch.from_numpy(out)


def _by_stencil(matrix: _Matrix, x: Tensor, coefficients: list[float]) -> Tensor:
    """On any device: one multiply-add an offset and direction, over all maps of the batch at once."""
    n, reach = x.shape[2], max(matrix.steps, default=0)
    padded_weights = F.pad(matrix.forward, (reach, 0))
    # From node i - step: its forward weight is that of the pair (i - step, i).
    backward = [padded_weights[:, p, None, reach - s : reach - s + n] for p, s in enumerate(matrix.steps)]

    def times(maps: Tensor) -> Tensor:
        padded = F.pad(maps, (reach, reach))
        out = matrix.own[:, None] * maps
        for p, step in enumerate(matrix.steps):
            out.addcmul_(padded[..., reach + step : reach + step + n], matrix.forward[:, p, None])
            out.addcmul_(padded[..., reach - step : reach - step + n], backward[p])
        return out

    total: Tensor = _series(times, x, coefficients)
    return total


def walk_scores(
    maps: NDArray[np.float32],
    affinity: Tensor,
    *,
    alpha: float = 16,
    stride: int = STRIDE,
    **options: Any,
) -> NDArray[np.float32]:
    """Scores (K + 1, H, W) of [background, the K classes] after the walk; the argmax is the pseudo label.

    maps: (K, H, W) in [0, 1]; affinity: (P, h, w) on the grid of that stride, h = ceil(H / stride).
    alpha: the background's score is (1 - max of the maps)^alpha. options: of `walk`.

    Averaged over each cell's pixels that exist, walked, and enlarged bilinearly (psa fills the last cells up
    with zeros instead; sizes that are multiples of the stride agree). Raises InputError as `walk` does.
    """
    height, width = maps.shape[1:]
    grid = (-(-height // stride), -(-width // stride))
    if tuple(affinity.shape[1:]) != grid:
        raise ValueError(f"affinities of a grid {tuple(affinity.shape[1:])} for maps whose grid is {grid}")
    scores = torch.from_numpy(with_background(maps, alpha)).to(affinity.device)
    cells = F.avg_pool2d(scores[None], stride, ceil_mode=True, count_include_pad=False)[0]
    walked = walk(affinity, cells, **options)
    large = F.interpolate(walked[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
    return large[:, :height, :width].contiguous().cpu().numpy()
