"""The device backend, end to end, on the emulated device: the kernels themselves, run on the CPU, and the network by
ONNX Runtime. Deferred: nothing runs before it is waited for, so memory that is reused too early shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from infercam.engine.api import Engine
from infercam.engine.backends.device import DeviceBackend
from infercam.engine.bundle import Bundle
from infercam.engine.device.driver import DeviceError, DeviceLost, DeviceOutOfMemory
from infercam.engine.live import LiveEngine
from infercam.engine.method.backend import OutOfMemory
from infercam.engine.method.recipe import MODES, RECIPES, Recipe, Views
from infercam.engine.method.recipe import recipe as recipe_of
from infercam.engine.method.task import Respond, Work
from tests.engine import tiny

MakeEngine = Callable[..., Engine]
TOLERANCE = 1e-5
HALF = Views(scales=(0.5,), mirror=False)
ITEMS = [
    (f"p{n}", tiny.picture(30 + 5 * (n % 2), 40 + 7 * (n % 2), n), [n % 5, (n + 2) % 5][: 1 + n % 2])
    for n in range(5)
] + [("wide", tiny.picture(3, 61), [1, 2, 3]), ("dot", tiny.picture(1, 1), [4])]
EXOTIC = {
    "whole mean": Recipe(whole="mean", whole_iterations=2),
    "whole max": Recipe(whole="max", centre_views=HALF),
    "floor in erasing": Recipe(peak_floor=1.0, whole="max", whole_iterations=3),
    "quantile and probe": Recipe(peak_quantile=0.9, probe=1.0),
    "same size twice": Recipe(views=Views(scales=(1.0, 1.0, 0.75)), mask_cascade=True),
    "later views": Recipe(later_views=Views(scales=(1.0, 0.5), mirror=False), snap=8, overlap=0.2),
    "sum with whole": Recipe(accumulate="sum", iterations=3, split="paper", whole="max"),
    "compete": Recipe(accumulate="mean", iterations=3, compete=True, split="none", threshold=0.4),
    "compete, max": Recipe(iterations=3, compete=True, threshold=0.4),
    "mean": Recipe(accumulate="mean", iterations=3, peak_floor=0.5, whole="mean", whole_iterations=2),
    "erase up to": Recipe(erase_up_to=1, accumulate="mean", iterations=3, threshold=0.4, peak_quantile=0.9),
}


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype == np.float32
    return float(np.abs(a - b).max(initial=0))


def device(engine: Engine) -> DeviceBackend:
    assert isinstance(engine.backend, DeviceBackend)
    return engine.backend


@pytest.fixture(scope="module")
def expected(tiny_engine: Engine) -> dict[str, np.ndarray]:
    """The CPU backend's maps of ITEMS under `released`."""
    return {name: tiny_engine.maps(p, c, "released") for name, p, c in ITEMS}


# -- the same maps as the CPU backend ------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", MODES)
def test_all_recipes_and_modes_agree_with_the_cpu_backend(
    tiny_bundle: Bundle, tiny_engine: Engine, device_engine: MakeEngine, mode: str
) -> None:
    engine = device_engine(tiny_bundle)
    for at, recipe in enumerate([*RECIPES.values(), *EXOTIC.values()]):
        pixels = tiny.picture(27, 38, seed=at)
        classes = [[2], [4, 0], [0, 1, 3]][at % 3]
        want = tiny_engine.maps(pixels, classes, recipe, mode)  # type: ignore[arg-type]
        got = engine.maps(pixels, classes, recipe, mode)  # type: ignore[arg-type]
        assert difference(got, want) <= TOLERANCE, recipe
        assert got.max() > 0.5


def test_a_bgr_network_of_another_stride(tmp_path: Path, device_engine: MakeEngine) -> None:
    bundle = tiny.build(tmp_path / "bgr", stride=8, colour="BGR")
    pixels = tiny.picture(33, 46, seed=2)
    with Engine.load(bundle, threads=1) as cpu:
        want = cpu.maps(pixels, [1, 3], "released")
    assert difference(device_engine(bundle).maps(pixels, [1, 3], "released"), want) <= TOLERANCE


