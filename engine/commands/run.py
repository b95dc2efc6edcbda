"""`infercam run`: options, progress, signals, exit code. The work is in run.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.common.progress import counting_bar
from infercam.engine.common.signals import caught_signals
from infercam.engine.inputs import SourceSettings

if TYPE_CHECKING:
    from infercam.engine.data.sources import Source
    from infercam.engine.method.recipe import Recipe
    from infercam.engine.method.scheduler import Scheduler
    from infercam.engine.run.ray_pool import PoolOptions
    from infercam.engine.run.ray_run import ClusterRun
    from infercam.engine.run.run import LabelLookup, Predicted, Run, Summary, Watcher

console = Console(stderr=True, highlight=False, markup=False)


def register(app: typer.Typer) -> None:
    app.command("run")(run)


def run(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by `infercam export`.")],
    out: Annotated[str, typer.Option("-o", "--out", help="Map store to write: a folder or a URI (s3://…).")],
    images: Annotated[str | None, typer.Option(help="Folder of images, or its URI (s3://…).")] = None,
    voc: Annotated[Path | None, typer.Option(help="VOC tree; with --split.")] = None,
    coco: Annotated[Path | None, typer.Option(help="COCO tree; with --split.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the tree: train, val, …, train2014, …")] = None,
    list_file: Annotated[Path | None, typer.Option("--list", help="List of paths or ids, or psa's.")] = None,
    root: Annotated[
        str | None, typer.Option(help="Folder, or URI of one, that --list is relative to.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Labels: .json, .csv, .npy (psa), folder of VOC XML, `voc-xml`, `coco`, or `predict`."
        ),
    ] = None,
    score_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="With `--labels predict`: least probability of a class.")
    ] = 0.5,
    recipe: Annotated[str, typer.Option(help="paper, released, corrected, fast, best.")] = "released",
    mode: Annotated[str, typer.Option(help="baseline, split, erase, both.")] = "both",
    scales: Annotated[
        str | None, typer.Option(help="Scales of the first iteration, for example 1,0.5,1.5,2.")
    ] = None,
    mirror: Annotated[
        bool | None, typer.Option("--mirror/--no-mirror", help="Mirror the first iteration's views too.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Normalised response that is erased.")] = None,
    stop_share: Annotated[float | None, typer.Option(help="Stop below this newly erased share.")] = None,
    iterations: Annotated[int | None, typer.Option(help="At most this many on a tile.")] = None,
    buffer: Annotated[str | None, typer.Option(help="Pixels past the split line: one class,two.")] = None,
    accumulate: Annotated[str | None, typer.Option(help="max or sum.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other constant of the recipe, as NAME=JSON; may be repeated."),
    ] = None,
    fmt: Annotated[str, typer.Option("--format", help="npz, or psa or irn for those tools.")] = "npz",
    dtype: Annotated[str | None, typer.Option(help="uint8 (default) or float16; npz only.")] = None,
    heatmaps: Annotated[Path | None, typer.Option(help="Also write overlay pictures here.")] = None,
    backend: Annotated[
        str, typer.Option(help="auto (the best that works here), tensorrt, ort-cuda, ort-tensorrt or cpu.")
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(help="Which graph or plan of the bundle: fp32, tf32, fp16, bf16, int8, fp8."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Worker threads (default: all cores).")] = None,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = 4_000_000,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    shard: Annotated[
        str | None, typer.Option(help="Only share I of N of the images, as I/N; all N write one store.")
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="ray: on the workers of a Ray cluster.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --cluster: how many (default: all).")
    ] = None,
    cpus_per_worker: Annotated[
        int | None, typer.Option(min=1, help="With --cluster: cores of a worker.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="With --cluster: GPUs of a worker.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="With --cluster: a running one (host:port, auto); without: on this machine."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write a summary here ('-': standard output).")
    ] = None,
) -> None:
    """Turn images into refined class response maps.

    Run it again to go on: only what is missing, or was made with other settings, is done. Images that fail are
    listed in OUT/failures.jsonl (of a shard: failures-I-of-N.jsonl); the rest goes on, and the exit code is 1.
    """
    from infercam.engine.api import Engine
    from infercam.engine.bundle import Bundle
    from infercam.engine.run.run import Run
    from infercam.engine.run.shards import Shard

    pool = _pool(cluster, workers, cpus_per_worker, gpus_per_worker, address)
    part = Shard.parse(shard) if shard else None
    changes = _changes(scales, mirror, threshold, stop_share, iterations, buffer, accumulate, change)
    chosen, checked_mode = _recipe(recipe, changes), _mode(mode)
    wanted = SourceSettings(
        images=images, voc=voc, coco=coco, split=split, list_file=list_file, root=root, limit=limit
    )
    source = wanted.open()
    for note in source.notes:
        console.print(f"note: {note}", soft_wrap=True)
    options: dict[str, Any] = {
        "recipe": chosen,
        "mode": checked_mode,
        "fmt": fmt,
        "dtype": dtype or ("uint8" if fmt == "npz" else "float32"),
        "heatmaps": heatmaps,
        "max_pixels": max_pixels,
        "shard": part,
    }
    loaded = Bundle.load(bundle)
    lookup = _lookup(labels, score_threshold, loaded.manifest.classes, wanted)
    total = len(part.of(source)) if part else len(source)
    with ExitStack() as opened:
        watch = opened.enter_context(_progress(total))
        job: Run | ClusterRun
        if pool is None:
            engine = opened.enter_context(Engine.load(loaded, backend, threads, precision))
            job = Run(engine, source, lookup, out, watch=watch, **options)
        else:
            job = opened.enter_context(
                _on_cluster(pool, (bundle, backend, threads, precision), source, lookup, out, watch, options)
            )
        console.print(f"backend: {job.maker.precision} on {job.maker.choice}", soft_wrap=True)
        caught = opened.enter_context(caught_signals(lambda: _stop(job)))
        _guarded(job)
    _report(job, out, json_file, caught)


def _pool(
    cluster: str | None, workers: int | None, cpus: int | None, gpus: float | None, address: str | None
) -> PoolOptions | None:
    """The workers that the options ask for; None: this process does the work."""
    given = {
        "--workers": workers,
        "--cpus-per-worker": cpus,
        "--gpus-per-worker": gpus,
        "--address": address,
    }
    if cluster is None:
        for option, value in given.items():
            if value is not None:
                raise InputError(f"{option}: needs --cluster ray")
        return None
    if cluster != "ray":
        raise InputError(f"no cluster {cluster!r}; there is: ray (without it, see --shard)")
    from infercam.engine.run.ray_pool import PoolOptions

    return PoolOptions(workers, cpus, gpus, address)


@contextmanager
def _on_cluster(
    asked: PoolOptions,
    engine: tuple[Path, str, int | None, str | None],
    source: Source,
    labels: LabelLookup | Predicted,
    out: str,
    watch: Watcher,
    options: dict[str, Any],
) -> Iterator[ClusterRun]:
    from infercam.engine.run.ray_pool import started
    from infercam.engine.run.ray_run import ClusterRun
    from infercam.engine.run.ray_worker import EngineSpec

    bundle, backend, threads, precision = engine
    with started(asked) as pool:
        spec = EngineSpec(bundle.absolute(), backend, threads or pool.cpus, precision)
        console.print(f"cluster: {pool.workers} workers of {pool.cpus} cores and {pool.gpus:g} GPUs")
        yield ClusterRun(pool, spec, source, labels, out, watch=watch, say=console.print, **options)


def _guarded(job: Run | ClusterRun) -> None:
    """Run; a store that cannot be written ends the run and says what was saved."""
    try:
        job()
    except StoreError as e:
        s = job.summary
        raise StoreError(
            f"{e}; stopped with {s.done + s.kept} of {s.images} images done: mend that and run the same "
            "command again"
        ) from None


def _report(job: Run | ClusterRun, out: str, json_file: Path | None, caught: list[int]) -> None:
    from infercam.engine.common.atomic import atomic_write

    s = job.summary
    if json_file is not None and str(json_file) == "-":
        typer.echo(s.to_json(), nl=False)
    elif json_file is not None:
        try:
            with atomic_write(json_file, "w") as f:
                f.write(s.to_json())
        except OSError as e:
            raise StoreError(f"{json_file}: cannot be written: {e.strerror}") from None
    rate = f", {s.images_per_second:.2f} images/s" if s.done else ""
    console.print(
        f"{s.done} done, {s.kept} kept, {s.failed} failed of {s.images} images in {s.seconds:.1f} s{rate}; "
        f"{s.mean_iterations:.2f} iterations a tile -> {out}",
        soft_wrap=True,
    )
    if s.failed:
        console.print(f"{s.failed} images failed: see {job.failures.file}", style="red", soft_wrap=True)
    if caught:
        console.print(f"stopped with {s.left} images left; run the same command again to go on")
        raise typer.Exit(128 + caught[0])
    if s.failed:
        raise typer.Exit(1)


# -- options ---------------------------------------------------------------------------------------------------
def _lookup(
    spec: str | None, threshold: float, classes: list[str], chosen: SourceSettings
) -> LabelLookup | Predicted:
    from infercam.engine.run.settings import Predicted

    if spec == "predict":
        return Predicted(threshold)
    if spec is None:
        raise InputError(
            "give the images' classes with --labels FILE, or let the classifier say: --labels predict"
        )
    return chosen.labels(spec, classes)


def _mode(name: str) -> Any:
    from infercam.engine.method.recipe import MODES

    if name not in MODES:
        raise InputError(f"no mode {name!r}; there are: {', '.join(MODES)}")
    return name


def _recipe(name: str, changes: dict[str, Any]) -> Recipe:
    """The named recipe with changed constants; `scales` and `mirror` are those of its views."""
    from infercam.engine.method.recipe import recipe

    base = recipe(name)
    if "scales" in changes or "mirror" in changes:
        views = base.views.model_dump()
        views |= {k: changes.pop(k) for k in ("scales", "mirror") if k in changes}
        changes["views"] = views
    return recipe(base, **changes)


def _changes(
    scales: str | None,
    mirror: bool | None,
    threshold: float | None,
    stop_share: float | None,
    iterations: int | None,
    buffer: str | None,
    accumulate: str | None,
    others: list[str] | None,
) -> dict[str, Any]:
    """The constants that the command line changes, by their names in the recipe."""
    out: dict[str, Any] = {
        "scales": scales and _numbers("--scales", scales),
        "mirror": mirror,
        "threshold": threshold,
        "stop_share": stop_share,
        "iterations": iterations,
        "accumulate": accumulate,
    }
    if buffer is not None:
        pixels = _numbers("--buffer", buffer)
        if len(pixels) > 2:
            raise InputError(f"--buffer {buffer}: write one number, or two: for one class, for two")
        out |= {"buffer_one": pixels[0], "buffer_two": pixels[-1]}
    for text in others or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: write NAME=VALUE")
        try:
            out[name] = json.loads(value)
        except ValueError:
            out[name] = value
    return {k: v for k, v in out.items() if v is not None}


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: write numbers separated by commas") from None


# -- while it runs ---------------------------------------------------------------------------------------------
def _stop(job: Run | ClusterRun) -> None:
    """The first SIGTERM or SIGINT: finish what is in flight."""
    job.stop.set()
    console.print("stopping: finishing the images in flight (once more to stop at once)")


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar with rate, tiles in flight, mean iterations and ETA; nothing where stderr is not a terminal."""
    bar = counting_bar(console=console, transient=False)
    task = bar.add_task("maps", total=total)

    def watch(summary: Summary, scheduler: Scheduler | None) -> None:
        detail = ""
        if scheduler is not None:
            tiles = scheduler.stats.tiles
            mean = scheduler.stats.iterations / tiles if tiles else 0
            detail = f"{scheduler.tiles_in_flight} tiles in flight, {mean:.1f} iterations"
        if summary.failed:
            detail += f", {summary.failed} failed"
        bar.update(task, completed=summary.done + summary.kept + summary.failed, detail=detail)

    with bar:
        yield watch
