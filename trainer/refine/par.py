"""Pixel-adaptive refinement (PAR; Ru, Zhan, Yu, Du, "Learning Affinity from Attention", CVPR 2022): a few steps in
which each pixel's scores become a weighted mean of its neighbours', who weigh more the more they look like it.

A pixel has 8 neighbours at each of several distances. With I the picture, sigma_i the standard deviation of a channel
over the neighbours of i, d_ij their distance and sigma_d its standard deviation over all neighbours:

    w_ij = (softmax_j(-mean_c(((I_i - I_j) / (sigma_i w1))^2)) + w2 softmax_j(-(d_ij / (sigma_d w1))^2)) / (1 + w2)

with w1 = 0.3, w2 = 0.01. (The paper's sum has no 1 / (1 + w2): its scores grow by a hundredth a step.) A constant
stays what it is, so a background threshold need not come along. Pixels beyond the border are those at the border.

At stride s the picture and the maps are averaged over s×s pixels, the same distances are s times fewer cells, and
the result is enlarged again: response maps have nothing finer than that. par_ref.py is the twin, pixel by pixel.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from infercam.trainer.refine.settings import ParConfig

Float = NDArray[np.float32]
SAME = 1e-3
"""A variance below it is 0 but for rounding: that of n whole numbers of which one differs by 1 is 1/n."""
AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def offsets(config: ParConfig) -> list[tuple[int, int]]:
    """(dy, dx) of the neighbours in cells: 8 at each distance, equal ones once."""
    reaches = sorted({max(1, round(d / config.stride)) for d in config.dilations})
    return [(dy * reach, dx * reach) for reach in reaches for dy, dx in AROUND]


def pixel_adaptive(image: NDArray[np.uint8], maps: Float, config: ParConfig | None = None) -> Float:
    """Maps K×H×W float32 in 0..1, refined by the photo H×W×3 uint8 RGB; the maps' own range is not left."""
    config = config or ParConfig()
    height, width = image.shape[:2]
    if not len(maps):
        return maps
    size = (max(1, -(-width // config.stride)), max(1, -(-height // config.stride)))
    small = [np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), np.float32) for plane in maps]
    photo: Any = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    refined = spread(affinities(photo, config), np.stack(small), config)
    if size == (width, height):
        return refined
    large = [cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in refined]
    return np.stack(large).astype(np.float32, copy=False)


def affinities(image: NDArray[np.uint8], config: ParConfig) -> Float:
    """w of each of N neighbours at h×w cells: N×h×w float32, summing to 1 over the neighbours."""
    around = offsets(config)
    height, width = image.shape[:2]
    planes = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
    padded = _padded(planes, around)
    squared = np.empty_like(planes)
    total, squares, least = np.zeros_like(planes), np.zeros_like(planes), np.full_like(planes, np.inf)
    for at in around:  # sums of whole numbers below 2^24: exact
        np.subtract(_at(padded, at, height, width), planes, out=squared)
        total += squared
        squared *= squared
        squares += squared
        np.minimum(least, squared, out=least)
    count = len(around)
    variance = (squares - total * total / count) / (count - 1)
    scale = np.zeros_like(variance)  # a channel in which the neighbours are all alike tells none from another
    np.divide(1 / (3 * config.colour_reach**2), variance, out=scale, where=variance > SAME)
    weights = np.empty((count, height, width), np.float32)
    for weight, at in zip(weights, around, strict=True):
        np.subtract(_at(padded, at, height, width), planes, out=squared)
        squared *= squared
        squared -= least  # what is common to all leaves the softmax as it is, but would drown the rest
        squared *= scale
        np.sum(squared, axis=0, out=weight)
    weights -= weights.min(axis=0)
    flat = weights.reshape(count * height, width)
    np.negative(flat, out=flat)
    cv2.exp(flat, dst=flat)
    weights /= weights.sum(axis=0)
    weights += (config.distance_share * _by_distance(around, config))[:, None, None]
    weights /= np.float32(1 + config.distance_share)
    return weights


def spread(weights: Float, maps: Float, config: ParConfig) -> Float:
    """Maps K×h×w after the steps, each one's cells the weighted means of their neighbours'."""
    around = offsets(config)
    height, width = maps.shape[1:]
    scratch = np.empty_like(maps)
    for _ in range(config.iterations):
        padded = _padded(maps, around)
        maps = np.zeros_like(maps)
        for weight, at in zip(weights, around, strict=True):
            np.multiply(_at(padded, at, height, width), weight, out=scratch)
            maps += scratch
    return maps


def _by_distance(around: list[tuple[int, int]], config: ParConfig) -> Float:
    """The softmax over distances, (N,)."""
    distance = np.hypot(*np.array(around, np.float64).T)  # of 8 at least, and never all alike
    score = -((distance / distance.std(ddof=1) / config.colour_reach) ** 2)
    found = np.exp(score - score.max())
    return (found / found.sum()).astype(np.float32)


def _padded(planes: Float, around: list[tuple[int, int]]) -> Float:
    reach = max(dy for dy, _ in around)
    return np.pad(planes, ((0, 0), (reach, reach), (reach, reach)), mode="edge")


def _at(padded: Float, at: tuple[int, int], height: int, width: int) -> Float:
    """Each cell's neighbour at (dy, dx), as a view."""
    y, x = (
        (side - size) // 2 + d for side, size, d in zip(padded.shape[1:], (height, width), at, strict=True)
    )
    return padded[:, y : y + height, x : x + width]