@pytest.mark.parametrize("mode", ["baseline", "both"])
def test_a_bundle_of_one_size_and_one_view(tmp_path: Path, device_engine: MakeEngine, mode: str) -> None:
    bundle = tiny.build(tmp_path / "fixed", fixed=(24, 32), batch=False)
    engine = device_engine(bundle)
    with Engine.load(bundle, threads=1) as cpu:
        for size, classes in (((24, 32), [1]), ((40, 50), [1, 2]), ((7, 60), [0, 1, 2])):
            pixels = tiny.picture(*size)
            want = cpu.maps(pixels, classes, "corrected", mode)  # type: ignore[arg-type]
            got = engine.maps(pixels, classes, "corrected", mode)  # type: ignore[arg-type]
            assert difference(got, want) <= TOLERANCE
            assert set(engine.scheduler.stats.batch_sizes) == {1}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["fast", "released", "corrected"])
def test_windows_of_a_bundle_of_one_size(tmp_path: Path, device_engine: MakeEngine, name: str) -> None:
    """Mirrored or not, masks in a cascade or not, in batches that hold several views or part of one."""
    bundle = tiny.build(tmp_path / "fixed", fixed=(24, 32), cells=True)
    chosen, stretched = recipe_of(name, iterations=2), recipe_of(name, iterations=2, windows=False)
    few, many = device_engine(bundle, batch_pixels=5 * 24 * 32), device_engine(bundle, most=7)
    with Engine.load(bundle, threads=1) as cpu:
        for size, classes in (((45, 58), [1, 3]), ((20, 61), [2])):
            pixels = tiny.picture(*size)
            want = cpu.maps(pixels, classes, chosen)
            assert difference(cpu.maps(pixels, classes, stretched), want) > 1e-2
            for engine in (few, many):
                assert difference(engine.maps(pixels, classes, chosen), want) <= TOLERANCE
    assert max(few.scheduler.stats.batch_sizes) == 5  # type: ignore[union-attr]
    assert max(many.scheduler.stats.batch_sizes) > 10  # type: ignore[union-attr]


def test_a_window_s_batch_that_does_not_fit_is_halved(tmp_path: Path, device_engine: MakeEngine) -> None:
    """And no window counts twice."""
    bundle = tiny.build(tmp_path / "fixed", fixed=(24, 32), cells=True)
    pixels, chosen = tiny.picture(45, 58), recipe_of("corrected", iterations=2)
    engine = device_engine(bundle, memory=3)
    with Engine.load(bundle, threads=1) as cpu:
        assert difference(engine.maps(pixels, [1], chosen), cpu.maps(pixels, [1], chosen)) <= TOLERANCE
    assert engine.scheduler.stats.halvings  # type: ignore[union-attr]


def test_windows_in_half_precision(tmp_path: Path, device_engine: MakeEngine) -> None:
    bundle = tiny.build(tmp_path / "fixed", fixed=(24, 32), cells=True)
    pixels = tiny.picture(45, 58)
    got = device_engine(bundle, input_type="float16").maps(pixels, [0, 2], "fast", "baseline")
    with Engine.load(bundle, threads=1) as cpu:
        assert 0 < difference(got, cpu.maps(pixels, [0, 2], "fast", "baseline")) < 5e-3


def test_half_precision_input(tiny_bundle: Bundle, tiny_engine: Engine, device_engine: MakeEngine) -> None:
    pixels = tiny.picture(27, 38, seed=4)
    got = device_engine(tiny_bundle, input_type="float16").maps(pixels, [0, 2], "released", "baseline")
    want = tiny_engine.maps(pixels, [0, 2], "released", "baseline")
    assert 0 < difference(got, want) < 5e-3


def test_scores(tiny_bundle: Bundle, tiny_engine: Engine, device_engine: MakeEngine) -> None:
    pixels = tiny.picture(37, 41)
    engine = device_engine(tiny_bundle)
    for ladder in (False, True):
        np.testing.assert_allclose(
            engine.scores(pixels, ladder), tiny_engine.scores(pixels, ladder), atol=1e-6
        )
    assert np.abs(engine.scores(pixels, True) - engine.scores(pixels)).max() > 1e-4, "another size"


