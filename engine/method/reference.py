"""The method in plain NumPy, one image at a time: the twin that every kernel and every fast path is tested
against. Slow and literal on purpose; `engine/method/README.md` sections are named beside each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infercam.engine.bundle import InputSpec
from infercam.engine.method.geometry import Box, Placed, ViewSizes, split_boxes
from infercam.engine.method.recipe import EPSILON, Mode, Recipe, Views
from infercam.engine.method.windows import Cover, Windows

Float = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Network = Callable[[Float], Float]
"""N×3×h×w float32 -> response N×C×h'×w' float32, before ReLU."""


def resize_pixels(pixels: Pixels, height: int, width: int) -> Pixels:
    """Pillow's bicubic on the uint8 picture, antialiased when shrinking (§1)."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def normalise(pixels: Pixels, spec: InputSpec) -> Float:
    """H×W×3 uint8 RGB -> 3×H×W float32: (pixel * scale - mean) / std, in the network's colour order."""
    x = pixels.astype(np.float32) * np.float32(spec.scale)
    x = np.asarray((x - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32), np.float32)
    if spec.colour == "BGR":
        x = x[..., ::-1]
    return np.ascontiguousarray(x.transpose(2, 0, 1))


def resize_nearest(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Nearest neighbour as PyTorch has it; see nearest_index."""
    return mask[nearest_index(mask.shape[0], height)[:, None], nearest_index(mask.shape[1], width)[None, :]]


def nearest_index(source: int, target: int) -> NDArray[np.intp]:
    """Source position of each target position: floor(i * (source / target)), in float32.

    For some sizes the float32 product lies just below a whole number; the released code resizes so, and so must
    its mask cascade (250 -> 334, 466 -> 622 and a dozen more differ by one from exact arithmetic).
    """
    at = np.arange(target, dtype=np.float32) * (np.float32(source) / np.float32(target))
    return np.minimum(at.astype(np.intp), source - 1)


def resize_bilinear(maps: Float, height: int, width: int) -> Float:
    """K×h×w -> K×height×width, half-pixel centres (align_corners=False), no antialiasing."""
    (y0, y1, fy), (x0, x1, fx) = _taps(maps.shape[1], height), _taps(maps.shape[2], width)
    rows = maps[:, y0] * (1 - fy)[:, None] + maps[:, y1] * fy[:, None]
    return np.asarray(rows[:, :, x0] * (1 - fx) + rows[:, :, x1] * fx, np.float32)


def _taps(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Float]:
    at = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0)
    low = np.minimum(at.astype(np.intp), source - 1)
    return low, np.minimum(low + 1, source - 1), (at - low).astype(np.float32)


def masks_by_scale(
    left: NDArray[np.bool_], sizes: Sequence[tuple[int, int]], cascade: bool
) -> list[NDArray[np.bool_]]:
    """The mask of what is left at each view size; `cascade`: each from the previous one (§3 step 4)."""
    out: list[NDArray[np.bool_]] = []
    for height, width in sizes:
        out.append(resize_nearest(out[-1] if cascade and out else left, height, width))
    return out


def erase(x: Float, left: NDArray[np.bool_]) -> Float:
    """Where nothing is left, the per-channel mean of the whole input instead (§3 step 1). x: 3×h×w."""
    mean = x.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    return np.where(left, x, mean)


def centre_of_mass(m: Float) -> tuple[int, int]:
    """(y, x) of one H×W map, truncated to integers; an all-zero map falls back to the image's centre (§2)."""
    weight = m.astype(np.float64)
    total = weight.sum()
    if not total > 0:
        return m.shape[0] // 2, m.shape[1] // 2
    y = (weight.sum(axis=1) * np.arange(m.shape[0])).sum() / total
    x = (weight.sum(axis=0) * np.arange(m.shape[1])).sum() / total
    return int(y), int(x)


def multi_scale_response(
    tile: Pixels,
    left: NDArray[np.bool_] | None,
    views: Views,
    recipe: Recipe,
    network: Network,
    classes: Sequence[int],
    spec: InputSpec,
    windows: Windows | None = None,
) -> Float:
    """Sum over views of the ReLU'd, upsampled, un-mirrored responses: K×h×w (§1, §3 steps 1 and 2)."""
    h, w = tile.shape[:2]
    network_sizes = replace(ViewSizes.of_network(spec), windows=windows)
    covers = [network_sizes.cover(h, w, s, recipe) for s in views.scales]
    masks = None if left is None else masks_by_scale(left, [c.size for c in covers], recipe.mask_cascade)
    total = np.zeros((len(classes), h, w), np.float32)
    for i, cover in enumerate(covers):
        x = normalise(resize_pixels(tile, *cover.size), spec)
        for mirrored in (False, True)[: 1 + views.mirror]:
            view = x[:, :, ::-1] if mirrored else x
            if masks is not None:
                mask = masks[i][:, ::-1] if mirrored and recipe.mask_mirrored else masks[i]
                view = erase(view, mask)
            r = seen_through(view, cover, network)[list(classes)]
            up = resize_bilinear(r, h, w)
            total += up[:, :, ::-1] if mirrored else up
    return total


def seen_through(view: Float, cover: Cover, network: Network) -> Float:
    """The ReLU'd response of a view 3×h×w: the network's own, or put together from its windows' (§1): where they
    overlap the mean, in which a cell counts by its distance from its window's edges."""
    found = []
    for y, x in cover.places:
        part = view[:, y : y + cover.window[0], x : x + cover.window[1]]
        found.append(np.maximum(network(np.ascontiguousarray(part)[None])[0], 0))
    if len(found) == 1:
        return found[0]
    classes, rows, columns = found[0].shape
    counts = np.outer(_from_edge(rows), _from_edge(columns))
    total = np.zeros((classes, rows + cover.rows[-1], columns + cover.columns[-1]))
    weight = np.zeros(total.shape[1:])
    for r, (y, x) in zip(found, cover.places, strict=True):
        at = slice(y // cover.cell, y // cover.cell + rows), slice(x // cover.cell, x // cover.cell + columns)
        total[:, *at] += counts * r
        weight[at] += counts
    return (total / weight).astype(np.float32)


def _from_edge(cells: int) -> NDArray[np.intp]:
    """1, 2, … to the middle of a window and back."""
    return np.minimum(np.arange(cells), np.arange(cells)[::-1]) + 1


def refined(response: Float, affinity: Float, steps: int) -> Float:
    """One view's ReLU'd response K×h×w after `steps` products with the affinity of its patches, P×P with P = h·w,
    each row divided by its sum (a row of zeros stays one): every patch takes the mean of what it attends to (§1)."""
    total = affinity.astype(np.float64).sum(axis=1, keepdims=True)
    weights = affinity / np.where(total > 0, total, 1)
    flat = np.maximum(response, 0).reshape(len(response), len(affinity)).astype(np.float64)
    for _ in range(steps):
        flat = np.stack([weights @ row for row in flat]) if len(flat) else flat
    return flat.reshape(response.shape).astype(np.float32)


def refining(network: Network, affinity: Network, steps: int) -> Network:
    """The network whose responses are refined, view by view; `affinity`: N×3×h×w -> N×P×P."""

    def both(x: Float) -> Float:
        return np.stack([refined(r, a, steps) for r, a in zip(network(x), affinity(x), strict=True)])

    return both


def quantile_index(count: int, quantile: float) -> int:
    """Position of a quantile among `count` sorted values, none between two of them: 1.0 is the maximum."""
    return int(quantile * (count - 1))


def peaks(total: Float, quantile: float = 1.0) -> Float:
    """Each class's maximum, or its value at a quantile of the pixels (K,)."""
    ordered = np.sort(total.reshape(len(total), -1), axis=1)
    return ordered[:, quantile_index(ordered.shape[1], quantile)]


def normalised(total: Float, floor: Float | float = 0.0, quantile: float = 1.0) -> Float:
    """Each class divided by its own peak (or by `floor`, where that is larger) + 1e-5, cut at 1."""
    peak = np.maximum(peaks(total, quantile), floor).astype(np.float32)
    return np.minimum(total / (peak + np.float32(EPSILON))[:, None, None], np.float32(1))


def where_highest(n: Float, before: Float) -> Float:
    """Each class's map where no other's was higher before, else 0 (§3; Recipe.compete)."""
    return np.where(before == before.max(axis=0), n, np.float32(0))


def iterate(
    tile: Pixels,
    recipe: Recipe,
    iterations: int,
    network: Network,
    classes: Sequence[int],
    spec: InputSpec,
    peak: Float | None = None,
    windows: Windows | None = None,
) -> tuple[Float, int]:
    """Iterative erasing of a tile or the whole image (§3): accumulated map K×h×w, number of iterations.

    peak: the whole image's raw peak per class and view, for `peak_floor`; None if the tile is the whole image.
    """
    h, w = tile.shape[:2]
    accumulated = np.zeros((len(classes), h, w), np.float32)
    highest = np.zeros((h, w), np.float32)
    left: NDArray[np.bool_] | None = None
    done = 0
    first_views = recipe.views if peak is None else recipe.first_of_tile()
    while done < iterations:
        views = first_views if done == 0 else recipe.later()
        total = multi_scale_response(tile, left, views, recipe, network, classes, spec, windows)
        floor = 0.0 if peak is None else recipe.peak_floor * peak * views.count
        n = normalised(total, floor, recipe.peak_quantile)
        if done == 0 and peak is None:
            peak = peaks(total, recipe.peak_quantile) / np.float32(views.count)
        counted = where_highest(n, accumulated) if recipe.compete and done else n
        accumulated = (
            np.maximum(accumulated, counted) if recipe.accumulate == "max" else accumulated + counted
        )
        before = h * w if left is None else int(left.sum())
        highest = np.maximum(highest, n.max(axis=0))
        left = highest < np.float32(recipe.threshold)
        done += 1
        if (before - int(left.sum())) / (h * w) < recipe.stop_share:
            break
    if recipe.accumulate == "sum":
        accumulated = normalised(accumulated)
    elif recipe.accumulate == "mean":
        accumulated /= np.float32(done)
    return accumulated, done


def _worth_it(
    tile: Pixels,
    recipe: Recipe,
    peak: Float,
    network: Network,
    classes: Sequence[int],
    spec: InputSpec,
    windows: Windows | None,
) -> bool:
    """The probe: does the smallest view alone respond to any class?"""
    if not recipe.probe:
        return True
    probed = multi_scale_response(tile, None, recipe.probing(), recipe, network, classes, spec, windows)
    return bool((peaks(probed, recipe.peak_quantile) >= recipe.probe * peak).any())


def unite(height: int, width: int, placed: Sequence[Placed], maps: Sequence[Float], count: int) -> Float:
    """Paste each tile's maps at its corner on a zero canvas and take the maximum (§2): count×H×W."""
    out = np.zeros((count, height, width), np.float32)
    for (box, takes), m in zip(placed, maps, strict=True):
        part = out[:, box.y0 : box.y1, box.x0 : box.x1]
        for c in takes:
            np.maximum(part[c], m[c], out=part[c])
    return out


def crop(pixels: Pixels, box: Box) -> Pixels:
    return np.ascontiguousarray(pixels[box.y0 : box.y1, box.x0 : box.x1])


def response_maps(
    pixels: Pixels,
    classes: Sequence[int],
    recipe: Recipe,
    mode: Mode,
    network: Network,
    spec: InputSpec,
    windows: Windows | None = None,
) -> Float:
    """Refined response maps of one image, K×H×W float32 in 0..1: the whole method, literally.

    windows: of a network of one size, for Recipe.windows.
    """
    height, width = pixels.shape[:2]
    recipe = recipe.of(len(classes))

    def total(views: Views) -> Float:
        return multi_scale_response(pixels, None, views, recipe, network, classes, spec, windows)

    def erased_by_turns(tile: Pixels, iterations: int, peak: Float | None = None) -> Float:
        return iterate(tile, recipe, iterations, network, classes, spec, peak, windows)[0]

    if mode == "baseline":
        return normalised(total(recipe.views), quantile=recipe.peak_quantile)
    whole_iterations = recipe.iterations if recipe.whole == "none" else recipe.whole_iterations
    if mode == "erase":
        return erased_by_turns(pixels, recipe.iterations)
    if recipe.split == "none" or (recipe.split == "released" and len(classes) > 2):
        # the tiles would all be the whole image: its own map is the result
        return erased_by_turns(pixels, whole_iterations if mode == "both" else 1)

    iterations = recipe.iterations if mode == "both" else 1
    centre_views = recipe.centre_views or recipe.views
    first = total(centre_views)
    peak = peaks(first, recipe.peak_quantile) / np.float32(centre_views.count)
    centres = [centre_of_mass(m) for m in normalised(first, quantile=recipe.peak_quantile)]
    placed = split_boxes(height, width, centres, recipe, spec.smallest)
    tiles = []
    for p in placed:
        tile = crop(pixels, p.box)
        if _worth_it(tile, recipe, peak, network, classes, spec, windows):
            tiles.append(erased_by_turns(tile, iterations, peak))
        else:
            tiles.append(np.zeros((len(classes), p.box.height, p.box.width), np.float32))
    united = unite(height, width, placed, tiles, len(classes))
    if recipe.whole == "none":
        return united
    whole = erased_by_turns(pixels, whole_iterations if mode == "both" else 1)
    if recipe.whole == "max":
        return np.maximum(united, whole)
    weight = np.float32(recipe.whole_weight)
    return weight * whole + (1 - weight) * united
