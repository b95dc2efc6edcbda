"""The CPU engine against the reference twin: whole recipes, on a tiny bundle, over random pictures.

The method has thresholds (0.7 of the peak, truncated centres, the probe), so a rounding difference of 1e-7 may
legitimately flip one pixel and then change much. Where the two disagree the test therefore looks how near the
reference came to such an edge, and accepts only that as an excuse; the fixed cases below accept none.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from infercam.engine.api import Engine
from infercam.engine.backends.cpu import CpuBackend
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError, BundleError
from infercam.engine.method import reference
from infercam.engine.method.backend import Limits, OutOfMemory
from infercam.engine.method.recipe import MODES, RECIPES, Recipe, Views
from infercam.engine.method.task import ImageTask, Respond, Tile, View
from tests.engine import tiny

TOLERANCE = 1e-5
HALF = Views(scales=(0.5,), mirror=False)
ONE_SIZE = (26, 33)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Iterator[dict[str, Engine]]:
    other = tiny.build(tmp_path_factory.mktemp("bundle") / "bgr", stride=8, colour="BGR")
    one = tiny.build(tmp_path_factory.mktemp("bundle") / "one", fixed=ONE_SIZE, cells=True)
    with (
        Engine.load(tiny_bundle, threads=2) as a,
        Engine.load(other, threads=1) as b,
        Engine.load(one, threads=2) as c,
    ):
        yield {"stride 4 RGB": a, "stride 8 BGR": b, "one size": c}


class Margin:
    """How near the reference came to a decision that rounding could turn."""

    def __init__(self) -> None:
        self.threshold = self.centre = self.probe = np.inf

    @property
    def excuses(self) -> bool:
        return self.threshold < 3e-6 or self.centre < 1e-4 or self.probe < 1e-5


@contextlib.contextmanager
def margins(recipe: Recipe) -> Iterator[Margin]:
    margin = Margin()
    normalised, centre, worth_it = reference.normalised, reference.centre_of_mass, reference._worth_it

    def watched_normalised(*args, **named):
        n = normalised(*args, **named)
        margin.threshold = min(margin.threshold, float(np.abs(n - recipe.threshold).min()))
        return n

    def watched_centre(m):
        weight = m.astype(np.float64)
        for axis, side in enumerate(m.shape):
            if weight.sum() > 0:
                at = (weight.sum(axis=1 - axis) * np.arange(side)).sum() / weight.sum()
                margin.centre = min(margin.centre, abs(at - round(at)) if side > 1 else np.inf)
        return centre(m)

    def watched_probe(tile, recipe, peak, network, classes, spec, windows):
        if recipe.probe:
            found = reference.multi_scale_response(
                tile, None, recipe.probing(), recipe, network, classes, spec, windows
            )
            edge = np.abs(reference.peaks(found, recipe.peak_quantile) - recipe.probe * peak) / np.maximum(
                peak, 1e-9
            )
            margin.probe = min(margin.probe, float(edge.min()))
        return worth_it(tile, recipe, peak, network, classes, spec, windows)

    reference.normalised, reference.centre_of_mass = watched_normalised, watched_centre
    reference._worth_it = watched_probe
    try:
        yield margin
    finally:
        reference.normalised, reference.centre_of_mass = normalised, centre
        reference._worth_it = worth_it


def expected(engine: Engine, pixels: np.ndarray, classes: list[int], recipe: Recipe, mode: str) -> np.ndarray:
    network = tiny.network(engine.bundle)
    chosen, windows = engine.recipe(recipe), engine.backend.sizes.windows
    return reference.response_maps(pixels, classes, chosen, mode, network, engine.manifest.input, windows)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype == np.float32
    return float(np.abs(a - b).max())


views = st.sampled_from(
    [
        Views(),
        Views(scales=(1.0,)),
        Views(scales=(1.0, 0.5), mirror=False),
        Views(scales=(0.5, 2.0)),
        Views(scales=(1.0, 1.0)),  # twice the same size
        Views(scales=(0.75, 0.25)),
    ]
)
recipes = st.builds(
    Recipe,
    views=views,
    tile_views=st.none() | views,
    later_views=st.none() | views,
    centre_views=st.none() | st.just(HALF) | views,
    split=st.sampled_from(["released", "paper", "none"]),
    buffer_one=st.sampled_from([0, 3, 10]),
    buffer_two=st.sampled_from([0, 5, 20]),
    overlap=st.sampled_from([0.0, 0.2]),
    snap=st.sampled_from([1, 8, 32]),
    threshold=st.sampled_from([0.5, 0.7, 0.95]),
    stop_share=st.sampled_from([0.0, 0.02, 0.3]),
    iterations=st.integers(1, 4),
    accumulate=st.sampled_from(["max", "sum", "mean"]),
    mask_mirrored=st.booleans(),
    mask_cascade=st.booleans(),
    whole=st.sampled_from(["none", "max", "mean"]),
    whole_weight=st.sampled_from([0.0, 0.3, 1.0]),
    whole_iterations=st.integers(1, 3),
    probe=st.sampled_from([0.0, 0.8, 1.0]),
    peak_quantile=st.sampled_from([1.0, 0.99, 0.5]),
    windows=st.booleans(),
)
with_floor = st.builds(
    lambda r, floor: r.model_copy(update={"peak_floor": 0.0 if r.accumulate == "sum" else floor}),
    recipes,
    st.sampled_from([0.0, 0.5, 1.0]),
)
sides = st.sampled_from([1, 2, 3, 4, 9]) | st.integers(1, 60)
label_sets = st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True)


def check(
    engine: Engine, size: tuple[int, int], classes: list[int], recipe: Recipe, mode: str, seed: int
) -> None:
    pixels = tiny.picture(*size, seed)
    with margins(recipe) as margin:
        want = expected(engine, pixels, classes, recipe, mode)
    got = engine.maps(pixels, classes, recipe, mode)  # type: ignore[arg-type]
    off = difference(got, want)
    if off > TOLERANCE and margin.excuses:
        event("differs, beside a threshold")
        return
    event("agrees")
    assert off <= TOLERANCE, (off, vars(margin))


exploring = settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@given(
    st.sampled_from(["stride 4 RGB", "stride 8 BGR", "one size"]),
    st.tuples(sides, sides),
    label_sets,
    st.sampled_from([*RECIPES.values()]),
    st.sampled_from(MODES),
    st.integers(0, 2**32 - 1),
)
@exploring
def test_the_named_recipes(engines, which, size, classes, recipe, mode, seed) -> None:
    check(engines[which], size, classes, recipe, mode, seed)


@given(
    st.sampled_from(["stride 4 RGB", "stride 8 BGR", "one size"]),
    st.tuples(sides, sides),
    label_sets,
    with_floor,
    st.sampled_from(["split", "both", "both", "erase", "baseline"]),
    st.integers(0, 2**32 - 1),
)
@exploring
def test_any_recipe(engines, which, size, classes, recipe, mode, seed) -> None:
    check(engines[which], size, classes, recipe, mode, seed)


EXOTIC = {
    "whole mean": Recipe(whole="mean", whole_iterations=2),
    "whole max": Recipe(whole="max", centre_views=HALF),
    "overlap": Recipe(overlap=0.25),
    "snap": Recipe(snap=16),
    "peak floor": Recipe(peak_floor=0.8, whole="mean", whole_weight=0.3),
    "probe": Recipe(probe=1.0),
    "floor in erasing": Recipe(peak_floor=1.0, whole="max", whole_iterations=3),
    "quantile": Recipe(peak_quantile=0.95),
    "quantile and probe": Recipe(peak_quantile=0.9, probe=1.0),
    "tile views": Recipe(tile_views=Views(scales=(1.0, 1.5), mirror=False)),
    "later views": Recipe(later_views=Views(scales=(1.0, 0.5), mirror=False)),
    "centre views": Recipe(centre_views=HALF),
    "sum": Recipe(accumulate="sum", iterations=3),
    "compete": Recipe(accumulate="mean", iterations=3, compete=True, split="none", threshold=0.4),
    "compete, max": Recipe(iterations=3, compete=True, threshold=0.4),
    "mean": Recipe(accumulate="mean", iterations=3, peak_floor=0.5, whole="mean", whole_iterations=2),
    "erase up to": Recipe(erase_up_to=1, accumulate="mean", iterations=3, threshold=0.4, peak_quantile=0.9),
    "paper, whole": RECIPES["paper"].model_copy(update={"whole": "max"}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("classes", [[2], [4, 0], [0, 1, 3]])
@pytest.mark.parametrize("name", [*RECIPES, *EXOTIC])
def test_fixed_cases_agree_without_excuse(
    tiny_engine: Engine, name: str, classes: list[int], mode: str
) -> None:
    recipe = EXOTIC.get(name) or RECIPES[name]
    pixels = tiny.picture(45, 58, seed=len(name))
    want = expected(tiny_engine, pixels, classes, recipe, mode)
    got = tiny_engine.maps(pixels, classes, recipe, mode)  # type: ignore[arg-type]
    assert difference(got, want) <= TOLERANCE
    assert got.min() >= 0 and got.max() <= 1 and got.max() > 0.5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("classes", [[2], [4, 0], [0, 1, 3]])
@pytest.mark.parametrize("name", RECIPES)
def test_fixed_cases_in_windows(engines: dict[str, Engine], name: str, classes: list[int], mode: str) -> None:
    engine, pixels = engines["one size"], tiny.picture(45, 58, seed=len(name))
    want = expected(engine, pixels, classes, RECIPES[name], mode)
    got = engine.maps(pixels, classes, name, mode)  # type: ignore[arg-type]
    assert difference(got, want) <= TOLERANCE
    stretched = RECIPES[name].model_copy(update={"windows": False})
    assert difference(got, engine.maps(pixels, classes, stretched, mode)) > 1e-2  # type: ignore[arg-type]


def test_each_lever_changes_the_maps(tiny_engine: Engine) -> None:
    """Or agreeing with the reference would prove nothing."""
    pixels = tiny.picture(45, 58, seed=3)
    base = tiny_engine.maps(pixels, [2], RECIPES["corrected"])
    for name, recipe in {**EXOTIC, "released": RECIPES["released"], "paper": RECIPES["paper"]}.items():
        assert difference(base, tiny_engine.maps(pixels, [2], recipe)) > 1e-3, name
    for mode in ("baseline", "split", "erase"):
        assert difference(base, tiny_engine.maps(pixels, [2], RECIPES["corrected"], mode)) > 1e-3, mode


def test_against_a_network_without_onnx_runtime(tiny_engine: Engine) -> None:
    pixels = tiny.picture(24, 33, seed=5)
    for name in ("released", "corrected", "paper"):
        want = reference.response_maps(
            pixels, [0, 3], RECIPES[name], "split", tiny.numpy_network(), tiny_engine.manifest.input
        )
        assert difference(tiny_engine.maps(pixels, [0, 3], name, "split"), want) <= 1e-4


def test_a_class_without_any_response_has_an_empty_map_and_does_no_harm(tmp_path: Path) -> None:
    """Its centre falls back to the middle, its map is zeros, not NaN."""
    with Engine.load(dark_class(tmp_path), threads=1) as engine:
        for recipe in RECIPES.values():
            for classes in ([0], [0, 1], [0, 1, 2]):
                pixels = tiny.picture(30, 40)
                maps = engine.maps(pixels, classes, recipe)
                assert not maps[0].any() and np.isfinite(maps).all()
                assert all(maps[c].any() for c in range(1, len(classes)))
                assert difference(maps, expected(engine, pixels, classes, recipe, "both")) <= TOLERANCE


def dark_class(folder: Path) -> Bundle:
    """The tiny bundle with a class 0 that never responds."""
    import onnx
    from onnx import numpy_helper

    from infercam.engine.bundle import file_entry

    bundle = tiny.build(folder / "dark")
    model = onnx.load(str(bundle.graph()))
    for tensor in model.graph.initializer:
        if tensor.name == "head":
            head = numpy_helper.to_array(tensor).copy()
            head[0] = -np.abs(head[0])
            tensor.CopyFrom(numpy_helper.from_array(head, "head"))
    onnx.save(model, str(bundle.graph()))
    files = {"response.onnx": file_entry(bundle.graph())}
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"files": files}))


@pytest.mark.parametrize("mode", MODES)
def test_a_bundle_of_one_size(tmp_path: Path, mode: str) -> None:
    """Every tile is resized to the network's only size; scales have no meaning and become one."""
    bundle = tiny.build(tmp_path / "fixed", fixed=(24, 32), batch=False)
    one = Recipe(views=Views(scales=(1.0,)))
    with Engine.load(bundle, threads=2) as engine:
        assert engine.recipe("corrected").views.scales == (1.0,)
        for size, classes in (((24, 32), [1]), ((40, 50), [1, 2]), ((7, 90), [0, 1, 2])):
            pixels = tiny.picture(*size)
            got = engine.maps(pixels, classes, "corrected", mode)  # type: ignore[arg-type]
            assert difference(got, expected(engine, pixels, classes, one, mode)) <= TOLERANCE
            assert set(engine.scheduler.stats.batch_sizes) == {1}  # type: ignore[union-attr]
        assert engine.scores(tiny.picture(50, 20)).shape == (5,)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("smallest", "multiple"), [(33, 1), (48, 16)])
