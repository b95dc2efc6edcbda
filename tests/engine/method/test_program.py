"""Which tiles each mode and recipe opens, and how many views that costs: the exact savings are really saved."""

from __future__ import annotations

import numpy as np
import pytest

from infercam.engine.api import Engine
from infercam.engine.method.geometry import Box, ViewSizes, whole_box
from infercam.engine.method.program import Program
from infercam.engine.method.recipe import RECIPES, Recipe, Views
from infercam.engine.method.task import Advanced, ImageTask, Tile, views_of
from tests.engine import tiny

HALF = Views(scales=(0.5,), mirror=False)
WHOLE = whole_box(100, 200)


def task(classes: int, recipe: Recipe = RECIPES["released"]) -> ImageTask:
    return ImageTask("i", np.zeros((100, 200, 3), np.uint8), list(range(classes)), recipe)


def begin(recipe: Recipe, mode: str, classes: int) -> tuple[Program, list[Tile]]:
    program = Program(recipe, mode)  # type: ignore[arg-type]
    return program, program.start(task(classes, recipe))


def first(tile: Tile, erased: float = 1.0) -> Advanced:
    """An iteration's result: centres in different places, peaks of 1 a view."""
    count = len(tile.image.classes)
    centres = [(40 + 10 * c, 90 + 20 * c) for c in range(count)] if tile.locates else []
    peak = np.full(count, tile.views.count, np.float32)
    return Advanced(round(erased * tile.box.area), peak, centres)


def run(recipe: Recipe, mode: str, classes: int, erased: float = 1.0) -> tuple[list[Tile], int]:
    """All tiles that an image opens, and the views inferred, when every iteration erases that share."""
    program, queue = begin(recipe, mode, classes)
    tiles, views = list(queue), 0
    while queue:
        tile = queue.pop()
        views += len(views_of(tile))
        goes_on, opened = program.after(tile, first(tile, erased))
        tiles += opened
        queue += opened
        if goes_on:
            queue.append(tile)
    return tiles, views


@pytest.mark.parametrize("classes", [1, 2, 3, 5])
@pytest.mark.parametrize(("mode", "iterations"), [("baseline", 1), ("erase", 5)])
def test_baseline_and_erase_need_the_whole_image_only(mode: str, iterations: int, classes: int) -> None:
    tiles, views = run(RECIPES["released"], mode, classes)
    (tile,) = tiles
    assert tile.box == WHOLE and tile.whole and not tile.locates
    assert tile.takes == tuple(range(classes)) and tile.iterations == iterations
    assert views == 8 * iterations


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize(("mode", "iterations"), [("split", 1), ("both", 5)])
def test_one_and_two_classes_split_after_one_centre_pass(mode: str, iterations: int, classes: int) -> None:
    program, (centre,) = begin(RECIPES["released"], mode, classes)
    assert centre.box == WHOLE and centre.locates and centre.takes == () and centre.iterations == 1
    goes_on, parts = program.after(centre, first(centre))
    assert not goes_on and len(parts) == 4
    for part in parts:
        assert part.takes == tuple(range(classes)) and part.iterations == iterations
        assert not part.locates and not part.whole and part.iteration == 0
    assert run(RECIPES["released"], mode, classes)[1] == 8 + 4 * 8 * iterations


@pytest.mark.parametrize(("mode", "iterations"), [("split", 1), ("both", 5)])
def test_three_classes_released_are_one_whole_tile_without_a_centre_pass(mode: str, iterations: int) -> None:
    """Four equal tiles and a centre pass in the released code: 5 + 20 passes become 5."""
    tiles, views = run(RECIPES["released"], mode, 3)
    (tile,) = tiles
    assert tile.box == WHOLE and not tile.locates and tile.takes == (0, 1, 2)
    assert views == 8 * iterations


def test_three_classes_paper_are_four_tiles_each() -> None:
    tiles, views = run(RECIPES["paper"], "both", 3)
    centre, *parts = tiles
    assert centre.locates and len(parts) == 12
    assert sorted(part.takes for part in parts) == [(0,)] * 4 + [(1,)] * 4 + [(2,)] * 4
    assert views == 8 + 12 * 10 * 8


