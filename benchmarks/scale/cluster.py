"""More than one worker: rates, what is lost when one dies, and what the driver can keep up with.

    python -m infercam.benchmarks.scale.cluster BUNDLE --voc ROOT --labels labels.json --count 200

One process with all cores against shards and Ray workers that split the same cores; all must leave the same bytes.
Then a worker is killed in mid-run, an image kills its worker, and workers that do nothing show how many results a
second the driver takes. From the measured rates it computes what a million images would take.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from infercam.benchmarks.common import write_result
from infercam.engine.bundle import Bundle
from infercam.engine.common.cores import available_cores
from infercam.engine.data.labels import load_labels
from infercam.engine.data.sources import Item, Source, folder_source, voc_source
from infercam.engine.method.recipe import recipe as named_recipe
from infercam.engine.run.ray_pool import PoolOptions, WorkerPool, started
from infercam.engine.run.ray_run import ClusterRun
from infercam.engine.run.ray_worker import ImageOutcome, ImageRow, Worker, WorkerTask, as_columns
from infercam.engine.run.run import Predicted, Summary
from infercam.engine.run.settings import EngineSpec
from infercam.engine.store.failures import read_failures
from infercam.engine.store.image_index import ImageIndex

console = Console(stderr=True, highlight=False)
MILLION = 1_000_000
POISON = "000017"
LISTED = 200_000  # entries for the measurement of memory


def main(
    bundle: Annotated[Path, typer.Argument(help="bundle")],
    voc: Annotated[Path, typer.Option(help="VOC tree")],
    labels: Annotated[str, typer.Option(help="label file")],
    split: Annotated[str, typer.Option()] = "val",
    recipe: Annotated[str, typer.Option()] = "fast",
    count: Annotated[int, typer.Option(help="images of a run; the split's repeated under other names")] = 200,
    idle: Annotated[int, typer.Option(help="images of the run with workers that do nothing")] = 20_000,
    name: Annotated[str, typer.Option(help="results/NAME.json")] = "cluster",
) -> None:
    """Measure; prints a line each and writes results/NAME.json. Exit code 1 where anything was lost."""
    with tempfile.TemporaryDirectory(prefix="infercam-bench-") as scratch:
        bench = _Bench(bundle, recipe, Path(scratch))
        bench.prepare(voc, split, labels, count)
        rows = bench.rates()
        faults = {"killed worker": bench.kill_a_worker(), "poisoned image": bench.poison()}
        driver = bench.driver(idle)
        size = bench.bytes_per_image()
    content = {
        "recipe": recipe,
        "images": count,
        "rates": rows,
        "faults": faults,
        "driver": driver,
        "store_bytes_per_image": size,
        "memory_bytes_per_image": memory(),
        "computed_for_a_million": computed(rows, driver["results_per_second"], size),
    }
    console.print(f"-> {write_result(name, content)}")
    lost = [row for row in rows if not row["same_bytes"]] + [
        f for f in faults.values() if not f["same_bytes"]
    ]
    if lost:
        console.print(f"maps were lost or differ: {lost}", style="red")
        raise typer.Exit(1)


class _Bench:
    """The runs over one scratch folder of images."""

    def __init__(self, bundle: Path, recipe: str, scratch: Path) -> None:
        self.bundle, self.recipe, self.scratch = bundle.absolute(), recipe, scratch
        self.images, self.labels = scratch / "images", scratch / "labels.json"
        self.cores = available_cores()

    def prepare(self, voc: Path, split: str, labels: str, count: int) -> None:
        """`count` links to the split's images, and labels for their names."""
        table = load_labels(labels, Bundle.load(self.bundle).manifest.classes, voc_root=voc)
        self.images.mkdir()
        names = {}
        for at, item in enumerate(islice(cycle(voc_source(voc, split)), count)):
            (self.images / f"{at:06d}{item.path.suffix}").symlink_to(item.path.resolve())
            names[f"{at:06d}"] = table.lookup(item.id)
        self.labels.write_text(json.dumps(names), encoding="utf-8")

    def command(self, out: str, *options: object) -> list[str]:
        command = [sys.executable, "-m", "infercam.engine.cli", "run", self.bundle, "--recipe", self.recipe]
        command += ["--images", self.images, "--labels", self.labels, "-o", self.scratch / out, *options]
        return list(map(str, command))

    # -- rates ---------------------------------------------------------------------------------------------
    def rates(self) -> list[dict[str, Any]]:
        split = max(1, self.cores // 2)
        ray = ("--cluster", "ray", "--workers")
        ways: list[tuple[str, int, list[tuple[object, ...]]]] = [
            (f"one process, {self.cores} threads", self.cores, [("--threads", self.cores)]),
            (
                f"2 shards, {split} threads each",
                split,
                [("--threads", split, "--shard", f"{n}/2") for n in (1, 2)],
            ),
            (f"1 Ray worker, {self.cores} cores", self.cores, [(*ray, 1, "--cpus-per-worker", self.cores)]),
            (f"2 Ray workers, {split} cores each", split, [(*ray, 2, "--cpus-per-worker", split)]),
        ]
        return [self._rate(at, *way) for at, way in enumerate(ways)]

    def _rate(self, at: int, name: str, cores: int, parts: list[tuple[object, ...]]) -> dict[str, Any]:
        out, began = f"rate{at}", time.time()
        running = [
            subprocess.Popen(self.command(out, *options), stderr=subprocess.PIPE, text=True)
            for options in parts
        ]
        for process in running:
            _, errors = process.communicate()
            if process.returncode:
                raise SystemExit(f"{name}: exit code {process.returncode}\n{errors}")
        wall = time.time() - began
        row = {
            "way": name,
            "cores_per_worker": cores,
            "images_per_second": _steady(self.scratch / out),
            "first_map_after_seconds": min(_times(self.scratch / out)) - began,
            "wall_seconds": wall,
            "same_bytes": self._same(out),
        }
        console.print(
            f"{name}: {row['images_per_second']:.2f} images/s once under way, first map after "
            f"{row['first_map_after_seconds']:.1f} s, {wall:.1f} s in all, same bytes: {row['same_bytes']}"
        )
        return row

    def _same(self, out: str, but: str | None = None) -> bool:
        want, found = _maps(self.scratch / "rate0"), _maps(self.scratch / out)
        return found == {name: data for name, data in want.items() if name != but}

    def bytes_per_image(self) -> float:
        """Mean size of a map file."""
        return float(np.mean([len(data) for data in _maps(self.scratch / "rate0").values()]))

    # -- faults --------------------------------------------------------------------------------------------
    def kill_a_worker(self) -> dict[str, Any]:
        """SIGKILL for one of two workers once a fifth is done."""
        out, count = self.scratch / "killed", len(list(self.images.iterdir()))
        process = subprocess.Popen(
            self.command("killed", "--cluster", "ray", "--workers", 2, "--json", "-"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and len(list(out.glob("*.npz"))) < count // 5:
            time.sleep(0.05)
        victims = [pid for pid, name in _below(process.pid) if name.startswith("ray::MapWorker")]
        if victims:
            os.kill(victims[0], signal.SIGKILL)
        text, errors = process.communicate()
        found = json.loads(text) if process.returncode == 0 else {}
        row = {
            "killed": len(victims[:1]),
            "failed": found.get("failed"),
            "seconds": found.get("seconds"),
            "done_again": [line for line in errors.splitlines() if "lost with" in line],
            "same_bytes": self._same("killed"),
        }
        console.print(f"a worker killed: {row}")
        return row

    def poison(self) -> dict[str, Any]:
        """An image at which the process ends, every time."""
        with started(PoolOptions(workers=2, cpus=max(1, self.cores // 2))) as pool:
            found = self._run(pool, "poisoned", _Poisoned)
        reasons = read_failures(self.scratch / "poisoned")
        row = {
            "done": found.done,
            "failed": found.failed,
            "reasons": reasons,
            "seconds": found.seconds,
            "same_bytes": self._same("poisoned", but=f"{POISON}.npz") and list(reasons) == [POISON],
        }
        console.print(f"an image that kills its worker: {row}")
        return row

    def _run(self, pool: WorkerPool, out: str, worker: type[Worker]) -> Summary:
        spec = EngineSpec(self.bundle, "auto", pool.cpus)
        labels = load_labels(self.labels, Bundle.load(self.bundle).manifest.classes)
        chosen = named_recipe(self.recipe)
        source = folder_source(self.images)
        return ClusterRun(
            pool, spec, source, labels, self.scratch / out, recipe=chosen, mode="both", worker=worker
        )()

    # -- the driver ----------------------------------------------------------------------------------------
    def driver(self, count: int) -> dict[str, Any]:
        """Results a second with workers that do nothing, as many in flight as a GPU's engine has."""
        source = Source("list", Path(), [f"{n:07d}" for n in range(count)], _named)
        seen: list[tuple[float, int]] = []
        with started(PoolOptions(workers=self.cores, cpus=1)) as pool:
            spec = EngineSpec(self.bundle, "auto", 1)
            job = ClusterRun(
                *(pool, spec, source, Predicted(), self.scratch / "idle"),
                recipe=named_recipe(self.recipe),
                mode="both",
                worker=_Idle,
                watch=lambda summary, _: seen.append((time.perf_counter(), summary.done)),
            )
            job.in_flight = 68
            found = job()
        under_way = [(t, n) for t, n in seen if n > count // 10]
        (t0, n0), (t1, n1) = under_way[0], under_way[-1]
        row = {
            "images": found.done,
            "workers": self.cores,
            "results_per_second": (n1 - n0) / (t1 - t0),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        console.print(
            f"workers that do nothing: {row['results_per_second']:.0f} results/s through the driver"
        )
        return row


class _Poisoned(Worker):
    def do(self, row: ImageRow) -> ImageOutcome:
        if row.id == POISON:
            os._exit(9)
        return super().do(row)


class _Idle(Worker):
    """Takes rows and says they are done."""

    def __init__(self, task: WorkerTask, in_flight: int) -> None:
        pass

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        pairs = zip(rows["at"].tolist(), rows["fingerprint"].tolist(), strict=True)
        return as_columns([ImageOutcome(at, print_, 30_000, "", False, 4, 8) for at, print_ in pairs])


def _named(name: str) -> Item:
    return Item(name, Path(f"{name}.jpg"))


def _maps(out: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in out.glob("*.npz")}


def _times(out: Path) -> list[float]:
    """When each map was there, sorted."""
    return sorted(f.stat().st_mtime for f in out.glob("*.npz"))


def _steady(out: Path) -> float:
    """Images a second from the tenth part on: without what starting costs."""
    times = _times(out)
    skipped = len(times) // 10
    return (len(times) - 1 - skipped) / (times[-1] - times[skipped])


def _below(root: int) -> Iterator[tuple[int, str]]:
    """(process, title) of all descendants."""
    parents, titles = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
                parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
                titles[int(folder.name)] = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                )
            except (OSError, ValueError):
                continue
    todo = [root]
    while todo:
        here = todo.pop()
        children = [pid for pid, parent in parents.items() if parent == here]
        todo += children
        yield from ((pid, titles[pid]) for pid in children)


def memory() -> dict[str, float]:
    """Bytes that the driver keeps for an image: of a folder's list, and of the index."""
    names = [f"JPEGImages/{n:012d}.jpg" for n in range(LISTED)]
    before = _resident()
    source = Source("folder", Path(), [name + "" for name in "\n".join(names).split("\n")], _named)
    listed = (_resident() - before) / LISTED
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, "index.jsonl")
        with index.open("w") as f:
            for name in names:
                f.write(f'{{"id":"{name}","fingerprint":"{"a" * 16}","bytes":30000,"turn":1}}\n')
        line = index.stat().st_size / LISTED
        before = _resident()
        loaded = ImageIndex(index, parts=True)
        loaded.get("")
        indexed = (_resident() - before) / LISTED
    assert len(source) == len(loaded.ids()) == LISTED
    return {"source": listed, "index": indexed, "index_line_on_disk": line}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def computed(rows: list[dict[str, Any]], ceiling: float, size: float) -> dict[str, Any]:
    """A million images from the measured rate of one of two Ray workers, up to what the driver takes."""
    worker = rows[-1]["images_per_second"] / 2
    hours = {k: MILLION / min(k * worker, ceiling) / 3600 for k in (1, 8, 64, 512)}
    content = {
        "from": f"{worker:.3f} images/s a worker, {ceiling:.0f} results/s through the driver",
        "hours_by_workers": hours,
        "workers_at_the_driver_s_ceiling": int(ceiling / worker),
        "store_gb": size * MILLION / 1e9,
    }
    for k, h in hours.items():
        console.print(f"a million images on {k} such workers: {h:.1f} h (computed)")
    console.print(f"the driver keeps up with {content['workers_at_the_driver_s_ceiling']} of them (computed)")
    return content


if __name__ == "__main__":
    typer.run(main)
