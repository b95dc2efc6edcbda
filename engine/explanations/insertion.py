"""Insertion and deletion (Petsiuk, Das, Saenko, RISE, BMVC 2018): does the classifier need what a map lights up?

Deletion: a picture's pixels are taken away in the map's order, the highest first, in equal steps; the area under the
class's probability says how long it holds out (lower is better). Insertion: they are put onto an empty picture
(higher is better). Areas are by the trapezoid rule over shares 0 to 1. Pixels of equal height go in reading order.
The picture is the network's input at its own size, what is empty has the fill's values there; the views of a
picture go through the live engine, which batches them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from infercam.engine.live import LiveEngine
from infercam.engine.method.host_ops import Resized, normalise_table

Float = NDArray[np.float32]
Fill = Literal["mean", "black", "blur"]
FILLS: tuple[Fill, ...] = ("mean", "black", "blur")
VIEWS = 16
"""Of a picture in flight at a time: bounds the memory."""
BLUR = 1 / 20  # sigma in longer sides: RISE's 11 pixels of 224


class Areas(NamedTuple):
    """Areas under the curves of one map, 0..1."""

    insertion: float
    deletion: float


def insertion_deletion(
    live: LiveEngine,
    image: NDArray[np.uint8],
    maps: Float,
    classes: list[int],
    steps: int,
    fill: Fill = "mean",
) -> list[Areas]:
    """The areas of each of a picture's K maps K×H×W; image: H×W×3 uint8 RGB. Raises what the backend raises."""
    full, empty = network_inputs(live, image, fill)
    ends = _probabilities(live, iter([full, empty]), 2)
    out = []
    for values, label in zip(maps, classes, strict=True):
        rank = ranks(values, full.shape[1:])
        views = _views(full, empty, rank, steps)
        between = _probabilities(live, views, 2 * (steps - 1))[:, label].reshape(steps - 1, 2)
        there, nothing = ends[0, label], ends[1, label]
        insertion = np.concatenate([[nothing], between[:, 0], [there]])
        deletion = np.concatenate([[there], between[:, 1], [nothing]])
        out.append(Areas(area(insertion), area(deletion)))
    return out


def area(curve: NDArray[np.floating]) -> float:
    """Under values at equal distances from 0 to 1, by the trapezoid rule."""
    return float((curve.sum() - (curve[0] + curve[-1]) / 2) / (len(curve) - 1))


def ranks(values: Float, size: tuple[int, ...]) -> NDArray[np.intp]:
    """Of each pixel of a map resized to (height, width), its place from the highest on."""
    height, width = size
    resized = values
    if values.shape != (height, width):
        resized = np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    order = np.argsort(-resized.ravel(), kind="stable")
    place = np.empty(order.size, np.intp)
    place[order] = np.arange(order.size)
    return place.reshape(height, width)


def network_inputs(live: LiveEngine, image: NDArray[np.uint8], fill: Fill) -> tuple[Float, Float]:
    """The picture and the empty one as the network takes them, 3×h×w each."""
    engine = live.engine
    spec = engine.manifest.input
    shape = engine.backend.sizes.of(image.shape[0], image.shape[1])
    table = normalise_table(spec)
    resized = Resized(np.ascontiguousarray(image), shape, table, spec.colour)
    full = np.empty((3, *shape), np.float32)
    resized.write(full, mirrored=False, erased=None)
    if fill == "blur":
        sigma = BLUR * max(shape)
        return full, np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in full]).astype(np.float32)
    values = resized.fill() if fill == "mean" else table[:, 0]
    return full, np.broadcast_to(values[:, None, None], full.shape).astype(np.float32)


def _views(full: Float, empty: Float, rank: NDArray[np.intp], steps: int) -> Iterator[Float]:
    """For every step but the first and the last: what is inserted, what is left after deletion."""
    for step in range(1, steps):
        first = rank < int(step * rank.size / steps)
        yield np.where(first, full, empty)
        yield np.where(first, empty, full)


def _probabilities(live: LiveEngine, views: Iterator[Float], count: int) -> NDArray[np.float64]:
    """count×C."""
    out: list[NDArray[np.float64]] = []
    while len(out) < count:
        part = [next(views) for _ in range(min(VIEWS, count - len(out)))]
        scores = live.infer(np.stack(part)).result().scores
        out += [live.engine.probabilities(one) for one in scores]
    return np.stack(out) if out else np.empty((0, len(live.engine.manifest.classes)))