def test_equal_tiles_of_paper_are_inferred_once() -> None:
    program, (centre,) = begin(RECIPES["paper"], "both", 3)
    same = Advanced(0, np.ones(3, np.float32), [(50, 100)] * 3)
    parts = program.after(centre, same)[1]
    assert [part.takes for part in parts] == [(0, 1, 2)] * 4


@pytest.mark.parametrize("whole", ["max", "mean"])
def test_the_whole_image_of_a_union_doubles_as_the_centre_pass(whole: str) -> None:
    recipe = Recipe(whole=whole, whole_iterations=2)
    program, (tile,) = begin(recipe, "both", 2)
    assert tile.locates and tile.whole and tile.takes == (0, 1) and tile.iterations == 2
    goes_on, parts = program.after(tile, first(tile))
    assert goes_on and len(parts) == 4
    goes_on, more = program.after(tile, first(tile))
    assert not goes_on and more == [], "it splits once"
    assert run(recipe, "both", 2)[1] == 2 * 8 + 4 * 5 * 8


def test_a_cheaper_centre_pass_stands_beside_the_whole_image() -> None:
    recipe = Recipe(whole="mean", centre_views=HALF)
    _, (centre, whole) = begin(recipe, "both", 1)
    assert centre.locates and centre.takes == () and centre.views == HALF
    assert whole.whole and not whole.locates and whole.views == recipe.views
    assert run(recipe, "both", 1)[1] == 1 + 8 + 4 * 5 * 8
    assert run(Recipe(centre_views=HALF), "both", 1)[1] == 1 + 4 * 5 * 8


def test_a_union_without_a_split_is_the_whole_image() -> None:
    recipe = Recipe(whole="mean", whole_iterations=3, split="none")
    for mode, iterations in (("split", 1), ("both", 3), ("erase", 5), ("baseline", 1)):
        (tile,) = begin(recipe, mode, 2)[1]
        assert tile.whole and tile.iterations == iterations, mode


def test_the_same_centre_views_given_explicitly_still_share_the_pass() -> None:
    assert len(begin(Recipe(whole="mean", centre_views=Views()), "both", 1)[1]) == 1


def test_later_views_follow_the_first_iteration() -> None:
    recipe = Recipe(later_views=HALF, iterations=3)
    assert run(recipe, "both", 1)[1] == 8 + 4 * (8 + 2 * 1)
    assert run(recipe, "erase", 1)[1] == 8 + 2


def test_tile_views_are_those_of_a_tile_s_first_iteration() -> None:
    recipe = Recipe(tile_views=Views(scales=(1.0, 0.5), mirror=False), later_views=HALF, iterations=3)
    assert run(recipe, "both", 1)[1] == 8 + 4 * (2 + 2 * 1)
    assert run(recipe, "erase", 1)[1] == 8 + 2, "the whole image keeps its own"
    assert run(recipe, "both", 3)[1] == 8 + 2


def test_the_probe_is_the_tile_s_own_smallest_view() -> None:
    recipe = Recipe(probe=0.5, tile_views=Views(scales=(1.5, 0.75)))
    program, (centre,) = begin(recipe, "split", 1)
    part = program.after(centre, first(centre))[1][0]
    assert part.views == Views(scales=(0.75,), mirror=False)
    program.after(part, first(part))
    assert part.views == recipe.tile_views


@pytest.mark.parametrize(("erased", "iterations"), [(0.019, 1), (0.02, 5), (0.5, 5), (0.0, 1)])
def test_a_tile_stops_below_the_stop_share(erased: float, iterations: int) -> None:
    (tile,), views = run(RECIPES["released"], "erase", 1, erased)
    assert (tile.iteration, views) == (iterations, 8 * iterations)


