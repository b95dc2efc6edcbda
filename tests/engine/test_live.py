"""The live engine: requests from many threads, each answered as if it were alone."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path

import cv2
import numpy as np
import pytest

from infercam.engine import Engine
from infercam.engine.backends.cpu import CpuBackend
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError, InputError
from infercam.engine.live import Closed, LiveEngine
from infercam.engine.method.backend import Limits, OutOfMemory
from infercam.engine.method.recipe import MODES, RECIPES, Recipe
from infercam.engine.method.task import Done, Infer, Respond, Work
from tests.engine import tiny

PICTURE = tiny.picture(20, 26)


@pytest.fixture
def live(tiny_engine: Engine) -> Iterator[LiveEngine]:
    with LiveEngine(tiny_engine) as engine:
        yield engine


class Gate(CpuBackend):
    """A CPU backend that waits at a gate, and fails what it is told to."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, threads=1)
        self.open = threading.Event()
        self.fault: Callable[[Work], Exception | None] = lambda work: None
        self.deadly: BaseException | None = None
        self.submitted: list[Work] = []

    @property
    def limits(self) -> Limits:
        """Batches as a GPU takes them."""
        return Limits(batch_pixels=100_000, batch_views=16, images=self.threads + 2)

    def submit(self, work: Work) -> None:
        self.submitted.append(work)
        super().submit(work)

    def collect(self) -> list[Done]:
        self.open.wait(20)
        if self.deadly is not None:
            raise self.deadly
        return super().collect()

    def _do(self, work: Work) -> object:
        error = self.fault(work)
        if error is not None:
            raise error
        return super()._do(work)


@pytest.fixture
def gated(tiny_bundle: Bundle) -> Iterator[tuple[LiveEngine, Gate]]:
    backend = Gate(tiny_bundle)
    with Engine(tiny_bundle, backend) as engine:
        live = LiveEngine(engine)
        try:
            yield live, backend
        finally:
            backend.open.set()
            live.close(drain=False)


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.002)


# -- the same answers as alone -------------------------------------------------------------------------------
def test_mixed_requests_from_many_threads_get_the_maps_that_they_get_alone(tiny_bundle: Bundle) -> None:
    rng = np.random.default_rng(3)
    jobs = []
    for n in range(48):
        pixels = tiny.picture(int(rng.integers(8, 60)), int(rng.integers(8, 60)), n)
        classes = rng.permutation(5)[: 1 + n % 3].tolist()
        jobs.append((f"r{n}", pixels, classes, list(RECIPES)[n % 5], MODES[n % 4]))
    with Engine.load(tiny_bundle, threads=2) as engine:
        want = [engine.maps(*job[1:]) for job in jobs]
        with LiveEngine(engine) as live, ThreadPoolExecutor(8) as pool:
            found = [future.result() for future in pool.map(lambda job: live.submit(*job), jobs)]
            assert live.stats.images == len(jobs)
    for job, maps, result in zip(jobs, want, found, strict=True):
        assert result.id == job[0] and result.classes == job[2] and result.error is None
        assert result.pixels is job[1] and result.queued >= 0
        assert result.maps.tobytes() == maps.tobytes(), "the same bytes, whatever else was in flight"


