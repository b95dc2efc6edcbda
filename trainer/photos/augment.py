"""Random changes of a training picture, on NumPy: the image H×W×3 uint8 and its planes (label, saliency, …;
H×W uint8 each) go through them together. All randomness comes from the generator that is passed in."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infercam.engine.bundle import InputSpec
from infercam.engine.method.reference import normalise

Pixels = NDArray[np.uint8]
Planes = dict[str, Pixels]
Rng = np.random.Generator

NEAREST = frozenset({"label"})
"""Planes that hold indices: resized to the nearest pixel, never mixed."""


def resize(image: Pixels, planes: Mapping[str, Pixels], height: int, width: int) -> tuple[Pixels, Planes]:
    """Image by bicubic interpolation (area when shrinking), indices by nearest, other planes linearly."""
    shrinks = height * width < image.shape[0] * image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    out = {
        name: cv2.resize(p, (width, height), interpolation=_interpolation(name)) for name, p in planes.items()
    }
    return cv2.resize(image, (width, height), interpolation=how), out  # type: ignore[return-value]


def _interpolation(name: str) -> int:
    return cv2.INTER_NEAREST_EXACT if name in NEAREST else cv2.INTER_LINEAR


def random_scale(
    rng: Rng, image: Pixels, planes: Mapping[str, Pixels], low: float, high: float
) -> tuple[Pixels, Planes]:
    """Scale both sides by a factor drawn uniformly from low..high."""
    factor = rng.uniform(low, high)
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return resize(image, planes, height, width)


def random_long_side(
    rng: Rng, image: Pixels, planes: Mapping[str, Pixels], low: int, high: int
) -> tuple[Pixels, Planes]:
    """Scale so that the longer side has between low and high pixels (psa's and irn's habit)."""
    factor = rng.integers(low, high, endpoint=True) / max(image.shape[:2])
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return resize(image, planes, height, width)


def random_crop(
    rng: Rng,
    image: Pixels,
    planes: Mapping[str, Pixels],
    size: int,
    fill: Mapping[str, int],
    image_fill: tuple[int, int, int] = (124, 116, 104),
) -> tuple[Pixels, Planes]:
    """A size×size part; a side that is shorter is placed at random and padded.

    fill: value of each plane's padding (255 for labels: ignored). image_fill: RGB, ImageNet's mean.
    """
    top, bottom = _window(rng, image.shape[0], size)
    left, right = _window(rng, image.shape[1], size)
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = image_fill
    canvas[bottom, right] = image[top, left]
    out = {}
    for name, plane in planes.items():
        out[name] = np.full((size, size), fill[name], np.uint8)
        out[name][bottom, right] = plane[top, left]
    return canvas, out


def _window(rng: Rng, side: int, size: int) -> tuple[slice, slice]:
    """Where to read from the picture and where to write on the canvas, along one side."""
    if side >= size:
        start = int(rng.integers(0, side - size, endpoint=True))
        return slice(start, start + size), slice(0, size)
    start = int(rng.integers(0, size - side, endpoint=True))
    return slice(0, side), slice(start, start + side)


def random_flip(rng: Rng, image: Pixels, planes: Mapping[str, Pixels]) -> tuple[Pixels, Planes]:
    """Mirror left and right, half of the time."""
    if rng.random() < 0.5:
        return image, dict(planes)
    return image[:, ::-1], {name: p[:, ::-1] for name, p in planes.items()}


def colour_jitter(
    rng: Rng, image: Pixels, brightness: float = 0.3, contrast: float = 0.3, saturation: float = 0.3
) -> Pixels:
    """Change brightness, contrast and saturation by factors within 1 ± the amount given, in random order."""
    x = image.astype(np.float32)
    factors = [rng.uniform(max(0.0, 1 - amount), 1 + amount) for amount in (brightness, contrast, saturation)]
    for step in rng.permutation(3):
        x = _jittered(x, int(step), np.float32(factors[step]))
    return (x + np.float32(0.5)).astype(np.uint8)


def _jittered(x: NDArray[np.float32], step: int, factor: np.float32) -> NDArray[np.float32]:
    """0: brightness, 1: contrast, 2: saturation; blends with black, mean grey and the grey picture."""
    grey = x @ np.array([0.299, 0.587, 0.114], np.float32)
    towards = (np.float32(0), grey.mean(), grey[..., None])[step]
    return np.clip(towards + factor * (x - towards), 0, 255)


def to_tensor(image: Pixels, spec: InputSpec) -> Tensor:
    """H×W×3 uint8 -> 3×H×W float32 as the network takes it."""
    return torch.from_numpy(normalise(image, spec))
