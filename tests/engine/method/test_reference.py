"""The reference twin itself, by hand-computed values: it is what everything else is measured against."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from infercam.engine.bundle import InputSpec
from infercam.engine.method import reference
from infercam.engine.method.geometry import Box, Placed
from infercam.engine.method.recipe import Recipe, Views
from tests.engine import tiny

PLAIN = InputSpec(scale=1.0, mean=(0, 0, 0), std=(1, 1, 1))
ONE = Views(scales=(1.0,), mirror=False)


def brightness(x: np.ndarray) -> np.ndarray:
    """A stride-1 network of one class: the mean of the channels."""
    return x.mean(axis=1, keepdims=True)


def test_resizing_pixels_is_pillow_s_bicubic() -> None:
    pixels = tiny.picture(31, 17)
    expected = np.asarray(Image.fromarray(pixels).resize((8, 15), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(reference.resize_pixels(pixels, 15, 8), expected)
    assert reference.resize_pixels(pixels, 31, 17) is pixels


def test_normalising_pixels() -> None:
    spec = InputSpec(scale=0.5, mean=(1, 2, 3), std=(1, 2, 4))
    pixel = np.array([[[2, 8, 14]]], np.uint8)
    np.testing.assert_array_equal(reference.normalise(pixel, spec).ravel(), [0, 1, 1])
    flipped = reference.normalise(pixel, spec.model_copy(update={"colour": "BGR"}))
    np.testing.assert_array_equal(flipped.ravel(), [1, 1, 0])  # mean and std are given in RGB order


def test_bilinear_upsampling_has_half_pixel_centres() -> None:
    line = np.array([[[0, 4]]], np.float32)
    np.testing.assert_allclose(reference.resize_bilinear(line, 1, 4), [[[0, 1, 3, 4]]])


def test_nearest_takes_the_floor() -> None:
    mask = np.array([[True, False, False]])
    np.testing.assert_array_equal(reference.resize_nearest(mask, 1, 2), [[True, False]])
    np.testing.assert_array_equal(reference.resize_nearest(mask, 1, 4), [[True, True, False, False]])


def test_centre_of_mass_truncates() -> None:
    m = np.zeros((3, 4), np.float32)
    m[0, 0] = m[2, 3] = 1
    assert reference.centre_of_mass(m) == (1, 1)  # (1, 1.5)


def test_views_are_summed_un_mirrored_and_rectified() -> None:
    """A network that is not symmetric: columns weighted by their place."""

    def network(x: np.ndarray) -> np.ndarray:
        return x[:, :1] * np.arange(x.shape[3]) - 1

    pixels = np.full((1, 3, 3), 2, np.uint8)
    total = reference.multi_scale_response(pixels, None, Views(scales=(1.0,)), Recipe(), network, [0], PLAIN)
    # forwards [-1, 1, 3] -> [0, 1, 3]; the mirror image sees the same columns, un-mirrored [3, 1, 0]
    np.testing.assert_allclose(total, [[[3, 2, 3]]])


def test_erasing_repeats_until_nothing_much_is_newly_erased() -> None:
    """Brightness 100, 50, 10, 0 of stride 1, one view, worked out by hand."""
    pixels = np.repeat(np.array([[100, 50, 10, 0]], np.uint8)[:, :, None], 3, axis=2)
    recipe = Recipe(views=ONE, stop_share=0.2, iterations=9)
    # fill = 40. 1: [1, .5, .1, 0], erased 1 of 4. 2: [40, 50, 10, 0] -> [.8, 1, .2, 0], erased 2 of 4.
    # 3: [40, 40, 10, 0] -> [1, 1, .25, 0], nothing new: stop.
    maps, done = reference.iterate(pixels, recipe, 9, brightness, [0], PLAIN)
    assert done == 3
    np.testing.assert_allclose(maps[0, 0], [1, 1, 0.25, 0], atol=1e-5)
    summed, done = reference.iterate(
        pixels, recipe.model_copy(update={"accumulate": "sum"}), 9, brightness, [0], PLAIN
    )
    assert done == 3
    np.testing.assert_allclose(summed[0, 0], np.array([2.8, 2.5, 0.55, 0]) / 2.8, atol=1e-5)


def test_what_was_erased_stays_erased_under_sum_too() -> None:
    """The mask follows the maximum over iterations, not the sum: .5 + .5 does not erase."""
    pixels = np.repeat(np.array([[100, 60, 0, 0]], np.uint8)[:, :, None], 3, axis=2)
    recipe = Recipe(views=ONE, stop_share=0.0, iterations=2, accumulate="sum", threshold=0.9)
    # fill 40. 1: [1, .6, 0, 0] erases the first. 2: [40, 60, 0, 0] -> [.67, 1, 0, 0]
    maps, _ = reference.iterate(pixels, recipe, 2, brightness, [0], PLAIN)
    np.testing.assert_allclose(maps[0, 0], np.array([5 / 3, 1.6, 0, 0]) / (5 / 3), atol=1e-5)


@pytest.mark.parametrize(("floor", "peak"), [(0.0, 1.0), (0.5, 1.0), (1.0, 0.5)])
def test_the_peak_floor_keeps_a_dark_tile_dark(floor: float, peak: float) -> None:
    pixels = np.full((2, 2, 3), 50, np.uint8)
    recipe = Recipe(views=ONE, iterations=1, peak_floor=floor)
    whole = np.array([100], np.float32)
    maps, _ = reference.iterate(pixels, recipe, 1, brightness, [0], PLAIN, whole)
    np.testing.assert_allclose(maps, peak, atol=1e-5)


def test_a_quantile_for_a_peak_cuts_what_is_above_it() -> None:
    total = np.array([[[0, 1, 2, 3, 4]]], np.float32)
    np.testing.assert_array_equal(reference.peaks(total, 0.5), [2])
    np.testing.assert_allclose(reference.normalised(total, 0.0, 0.5), [[[0, 0.5, 1, 1, 1]]], atol=1e-5)


def test_unite_takes_the_maximum_of_what_each_class_takes() -> None:
    a, b = np.full((2, 1, 2), 0.5, np.float32), np.full((2, 1, 2), 0.9, np.float32)
    placed = [Placed(Box(0, 0, 1, 2), (0, 1)), Placed(Box(0, 1, 1, 3), (1,))]
    np.testing.assert_array_equal(
        reference.unite(1, 3, placed, [a, b], 2),
        np.array([[[0.5, 0.5, 0]], [[0.5, 0.9, 0.9]]], np.float32),
    )


def test_a_probed_tile_without_response_stays_empty() -> None:
    """One bright corner: the other three tiles respond by less than half the whole image's peak."""
    pixels = np.full((60, 60, 3), 60, np.uint8)
    pixels[:20, :20] = 250
    recipe = Recipe(views=ONE, iterations=1, buffer_one=0, probe=0.5)
    args = ([0], recipe, "split", brightness, PLAIN)
    maps = reference.response_maps(pixels, *args)
    cy, cx = reference.centre_of_mass(brightness(pixels.transpose(2, 0, 1)[None].astype(np.float32))[0, 0])
    assert 20 <= cy < 60 and 20 <= cx < 60
    assert maps[0, :cy, :cx].min() > 0 and maps[0, :20, :20].min() > 0.99
    outside = maps[0].copy()
    outside[:cy, :cx] = 0
    assert not outside.any()
    without = recipe.model_copy(update={"probe": 0.0})
    assert reference.response_maps(pixels, [0], without, "split", brightness, PLAIN).min() > 0