def test_no_view_is_below_the_network_s_smallest_size(
    tmp_path: Path, mode: str, smallest: int, multiple: int
) -> None:
    bundle = tiny.build(tmp_path / "b", smallest=smallest, multiple=multiple)
    seen: set[tuple[int, int]] = set()
    with Engine.load(bundle, threads=2) as engine:
        backend = engine.backend
        run = backend._infer  # type: ignore[attr-defined]

        def watched(output, x):
            seen.add(x.shape[2:])
            return run(output, x)

        backend._infer = watched  # type: ignore[attr-defined]
        for size, classes in (((24, 90), [1]), ((70, 50), [1, 2]), ((7, 9), [0, 1, 2])):
            pixels = tiny.picture(*size)
            got = engine.maps(pixels, classes, "corrected", mode)  # type: ignore[arg-type]
            assert got.shape == (len(classes), *size)
            assert difference(got, expected(engine, pixels, classes, RECIPES["corrected"], mode)) <= TOLERANCE
        assert engine.scheduler.stats.enlarged  # type: ignore[union-attr]
        assert engine.scores(tiny.picture(5, 4)).shape == (5,)
    assert seen and all(side >= smallest and side % multiple == 0 for size in seen for side in size)


def test_scores_are_the_classifier_s(tiny_engine: Engine) -> None:
    pixels = tiny.picture(37, 41)
    x = reference.normalise(pixels, tiny_engine.manifest.input)[None]
    want = tiny.numpy_network()(x).mean(axis=(0, 2, 3)) + tiny.weights()["bias"]
    np.testing.assert_allclose(tiny_engine.scores(pixels), want, atol=1e-4)


