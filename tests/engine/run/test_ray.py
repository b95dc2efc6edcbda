"""`infercam run --cluster ray` on a local cluster of two workers: same maps, lost workers, poisoned images, stops."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infercam.engine import Bundle, Engine
from infercam.engine.common.errors import BackendError, BundleError, InputError, MissingExtra
from infercam.engine.data.labels import load_labels
from infercam.engine.data.sources import folder_source
from infercam.engine.method.recipe import RECIPES
from infercam.engine.run.ray_pool import PoolOptions, WorkerPool, _sized, started
from infercam.engine.run.ray_run import ClusterRun
from infercam.engine.run.ray_worker import ImageOutcome, ImageRow, Worker
from infercam.engine.run.run import Predicted, Run, Summary
from infercam.engine.run.settings import EngineSpec
from infercam.engine.store.failures import read_failures
from infercam.engine.store.mapstore import MapStore
from tests.engine import tiny

HAS_RAY = (
    importlib.util.find_spec("ray") is not None
)  # not imported here: it looks at its settings when it is


def needs_ray(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.slow(pytest.mark.skipif(not HAS_RAY, reason="needs ray: infercam[cluster]")(test))


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with started(PoolOptions(workers=2, cpus=1)) as pool:
        yield pool


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data"), 40, (120, 160))


@pytest.fixture(scope="module")
def alone(tiny_bundle: Bundle, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    labels = load_labels(data / "labels.json", tiny.CLASSES)
    with Engine.load(tiny_bundle, threads=2) as engine:
        Run(engine, folder_source(data / "images"), labels, out, recipe=RECIPES["released"], mode="both")()
    return out


def cluster_run(pool: WorkerPool, bundle: Bundle, data: Path, out: Path, **options: Any) -> ClusterRun:
    labels = options.pop("labels", None) or load_labels(data / "labels.json", tiny.CLASSES)
    source = folder_source(data / "images")
    spec = EngineSpec(bundle.path, "cpu", 1)
    return ClusterRun(pool, spec, source, labels, out, recipe=RECIPES["released"], mode="both", **options)


def maps_of(out: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in out.glob("*.npz")}


# -- without Ray -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "nodes", "want"),
    [
        (PoolOptions(), [{"CPU": 2}], WorkerPool(1, 2, 0)),
        (PoolOptions(workers=2), [{"CPU": 2}], WorkerPool(2, 1, 0)),
        (PoolOptions(), [{"CPU": 64}], WorkerPool(16, 4, 0)),
        (PoolOptions(cpus=8), [{"CPU": 64}], WorkerPool(8, 8, 0)),
        (PoolOptions(workers=3), [{"CPU": 4}, {"CPU": 4}], WorkerPool(3, 2, 0)),
        (PoolOptions(), [{"CPU": 16, "GPU": 8}, {"CPU": 8}], WorkerPool(8, 2, 1)),
        (PoolOptions(gpus=0.5), [{"CPU": 16, "GPU": 2}], WorkerPool(4, 4, 0.5)),
        (PoolOptions(gpus=0, workers=2), [{"CPU": 16, "GPU": 2}], WorkerPool(2, 8, 0)),
    ],
)
def test_how_many_workers_of_what_size(
    asked: PoolOptions, nodes: list[dict[str, float]], want: WorkerPool
) -> None:
    assert _sized(asked, nodes) == want


@pytest.mark.parametrize(
    ("asked", "nodes"),
    [
        (PoolOptions(workers=3), [{"CPU": 2}]),
        (PoolOptions(cpus=4), [{"CPU": 2}]),
        (PoolOptions(workers=1, cpus=4), [{"CPU": 2}, {"CPU": 2}]),
        (PoolOptions(workers=1, gpus=1), [{"CPU": 8}]),
    ],
)
def test_a_cluster_that_is_too_small_is_one_line(asked: PoolOptions, nodes: list[dict[str, float]]) -> None:
    with pytest.raises(InputError, match="lower --workers"):
        _sized(asked, nodes)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"infercam\[cluster\]"), started(PoolOptions()):
        pass


# -- with Ray --------------------------------------------------------------------------------------------------


@needs_ray
def test_two_workers_leave_the_store_of_one_process(
    pool: WorkerPool, tiny_bundle: Bundle, data: Path, tmp_path: Path, alone: Path
) -> None:
    found = cluster_run(pool, tiny_bundle, data, tmp_path / "out")()
    assert (found.images, found.done, found.kept, found.failed, found.left) == (40, 40, 0, 0, 0)
    assert maps_of(tmp_path / "out") == maps_of(alone)
    there, one = MapStore.open(tmp_path / "out"), MapStore.open(alone)
    assert there.info.settings == one.info.settings and sorted(there.ids()) == sorted(one.ids())
    assert found.tiles > 40 and found.mean_iterations >= 1 and found.network_pixels > 40 * 120 * 160
    assert found.map_bytes == sum(map(len, maps_of(alone).values()))
    again = cluster_run(pool, tiny_bundle, data, tmp_path / "out")()
    assert (again.done, again.kept) == (0, 40)


@needs_ray
def test_it_goes_on_from_one_process_and_back(
    pool: WorkerPool, tiny_bundle: Bundle, tiny_engine: Engine, data: Path, tmp_path: Path, alone: Path
) -> None:
    labels, source = load_labels(data / "labels.json", tiny.CLASSES), folder_source(data / "images")
    options: dict[str, Any] = {"recipe": RECIPES["released"], "mode": "both"}
    Run(tiny_engine, source[:11], labels, tmp_path / "out", **options)()
    for name in ("p001", "p030"):
        (tmp_path / "out" / f"{name}.npz").unlink(missing_ok=True)
    found = cluster_run(pool, tiny_bundle, data, tmp_path / "out")()
    assert (found.done, found.kept) == (30, 10)
    assert Run(tiny_engine, source, labels, tmp_path / "out", **options)().kept == 40


@needs_ray
def test_predicted_labels(
    pool: WorkerPool, tiny_bundle: Bundle, tiny_engine: Engine, data: Path, tmp_path: Path
) -> None:
    labels, source = Predicted(0.4), folder_source(data / "images")
    Run(tiny_engine, source, labels, tmp_path / "one", recipe=RECIPES["released"], mode="both")()
    assert cluster_run(pool, tiny_bundle, data, tmp_path / "out", labels=labels)().done == 40
    assert maps_of(tmp_path / "out") == maps_of(tmp_path / "one")


@needs_ray
def test_bad_images_are_listed_and_the_rest_goes_on(
    pool: WorkerPool, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    data = tiny.write_dataset(tmp_path / "data", 12, (30, 40))
    (data / "images" / "p001.png").write_bytes(b"no picture")
    raw = json.loads((data / "labels.json").read_text())
    del raw["labels"]["p002"]
    (data / "labels.json").write_text(json.dumps(raw))
    found = cluster_run(pool, tiny_bundle, data, tmp_path / "out", max_pixels=31 * 41)()
    assert (found.done, found.failed) == (7, 5)
    reasons = read_failures(tmp_path / "out")
    assert reasons.keys() == {"p001", "p002", "p005", "p008", "p011"}
    assert reasons["p001"].startswith(str(data)) and "not a picture" in reasons["p001"]
    assert "no labels" in reasons["p002"]
    assert "--max-pixels" in reasons["p005"]


@needs_ray
def test_an_image_that_kills_its_worker_is_listed_and_takes_no_other_with_it(
    pool: WorkerPool, tiny_bundle: Bundle, data: Path, tmp_path: Path, alone: Path
) -> None:
    class Poisoned(Worker):
        def do(self, row: ImageRow) -> ImageOutcome:
            if row.id in ("p007", "p023"):
                os._exit(9)
            return super().do(row)

    found = cluster_run(pool, tiny_bundle, data, tmp_path / "out", worker=Poisoned)()
    assert (found.done, found.failed, found.left) == (38, 2, 0)
    reasons = read_failures(tmp_path / "out")
    assert reasons.keys() == {"p007", "p023"} and all("worker died 3 times" in r for r in reasons.values())
    assert maps_of(tmp_path / "out") == {
        name: data for name, data in maps_of(alone).items() if name not in ("p007.npz", "p023.npz")
    }
    assert cluster_run(pool, tiny_bundle, data, tmp_path / "out")().done == 2, "mended, it is done"
    assert maps_of(tmp_path / "out") == maps_of(alone)


@needs_ray
def test_a_worker_that_is_killed_loses_nothing(
    pool: WorkerPool, tiny_bundle: Bundle, data: Path, tmp_path: Path, alone: Path
) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()

    class Slow(Worker):
        def do(self, row: ImageRow) -> ImageOutcome:
            (pids / str(os.getpid())).touch()
            time.sleep(0.2)
            return super().do(row)

    killed: list[int] = []

    def watch(summary: Summary, _: object) -> None:
        here = sorted(int(p.name) for p in pids.iterdir())
        if summary.done >= 5 * (1 + len(killed)) and len(killed) < 2 and set(here) - set(killed):
            killed.append((set(here) - set(killed)).pop())
            os.kill(killed[-1], signal.SIGKILL)

    found = cluster_run(pool, tiny_bundle, data, tmp_path / "out", worker=Slow, watch=watch)()
    assert len(killed) == 2, "the test killed nothing"
    assert (found.done, found.failed) == (40, 0)
    assert maps_of(tmp_path / "out") == maps_of(alone)


@needs_ray
def test_workers_that_all_die_are_an_error_of_one_line(
    pool: WorkerPool, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infercam.engine.run.ray_run.HOPELESS", 5)
    data = tiny.write_dataset(tmp_path / "data", 6, (30, 40))

    class Hopeless(Worker):
        def do(self, row: ImageRow) -> ImageOutcome:
            os._exit(9)

    with pytest.raises(BackendError, match="not the images' fault") as caught:
        cluster_run(pool, tiny_bundle, data, tmp_path / "out", worker=Hopeless)()
    assert "\n" not in str(caught.value) and not read_failures(tmp_path / "out")


@needs_ray
def test_a_bundle_that_a_worker_cannot_read(
    pool: WorkerPool, data: Path, tmp_path: Path, tiny_bundle: Bundle
) -> None:
    spec, labels = EngineSpec(tmp_path / "none", "cpu", 1), Predicted()
    with pytest.raises(BundleError, match="no manifest"):
        ClusterRun(
            *(pool, spec, folder_source(data / "images"), labels, tmp_path / "out"),
            recipe=RECIPES["released"],
            mode="both",
        )


@needs_ray
def test_stopping_leaves_what_is_done(
    pool: WorkerPool, tiny_bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    def watch(summary: Summary, _: object) -> None:
        if summary.done >= 3:
            job.stop.set()

    job = cluster_run(pool, tiny_bundle, data, tmp_path / "out", watch=watch)
    found = job()
    assert 3 <= found.done < 40 and found.left == 40 - found.done and found.failed == 0
    assert len(MapStore.open(tmp_path / "out")) == found.done
    rest = cluster_run(pool, tiny_bundle, data, tmp_path / "out")()
    assert rest.kept == found.done and rest.done == 40 - found.done


# -- as a command ----------------------------------------------------------------------------------------------


def start(bundle: Bundle, data: Path, out: Path, home: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from infercam.engine.cli import main; main()", "run", bundle.path]
    command += ["--images", data / "images", "--labels", data / "labels.json", "-o", out, "--backend", "cpu"]
    command += ["--cluster", "ray", "--workers", 2, *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(home)}
    return subprocess.Popen(
        list(map(str, command)), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until the driver, not a worker that has outlived one, says that so many are done."""
    index = out / "index.jsonl"
    while process.poll() is None and (not index.exists() or index.read_bytes().count(b"\n") < count):
        time.sleep(0.02)


