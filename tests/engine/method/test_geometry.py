"""Where images are split (engine/method/README.md §2): literal layouts, and what holds for every size and centre."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infercam.engine.method.geometry import (
    ASPECT,
    Box,
    Placed,
    ViewSizes,
    ladder_sides,
    ladder_size,
    split_boxes,
    view_size,
    whole_box,
)
from infercam.engine.method.recipe import RECIPES, Recipe

RELEASED, PAPER = RECIPES["released"], RECIPES["paper"]


@st.composite
def images(draw: st.DrawFn, classes: tuple[int, int] = (1, 5)) -> tuple[int, int, list[tuple[int, int]]]:
    height, width = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    count = draw(st.integers(*classes))
    centre = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1))
    return height, width, draw(st.lists(centre, min_size=count, max_size=count))


recipes = st.builds(
    Recipe,
    split=st.sampled_from(["released", "paper", "none"]),
    buffer_one=st.sampled_from([0, 1, 10, 400]),
    buffer_two=st.sampled_from([0, 1, 20, 400]),
    overlap=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    snap=st.sampled_from([1, 7, 16, 64, 1000]),
)


def test_one_class_four_tiles_meet_at_the_centre_with_ten_pixels_beyond() -> None:
    assert [p.box for p in split_boxes(100, 200, [(40, 90)], RELEASED)] == [
        Box(0, 0, 50, 100),
        Box(0, 80, 50, 200),
        Box(30, 0, 100, 100),
        Box(30, 80, 100, 200),
    ]


def test_two_classes_reach_to_the_far_side_of_their_rectangle_with_twenty_pixels() -> None:
    """engine/method/README.md §2: [0:max cy, 0:max cx], …, and the rectangle is in all four."""
    placed = split_boxes(200, 300, [(120, 100), (60, 180)], RELEASED)
    assert [p.box for p in placed] == [
        Box(0, 0, 140, 200),
        Box(0, 80, 140, 300),
        Box(40, 0, 200, 200),
        Box(40, 80, 200, 300),
    ]
    assert all(p.takes == (0, 1) for p in placed)


def test_a_buffer_past_the_edge_is_clamped_not_wrapped() -> None:
    """The released code lets `min - buffer` go negative and slices from the wrong end."""
    assert split_boxes(100, 100, [(5, 95)], RELEASED) == [
        Placed(Box(0, 0, 15, 100), (0,)),  # near and far column parts…
        Placed(Box(0, 85, 15, 100), (0,)),
        Placed(Box(0, 0, 100, 100), (0,)),
        Placed(Box(0, 85, 100, 100), (0,)),
    ]


def test_three_classes_released_is_the_whole_image_once() -> None:
    assert split_boxes(50, 60, [(1, 2), (3, 4), (5, 6)], RELEASED) == [Placed(whole_box(50, 60), (0, 1, 2))]


def test_three_classes_paper_is_each_class_s_own_four_tiles_with_the_one_class_buffer() -> None:
    centres = [(40, 40), (50, 120), (90, 60)]
    placed = split_boxes(150, 200, centres, PAPER)
    assert len(placed) == 12
    for c, centre in enumerate(centres):
        own = [p.box for p in placed if p.takes == (c,)]
        assert own == [p.box for p in split_boxes(150, 200, [centre], PAPER)]


def test_equal_boxes_are_merged_and_keep_all_who_take_from_them() -> None:
    centres = [(40, 40), (40, 40), (90, 60)]
    placed = split_boxes(150, 200, centres, PAPER)
    assert len(placed) == 8
    assert [p.takes for p in placed] == [(0, 1)] * 4 + [(2,)] * 4


def test_no_split() -> None:
    recipe = Recipe(split="none")
    assert split_boxes(9, 8, [(1, 1)], recipe) == [Placed(Box(0, 0, 9, 8), (0,))]


def test_a_single_pixel_is_one_tile() -> None:
    for recipe in (RELEASED, PAPER):
        for count in (1, 2, 3, 4):
            placed = split_boxes(1, 1, [(0, 0)] * count, recipe)
            assert placed == [Placed(Box(0, 0, 1, 1), tuple(range(count)))]


def test_snapping_is_outward() -> None:
    recipe = Recipe(snap=16)
    assert [p.box for p in split_boxes(100, 200, [(40, 90)], recipe)] == [
        Box(0, 0, 64, 112),  # 50 -> 64, 100 -> 112
        Box(0, 80, 64, 200),
        Box(16, 0, 100, 112),  # 30 -> 16
        Box(16, 80, 100, 200),
    ]


def test_overlap_is_a_share_of_each_side_and_never_less_than_the_buffer() -> None:
    recipe = Recipe(overlap=0.2)
    assert [p.box for p in split_boxes(100, 30, [(50, 15)], recipe)] == [
        Box(0, 0, 70, 25),  # 20 rows (a fifth); 10 columns (the buffer, as a fifth is 6)
        Box(0, 5, 70, 30),
        Box(30, 0, 100, 25),
        Box(30, 5, 100, 30),
    ]


@given(images(), recipes)
@example((1, 1, [(0, 0)]), Recipe(buffer_one=0))
@example((7, 1, [(0, 0), (6, 0)]), Recipe(buffer_two=0))
def test_tiles_cover_the_image_for_every_class_and_stay_inside(
    image: tuple[int, int, list[tuple[int, int]]], recipe: Recipe
) -> None:
    height, width, centres = image
    placed = split_boxes(height, width, centres, recipe)
    boxes = [p.box for p in placed]
    assert len(set(boxes)) == len(boxes), "equal boxes are merged"
    covered = np.zeros((len(centres), height, width), bool)
    for box, takes in placed:
        assert 0 <= box.y0 < box.y1 <= height and 0 <= box.x0 < box.x1 <= width
        assert box.area == box.height * box.width > 0
        assert takes and list(takes) == sorted(set(takes))
        covered[list(takes), box.y0 : box.y1, box.x0 : box.x1] = True
    assert covered.all()


@given(images((1, 2)), recipes.filter(lambda r: r.split != "none"))
def test_tiles_reach_exactly_the_buffer_past_the_split_and_no_more_than_the_grid(
    image: tuple[int, int, list[tuple[int, int]]], recipe: Recipe
) -> None:
    height, width, centres = image
    placed = split_boxes(height, width, centres, recipe)
    buffer = recipe.buffer_one if len(centres) == 1 else recipe.buffer_two
    for axis, side in ((0, height), (1, width)):
        reach = max(buffer, round(recipe.overlap * side))
        at = [c[axis] for c in centres]
        ends = {(p.box.y1, p.box.x1)[axis] for p in placed} - {side}
        starts = {(p.box.y0, p.box.x0)[axis] for p in placed} - {0}
        for end in ends:  # the near part, where it does not reach the far edge
            if end == 1 and max(at) + reach == 0:
                continue  # never empty
            assert end % recipe.snap == 0 and 0 <= end - (max(at) + reach) < recipe.snap
        for start in starts:
            assert start % recipe.snap == 0 and 0 <= (min(at) - reach) - start < recipe.snap
        assert len(ends) <= 1 and len(starts) <= 1


@given(images((1, 4)))
def test_paper_tiles_of_many_classes_are_the_union_of_one_class_layouts(
    image: tuple[int, int, list[tuple[int, int]]],
) -> None:
    height, width, centres = image
    if len(centres) < 3:
        return
    found = {(p.box, c) for p in split_boxes(height, width, centres, PAPER) for c in p.takes}
    wanted = {
        (p.box, c) for c, centre in enumerate(centres) for p in split_boxes(height, width, [centre], PAPER)
    }
    assert found == wanted


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((375, 500), 1.0, (375, 500)),
        ((375, 500), 0.5, (188, 250)),  # 187.5: Python rounds halves to even, 188
        ((333, 500), 0.5, (166, 250)),  # 166.5 -> 166
        ((333, 500), 1.5, (500, 750)),  # 499.5 -> 500
        ((1, 1), 0.25, (1, 1)),
        ((1, 1), 2.0, (2, 2)),
        ((1, 3), 0.1, (1, 1)),
    ],
)
def test_sizes_of_views(size: tuple[int, int], scale: float, expected: tuple[int, int]) -> None:
    assert view_size(*size, scale) == expected


@pytest.mark.parametrize(
    ("sizes", "scale", "expected", "enlarged"),
    [
        (ViewSizes(), 0.5, (188, 250), False),
        (ViewSizes(fixed=(224, 224)), 0.5, (224, 224), False),
        (ViewSizes(smallest=224), 0.5, (224, 250), True),
        (ViewSizes(smallest=64, multiple=64), 0.5, (192, 256), False),
        (ViewSizes(smallest=64, multiple=64), 0.05, (64, 64), True),
    ],
)
def test_sizes_that_a_network_takes(
    sizes: ViewSizes, scale: float, expected: tuple[int, int], enlarged: bool
) -> None:
    assert sizes.of(375, 500, scale) == expected
    assert sizes.enlarges(375, 500, scale) == enlarged


@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=2),
    st.integers(1, 96),
    st.sampled_from(["released", "paper", "fast", "best"]),
)
def test_no_tile_is_below_the_network_s_smallest_side(height, width, at, smallest: int, name: str) -> None:
    """Unless the image is; and what is large enough anyhow stays where it was."""
    centres = [(min(height - 1, int(y * height)), min(width - 1, int(x * width))) for y, x in at]
    plain = split_boxes(height, width, centres, RECIPES[name])
    grown = split_boxes(height, width, centres, RECIPES[name], smallest)
    for placed in grown:
        assert placed.box.height >= min(smallest, height) and placed.box.width >= min(smallest, width)
        assert 0 <= placed.box.y0 < placed.box.y1 <= height and 0 <= placed.box.x0 < placed.box.x1 <= width
    if all(min(p.box.height, p.box.width) >= smallest for p in plain):
        assert grown == plain


def test_rungs_are_multiples_a_quarter_apart() -> None:
    sides = ladder_sides()
    assert sides[:9] == (64, 128, 192, 256, 320, 384, 512, 640, 768)
    assert all(s % 64 == 0 for s in sides) and all(b / a <= 1.34 for a, b in pairwise(sides[3:]))
    assert ladder_sides(75)[0] == 128 and ladder_sides(96, 96)[:2] == (192, 384)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([(1, 1), (75, 1), (32, 32), (96, 96)]))
def test_the_nearest_pair_of_rungs(height: int, width: int, network: tuple[int, int]) -> None:
    smallest, multiple = network
    h, w = ladder_size(height, width, smallest, multiple)
    assert {h, w} <= set(ladder_sides(smallest, multiple)) and min(h, w) >= smallest
    assert h % multiple == w % multiple == 0
    if network == (1, 1) and min(height, width) >= 64 and max(height, width) <= 2 * min(height, width):
        aspect = h * width / (w * height)
        assert 1 / ASPECT - 1e-6 <= aspect <= ASPECT + 1e-6
        assert 1 / 2.5 <= h * w / (height * width) <= 2.5


def test_a_fixed_size_has_no_ladder() -> None:
    assert ViewSizes(fixed=(224, 224)).of(375, 500, 1.5, ladder=True) == (224, 224)
    assert ViewSizes().of(375, 500, 1.0, ladder=True) == (384, 512)