# -- results do not depend on how the work is cut ------------------------------------------------------------------

ITEMS = [
    (f"p{n}", tiny.picture(30 + 5 * (n % 2), 40 + 7 * (n % 2), n), [n % 5, (n + 2) % 5][: 1 + n % 2])
    for n in range(6)
] + [("wide", tiny.picture(3, 80), [1, 2, 3]), ("dot", tiny.picture(1, 1), [4])]


class Limited(CpuBackend):
    """With other limits than its own."""

    chosen: Limits | None = None

    @property
    def limits(self) -> Limits:
        return self.chosen or super().limits


@pytest.fixture(scope="module")
def baseline(tiny_engine: Engine) -> dict[str, dict[str, np.ndarray]]:
    """One image at a time, two threads."""
    return {
        recipe: {name: tiny_engine.maps(p, c, recipe) for name, p, c in ITEMS}
        for recipe in ("paper", "released", "corrected")
    }


@pytest.mark.parametrize(
    "limits",
    [
        Limits(batch_pixels=1, batch_views=1, images=1),
        Limits(batch_pixels=1, batch_views=1, memory=1),
        Limits(batch_pixels=3_000, batch_views=3, images=2, patience=0),
        Limits(batch_pixels=1 << 30, batch_views=64, images=64),
        Limits(batch_pixels=1 << 30, batch_views=5, images=64, patience=1),
    ],
    ids=["views one by one", "no memory", "small", "everything at once", "odd batches"],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_batches_order_and_threads_do_not_matter(
    tiny_bundle: Bundle, baseline: dict, limits: Limits, threads: int
) -> None:
    backend = Limited(tiny_bundle, threads)
    backend.chosen = limits
    rng = np.random.default_rng(threads)
    with Engine(tiny_bundle, backend) as engine:
        for recipe, want in baseline.items():
            shuffled = [ITEMS[i] for i in rng.permutation(len(ITEMS))]
            got = {r.id: r.maps for r in engine.stream(shuffled, recipe)}
            assert got.keys() == want.keys()
            for name in want:
                assert difference(got[name], want[name]) <= TOLERANCE, (recipe, name)
            sizes = engine.scheduler.stats.batch_sizes  # type: ignore[union-attr]
            assert max(sizes) <= limits.batch_views
            if limits.batch_views == 64:
                assert max(sizes) > 4, "images really were batched together"


def test_out_of_memory_gives_the_same_maps_in_smaller_batches(tiny_bundle: Bundle, baseline: dict) -> None:
    class Small(Limited):
        chosen = Limits(batch_pixels=1 << 30)

        def _infer(self, output, x):
            if len(x) > 3:
                raise RuntimeError("Failed to allocate memory for requested buffer of size 99")
            return super()._infer(output, x)

    with Engine(tiny_bundle, Small(tiny_bundle, 2)) as engine:
        got = {r.id: r for r in engine.stream(ITEMS, "released")}
        stats = engine.scheduler.stats  # type: ignore[union-attr]
    assert stats.halvings > 0 and max(stats.batch_sizes) <= 3
    for name, want in baseline["released"].items():
        assert got[name].error is None
        assert difference(got[name].maps, want) <= TOLERANCE


def test_one_image_s_error_in_a_shared_batch_is_its_own(tiny_bundle: Bundle, baseline: dict) -> None:
    class Broken(Limited):
        chosen = Limits(batch_pixels=1 << 30)

        def _write_input(self, view: View, slot: np.ndarray) -> None:
            if view.tile.image.id == "p3":
                raise ValueError("p3 is broken")
            super()._write_input(view, slot)

    with Engine(tiny_bundle, Broken(tiny_bundle, 2)) as engine:
        got = {r.id: r for r in engine.stream(ITEMS, "released")}
    assert str(got["p3"].error) == "p3 is broken" and got["p3"].maps.size == 0
    for name, want in baseline["released"].items():
        if name != "p3":
            assert difference(got[name].maps, want) <= TOLERANCE


def test_python_s_own_memory_error_counts_as_out_of_memory(tiny_bundle: Bundle) -> None:
    backend = CpuBackend(tiny_bundle, 1)
    recipe = RECIPES["released"]
    task = ImageTask("i", tiny.picture(8, 8), [0], recipe)
    (view,) = [View(Tile(task, reference.Box(0, 0, 8, 8), (0,), 1), 0, False, (8, 8), (8, 8))]
    backend._infer = lambda output, x: (_ for _ in ()).throw(MemoryError())  # type: ignore[method-assign]
    backend.submit(Respond([view]))
    (done,) = backend.collect()
    assert isinstance(done.error, OutOfMemory) and "\n" not in str(done.error)
    assert backend.collect() == [], "nothing in flight: nothing to wait for"
    backend.close()


def test_a_graph_that_onnx_runtime_refuses_is_one_line(tmp_path: Path) -> None:
    bundle = tiny.build(tmp_path / "broken")
    bundle.graph().write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"response\.onnx: ONNX Runtime cannot load it") as caught:
        CpuBackend(bundle)
    assert "\n" not in str(caught.value)