@pytest.mark.parametrize("mode", ["baseline", "split", "erase", "both"])
def test_three_classes_are_never_split_by_the_released_code(mode: str) -> None:
    """So split is the baseline and both is erase (max of one iteration)."""
    network = tiny.numpy_network()
    pixels = tiny.picture(20, 24)
    maps = reference.response_maps(pixels, [0, 1, 2], Recipe(), mode, network, InputSpec())
    twin = {"split": "baseline", "both": "erase"}.get(mode, mode)
    np.testing.assert_array_equal(
        maps, reference.response_maps(pixels, [0, 1, 2], Recipe(), twin, network, InputSpec())
    )
    assert maps.shape == (3, 20, 24) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1


def test_masks_are_resized_as_pytorch_does() -> None:
    """The released code uses PyTorch's nearest; for some sizes it is off by one from exact arithmetic."""
    torch = pytest.importorskip("torch")
    differs = 0
    sides = [1, 2, 3, 7, 166, 188, 333, 375, 500]
    pairs = [(n, max(1, round(n * s))) for n in sides for s in (1.0, 0.5, 1.5, 2.0)]
    for source, target in [*pairs, (250, 334), (466, 622)]:
        at = torch.arange(source, dtype=torch.float32)[None, None]
        want = torch.nn.functional.interpolate(at, size=target, mode="nearest")[0, 0].numpy()
        got = reference.nearest_index(source, target)
        np.testing.assert_array_equal(got, want.astype(int))
        differs += int((got != np.arange(target) * source // target).any())
    assert differs, "none of these sizes shows the difference"
