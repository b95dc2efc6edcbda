"""A run names why images failed, and stops where all of them fail for one reason: alone, in shards, on a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infercam.engine import Bundle, Engine, cli
from infercam.engine.data.labels import Labels
from infercam.engine.data.sources import Source, folder_source
from infercam.engine.method.recipe import RECIPES
from infercam.engine.run import giving_up, ray_run
from infercam.engine.run.giving_up import spread_first
from infercam.engine.run.ray_pool import WorkerPool
from infercam.engine.run.ray_run import ClusterRun
from infercam.engine.run.ray_worker import ImageOutcome, ImageRow
from infercam.engine.run.run import Run
from infercam.engine.run.settings import EngineSpec, MapSettings
from infercam.engine.run.shards import Shard
from infercam.engine.store.mapstore import MapStore
from tests.engine import tiny

RELEASED: dict[str, Any] = {"recipe": RECIPES["released"], "mode": "split"}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_up, "ENOUGH", 20)
    monkeypatch.setattr(giving_up, "SPREAD", 8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return folder_source(tiny.write_dataset(tmp_path_factory.mktemp("data"), 60, (12, 16)) / "images")


def labels(right: set[int], count: int = 60) -> Labels:
    table = {f"p{n:03}": ["dog" if n in right else "Dog"] for n in range(count)}
    return Labels("json", Path("l.json"), table, tiny.CLASSES)


WRONG = "label 'Dog' is not one of the bundle's 5 classes (cat, dog, …); did you mean 'dog'?"


# -- the order -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [0, 1, 20, 21, 22, 60, 1000, 12345])
def test_every_image_once_and_a_long_list_from_all_over_it(count: int) -> None:
    order = list(spread_first(count))
    assert sorted(order) == list(range(count))
    if count <= 20:
        assert order == list(range(count))
    else:
        assert order[1] >= count // 8 and max(order[:8]) >= count * 2 / 3


# -- in one process --------------------------------------------------------------------------------------------
def test_a_run_whose_images_all_fail_alike_stops(tiny_engine: Engine, source: Source, tmp_path: Path) -> None:
    done = Run(tiny_engine, source, labels(set()), tmp_path / "out", **RELEASED)()
    assert done.gave_up == WRONG and done.done == 0
    assert 20 <= done.failed < 40 and done.left == 60 - done.failed
    assert done.reasons == [{"count": done.failed, "reason": WRONG}]
    again = Run(tiny_engine, source, labels(set(range(60))), tmp_path / "out", **RELEASED)()
    assert (again.done, again.gave_up, again.reasons) == (60, "", [])


def test_a_few_good_ones_late_in_the_list_keep_it_going(
    tiny_engine: Engine, source: Source, tmp_path: Path
) -> None:
    done = Run(tiny_engine, source, labels(set(range(50, 60))), tmp_path / "out", **RELEASED)()
    assert (done.done, done.failed, done.left, done.gave_up) == (10, 50, 0, "")


def test_what_was_done_earlier_keeps_it_going(tiny_engine: Engine, source: Source, tmp_path: Path) -> None:
    assert Run(tiny_engine, source[13:14], labels({13}), tmp_path / "out", **RELEASED)().done == 1
    done = Run(tiny_engine, source, labels({13}), tmp_path / "out", **RELEASED)()
    assert (done.kept, done.failed, done.gave_up) == (1, 59, "")
    assert len(MapStore.open(tmp_path / "out")) == 1


def test_two_reasons_are_no_single_one(tiny_engine: Engine, source: Source, tmp_path: Path) -> None:
    table = {f"p{n:03}": ["Dog"] if n % 2 else [9] for n in range(60)}
    lookup = Labels("json", Path("l.json"), table, tiny.CLASSES)
    done = Run(tiny_engine, source, lookup, tmp_path / "out", **RELEASED)()
    assert done.failed == 60 and [one["count"] for one in done.reasons] == [30, 30] and not done.gave_up


def test_any_wrong_names_are_one_fault(tiny_engine: Engine, source: Source, tmp_path: Path) -> None:
    table = {f"p{n:03}": [("Dog", "Cow", "zebra")[n % 3]] for n in range(60)}
    lookup = Labels("json", Path("l.json"), table, tiny.CLASSES)
    done = Run(tiny_engine, source, lookup, tmp_path / "out", **RELEASED)()
    assert done.left > 0 and "is not one of the bundle's 5 classes" in done.gave_up and len(done.reasons) == 3


def test_a_short_list_is_worked_through(tiny_engine: Engine, source: Source, tmp_path: Path) -> None:
    done = Run(tiny_engine, source[:20], labels(set()), tmp_path / "out", **RELEASED)()
    assert done.failed == 20 and not done.gave_up


def test_failures_of_the_engine_count_too(
    tiny_engine: Engine, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infercam.engine.backends.cpu import CpuBackend

    def broken(self, image):
        raise ValueError(f"{image.id} is not a map")

    monkeypatch.setattr(CpuBackend, "_unite", broken)
    done = Run(tiny_engine, source, labels(set(range(60))), tmp_path / "out", **RELEASED)()
    assert done.gave_up == "ValueError: … is not a map" and done.left > 0


def test_a_shard_stops_too(tiny_engine: Engine, source: Source, tmp_path: Path) -> None:
    done = Run(tiny_engine, source, labels(set()), tmp_path / "out", shard=Shard(2, 2), **RELEASED)()
    assert done.gave_up == WRONG and done.images == 30 and 20 <= done.failed <= 30


# -- on a cluster, of which nothing is needed here -----------------------------------------------------------------
@pytest.fixture
def cluster_run(tiny_engine: Engine, tiny_bundle: Bundle, source: Source, tmp_path: Path, monkeypatch):
    settings = MapSettings.of(tiny_engine, RECIPES["released"], "split")
    monkeypatch.setattr(ray_run, "_ask_a_worker", lambda *asked: (settings, 4))

    def make(lookup: Labels) -> ClusterRun:
        spec = EngineSpec(tiny_bundle.path, "cpu", 1)
        return ClusterRun(WorkerPool(1, 1, 0), spec, source, lookup, tmp_path / "out", **RELEASED)

    return make


def test_a_cluster_stops_by_labels(cluster_run) -> None:
    done = cluster_run(labels(set()))()
    assert done.gave_up == WRONG and 20 <= done.failed < 60
    assert done.reasons == [{"count": done.failed, "reason": WRONG}]


def test_a_cluster_stops_by_what_its_workers_tell(cluster_run, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(row: ImageRow) -> ImageOutcome:
        return ImageOutcome(row.at, row.fingerprint, -1, f"{row.path}: cut off", False, 0, 0)

    def rounds(self: ClusterRun, rows: list[ImageRow], *, alone: bool) -> Iterator[ImageOutcome]:
        for row in rows:
            if self.stop.is_set():
                return
            yield outcome(row)

    monkeypatch.setattr(ClusterRun, "_round", rounds)
    done = cluster_run(labels(set(range(60))))()
    assert (done.gave_up, done.failed, done.left) == ("cut off", 20, 40)


def test_legs_have_every_image(cluster_run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_run, "LEG", 7)
    done = cluster_run(Labels("json", Path("l"), {f"p{n:03}": [f"{n % 2}x"] for n in range(0, 60, 2)}, []))()
    assert done.failed == 60 and sum(one["count"] for one in done.reasons) == 60


# -- what the user reads -----------------------------------------------------------------------------------------
def test_the_command_says_why(
    tiny_bundle: Bundle, source: Source, tmp_path: Path, monkeypatch, capsys
) -> None:
    file = tmp_path / "l.json"
    file.write_text(json.dumps({"labels": labels(set())._table}))
    arguments = ["run", tiny_bundle.path, "--images", source.root, "--labels", file, "-o", tmp_path / "o"]
    monkeypatch.setattr("sys.argv", ["infercam", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    failed = int(lines[-3].split()[0])
    assert lines[-3:-1] == [
        f"{failed} images failed: see {tmp_path / 'o'}/failures.jsonl",
        f"  {failed} × {WRONG}",
    ]
    assert lines[-1].startswith(f"stopped early: all {failed} images that were tried")