def test_giving_memory_back_changes_nothing(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine.load(tiny_bundle, threads=1) as engine:
        want = engine.maps(PICTURE, [0, 1])
        monkeypatch.setattr("infercam.engine.runners.ort_cpu.SHRINK_EVERY", 1)
        np.testing.assert_array_equal(engine.maps(PICTURE, [0, 1]), want)


def test_paths_and_bytes(live: LiveEngine, tmp_path: Path) -> None:
    file = tmp_path / "p.png"
    cv2.imwrite(str(file), PICTURE[..., ::-1])
    want = live.submit("a", PICTURE, ["cat"]).result().maps
    for image in (file, str(file), file.read_bytes()):
        np.testing.assert_array_equal(live.submit("b", image, [0]).result().maps, want)


def test_no_classes_give_no_maps(live: LiveEngine) -> None:
    assert live.submit("a", PICTURE, []).result().maps.shape == (0, 20, 26)


def test_bad_requests_fail_alone(live: LiveEngine, tmp_path: Path) -> None:
    bad: list[Future] = [
        live.submit("a", PICTURE, ["unicorn"]),
        live.submit("b", PICTURE[..., 0], [0]),
        live.submit("c", tmp_path / "none.jpg", [0]),
        live.submit("d", b"not a picture", [0]),
        live.submit("e", b"", [0]),
        live.submit("f", PICTURE, [0], recipe="none such"),
        live.submit("g", PICTURE, [0], mode="all"),  # type: ignore[arg-type]
        live.infer(np.zeros((1, 3, 8, 8))),  # type: ignore[arg-type]
        live.infer(np.zeros((1, 4, 8, 8), np.float32)),
        live.infer(np.zeros((0, 3, 8, 8), np.float32)),
        live.scores(b"nothing"),
    ]
    good = live.submit("h", PICTURE, [0])
    for future in bad:
        error = future.exception(timeout=10)
        assert isinstance(error, InputError) and "\n" not in str(error)
    assert good.result().maps.any()


def test_the_engine_takes_no_stream_meanwhile_and_one_afterwards(tiny_engine: Engine) -> None:
    with LiveEngine(tiny_engine):
        with pytest.raises(InputError, match="another stream"):
            tiny_engine.maps(PICTURE, [0])
        with pytest.raises(InputError, match="another stream"):
            LiveEngine(tiny_engine)
    assert tiny_engine.maps(PICTURE, [0]).any()


# -- the bare graph ------------------------------------------------------------------------------------------
def test_scores_and_response_of_the_bare_graph(live: LiveEngine, tiny_bundle: Bundle) -> None:
    network = tiny.network(tiny_bundle)
    rng = np.random.default_rng(0)
    inputs = [
        rng.normal(size=(n, 3, h, 20)).astype(np.float32) for n, h in [(1, 16), (3, 16), (40, 16), (2, 9)]
    ]
    futures = [live.infer(x) for x in inputs]
    for x, future in zip(inputs, futures, strict=True):
        response, scores = future.result()
        want = network(x)
        np.testing.assert_allclose(response, want, atol=1e-5)
        bias = np.asarray(tiny_bundle.manifest.bias, np.float32)
        np.testing.assert_allclose(scores, want.mean(axis=(2, 3)) + bias, atol=1e-5)


def test_scores_are_the_engine_s(live: LiveEngine) -> None:
    for size in ((20, 26), (1, 1), (33, 7)):
        pixels = tiny.picture(*size)
        want = live.engine.scores(pixels)
        np.testing.assert_allclose(live.scores(pixels).result(), want, atol=1e-6)
        on_ladder = live.engine.scores(pixels, ladder=True)
        np.testing.assert_allclose(live.scores(pixels, ladder=True).result(), on_ladder, atol=1e-6)


def test_equal_shapes_of_waiting_requests_are_batched(gated: tuple[LiveEngine, Gate]) -> None:
    live, backend = gated
    first = live.submit("a", PICTURE, [0])
    until(lambda: bool(backend.submitted))
    x = np.zeros((1, 3, 8, 8), np.float32)
    futures = [live.infer(x + n) for n in range(5)]
    other = live.infer(np.zeros((1, 3, 9, 9), np.float32))
    backend.open.set()
    wait_for([*futures, other, first], timeout=10)
    sizes = [len(work.x) for work in backend.submitted if isinstance(work, Infer)]
    assert sorted(sizes) == [1, 5]
    assert not np.array_equal(futures[0].result().scores, futures[1].result().scores)


def test_a_failing_input_does_not_take_its_batch_with_it(gated: tuple[LiveEngine, Gate]) -> None:
    live, backend = gated

    def fault(work: Work) -> Exception | None:
        if isinstance(work, Infer) and (work.x == 7).any():
            return RuntimeError("seven")
        return OutOfMemory("big") if isinstance(work, Infer) and len(work.x) > 2 else None

    backend.fault = fault
    start = live.submit("a", PICTURE, [0])
    until(lambda: bool(backend.submitted))
    futures = [live.infer(np.full((1, 3, 8, 8), n, np.float32)) for n in range(9)]
    backend.open.set()
    outcomes = [future.exception(timeout=10) for future in futures]
    assert [n for n, error in enumerate(outcomes) if error] == [7]
    assert start.result().maps.any()


def test_a_network_of_one_size_says_so(tmp_path: Path) -> None:
    bundle = tiny.build(tmp_path / "fixed", fixed=(24, 32), batch=False)
    with Engine.load(bundle, threads=1) as engine:
        want = engine.maps(PICTURE, [0, 1]), engine.scores(PICTURE)
        with LiveEngine(engine) as live:
            assert "24×32" in str(live.infer(np.zeros((1, 3, 8, 8), np.float32)).exception())
            assert live.infer(np.zeros((3, 3, 24, 32), np.float32)).result().scores.shape == (3, 5)
            maps = live.submit("a", PICTURE, [0, 1], "released").result().maps
            np.testing.assert_array_equal(maps, want[0])
            np.testing.assert_allclose(live.scores(PICTURE).result(), want[1], atol=1e-6)


# -- cancelling ----------------------------------------------------------------------------------------------
def test_a_cancelled_request_s_work_is_dropped(gated: tuple[LiveEngine, Gate]) -> None:
    live, backend = gated
    begun = live.submit("begun", tiny.picture(40, 52), [0, 1])
    until(lambda: bool(backend.submitted))
    queued = [live.submit(f"q{n}", tiny.picture(40, 52, n), [0]) for n in range(9)]
    bare = live.infer(np.zeros((1, 3, 8, 8), np.float32))
    last = live.submit("last", PICTURE, [2])
    for future in (begun, *queued, bare):
        assert future.cancel()
    until(lambda: live.waiting == 10 or live.waiting == 1 or live.in_flight > 0)
    backend.open.set()
    assert last.result(timeout=10).maps.any()
    names = {v.tile.image.id for w in backend.submitted if isinstance(w, Respond) for v in w.views}
    assert names <= {"begun", "last"}, "what was cancelled while it waited never began"
    assert len([w for w in backend.submitted if isinstance(w, Infer)]) == 0
    with pytest.raises(CancelledError):
        begun.result()
    until(lambda: live.in_flight == 0)
    assert live.stats.images == 1


def test_cancelling_too_late_does_nothing(live: LiveEngine) -> None:
    future = live.submit("a", PICTURE, [0])
    future.result()
    assert not future.cancel()
    assert live.submit("b", PICTURE, [0]).result().maps.any()


def test_cancelling_at_any_moment_harms_nobody(live: LiveEngine) -> None:
    rng = np.random.default_rng(1)
    want = live.submit("want", PICTURE, [1], "released").result().maps
    for n in range(30):
        doomed = [live.submit(f"d{k}", tiny.picture(30, 40, k), [k], "released") for k in range(3)]
        kept = live.submit("kept", PICTURE, [1], "released")
        time.sleep(float(rng.uniform(0, 0.02)))
        for future in doomed:
            future.cancel()
        np.testing.assert_allclose(kept.result(timeout=10).maps, want, atol=1e-6, err_msg=str(n))
    until(lambda: live.in_flight == 0)


# -- failing -------------------------------------------------------------------------------------------------
def test_a_failing_image_fails_alone(gated: tuple[LiveEngine, Gate]) -> None:
    live, backend = gated
    backend.open.set()

    def fault(work: Work) -> Exception | None:
        views = work.views if isinstance(work, Respond) else []
        return ValueError("broken") if any(v.tile.image.id == "bad" for v in views) else None

    backend.fault = fault
    futures = {name: live.submit(name, PICTURE, [0]) for name in ("a", "bad", "b")}
    assert str(futures["bad"].exception(timeout=10)) == "broken"
    np.testing.assert_allclose(futures["a"].result().maps, futures["b"].result().maps, atol=1e-6)
    assert live.alive


def test_out_of_memory_halves_batches_and_nobody_notices(gated: tuple[LiveEngine, Gate]) -> None:
    live, backend = gated
    backend.fault = lambda work: OutOfMemory("full") if len(getattr(work, "views", ())) > 1 else None
    futures = [live.submit(f"r{n}", PICTURE, [0], "corrected") for n in range(4)]
    backend.open.set()
    assert all(future.result(timeout=20).maps.any() for future in futures)
    assert live.stats.halvings > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_driver_fails_everybody_and_takes_nobody(tiny_bundle: Bundle) -> None:
    backend = Gate(tiny_bundle)
    with Engine(tiny_bundle, backend) as engine:
        live = LiveEngine(engine)
        futures = [live.submit(f"r{n}", tiny.picture(40, 52), [0]) for n in range(12)]
        futures.append(live.infer(np.zeros((1, 3, 8, 8), np.float32)))
        backend.deadly = RuntimeError("the device is gone")
        backend.open.set()
        for future in futures:
            assert "the device is gone" in str(future.exception(timeout=10))
        assert not live.alive and "gone" in str(live.error)
        with pytest.raises(Closed, match="gone"):
            live.submit("late", PICTURE, [0])
        assert not live.close()


# -- closing -------------------------------------------------------------------------------------------------
def test_closing_finishes_what_was_accepted(tiny_engine: Engine) -> None:
    live = LiveEngine(tiny_engine)
    futures = [live.submit(f"r{n}", tiny.picture(30, 40, n), [n % 5], "released") for n in range(12)]
    assert live.close()
    assert all(future.done() and future.result().maps.any() for future in futures)
    with pytest.raises(Closed, match="closed"):
        live.submit("late", PICTURE, [0])
    assert live.close(), "once more does no harm"


@pytest.mark.parametrize("timeout", [None, 0.05])
def test_closing_may_give_up(gated: tuple[LiveEngine, Gate], timeout: float | None) -> None:
    live, backend = gated
    futures = [live.submit(f"r{n}", PICTURE, [0]) for n in range(9)]
    until(lambda: bool(backend.submitted))
    threading.Timer(0.2, backend.open.set).start()
    assert not live.close(drain=timeout is not None, timeout=timeout)
    for future in futures:
        assert isinstance(future.exception(timeout=10), Closed)
    assert live.engine.maps(PICTURE, [0]).any(), "the engine is free again, and clean"


# -- sleeping and forgetting ---------------------------------------------------------------------------------
def test_idle_costs_no_cpu(live: LiveEngine) -> None:
    live.submit("a", PICTURE, [0]).result()
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05


def test_nothing_of_a_request_is_kept(live: LiveEngine) -> None:
    pixels = tiny.picture(20, 26, 9)
    gone = weakref.ref(pixels)
    assert live.submit("a", pixels, [0], trace=True).result().maps.any()
    cancelled = live.submit("b", pixels, [0], "released")
    cancelled.cancel()
    live.submit("c", PICTURE, [0]).result()
    until(lambda: live.in_flight == 0)
    del pixels, cancelled
    live.submit("d", PICTURE, [0]).result()  # the backend's last worker lets go of its last unit

    def collected() -> bool:
        gc.collect()
        return gone() is None

    until(collected)


@pytest.mark.parametrize("recipe", ["fast", "released"])
def test_what_is_answered_goes_without_waiting_for_the_collector(live: LiveEngine, recipe: str) -> None:
    """Pixels and maps in reference cycles would pile up between two collections: hundreds of megabytes."""
    gc.collect()
    gc.disable()
    try:
        pixels = tiny.picture(20, 26, 9)
        result = live.submit("a", pixels, [0, 1], recipe).result()
        gone = [weakref.ref(pixels), weakref.ref(result.maps)]
        del pixels, result
        live.submit("b", PICTURE, [0]).result()  # the backend's last worker lets go of its last unit
        until(lambda: live.in_flight == 0 and not any(ref() is not None for ref in gone))
    finally:
        gc.enable()


# -- the trace -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("recipe", [*RECIPES.values(), Recipe(probe=0.9, whole="mean", accumulate="mean")])
def test_the_last_step_of_the_trace_is_what_is_united(live: LiveEngine, recipe: Recipe) -> None:
    pixels = tiny.picture(40, 52, 5)
    result = live.submit("a", pixels, [1, 3], recipe, trace=True).result()
    plain = live.submit("b", pixels, [1, 3], recipe).result()
    np.testing.assert_array_equal(result.maps, plain.maps)
    trace = result.trace
    assert trace is not None and plain.trace is None
    splits = recipe.split != "none"
    assert len(trace.centres) == (2 if splits else 0)
    assert all(0 <= y < 40 and 0 <= x < 52 for y, x in trace.centres)
    assert sorted(len(tile.iterations) for tile in trace.tiles) == sorted(n for n in result.iterations if n)
    united = np.zeros_like(result.maps)
    for tile in trace.tiles:
        box, last = tile.box, tile.iterations[-1]
        assert last.maps.shape == (2, box.height, box.width) and last.erased.shape == (box.height, box.width)
        erased = np.zeros((box.height, box.width), bool)
        for step in tile.iterations:
            assert step.erased.dtype == bool and step.maps.dtype == np.uint8
            assert not (erased & ~step.erased).any(), "what is erased stays erased"
            newly = np.count_nonzero(step.erased) - np.count_nonzero(erased)
            assert step.erased_share == pytest.approx(newly / box.area)
            erased = step.erased
        if tile.whole and splits:
            continue
        part = united[:, box.y0 : box.y1, box.x0 : box.x1]
        for k in tile.takes:
            np.maximum(part[k], last.maps[k] / np.float32(255), out=part[k])
    if recipe.whole == "none":
        np.testing.assert_allclose(united, result.maps, atol=0.51 / 255)


def test_a_backend_error_is_one(live: LiveEngine) -> None:
    assert issubclass(Closed, BackendError) and live.alive
