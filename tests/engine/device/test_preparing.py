"""Shapes that earlier runs met are made ready first: the device backend, a run, a server's start."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from infercam.engine.api import Engine
from infercam.engine.backends.device import DeviceBackend
from infercam.engine.bundle import Bundle
from infercam.engine.commands import run as run_cli
from infercam.engine.data.labels import load_labels
from infercam.engine.data.sources import folder_source
from infercam.engine.method.recipe import Recipe, recipe
from infercam.engine.run.run import Run
from infercam.engine.serve.hosted import HostedBundle
from tests.cuda_emulator.driver import EmulatedDriver
from tests.engine import tiny
from tests.engine.device.conftest import MakeEngine
from tests.engine.device.host_runner import HostRunner

LADDER: Recipe = recipe("fast")
ITEMS = [(f"p{n}", tiny.picture(70 + 9 * (n % 3), 90, n), [n % 5]) for n in range(4)]


class Prepares(HostRunner):
    """Notes what it is asked to prepare, and what it runs. room: shapes that it keeps."""

    room = 1 << 16

    def __init__(self, bundle: Bundle, driver: EmulatedDriver, **options: object) -> None:
        super().__init__(bundle, driver, **options)  # type: ignore[arg-type]
        self.prepared: list[tuple[int, int, int]] = []
        self.ran: set[tuple[int, int, int]] = set()

    @property
    def keeps(self) -> int:
        return self.room

    def prepare(self, batch: int, height: int, width: int) -> bool:
        if len(self.prepared) >= self.room:
            return False
        self.prepared.append((batch, height, width))
        return True

    def respond(self, batch: int, height: int, width: int, image: int, response: int) -> None:
        self.ran.add((batch, height, width))
        super().respond(batch, height, width, image, response)


def engine(bundle: Bundle) -> tuple[Engine, Prepares]:
    driver = EmulatedDriver(deferred=True, seed=1)
    runner = Prepares(bundle, driver)
    return Engine(bundle, DeviceBackend(bundle, driver, runner, 64 << 20)), runner


def test_the_next_run_prepares_what_this_one_met(tiny_bundle: Bundle) -> None:
    first, met = engine(tiny_bundle)
    with first:
        assert list(first.preparing(LADDER)) == []
        maps = {r.id: r.maps for r in first.stream(ITEMS, LADDER)}
        first.remember()
    second, ready = engine(tiny_bundle)
    with second:
        steps = list(second.preparing(LADDER))
        assert set(ready.prepared) == met.ran and not ready.ran
        assert steps[-1] == (len(met.ran), len(met.ran)) and len(steps) == len(met.ran) + 1
        again = {r.id: r.maps for r in second.stream(ITEMS, LADDER)}
        assert ready.ran == met.ran
        assert list(second.preparing(recipe("best"))) == [], "another recipe meets other shapes"
    assert all(np.array_equal(maps[name], again[name]) for name in maps)


def test_no_more_than_there_is_room_for_and_it_may_be_left(tiny_bundle: Bundle) -> None:
    first, met = engine(tiny_bundle)
    with first:
        list(first.stream(ITEMS, LADDER))
        first.remember()
    second, ready = engine(tiny_bundle)
    with second:
        ready.room = 2
        assert [step.total for step in second.preparing(LADDER)] == [2, 2, 2] and len(ready.prepared) == 2
    third, ready = engine(tiny_bundle)
    with third:
        next(third.preparing(LADDER))
        assert not ready.prepared and len(met.ran) > 2


def test_exact_sizes_are_not_remembered(tiny_bundle: Bundle, own_cache: Path) -> None:
    one, _ = engine(tiny_bundle)
    with one:
        list(one.stream(ITEMS, "released"))
        one.remember()
        assert list(one.preparing("released")) == []
    assert not list(own_cache.rglob("*.json"))


def test_a_run_prepares_before_its_first_batch_and_says_so(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.write_dataset(tmp_path / "data", 4, (70, 90))

    def run(out: str) -> tuple[Run, Prepares, list[str]]:
        one, runner = engine(tiny_bundle)
        labels = load_labels(str(data / "labels.json"), tiny.CLASSES)
        seen: list[str] = []
        with one, run_cli._progress() as watching:
            watch = watching(4)

            def noting(summary, scheduler) -> None:
                assert scheduler is not None or not runner.ran
                seen.append(f"{summary.prepared} of {summary.to_prepare}")
                watch(summary, scheduler)

            source = folder_source(data / "images")
            job = Run(one, source, labels, str(tmp_path / out), recipe=LADDER, mode="both", watch=noting)
            job()
        return job, runner, seen

    _, met, _ = run("a")
    capsys.readouterr()
    job, ready, seen = run("b")
    assert f"preparing {len(met.ran)} shapes that earlier runs met" in capsys.readouterr().err
    count = len(met.ran)
    assert set(ready.prepared) == met.ran and job.summary.done == 4
    assert seen[: count + 1] == [f"{n} of {count}" for n in range(count + 1)]
    assert (job.summary.prepared, job.summary.to_prepare) == (count, count)
    _, ready, _ = run("b")
    assert not ready.prepared, "nothing is left to do, and nothing to prepare for"


def test_a_server_prepares_before_it_is_ready(tiny_bundle: Bundle) -> None:
    first, met = engine(tiny_bundle)
    with first:
        list(first.stream(ITEMS, LADDER))
        first.remember()
    second, ready = engine(tiny_bundle)
    with second:
        hosted, steps = HostedBundle(second), []
        hosted.warm_up(LADDER, lambda name, step: steps.append((name, *step)))
        assert set(ready.prepared) == met.ran
        assert steps[-1] == ("tiny-4", len(met.ran), len(met.ran))
        hosted.live.close()


def test_scores_may_be_asked_for_while_another_thread_streams(
    tiny_bundle: Bundle, tiny_engine: Engine, device_engine: MakeEngine
) -> None:
    """`--labels predict` does: its reader threads ask."""
    one = device_engine(tiny_bundle)
    want = [tiny_engine.scores(p) for _, p, _ in ITEMS]
    got: list[list[np.ndarray]] = [[] for _ in range(3)]
    threads = [
        threading.Thread(target=lambda i=i: got[i].extend(one.scores(p) for _, p, _ in ITEMS))
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    maps = {r.id: r.maps for r in one.stream(ITEMS, LADDER)}
    for thread in threads:
        thread.join()
    for scores in got:
        for a, b in zip(scores, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
    for name, picture, classes in ITEMS:
        assert np.abs(maps[name] - tiny_engine.maps(picture, classes, LADDER)).max() < 1e-5
