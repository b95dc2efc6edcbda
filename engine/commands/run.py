"""`infercam run`: options, progress, signals, exit code. The work is in run/start.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from infercam.engine.common.atomic import write_json
from infercam.engine.common.options import options
from infercam.engine.common.progress import counting_bar
from infercam.engine.common.signals import caught_signals
from infercam.engine.inputs import SourceSettings
from infercam.engine.run.start import RunSettings, finish, open_run

if TYPE_CHECKING:
    from infercam.engine.method.scheduler import Scheduler
    from infercam.engine.run.ray_run import ClusterRun
    from infercam.engine.run.run import Run, Summary, Watcher

console = Console(stderr=True, highlight=False, markup=False)


def register(app: typer.Typer) -> None:
    app.command("run")(run)


@options
def run(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by `infercam export`.")],
    out: Annotated[str, typer.Option("-o", "--out", help="Map store to write: a folder or a URI (s3://…).")],
    source: SourceSettings,
    settings: RunSettings,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write a summary here ('-': standard output).")
    ] = None,
) -> None:
    """Turn images into refined class response maps.

    Run it again to go on: only what is missing, or was made with other settings, is done. Images that fail are
    listed in OUT/failures.jsonl (of a shard: failures-I-of-N.jsonl); the rest goes on, and the exit code is 1.
    Where the first 200 images, some from all over the list among them, all fail alike, it stops.
    """
    with (
        _progress() as watching,
        open_run(bundle, out, source, settings, say=_say, watching=watching) as job,
        caught_signals(lambda: _stop(job)) as caught,
    ):
        finish(job)
    _report(job, out, json_file, caught)


def _say(line: str) -> None:
    console.print(line, soft_wrap=True)


def _report(job: Run | ClusterRun, out: str, json_file: Path | None, caught: list[int]) -> None:
    s = job.summary
    if json_file is not None and str(json_file) == "-":
        typer.echo(s.to_json(), nl=False)
    elif json_file is not None:
        write_json(json_file, asdict(s))
    rate = f", {s.images_per_second:.2f} images/s" if s.done else ""
    console.print(
        f"{s.done} done, {s.kept} kept, {s.failed} failed of {s.images} images in {s.seconds:.1f} s{rate}; "
        f"{s.mean_iterations:.2f} iterations a tile -> {out}",
        soft_wrap=True,
    )
    if s.enlarged:
        console.print(
            f"note: {s.enlarged} views of small pictures or tiles were enlarged to the least that the network takes",
            soft_wrap=True,
        )
    if s.failed:
        console.print(f"{s.failed} images failed: see {job.failures.file}", style="red", soft_wrap=True)
        for line in job.failures.groups.lines():
            console.print(f"  {line}", soft_wrap=True)
    if s.gave_up:
        console.print(
            f"stopped early: all {s.failed} images that were tried, some from all over the list, failed alike; "
            f"{s.left} left: mend that and run the same command again",
            style="red",
            soft_wrap=True,
        )
    if caught:
        console.print(f"stopped with {s.left} images left; run the same command again to go on")
        raise typer.Exit(128 + caught[0])
    if s.failed:
        raise typer.Exit(1)


def _stop(job: Run | ClusterRun) -> None:
    """The first SIGTERM or SIGINT: finish what is in flight."""
    job.stop.set()
    console.print("stopping: finishing the images in flight (once more to stop at once)")


@contextmanager
def _progress() -> Iterator[Callable[[int], Watcher]]:
    """A bar with rate, tiles in flight, mean iterations and ETA; nothing where stderr is not a terminal."""
    bar = counting_bar(console=console, transient=False)
    task = bar.add_task("maps", total=None)

    def watching(total: int) -> Watcher:
        bar.update(task, total=total)
        return watch

    def watch(summary: Summary, scheduler: Scheduler | None) -> None:
        detail = ""
        if scheduler is None and summary.prepared < summary.to_prepare:
            if not summary.prepared:
                _say(f"preparing {summary.to_prepare} shapes that earlier runs met")
            detail = f"preparing shape {summary.prepared + 1} of {summary.to_prepare}"
        elif scheduler is not None:
            tiles = scheduler.stats.tiles
            mean = scheduler.stats.iterations / tiles if tiles else 0
            detail = f"{scheduler.tiles_in_flight} tiles in flight, {mean:.1f} iterations"
        if summary.failed:
            detail += f", {summary.failed} failed"
        bar.update(task, completed=summary.done + summary.kept + summary.failed, detail=detail)

    with bar:
        yield watching
