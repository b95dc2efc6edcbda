"""Recipes: the constants of engine/method/README.md, what may be changed and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from infercam.engine.common.errors import InputError
from infercam.engine.method.recipe import EPSILON, MODES, RECIPES, Recipe, Views, recipe


def test_the_named_recipes_have_the_constants_of_the_method() -> None:
    for name in ("paper", "released", "corrected"):
        r = RECIPES[name]
        assert r.views.scales == (1.0, 0.5, 1.5, 2.0) and r.views.mirror
        assert r.later() == r.views and r.centre_views is None
        assert (r.buffer_one, r.buffer_two, r.threshold) == (10, 20, 0.7)
        assert (r.whole, r.peak_floor, r.probe, r.snap, r.overlap) == ("none", 0, 0, 1, 0)
        assert (r.tile_views, r.peak_quantile) == (None, 1.0)
    assert EPSILON == 1e-5
    paper, released, corrected = (RECIPES[n] for n in ("paper", "released", "corrected"))
    assert (paper.accumulate, paper.stop_share, paper.iterations, paper.split) == ("sum", 0.01, 10, "paper")
    for r in (released, corrected):
        assert (r.accumulate, r.stop_share, r.iterations, r.split) == ("max", 0.02, 5, "released")
    assert (released.mask_mirrored, released.mask_cascade) == (False, True)
    assert (corrected.mask_mirrored, corrected.mask_cascade) == (True, False)
    assert (paper.mask_mirrored, paper.mask_cascade) == (True, False)
    assert MODES == ("baseline", "split", "erase", "both")


def test_views_count_and_cost() -> None:
    assert Views().count == 8
    assert Views().cost == 15  # engine/method/README.md §8
    assert (Views(scales=(0.5,), mirror=False).count, Views(scales=(0.5,), mirror=False).cost) == (1, 0.25)


def test_changes_make_a_new_recipe_and_leave_the_named_one() -> None:
    changed = recipe("released", threshold=0.5, views={"scales": [1, 0.5]})
    assert changed.threshold == 0.5 and changed.views == Views(scales=(1.0, 0.5))
    assert RECIPES["released"].threshold == 0.7
    assert recipe(changed) is changed
    assert recipe("paper") is RECIPES["paper"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"threshold": 0}, "threshold"),
        ({"threshold": 1.1}, "threshold"),
        ({"threshold": "much"}, "threshold"),
        ({"stop_share": 1}, "stop_share"),
        ({"stop_share": -0.1}, "stop_share"),
        ({"iterations": 0}, "iterations"),
        ({"iterations": 2.5}, "iterations"),
        ({"buffer_one": -1}, "buffer_one"),
        ({"snap": 0}, "snap"),
        ({"overlap": 1.5}, "overlap"),
        ({"views": {"scales": []}}, "views.scales"),
        ({"views": {"scales": [0]}}, "views.scales"),
        ({"views": {"scales": [9]}}, "views.scales"),
        ({"views": {"scales": [float("nan")]}}, "views.scales"),
        ({"accumulate": "median"}, "accumulate"),
        ({"split": "half"}, "split"),
        ({"whole": "min"}, "whole"),
        ({"whole_weight": 2}, "whole_weight"),
        ({"probe": -1}, "probe"),
        ({"peak_quantile": 0}, "peak_quantile"),
        ({"speed": 9}, "speed"),
        ({"peak_floor": 0.5, "accumulate": "sum"}, "peak_floor"),
    ],
)
def test_a_bad_constant_is_one_line_that_names_it(changes: dict, named: str) -> None:
    with pytest.raises(InputError) as caught:
        recipe("released", **changes)
    text = str(caught.value)
    assert named in text and "released" in text and "\n" not in text


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(InputError, match=r"no recipe 'best-ever'.*paper, released, corrected"):
        recipe("best-ever")


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValidationError):
        RECIPES["paper"].threshold = 0.1  # type: ignore[misc]


OTHER = {
    "views": Views(scales=(1.0,)),
    "tile_views": Views(scales=(1.0,)),
    "later_views": Views(scales=(1.0,)),
    "centre_views": Views(scales=(1.0,)),
    "split": "none",
    "buffer_one": 11,
    "buffer_two": 21,
    "overlap": 0.1,
    "snap": 8,
    "threshold": 0.6,
    "stop_share": 0.03,
    "iterations": 4,
    "accumulate": "sum",
    "mask_mirrored": False,
    "mask_cascade": True,
    "whole": "max",
    "whole_weight": 0.4,
    "whole_iterations": 2,
    "peak_floor": 0.3,
    "probe": 0.2,
    "peak_quantile": 0.9,
    "refine": "affinity",
    "refine_steps": 2,
    "ladder": True,
    "windows": False,
    "compete": True,
    "erase_up_to": 2,
}


def test_every_constant_but_the_name_is_in_the_fingerprint() -> None:
    assert set(OTHER) == set(Recipe.model_fields) - {"name"}, "a new constant: add it here"
    base = Recipe()
    prints = {base.fingerprint("both")}
    prints |= {base.model_copy(update={key: value}).fingerprint("both") for key, value in OTHER.items()}
    prints |= {base.fingerprint(mode) for mode in MODES}
    assert len(prints) == 1 + len(OTHER) + 3
    assert Recipe(name="other").fingerprint("both") == base.fingerprint("both")


def test_what_holds_for_an_image_of_many_classes() -> None:
    base = Recipe(erase_up_to=2, iterations=4, whole_iterations=3, peak_quantile=0.9, threshold=0.6)
    assert base.of(0) is base.of(2) is base
    few = base.of(3)
    assert (few.iterations, few.whole_iterations, few.peak_quantile) == (1, 1, 1.0)
    assert few.of(3) == few
    changed = {"iterations": 4, "whole_iterations": 3, "peak_quantile": 0.9}
    assert few.model_copy(update=changed) == base
    assert Recipe().of(80) == Recipe()


def test_a_recipe_survives_json() -> None:
    for r in RECIPES.values():
        assert Recipe.model_validate_json(r.model_dump_json()) == r