@pytest.mark.parametrize("n", [1, 5])
def test_scores_of_a_bundle_with_a_bias_of_each_image(
    tmp_path: Path, device_engine: MakeEngine, n: int
) -> None:
    """They do not follow from the response: the network is asked for them, in the batches that it takes."""
    bundle = tiny.build(tmp_path / "b", per_image_bias=True)
    x = np.random.default_rng(0).standard_normal((n, 3, 33, 47), dtype=np.float32)
    found = []
    for engine in (device_engine(bundle, most=2), Engine.load(bundle, "cpu")):
        with LiveEngine(engine) as live:
            found.append(live.infer(x).result())
            scores = live.scores(tiny.picture(37, 41)).result()
        np.testing.assert_allclose(scores, engine.scores(tiny.picture(37, 41)), atol=1e-5)
    mean = found[1].response.mean((2, 3), dtype=np.float64)
    np.testing.assert_allclose(found[1].scores, mean + 10 / (1 + np.exp(-mean)), atol=1e-4)
    np.testing.assert_allclose(found[0].response, found[1].response, atol=1e-5)
    np.testing.assert_allclose(found[0].scores, found[1].scores, atol=1e-5)


def test_scores_of_a_bundle_without_a_decomposition(tmp_path: Path, device_engine: MakeEngine) -> None:
    """Neither do they here, whatever bias the manifest names: it is the linear layer's."""
    built = tiny.build(tmp_path / "b")
    changes = {"decomposition": "none", "method": "patch-tokens", "bias": [9.0] * len(built.manifest.classes)}
    bundle = Bundle(built.path, built.manifest.model_copy(update=changes))
    x = np.random.default_rng(0).standard_normal((3, 3, 33, 47), dtype=np.float32)
    with LiveEngine(device_engine(bundle, most=2)) as live:
        scores = live.infer(x).result().scores
    with LiveEngine(Engine.load(built, "cpu")) as live:
        np.testing.assert_allclose(scores, live.infer(x).result().scores, atol=1e-5)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("recipe", "mode", "key"),
    [
        ("released", "baseline", "baseline"),
        pytest.param("released", "both", "released", marks=pytest.mark.slow),
        pytest.param("corrected", "both", "corrected", marks=pytest.mark.slow),
    ],
)
def test_the_released_code_s_own_maps(
    shared: Path, tmp_path: Path, device_engine: MakeEngine, recipe: str, mode: str, key: str
) -> None:
    export = pytest.importorskip("infercam.export")
    folder = shared / "golden"
    bundle = export.export_onnx(folder / "tiny_classifier.onnx", tmp_path / "bundle")
    listed = json.loads((folder / "manifest.json").read_text())
    items = [(m["id"], folder / "images" / f"{m['id']}.png", m["classes"]) for m in listed]
    engine = device_engine(bundle)
    with np.load(folder / "expected.npz") as golden:
        found = {r.id: r for r in engine.stream(items, recipe, mode)}  # type: ignore[arg-type]
        assert found.keys() == {name for name, _, _ in items}
        for name, result in found.items():
            assert result.error is None
            assert difference(result.maps, golden[f"{name}/{key}"]) <= 1e-4, name


# -- however the work is cut ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        {"batch_pixels": 1},
        {"batch_pixels": 3_000, "depth": 1},
        {"batch_pixels": 1 << 30},
        {"batch_pixels": 1 << 30, "depth": 1000, "most": 3},
        {"batch_pixels": 5_000, "deferred": False},
    ],
    ids=["views one by one", "small", "everything at once", "a runner of 3 views", "at once"],
)
def test_maps_do_not_depend_on_the_batches(
    tiny_bundle: Bundle, device_engine: MakeEngine, expected: dict[str, np.ndarray], options: dict
) -> None:
    engine = device_engine(tiny_bundle, **options)
    got = {r.id: r.maps for r in engine.stream(ITEMS[::-1], "released")}
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert difference(got[name], want) <= TOLERANCE, name
    batches = device(engine).runner.batches  # type: ignore[attr-defined]
    assert max(batches) == {1: 1}.get(options["batch_pixels"], options.get("most", max(batches)))
    if options["batch_pixels"] == 1 << 30 and "most" not in options:
        assert max(batches) > 4, "images really were batched together"


