"""From pictures to the network's input: `resize` and `erase` against Pillow and the host's twins, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infercam.engine.bundle import InputSpec
from infercam.engine.device.descriptors import Cut, Resize, Slot
from infercam.engine.device.layouts import PLANES_AT, STRUCTS, normalisation
from infercam.engine.device.ops import picture_nbytes
from infercam.engine.method import host_ops, reference
from infercam.engine.method.geometry import Box, view_size, whole_box
from tests.cuda_emulator.driver import SANITIZED
from tests.cuda_emulator.rig import Rig
from tests.engine import tiny

SIDES = st.sampled_from([1, 2, 3, 5, 8, 13, 31, 64, 97])
SHAPES = st.tuples(SIDES, SIDES)
SEEDS = st.integers(1, 2**32 - 1)
SPECS = st.sampled_from(
    [
        InputSpec(),
        InputSpec(colour="BGR"),
        InputSpec(scale=1.0, mean=(104.0, 117.0, 123.0), std=(1.0, 2.0, 3.0), colour="BGR"),
    ]
)
few = settings(max_examples=4 if SANITIZED else 25)  # the sanitizer's fibers are slow


def random_box(rng: np.random.Generator, height: int, width: int) -> Box:
    y0, x0 = int(rng.integers(height)), int(rng.integers(width))
    return Box(y0, x0, int(rng.integers(y0 + 1, height + 1)), int(rng.integers(x0 + 1, width + 1)))


def resize(rig: Rig, pixels: np.ndarray, box: Box, sizes: list[tuple[int, int]]) -> list[int]:
    """Pictures of one tile at several sizes, in one call."""
    image = rig.put(pixels)
    pictures = [rig.driver.allocate(picture_nbytes(size)) for size in sizes]
    width = pixels.shape[1]
    rig.ops.resize([Resize(image, width, box, s, p) for s, p in zip(sizes, pictures, strict=True)])
    return pictures


def twin_of(pixels: np.ndarray, box: Box, size: tuple[int, int], spec: InputSpec) -> host_ops.Resized:
    return host_ops.Resized(reference.crop(pixels, box), size, host_ops.normalise_table(spec), spec.colour)


@given(SHAPES, st.lists(SHAPES, min_size=1, max_size=4), SEEDS, SPECS)
@example((1, 1), [(1, 1), (97, 64)], 1, InputSpec())
@example((300, 7), [(2, 300), (299, 1)], 2, InputSpec(colour="BGR"))
@example(
    (61, 97), [(66, 260), (65, 258), (31, 261), (128, 512)], 3, InputSpec()
)  # several blocks; all ways to store
@few
def test_resizing_is_pillow_s(
    shape: tuple[int, int], sizes: list[tuple[int, int]], seed: int, spec: InputSpec
) -> None:
    pixels = tiny.picture(*shape, seed)
    box = random_box(np.random.default_rng(seed), *shape)
    with Rig(spec, seed) as rig:
        for size, picture in zip(sizes, resize(rig, pixels, box, sizes), strict=True):
            twin = twin_of(pixels, box, size, spec)
            planes = rig.get(picture + PLANES_AT, (3, *size), np.uint8)
            np.testing.assert_array_equal(planes, twin.planes)
            # exact sums, divided once: the twin's to the last bit but one
            np.testing.assert_allclose(
                rig.get(picture + 24, (3,), np.float32), twin.fill(), rtol=1.2e-7, atol=1e-9
            )


@pytest.mark.parametrize(
    "spec", [InputSpec(), InputSpec(scale=1.0, mean=(0.0, 90.0, 255.0), std=(1e-2, 1.0, 77.0))]
)
def test_a_byte_s_value_in_fixed_point_is_the_table_s(spec: InputSpec) -> None:
    """What resize_second sums: first + step * byte + rest is the normalised value, and the rest is small."""
    (found,) = normalisation(spec).view(STRUCTS["Normalisation"])
    fixed = found["first"][:, None] + found["step"][:, None] * np.arange(256) + found["rest"]
    table = host_ops.normalise_table(spec)
    np.testing.assert_allclose(fixed * found["unit"], table, rtol=0, atol=found["unit"] / 2)
    assert (found["rest"][:, 0] == 0).all() and np.abs(found["rest"]).max() < 1 << 16


def test_resizing_extremes_saturates_as_pillow_does() -> None:
    """Black beside white: bicubic overshoots on both sides and is cut to 0..255."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[10:30, 10:30] = 255
    with Rig() as rig:
        (picture,) = resize(rig, pixels, whole_box(40, 40), [(91, 73)])
        planes = rig.get(picture + PLANES_AT, (3, 91, 73), np.uint8)
    np.testing.assert_array_equal(planes, reference.resize_pixels(pixels, 91, 73).transpose(2, 0, 1))
    assert planes.min() == 0 and planes.max() == 255


