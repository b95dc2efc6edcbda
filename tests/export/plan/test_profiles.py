"""Profiles: from the scheduler's batches to at most so many ranges."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercam.engine.api import Engine
from infercam.engine.bundle import Bundle, InputSpec
from infercam.engine.common.errors import InputError
from infercam.engine.data.sources import folder_source
from infercam.engine.method.backend import Limits
from infercam.engine.method.geometry import ANY_SIZE, ViewSizes, split_boxes
from infercam.engine.method.recipe import RECIPES
from infercam.engine.method.scheduler import SMALL
from infercam.engine.method.task import Respond
from infercam.engine.runners.plan import pick_profile, pixels
from infercam.export.plan.profiles import (
    DEVICE_LIMITS,
    LADDER_ASPECT,
    ImageSize,
    Reach,
    Recorder,
    _least_spread,
    choose_profiles,
    coverage,
    ladder_shapes,
    record,
    simulate,
    smallest_view,
)
from tests.engine import tiny

LIMITS = Limits(batch_pixels=60_000, batch_views=16, memory=1 << 40, images=16)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "tiny")


def sizes(count: int = 20, classes: int | None = None) -> list[ImageSize]:
    rng = np.random.default_rng(3)
    return [ImageSize(f"i{n}", *map(int, rng.integers(30, 90, 2)), classes) for n in range(count)]


# -- the batches -----------------------------------------------------------------------------------------------
def test_baseline_batches_are_the_images_at_every_scale(bundle):
    shapes = simulate(bundle, [ImageSize("a", 40, 60)], "released", "baseline", LIMITS).shapes
    assert shapes == Counter({(2, 40, 60): 1, (2, 20, 30): 1, (2, 60, 90): 1, (2, 80, 120): 1})


def test_images_of_one_size_share_batches_within_the_limits(bundle):
    same = [ImageSize(f"i{n}", 40, 60) for n in range(30)]
    shapes = simulate(bundle, same, "released", "baseline", LIMITS).shapes
    assert sum(n * s[0] for s, n in shapes.items()) == 30 * 8
    assert max(s[0] for s in shapes) == 16
    assert all(s[0] * s[1] * s[2] <= 60_000 for s in shapes)


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("mode", ["baseline", "split", "erase", "both"])
def test_every_recipe_and_mode_comes_to_an_end(bundle, name, mode):
    shapes = simulate(bundle, sizes(6), name, mode, LIMITS).shapes
    assert shapes == simulate(bundle, sizes(6), name, mode, LIMITS).shapes  # drawn the same every time
    views, ladder = RECIPES[name].views, RECIPES[name].ladder
    largest = [ANY_SIZE.of(s.height, s.width, max(views.scales), ladder) for s in sizes(6)]
    assert max(s[1] for s in shapes) == max(h for h, _ in largest)


def test_a_fixed_batch_and_size(tmp_path):
    fixed = tiny.build(tmp_path / "fixed", fixed=(48, 64), batch=False)
    shapes = simulate(fixed, sizes(4), "released", "both", LIMITS).shapes
    assert set(shapes) == {(1, 48, 64)}
    (profile,) = choose_profiles(shapes, fixed.manifest)
    assert profile.smallest == profile.best == profile.largest == (1, 48, 64)


def test_no_images_is_one_line(bundle):
    with pytest.raises(InputError, match="no images"):
        simulate(bundle, [], "released")


def test_a_replay_forms_the_very_batches_of_the_cpu_engine(bundle, tmp_path, monkeypatch):
    """Same limits and one worker: what is replayed from a recording is what the engine did."""
    source = folder_source(tiny.write_dataset(tmp_path, 3) / "images")
    seen: Counter = Counter()
    submit = Recorder.submit

    def counting(self, work):
        if isinstance(work, Respond):
            seen[len(work.views), *work.views[0].shape] += 1
        submit(self, work)

    monkeypatch.setattr(Recorder, "submit", counting)
    found, recording = record(bundle, source, "released", classes_of=lambda item: [0])
    assert [(s.height, s.width, s.classes) for s in found] == [(40, 52, 1), (41, 53, 1), (42, 52, 1)]
    alone = Limits(batch_pixels=100_000, batch_views=16, memory=1 << 40, images=1)
    replayed = simulate(bundle, found, "released", "both", alone, recording).shapes
    views = {
        s: sum(n * shape[0] for shape, n in seen.items() if shape[1:] == s) for s in {x[1:] for x in seen}
    }
    again = {s: sum(n * x[0] for x, n in replayed.items() if x[1:] == s) for s in {x[1:] for x in replayed}}
    assert again == views


def test_predicted_classes_are_recorded_too(bundle, tmp_path):
    source = folder_source(tiny.write_dataset(tmp_path, 1) / "images")
    found, recording = record(bundle, source, "fast")
    with Engine.load(bundle) as engine:
        assert found[0].classes == max(1, len(engine.predict(Path(source[0].path))) or 1)
    assert recording


# -- the profiles ----------------------------------------------------------------------------------------------
batches = st.dictionaries(
    st.tuples(st.integers(1, 20), st.integers(1, 400), st.integers(1, 400)), st.integers(1, 30), min_size=1
).map(Counter)


@given(batches, st.integers(1, 6))
def test_profiles_are_few_and_take_every_view_seen(shapes, count):
    manifest = Bundle.load(BUNDLE).manifest
    profiles = choose_profiles(shapes, manifest, count)
    assert 1 <= len(profiles) <= count
    for _, height, width in shapes:
        assert pick_profile(profiles, (1, height, width)) is not None
    if count > 1:
        assert sum(coverage(profiles, shapes)) == pytest.approx(1)
    for p in profiles:
        assert all(a <= b <= c for a, b, c in zip(p.smallest, p.best, p.largest, strict=True))


@pytest.fixture(scope="module", autouse=True)
def _remember(bundle):
    global BUNDLE
    BUNDLE = bundle.path


def test_the_last_profile_takes_sizes_turned_by_90_degrees(bundle):
    profiles = choose_profiles(Counter({(4, 40, 60): 3, (2, 80, 120): 2}), bundle.manifest, 3)
    assert pick_profile(profiles, (1, 120, 40)) is not None
    n, h, w = profiles[-1].largest
    assert n * h * w <= 2 * 80 * 120 or n == 1  # its largest is no larger than what was seen


def test_the_last_profile_reaches_what_the_sample_has_not(bundle):
    shapes = Counter({(4, 40, 60): 3, (2, 80, 120): 2})
    profiles = choose_profiles(shapes, bundle.manifest, 3, Reach(smallest=5, largest=900))
    assert profiles[:-1] == choose_profiles(shapes, bundle.manifest, 3)[:-1]
    for side in (5, 30, 500, 900):
        assert pick_profile(profiles, (1, side, 40)) is not None
    assert profiles[-1].largest[0] == 1  # one view of 900x900 is more than any batch seen


@pytest.mark.parametrize(("name", "side"), [("released", 5), ("fast", 5), ("corrected", 5)])
def test_the_smallest_view_is_that_of_a_tile_at_the_edge(name, side):
    assert smallest_view(RECIPES[name], ANY_SIZE) == side
    assert smallest_view(RECIPES[name], ViewSizes(smallest=32)) == 32
    placed = split_boxes(300, 400, [(0, 0)], RECIPES[name].model_copy(update={"split": "released"}))
    shortest = min(min(p.box.height, p.box.width) for p in placed)
    assert round(shortest * 0.5) == side


# -- of the ladder ---------------------------------------------------------------------------------------------
network_inputs = st.builds(
    lambda steps, multiple, batch: InputSpec(
        smallest=steps * multiple, multiple=multiple, dynamic_batch=batch
    ),
    st.integers(1, 12),
    st.sampled_from([1, 7, 16, 32]),
    st.booleans(),
)


@given(
    network_inputs,
    st.integers(1, 6),
    st.integers(300_000, 8_000_000),
    st.lists(st.tuples(st.integers(10, 1200), st.integers(10, 1200)), min_size=1, max_size=20),
)
def test_the_ladders_profiles_take_every_batch_of_the_ladder(spec, count, batch_pixels, tiles):
    """Whatever the tile, its view on the ladder and both batches that the scheduler makes of it are taken."""
    limits = replace(DEVICE_LIMITS, batch_pixels=batch_pixels)
    manifest = Bundle.load(BUNDLE).manifest.model_copy(update={"input": spec})
    sizes = ViewSizes.of_network(spec)
    shapes = ladder_shapes(manifest, limits=limits)
    largest = max(max(s[1:]) for s in shapes)
    profiles = choose_profiles(shapes, manifest, count, Reach(sizes.smallest, largest))
    assert len(profiles) <= count
    if count > 1:
        assert all(pick_profile(profiles, shape) is not None for shape in shapes)
    for height, width in tiles:
        h, w = sizes.of(height, width, ladder=True)
        assert max(h, w) > largest or pick_profile(profiles, (1, h, w)) is not None
        if max(h, w) <= largest and max(h, w) <= LADDER_ASPECT * min(h, w):
            full = min(limits.batch_views, batch_pixels // (h * w)) if spec.dynamic_batch else 1
            assert {(n, h, w) for n in (full, max(1, round(full / SMALL)))} - {(0, h, w)} <= set(shapes)
    for p in profiles:  # every end is a size of the network
        ends = (*p.smallest[1:], *p.best[1:], *p.largest[1:])
        assert all(side >= sizes.smallest and side % sizes.multiple == 0 for side in ends)
        assert pixels(p.best) <= max(batch_pixels, p.best[1] * p.best[2])


@pytest.mark.parametrize(("name", "scale"), [("fast", 1.5), ("best", 2.5)])
def test_the_schedulers_batches_of_a_ladder_are_among_the_ladders(bundle, name, scale):
    """A simulation of photos, and the plan made without any: no batch but those of slivers falls out of it."""
    photos = [
        ImageSize(f"i{n}", *s) for n, s in enumerate([(375, 500), (500, 333), (281, 500), (442, 500)] * 5)
    ]
    seen = simulate(bundle, photos, name, "both").shapes
    shapes = ladder_shapes(bundle.manifest)
    assert set(seen) <= set(shapes)
    profiles = choose_profiles(shapes, bundle.manifest, 4, Reach(64, 1920))
    assert sum(coverage(profiles, seen)) == pytest.approx(1)


def test_the_ladders_shapes_of_a_fixed_size(tmp_path):
    fixed = tiny.build(tmp_path / "fixed", fixed=(48, 64))
    assert set(ladder_shapes(fixed.manifest)) == {(1, 48, 64), (64, 48, 64)}
    (profile,) = choose_profiles(ladder_shapes(fixed.manifest), fixed.manifest)
    assert (profile.smallest, profile.largest) == ((1, 48, 64), (64, 48, 64))
    single = tiny.build(tmp_path / "single", fixed=(48, 64), batch=False)
    assert set(ladder_shapes(single.manifest)) == {(1, 48, 64)}


def test_the_largest_view_may_be_said(bundle):
    assert max(max(s[1:]) for s in ladder_shapes(bundle.manifest, 700)) == 640
    assert set(ladder_shapes(bundle.manifest, 10)) == {(11, 64, 64), (64, 64, 64)}


def test_groups_follow_the_sizes_and_are_tuned_to_the_pixels(bundle):
    shapes = Counter({(8, 20, 20): 10, (8, 22, 20): 10, (2, 200, 200): 5, (2, 210, 200): 50})
    small, large, _ = choose_profiles(shapes, bundle.manifest, 3)
    assert small.best[1] in (20, 22) and small.largest[1] < 30
    assert large.best == (2, 210, 200) and large.smallest[1] > 100
    assert small.largest[0] == 8 and large.largest[0] == 2


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 5)), min_size=1, max_size=7), st.integers(1, 4))
def test_the_partition_is_the_best_there_is(points, count):
    points = sorted(points)
    x, w = (np.array(v) for v in zip(*points, strict=True))
    count = min(count, len(x))
    runs = _least_spread(x, w, count)
    assert [r[0] for r in runs[1:]] == [r[1] for r in runs[:-1]] and runs[0][0] == 0 and runs[-1][1] == len(x)

    def spread(runs) -> float:
        return sum(
            float((w[a:b] * (x[a:b] - np.average(x[a:b], weights=w[a:b])) ** 2).sum()) for a, b in runs
        )

    ways = (
        list(zip((0, *cuts), (*cuts, len(x)), strict=True))
        for cuts in combinations(range(1, len(x)), count - 1)
    )
    assert spread(runs) == pytest.approx(min(map(spread, ways)), abs=1e-6)