@pytest.mark.parametrize("mode", ["baseline", "both"])
def test_batches_filled_up_with_blank_views_give_the_same_maps(
    tiny_bundle: Bundle, tiny_engine: Engine, device_engine: MakeEngine, mode: str
) -> None:
    """On a ladder a shape has two batch sizes, whatever number of views there are."""
    recipe = RECIPES["released"].model_copy(update={"ladder": True})
    engine = device_engine(tiny_bundle, batch_pixels=12 * 64 * 64)
    respond, runs = engine.backend.runner.respond, []  # type: ignore[attr-defined]

    def watched(batch, height, width, *pointers):
        runs.append((batch, height, width))
        respond(batch, height, width, *pointers)

    engine.backend.runner.respond = watched  # type: ignore[attr-defined]
    got = {r.id: r.maps for r in engine.stream(ITEMS, recipe, mode)}  # type: ignore[arg-type]
    for name, pixels, classes in ITEMS:
        assert difference(got[name], tiny_engine.maps(pixels, classes, recipe, mode)) <= TOLERANCE  # type: ignore[arg-type]
    stats = engine.scheduler.stats  # type: ignore[union-attr]
    assert stats.blank_pixels > 0 and sum(stats.batch_sizes.values()) == len(runs)
    by_shape: dict[tuple[int, int], set[int]] = {}
    for batch, *shape in runs:
        by_shape.setdefault((shape[0], shape[1]), set()).add(batch)
    assert all(len(sizes) <= 2 for sizes in by_shape.values()), by_shape


def test_the_same_bits_whatever_the_batches(tiny_bundle: Bundle, device_engine: MakeEngine) -> None:
    """The network here answers view by view; all else is the kernels', and they promise it."""
    one = device_engine(tiny_bundle, batch_pixels=1, seed=5)
    many = device_engine(tiny_bundle, batch_pixels=1 << 30, seed=6)
    got = {r.id: r.maps for r in many.stream(ITEMS, "corrected")}
    for r in one.stream(ITEMS, "corrected"):
        assert np.array_equal(r.maps, got[r.id])


def test_advances_that_are_due_together_are_one_launch(
    tiny_bundle: Bundle, device_engine: MakeEngine
) -> None:
    engine = device_engine(tiny_bundle, deferred=False, batch_pixels=1 << 30)
    same = [(f"p{n}", tiny.picture(24, 32, n), [n]) for n in range(4)]
    assert all(r.error is None for r in engine.stream(same, "released", "baseline"))
    launches = device(engine).driver.launches  # type: ignore[attr-defined]
    assert launches["upsample"] == 1 and launches["accumulate"] == 1
    assert launches["erase_words_float"] == launches["gather"] == 4  # scales


# -- memory --------------------------------------------------------------------------------------------------------
def test_out_of_memory_halves_the_batches_and_gives_the_same_maps(
    tiny_bundle: Bundle, device_engine: MakeEngine, expected: dict[str, np.ndarray]
) -> None:
    """The budget is just what one image with one view at a time needs, and a bit."""
    probe = device_engine(tiny_bundle, batch_pixels=1)
    for r in probe.stream(ITEMS[:1], "released"):
        assert r.error is None
    budget = round(2.2 * device(probe).pool.stats.peak_used)
    engine = device_engine(tiny_bundle, budget=budget, batch_pixels=1 << 30)
    got = {r.id: r for r in engine.stream(ITEMS, "released")}
    stats = engine.scheduler.stats  # type: ignore[union-attr]
    assert stats.halvings > 0
    for name, want in expected.items():
        assert got[name].error is None, got[name].error
        assert difference(got[name].maps, want) <= TOLERANCE
    assert device(engine).pool.stats.peak <= budget