def slots_of(
    rng: np.random.Generator, tile: tuple[int, int], size: tuple[int, int], count: int
) -> list[tuple[bool, bool, np.ndarray | None, list[tuple[int, int]]]]:
    """Of each slot: mirrored, mask_mirrored, erased, the chain of a cascade."""
    out = []
    for n in range(count):
        kind = ("none", "all", "random", "edge")[int(rng.integers(4))] if n else "random"
        mask = {
            "none": None,
            "all": np.ones(tile, bool),
            "random": rng.random(tile) < 0.4,
            "edge": np.zeros(tile, bool),
        }[kind]
        if kind == "edge":
            mask[:, -1] = True
        chain = [view_size(*tile, float(s)) for s in rng.choice([1.0, 0.5, 1.5], int(rng.integers(3)))]
        out.append((bool(rng.integers(2)), bool(rng.integers(2)), mask, chain))
    return out


@pytest.mark.parametrize("input_type", ["float32", "float16"])
@given(SHAPES, SHAPES, st.integers(1, 5), SEEDS, SPECS)
@example((3, 5), (1, 1), 5, 3, InputSpec())
@example((64, 97), (97, 131), 3, 4, InputSpec(colour="BGR"))  # several blocks
@example((61, 97), (128, 192), 4, 6, InputSpec(colour="BGR"))  # whole words, several blocks
@example((5, 3), (2, 4), 5, 7, InputSpec())  # a word a row
@example((250, 1), (334, 2), 2, 5, InputSpec())  # where float32 decides the mask's row
@few
def test_the_network_s_input(
    input_type: str, tile: tuple[int, int], size: tuple[int, int], count: int, seed: int, spec: InputSpec
) -> None:
    """A batch of several pictures, mirrored or not, each with its own mask: exact, but for the fill."""
    rng = np.random.default_rng(seed)
    slots = slots_of(rng, tile, size, count)
    images = [tiny.picture(*tile, seed % 1000 + n) for n in range(2)]
    dtype = np.dtype(input_type)
    with Rig(spec, seed) as rig:
        pictures = [resize(rig, image, whole_box(*tile), [size])[0] for image in images]
        given_slots = [
            Slot(pictures[n % 2], mirrored, 0 if e is None else rig.put(e), tile, chain, mask_mirrored)
            for n, (mirrored, mask_mirrored, e, chain) in enumerate(slots)
        ]
        out = rig.driver.allocate(count * 3 * size[0] * size[1] * dtype.itemsize)
        rig.ops.erase(given_slots, size, out, input_type)
        got = rig.get(out, (count, 3, *size), dtype)
        fills = [rig.get(p + 24, (3,), np.float32) for p in pictures]
    for n, (mirrored, mask_mirrored, erased, chain) in enumerate(slots):
        twin = twin_of(images[n % 2], whole_box(*tile), size, spec)
        twin._fill = fills[n % 2]  # compared in the test above
        mask = None
        if erased is not None:
            mask = host_ops.masks_at(erased, [*chain, size], cascade=True)[-1]
            mask = mask[:, ::-1] if mirrored and mask_mirrored else mask
        expected = np.empty((3, *size), np.float32)
        twin.write(expected, mirrored, mask)
        np.testing.assert_array_equal(got[n], expected.astype(dtype))


def test_an_empty_batch_launches_nothing() -> None:
    with Rig() as rig:
        rig.ops.erase([], (4, 4), 0, "float32")
        rig.ops.resize([])
        assert not rig.driver.launches


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_windows_are_cut_out_of_views(kind: str) -> None:
    rng = np.random.default_rng(3)
    views = [rng.random((3, *size)).astype(kind) for size in ((9, 14), (7, 7))]
    places = [(0, (2, 3)), (1, (0, 0)), (0, (2, 7)), (1, (2, 0))]
    with Rig() as rig:
        at = [rig.put(v) for v in views]
        out = rig.driver.allocate(len(places) * 3 * 5 * 7 * views[0].itemsize)
        rig.ops.cut([Cut(at[i], views[i].shape[1:], place) for i, place in places], (5, 7), out, kind)
        found = rig.get(out, (len(places), 3, 5, 7), views[0].dtype)
    want = [views[i][:, y : y + 5, x : x + 7] for i, (y, x) in places]
    np.testing.assert_array_equal(found, want)