def test_memory_is_held_for_the_images_in_flight_only(tiny_bundle: Bundle) -> None:
    """What the scheduler is told an image needs bounds what its tiles really hold."""
    held: list[tuple[int, int]] = []

    class Watched(CpuBackend):
        def _unite(self, image: ImageTask) -> np.ndarray:
            states = [tile.state for tile in image.tiles if tile.state is not None]
            size = sum(sum(r.nbytes for r in s.resized.values()) for s in states)
            size += sum(s.accumulated.nbytes for s in states if s.accumulated is not None)
            held.append((size + image.pixels.nbytes, self.estimate(image)))
            return super()._unite(image)

    with Engine(tiny_bundle, Watched(tiny_bundle, 2)) as engine:
        items = [(f"p{n}", tiny.picture(120, 160, n), list(range(1 + n % 4))) for n in range(8)]
        for mode in MODES:
            assert all(r.error is None for r in engine.stream(items, "released", mode))
    assert len(held) == 32
    assert all(size <= 1.2 * estimate for size, estimate in held), held


def test_results_come_while_items_are_still_drawn(tiny_engine: Engine) -> None:
    drawn = []

    def items():
        for n in range(40):
            drawn.append(n)
            yield f"p{n}", tiny.picture(20, 24, n), [n % 5]

    ahead = [len(drawn) - done for done, _ in enumerate(tiny_engine.stream(items(), "released"), 1)]
    assert len(ahead) == 40
    assert max(ahead) <= tiny_engine.backend.limits.images + 2


def test_limits_and_description(tiny_bundle: Bundle) -> None:
    backend = CpuBackend(tiny_bundle, 3)
    described = backend.describe()
    assert described["backend"] == "cpu" and described["threads"] == 3
    assert described["providers"] == ["CPUExecutionProvider"]
    assert backend.limits.batch_views == 1, "an image's bytes must not depend on its neighbours"
    backend.close()


def test_onnx_runtime_neither_reports_nor_leaves_an_id_in_the_home_folder(
    tmp_path: Path, tiny_bundle: Bundle
) -> None:
    code = f"from infercam.engine import Engine; Engine.load({str(tiny_bundle.path)!r}, 'cpu').close()"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment | {"HOME": str(tmp_path)})
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("what", ["response", "scores", "input"])
def test_names_that_the_graph_has_not(tmp_path: Path, tiny_bundle: Bundle, what: str) -> None:
    """The manifest's own words have no hash: found by the proofs, as a traceback of ONNX Runtime's."""
    folder = shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    if what == "input":
        manifest["input"]["name"] = "another"
    else:
        manifest[what] = "another"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"'another'.*export it again"):
        Engine.load(folder, "cpu")