def test_a_runner_out_of_memory_in_the_middle_of_a_batch(
    tiny_bundle: Bundle, device_engine: MakeEngine, expected: dict[str, np.ndarray]
) -> None:
    """Views of the first part of a batch are not added again when the batch is retried."""
    calls = []

    def fail_once(batch: int) -> None:
        calls.append(batch)
        if len(calls) == 3:
            raise OutOfMemory("for once")

    engine = device_engine(tiny_bundle, batch_pixels=1 << 30, most=2, before=fail_once)
    got = {r.id: r for r in engine.stream(ITEMS[:3], "released")}
    stats = engine.scheduler.stats  # type: ignore[union-attr]
    assert stats.halvings == 1 and stats.views == sum(calls) - calls[2]
    for r in got.values():
        assert r.error is None and difference(r.maps, expected[r.id]) <= TOLERANCE


def test_an_image_too_large_for_the_device_is_its_own_error(
    tiny_bundle: Bundle, device_engine: MakeEngine, expected: dict[str, np.ndarray]
) -> None:
    engine = device_engine(tiny_bundle, budget=1 << 20)
    huge = ("huge", tiny.picture(500, 600), [0, 1])
    got = {r.id: r for r in engine.stream([*ITEMS[:2], huge, *ITEMS[2:3]], "released")}
    assert isinstance(got["huge"].error, OutOfMemory) and "budget of 1 MiB" in str(got["huge"].error)
    for name, _, _ in ITEMS[:3]:
        assert got[name].error is None and difference(got[name].maps, expected[name]) <= TOLERANCE