def test_the_stop_share_counts_the_tile_not_the_image() -> None:
    program, (centre,) = begin(RECIPES["released"], "both", 1)
    part = program.after(centre, first(centre))[1][0]
    share = part.box.area * 0.02
    assert program.after(part, Advanced(int(share) + 1, np.ones(1, np.float32), []))[0]
    assert not program.after(part, Advanced(int(share) - 1, np.ones(1, np.float32), []))[0]


def test_a_probe_is_one_view_and_its_verdict_holds_for_the_tile() -> None:
    recipe = Recipe(probe=0.5)
    program, (centre,) = begin(recipe, "both", 2)
    assert centre.iteration == 0, "the centre pass is not probed"
    parts = program.after(centre, Advanced(0, np.array([8, 16], np.float32), [(50, 50), (60, 90)]))[1]
    for part in parts:
        np.testing.assert_array_equal(part.peak, [1, 2])
        assert part.iteration == -1 and [v.shape for v in views_of(part)] == [
            (round(part.box.height / 2), round(part.box.width / 2))
        ]
    low, high, edge, other = parts
    assert program.after(low, Advanced(0, np.array([0.4, 0.9], np.float32), [])) == (False, [])
    assert program.after(high, Advanced(0, np.array([0.0, 1.1], np.float32), [])) == (True, [])
    assert program.after(edge, Advanced(0, np.array([0.5, 0.0], np.float32), [])) == (True, [])
    assert (low.iteration, high.iteration, high.views) == (0, 0, recipe.views)
    assert len(views_of(high)) == 8
    assert other.iteration == -1


def test_a_fixed_network_size_is_every_view_s_shape() -> None:
    tile = Tile(task(1), Box(0, 0, 30, 40), (0,), 1, views=Views(scales=(1.0,)))
    assert [v.shape for v in views_of(tile, ViewSizes(fixed=(24, 32)))] == [(24, 32)] * 2
    assert [(v.scale, v.mirrored, v.shape) for v in views_of(tile)] == [
        (0, False, (30, 40)),
        (0, True, (30, 40)),
    ]


# -- counted on the real engine -------------------------------------------------------------------------------

FULL = {"stop_share": 0.0, "iterations": 2}  # every tile runs both iterations


@pytest.mark.parametrize(
    ("recipe", "mode", "classes", "views"),
    [
        (Recipe(**FULL), "baseline", 1, 8),
        (Recipe(**FULL), "split", 1, 8 + 4 * 8),
        (Recipe(**FULL), "erase", 1, 2 * 8),
        (Recipe(**FULL), "both", 1, 8 + 4 * 2 * 8),
        (Recipe(**FULL), "both", 2, 8 + 4 * 2 * 8),
        (Recipe(**FULL), "both", 3, 2 * 8),
        (Recipe(**FULL), "split", 4, 8),
        (Recipe(**FULL, whole="mean"), "both", 1, 8 + 4 * 2 * 8),
        (Recipe(**FULL, whole="max", whole_iterations=2), "both", 2, 2 * 8 + 4 * 2 * 8),
        (Recipe(**FULL, centre_views=HALF), "both", 1, 1 + 4 * 2 * 8),
        (Recipe(**FULL, whole="mean", centre_views=HALF), "both", 1, 1 + 8 + 4 * 2 * 8),
        (Recipe(**FULL, later_views=HALF), "both", 1, 8 + 4 * (8 + 1)),
        (Recipe(**FULL, probe=1e-9), "both", 1, 8 + 4 * (1 + 2 * 8)),
        (Recipe(**FULL, split="none"), "both", 1, 2 * 8),
    ],
)
def test_the_engine_infers_exactly_so_many_views(
    tiny_engine: Engine, recipe: Recipe, mode: str, classes: int, views: int
) -> None:
    maps = tiny_engine.maps(tiny.picture(48, 64), range(classes), recipe, mode)  # type: ignore[arg-type]
    assert maps.shape == (classes, 48, 64)
    stats = tiny_engine.scheduler.stats  # type: ignore[union-attr]
    assert stats.views == views
    assert stats.images == 1