@needs_ray
def test_the_command_killed_and_stopped_goes_on(
    tiny_bundle: Bundle, tmp_path: Path, data: Path, alone: Path
) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    home.mkdir(mode=0o500)  # a container's home that cannot be written to (root can: nothing may be in it)
    driver = start(tiny_bundle, data, out, home)
    wait_for(out, 4, driver)
    driver.kill()
    driver.communicate()
    done = (out / "index.jsonl").read_bytes().count(b"\n")
    assert 4 <= done < 37, "killed too late to say anything"
    driver = start(tiny_bundle, data, out, home)
    wait_for(out, done + 3, driver)
    driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate(timeout=90)
    assert driver.returncode == 143 and "run the same command again" in errors, errors
    assert "Traceback" not in errors
    driver = start(tiny_bundle, data, out, home, "--json", "-")
    text, errors = driver.communicate(timeout=120)
    assert driver.returncode == 0, errors
    assert json.loads(text)["failed"] == 0 and maps_of(out) == maps_of(alone)
    lines = errors.splitlines()
    assert len(lines) == 3 and lines[0].startswith("cluster: 2 workers of 1 cores"), errors
    assert not (home / ".ray").exists(), "no token on a disk"


@needs_ray
def test_bad_options_are_one_line(tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    for options, says in [
        (("--address", "127.0.0.1:1"), "cannot be reached"),
        (("--cpus-per-worker", "9", "--gpus-per-worker", "3"), "lower --workers"),
    ]:
        _, errors = start(tiny_bundle, data, tmp_path / "out", tmp_path, *options).communicate(timeout=120)
        assert errors.startswith("error:") and says in errors and errors.count("\n") == 1, errors
