"""The host kernels against their plain twins in reference.py, over odd shapes and degenerate inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infercam.engine.bundle import InputSpec
from infercam.engine.method import host_ops, reference
from infercam.engine.method.geometry import view_size
from tests.engine import tiny

SIDES = st.sampled_from([1, 2, 3, 5, 8, 13, 31, 64, 97])
SHAPES = st.tuples(SIDES, SIDES)
SEEDS = st.integers(0, 2**32 - 1)
SPECS = st.sampled_from(
    [
        InputSpec(),
        InputSpec(colour="BGR"),
        InputSpec(scale=1.0, mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0), colour="BGR"),
        InputSpec(scale=1 / 127.5, mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0)),
    ]
)
KINDS = st.sampled_from(["none", "all", "random", "edge"])
quick = settings(deadline=None, max_examples=60)


def mask_of(kind: str, shape: tuple[int, int], seed: int) -> np.ndarray:
    """What is erased."""
    mask = np.zeros(shape, bool)
    if kind == "all":
        mask[:] = True
    elif kind == "random":
        mask[:] = np.random.default_rng(seed).random(shape) < 0.4
    elif kind == "edge":
        mask[:, -1] = True
    return mask


@given(SHAPES, SHAPES, SEEDS, SPECS, st.booleans(), KINDS)
@example((1, 1), (1, 1), 0, InputSpec(colour="BGR"), True, "all")
@example((1, 97), (97, 1), 0, InputSpec(), True, "edge")
@quick
def test_the_network_s_input(
    size: tuple[int, int],
    shape: tuple[int, int],
    seed: int,
    spec: InputSpec,
    mirrored: bool,
    kind: str,
) -> None:
    """Resize, normalise through the table, mirror, erase: exact, but for the fill (its mean is summed in
    another order: within 1e-6 of the largest value)."""
    pixels = tiny.picture(*size, seed)
    erased = mask_of(kind, shape, seed)
    x = reference.normalise(reference.resize_pixels(pixels, *shape), spec)
    plain = reference.erase(x, ~erased)
    view = x[:, :, ::-1] if mirrored else x
    oriented = erased[:, ::-1] if mirrored else erased
    expected = reference.erase(view, ~oriented)

    out = np.full((2, 3, *shape), np.nan, np.float32)
    resized = host_ops.Resized(pixels, shape, host_ops.normalise_table(spec), spec.colour)
    resized.write(out[1], mirrored, oriented)
    kept = np.broadcast_to(~oriented, out[1].shape)
    np.testing.assert_array_equal(out[1][kept], expected[kept])
    np.testing.assert_allclose(out[1], expected, rtol=0, atol=1e-6 * max(1.0, float(np.abs(x).max())))
    assert np.isnan(out[0]).all(), "nothing is written beside the slot"
    if mirrored:
        np.testing.assert_allclose(out[1], plain[:, :, ::-1], rtol=0, atol=1e-6 * max(1, np.abs(x).max()))
    resized.write(out[0], mirrored, None)
    np.testing.assert_array_equal(out[0], view)


@given(SPECS)
@quick
def test_the_table_is_the_formula_for_all_256_values(spec: InputSpec) -> None:
    table = host_ops.normalise_table(spec)
    assert table.shape == (3, 256) and table.dtype == np.float32 and table.flags["C_CONTIGUOUS"]
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    np.testing.assert_array_equal(table, reference.normalise(ramp, spec)[:, 0])


def test_the_fill_does_not_see_the_mask() -> None:
    """The mean is that of the whole resized picture (engine/method/README.md §3 step 1), not of what is left."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0] = 255
    spec = InputSpec(scale=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    resized = host_ops.Resized(pixels, (2, 2), host_ops.normalise_table(spec), "RGB")
    np.testing.assert_array_equal(resized.fill(), [63.75] * 3)


@given(
    SHAPES,
    SEEDS,
    KINDS,
    st.booleans(),
    st.lists(st.sampled_from([1.0, 0.5, 1.5, 2.0, 0.1]), min_size=1, max_size=5),
)
@quick
def test_masks(size: tuple[int, int], seed: int, kind: str, cascade: bool, scales: list[float]) -> None:
    """Resizing what is erased equals resizing what is left, and both twins are exact."""
    erased = mask_of(kind, size, seed)
    shapes = [view_size(*size, s) for s in scales]
    got = host_ops.masks_at(erased, shapes, cascade)
    expected = reference.masks_by_scale(~erased, shapes, cascade)
    for g, e, shape in zip(got, expected, shapes, strict=True):
        assert g.shape == shape and g.dtype == bool
        np.testing.assert_array_equal(g, ~e)


def test_the_cascade_differs_from_the_full_mask() -> None:
    """1 -> 0.5 -> 1.5 loses what 0.5 skipped: the released code's quirk is really there."""
    erased = np.zeros((8, 8), bool)
    erased[1, 1] = True
    shapes = [(8, 8), (4, 4), (12, 12)]
    assert host_ops.masks_at(erased, shapes, cascade=False)[2].any()
    assert not host_ops.masks_at(erased, shapes, cascade=True)[2].any()


@given(SHAPES, SHAPES, SEEDS, st.integers(0, 4))
@example((1, 1), (1, 1), 0, 1)
@example((2, 2), (1, 1), 0, 1)  # OpenCV takes its area filter for an exact half
@example((64, 8), (5, 97), 0, 3)
@quick
def test_bilinear(source: tuple[int, int], target: tuple[int, int], seed: int, count: int) -> None:
    """One view without a mirror is just an upsampling; K = 0 and shrinking included."""
    maps = np.random.default_rng(seed).random((count, *source), np.float32)
    got = host_ops.sum_views([(maps, None)], count, *target)
    assert got.shape == (count, *target) and got.dtype == np.float32
    # OpenCV places its taps in float32: off by up to an ulp of the source's side
    atol = 1e-6 + 1.2e-7 * max(source)
    np.testing.assert_allclose(got, reference.resize_bilinear(maps, *target), rtol=0, atol=atol)


@given(SHAPES, st.lists(SHAPES, min_size=1, max_size=4), SEEDS, st.booleans(), st.integers(0, 3))
@quick
def test_summing_views(
    tile: tuple[int, int], shapes: list[tuple[int, int]], seed: int, mirror: bool, count: int
) -> None:
    """ReLU, un-mirror, upsample and sum commute as host_ops says they do."""
    rng = np.random.default_rng(seed)
    pairs, expected = [], np.zeros((count, *tile), np.float32)
    for shape in shapes:
        plain = rng.normal(size=(count, *shape)).astype(np.float32)
        mirrored = rng.normal(size=(count, *shape)).astype(np.float32) if mirror else None
        pairs.append((plain, mirrored))
        expected += reference.resize_bilinear(np.maximum(plain, 0), *tile)
        if mirrored is not None:
            expected += reference.resize_bilinear(np.maximum(mirrored, 0), *tile)[:, :, ::-1]
    before = [p.copy() for p, _ in pairs]
    got = host_ops.sum_views(pairs, count, *tile)
    np.testing.assert_allclose(got, expected, rtol=0, atol=8e-6 * len(shapes))
    for (plain, _), copy in zip(pairs, before, strict=True):
        np.testing.assert_array_equal(plain, copy)


@given(SHAPES, SEEDS, st.sampled_from([0.0, 1e-6, 1.0, 1e4]), st.sampled_from([0.0, 0.5, 2.0]))
@quick
def test_normalising(size: tuple[int, int], seed: int, magnitude: float, floor: float) -> None:
    maps = np.random.default_rng(seed).random((3, *size), np.float32) * np.float32(magnitude)
    maps[1] = 0
    expected = reference.normalised(maps, floor)
    peak = host_ops.peaks(maps)
    np.testing.assert_array_equal(peak, maps.max(axis=(1, 2)))
    got = host_ops.normalise_in_place(maps, floor, peak)
    assert got is maps
    np.testing.assert_array_equal(got, expected)
    assert not got[1].any() and np.isfinite(got).all()


@given(SHAPES, SEEDS, st.sampled_from([1.0, 0.999, 0.99, 0.9, 0.5, 1e-9]))
@quick
def test_peaks_at_a_quantile(size: tuple[int, int], seed: int, quantile: float) -> None:
    """A value of the map, never one between two: both twins pick the same, and cut at 1 what is above it."""
    maps = np.random.default_rng(seed).random((2, *size), np.float32)
    before = maps.copy()
    got = host_ops.peaks(maps, quantile)
    np.testing.assert_array_equal(got, reference.peaks(maps, quantile))
    np.testing.assert_array_equal(maps, before)
    share = (maps <= got[:, None, None]).mean(axis=(1, 2))
    assert (share >= quantile - 1 / maps[0].size).all()
    expected = reference.normalised(maps, 0.0, quantile)
    np.testing.assert_array_equal(host_ops.normalise_in_place(maps, 0.0, got), expected)
    assert maps.max() <= 1


@pytest.mark.parametrize(
    "kind", ["smooth", "few values", "one value", "nan", "inf", "spike where none looks"]
)
def test_a_quantile_is_found_among_the_highest(kind: str) -> None:
    """Only what may be among the last is sorted; the sample that says so may say it wrongly."""
    maps = np.random.default_rng(0).random((2, 120, 160), np.float32) ** 4
    if kind == "few values":
        maps = np.floor(maps * 4)
    elif kind == "one value":
        maps[:] = 0.25
    elif kind in ("nan", "inf"):
        maps[:, 5:7, :90] = float(kind)
    elif kind.startswith("spike"):
        maps.reshape(2, -1)[:, :: host_ops._SAMPLE] = 2  # all that is looked at is above all else
    for quantile in (0.99, 0.95, 0.999):
        np.testing.assert_array_equal(host_ops.peaks(maps, quantile), reference.peaks(maps, quantile))


def test_histograms_count_every_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = np.random.default_rng(0).integers(0, 256, (97, 131), dtype=np.uint8)
    want = np.bincount(plane.ravel(), minlength=256)
    np.testing.assert_array_equal(host_ops._histogram(plane), want)
    monkeypatch.setattr(host_ops, "_EXACT", plane.size)
    np.testing.assert_array_equal(host_ops._histogram(plane), want)


@given(SHAPES, SEEDS)
@quick
def test_centre_of_mass(size: tuple[int, int], seed: int) -> None:
    m = np.random.default_rng(seed).random(size, np.float32)
    weight = m.astype(np.float64)
    y = float((weight * np.arange(size[0])[:, None]).sum() / weight.sum())
    x = float((weight * np.arange(size[1])).sum() / weight.sum())
    if min(abs(v - round(v)) for v in (y, x)) < 1e-9 and min(size) > 1:
        return  # on the edge between two integers either is right
    assert host_ops.centre_of_mass(m) == reference.centre_of_mass(m)
    if min(size) > 1:
        assert host_ops.centre_of_mass(m) == (int(y), int(x))


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 1), (4, 5), (101, 58)])
def test_centre_of_nothing_is_the_middle(size: tuple[int, int]) -> None:
    zero = np.zeros(size, np.float32)
    assert host_ops.centre_of_mass(zero) == reference.centre_of_mass(zero) == (size[0] // 2, size[1] // 2)


@pytest.mark.parametrize("at", [(0, 0), (3, 2), (6, 4)])
def test_centre_of_one_pixel_is_that_pixel(at: tuple[int, int]) -> None:
    m = np.zeros((7, 5), np.float32)
    m[at] = 0.3
    assert host_ops.centre_of_mass(m) == reference.centre_of_mass(m) == at


@pytest.mark.parametrize("value", [1.0, 0.1, 1 / 3, 0.7, 0.9999])
def test_centre_of_a_constant_map_is_the_same_in_both_twins(value: float) -> None:
    """Small tiles have constant maps, whose centre lies exactly on an integer at odd sides: rounding in
    either twin must not push it below."""
    for height in range(1, 64):
        m = np.full((height, 5), value, np.float32)
        assert host_ops.centre_of_mass(m) == reference.centre_of_mass(m), height