def test_maps_that_do_not_fit_are_an_error_and_free_what_was_held(
    tiny_bundle: Bundle, device_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = device_engine(tiny_bundle)
    backend = device(engine)
    before = backend.pool.stats.used
    monkeypatch.setattr(backend._ops, "unite", _no_memory)
    results = list(engine.stream(ITEMS[:3], "released", "baseline"))
    assert [type(r.error) for r in results] == [OutOfMemory] * 3
    assert backend.pool.stats.used == before


def test_accumulating_too_much_at_once_goes_on_in_halves(
    tiny_bundle: Bundle, device_engine: MakeEngine, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = device_engine(tiny_bundle, deferred=False, batch_pixels=1 << 30)
    ops = device(engine)._ops
    accumulate, sizes = ops.accumulate, []

    def at_most_two(items, results):
        sizes.append(len(items))
        if len(items) > 2:
            _no_memory()
        accumulate(items, results)

    monkeypatch.setattr(ops, "accumulate", at_most_two)
    for r in engine.stream(ITEMS, "released"):
        assert r.error is None and difference(r.maps, expected[r.id]) <= TOLERANCE
    assert max(sizes) > 2


def _no_memory(*_: object) -> None:
    raise DeviceOutOfMemory("no room")


def test_nothing_is_held_once_the_images_have_left(tiny_bundle: Bundle, device_engine: MakeEngine) -> None:
    engine = device_engine(tiny_bundle)
    backend = device(engine)
    idle = backend.pool.stats.used
    for recipe in ("paper", "best"):
        for _ in engine.stream(ITEMS, recipe):
            pass
        assert backend.pool.stats.used == idle
    stream = engine.stream(ITEMS, "released")
    next(stream)
    assert backend.pool.stats.used > idle
    stream.close()  # abandoned: the others leave too
    assert backend.pool.stats.used == idle
    engine.close()
    assert backend.driver.used == 0 and backend.runner.closed  # type: ignore[attr-defined]


def test_what_is_held_stays_below_the_estimate(tiny_bundle: Bundle, device_engine: MakeEngine) -> None:
    """Or the scheduler would take in more images than fit. One at a time, so that the peak is its own."""
    for n, mode in enumerate(MODES):
        engine = device_engine(tiny_bundle, batch_pixels=1, deferred=False)
        backend = device(engine)
        images = []
        estimate = backend.estimate
        backend.estimate = lambda image, e=estimate, i=images: i.append(e(image)) or i[-1]  # type: ignore[method-assign]
        engine.maps(tiny.picture(96, 128, n), [0, 2][: 1 + n % 2], "released", mode)  # type: ignore[arg-type]
        one_view = 4 * 96 * 2 * 128 * 2 * (3 + 5 / 16)
        assert backend.pool.stats.peak_used - one_view <= 1.2 * images[0], mode


def test_only_the_image_the_small_results_and_the_maps_cross(
    tiny_bundle: Bundle, device_engine: MakeEngine
) -> None:
    """Per image: its pixels go in, besides descriptors; its maps come out, besides 4 + 12·K bytes an iteration."""
    engine = device_engine(tiny_bundle)
    driver = device(engine).driver
    pixels = tiny.picture(60, 80, 3)
    start_in, start_out = driver.bytes_in, driver.bytes_out  # type: ignore[attr-defined]
    maps = engine.maps(pixels, [1, 2], "released")
    stats = engine.scheduler.stats  # type: ignore[union-attr]
    iterations = stats.iterations + 1  # the centre pass
    came_out = driver.bytes_out - start_out  # type: ignore[attr-defined]
    assert came_out == maps.nbytes + iterations * (4 + 12 * 2)
    descriptors = driver.bytes_in - start_in - pixels.nbytes  # type: ignore[attr-defined]
    assert 0 < descriptors < 300 * stats.views + 300 * iterations


# -- errors --------------------------------------------------------------------------------------------------------
def test_a_runner_s_error_fails_only_its_image(
    tiny_bundle: Bundle, device_engine: MakeEngine, expected: dict[str, np.ndarray]
) -> None:
    engine = device_engine(tiny_bundle, batch_pixels=1 << 30)
    backend = device(engine)
    infer = backend._infer

    def broken(views, shape, slots):
        if any(view.tile.image.id == "p3" for view in views):
            raise DeviceError("p3 is broken")
        infer(views, shape, slots)

    backend._infer = broken  # type: ignore[method-assign]
    got = {r.id: r for r in engine.stream(ITEMS, "released")}
    assert str(got["p3"].error) == "p3 is broken" and got["p3"].maps.size == 0
    for name, want in expected.items():
        if name != "p3":
            assert got[name].error is None and difference(got[name].maps, want) <= TOLERANCE


def test_a_lost_device_ends_the_stream(tiny_bundle: Bundle, device_engine: MakeEngine) -> None:
    def lose(batch: int) -> None:
        raise DeviceLost("the GPU failed")

    engine = device_engine(tiny_bundle, before=lose)
    with pytest.raises(DeviceLost, match="the GPU failed"):
        list(engine.stream(ITEMS, "released"))


# -- the queue -----------------------------------------------------------------------------------------------------
def test_the_device_always_has_the_next_batch(tiny_bundle: Bundle, device_engine: MakeEngine) -> None:
    """While batches are due, none is submitted to an empty queue but the first, and none beyond the depth."""
    engine = device_engine(tiny_bundle, batch_pixels=2_000)
    backend = device(engine)
    queued: list[int] = []
    submit = backend.submit

    def watched(work: Work) -> None:
        if isinstance(work, Respond):
            queued.append(sum(event._at > backend.driver.executed for event in backend._batches))  # type: ignore[attr-defined]
        submit(work)

    backend.submit = watched  # type: ignore[method-assign]
    items = [(f"p{n}", tiny.picture(30, 40, n), [n % 5]) for n in range(12)]
    assert all(r.error is None for r in engine.stream(items, "released", "baseline"))
    assert len(queued) > 20 and max(queued) == backend.depth - 1
    assert queued[2:] == [2] * (len(queued) - 2), queued


def test_submitting_does_not_wait_for_the_device(tiny_bundle: Bundle, device_engine: MakeEngine) -> None:
    engine = device_engine(tiny_bundle, batch_pixels=2_000)
    backend = device(engine)
    submit = backend.submit

    def watched(work: Work) -> None:
        before = backend.driver.executed  # type: ignore[attr-defined]
        allocations = backend.pool.stats.trims
        submit(work)
        assert backend.pool.stats.trims == allocations
        assert backend.driver.executed == before, work  # type: ignore[attr-defined]

    backend.submit = watched  # type: ignore[method-assign]
    assert all(r.error is None for r in engine.stream(ITEMS, "corrected"))


def test_nothing_in_flight_nothing_to_collect(tiny_bundle: Bundle, device_engine: MakeEngine) -> None:
    backend = device(device_engine(tiny_bundle))
    assert backend.collect() == [] and backend.has_room()


def test_limits_and_description(tiny_bundle: Bundle, device_engine: MakeEngine, tmp_path: Path) -> None:
    backend = device(device_engine(tiny_bundle, budget=8 << 20))
    limits = backend.limits
    assert limits.memory == 4 << 20 and limits.batch_views == 64
    assert 0 < limits.batch_pixels * (12 + 5 * 4 / 16) < 8 << 20
    assert backend.name == "host" and backend.describe()["memory_budget"] == 8 << 20
    fixed = tiny.build(tmp_path / "one", batch=False)
    assert device(device_engine(fixed)).limits.batch_views == 1


# -- requests from other threads -----------------------------------------------------------------------------------
def test_a_live_engine_on_the_device(
    tiny_bundle: Bundle, tiny_engine: Engine, device_engine: MakeEngine
) -> None:
    """Mixed recipes and modes, bare graphs and cancelled requests together; nothing is left on the device."""
    jobs = [
        (*item, recipe, MODES[n % 4])
        for n, item in enumerate(ITEMS)
        for recipe in ("released", "fast", "paper")
    ]
    x = np.random.default_rng(0).normal(size=(5, 3, 16, 20)).astype(np.float32)
    engine = device_engine(tiny_bundle, most=3)
    with LiveEngine(engine) as live:
        futures = [live.submit(*job) for job in jobs]
        doomed = [live.submit("doomed", tiny.picture(40, 50), [0, 1]) for _ in range(4)]
        bare = live.infer(x)
        for future in doomed[::2]:
            future.cancel()
        found = [future.result().maps for future in futures]
        inferred = bare.result()
        scores = live.scores(tiny.picture(37, 41)).result()
    for job, maps in zip(jobs, found, strict=True):
        assert difference(maps, tiny_engine.maps(*job[1:])) <= TOLERANCE, job[3:]
    want = tiny.network(tiny_bundle)(x)
    np.testing.assert_allclose(inferred.response, want, atol=1e-5)
    bias = np.asarray(tiny_bundle.manifest.bias, np.float32)
    np.testing.assert_allclose(inferred.scores, want.mean(axis=(2, 3)) + bias, atol=1e-5)
    np.testing.assert_allclose(scores, tiny_engine.scores(tiny.picture(37, 41)), atol=1e-5)


@pytest.mark.parametrize(
    "recipe", [RECIPES["released"], RECIPES["paper"], EXOTIC["mean"], EXOTIC["quantile and probe"]]
)
def test_the_steps_are_those_of_the_cpu_backend(
    tiny_bundle: Bundle, tiny_engine: Engine, device_engine: MakeEngine, recipe: Recipe
) -> None:
    traces = []
    for engine in (tiny_engine, device_engine(tiny_bundle)):
        with LiveEngine(engine) as live:
            trace = live.submit("a", tiny.picture(31, 43, 3), [0, 4], recipe, trace=True).result().trace
            assert trace is not None
            traces.append(trace)
    want, got = traces
    assert got.centres == want.centres and len(got.centres) == 2
    key = lambda tile: (tile.box, tile.takes, tile.whole)  # noqa: E731
    for a, b in zip(sorted(want.tiles, key=key), sorted(got.tiles, key=key), strict=True):
        assert key(a) == key(b)
        for one, other in zip(a.iterations, b.iterations, strict=True):
            assert one.erased_share == other.erased_share
            np.testing.assert_array_equal(one.erased, other.erased)
            np.testing.assert_allclose(one.maps.astype(int), other.maps, atol=1)
