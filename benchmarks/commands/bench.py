"""`infercam bench`: options, progress, tables, exit code. The work is in bench/."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from infercam.engine.common.errors import InputError, MissingExtra, StoreError

if TYPE_CHECKING:
    from infercam.benchmarks.bench.benchmark import Plan
    from infercam.benchmarks.bench.result import Result
    from infercam.benchmarks.bench.session import Say

stdout = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
stderr = Console(stderr=True, highlight=False)


def register(app: typer.Typer) -> None:
    """Add `infercam bench` to the app."""
    app.command("bench")(bench)


def bench(
    bundle: Annotated[
        Path, typer.Argument(help="Bundle made by `infercam export`; `demo`: the embedded one.")
    ] = Path("demo"),
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for bench.json, the plots and what is kept to go on.")
    ] = Path("infercam-bench"),
    voc: Annotated[Path | None, typer.Option(help="VOC tree; with --split. Its masks give the mIoU.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the VOC tree: train, val, …")] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder of images.")] = None,
    list_file: Annotated[Path | None, typer.Option("--list", help="List of paths or ids, or psa's.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that --list is relative to.")] = None,
    gt: Annotated[
        Path | None, typer.Option(help="Folder of masks ID.png (default: those of the VOC tree).")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Label file as for `infercam run` (default: what the classifier predicts)."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="The classifier as PyTorch loads it: for the plain loop and the CAM libraries."),
    ] = None,
    arch: Annotated[str, typer.Option(help="Of --model: resnet38, resnet50 or mobilenetv2.")] = "mobilenetv2",
    images: Annotated[int, typer.Option(min=1, help="The first so many images.")] = 10,
    few: Annotated[
        int | None,
        typer.Option(
            min=1, help="The first so many for what is slow: 8-view loops, waterfall (default: a quarter)."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Repeats of everything, by turns.")] = 3,
    recipes: Annotated[
        str | None, typer.Option(help="Of the engine, separated by commas (default: all).")
    ] = None,
    backends: Annotated[
        str | None, typer.Option(help="Separated by commas (default: all that work here).")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="Which graph or plan of the bundle.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Worker threads (default: all cores).")] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Parts, separated by commas: rows, waterfall, growth, agreement, profile."),
    ] = None,
    counts: Annotated[
        str | None, typer.Option(help="Lengths of lists for the growth, for example 50,200,1000.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="About a minute: few images, two rounds.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Measure anew what an earlier run has in --out.")
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(help="An earlier bench.json: exit code 1 if anything got worse beyond the noise."),
    ] = None,
) -> None:
    """Measure on this machine: every recipe and backend that works here beside the plain PyTorch loop and, where
    installed, pytorch-grad-cam and torch-cam; a waterfall of the engine's savings; how time grows.

    Without images it draws synthetic scenes. Run it again to go on. Every contestant is a process of its own and they
    take turns; reading and writing are in the figures, start-up is not. bench.json and the plots are in --out.
    """
    if sys.platform == "win32":
        raise InputError("bench looks at processes as Unix has them; it does not run on Windows")
    from infercam.benchmarks.bench.compare import check_comparable
    from infercam.benchmarks.bench.result import read_result
    from infercam.benchmarks.bench.setup import Settings, make_plan
    from infercam.benchmarks.common import machine

    earlier = read_result(compare) if compare else None
    settings = Settings(
        bundle=bundle, out=out, voc=voc, split=split, folder=folder, list_file=list_file, root=root, gt=gt,
        labels=labels, model=model, arch=arch, images=images, few=few, rounds=rounds, recipes=recipes,
        backends=backends, precision=precision, threads=threads, only=only, counts=counts, quick=quick,
    )  # fmt: skip
    with _ended_by_signals(out), _writes_to(out), _status() as say:
        plan = make_plan(settings, lambda text: say(text, None))
        if earlier is not None:  # before anything is measured
            check_comparable(earlier, plan.subject, machine())
        result = _measured(plan, out, again, say)
    _show(result, out)
    if earlier is not None and _got_worse(earlier, result):
        raise typer.Exit(1)


def _measured(plan: Plan, out: Path, again: bool, say: Say) -> Result:
    """Run the plan and write bench.json."""
    from infercam.benchmarks.bench.benchmark import run
    from infercam.benchmarks.bench.result import FILE
    from infercam.benchmarks.bench.session import Session
    from infercam.engine.common.atomic import atomic_write

    session = Session(out, plan.bundle.hash, say)
    if again:
        session.forget()
    result = run(plan, session)
    with atomic_write(out / FILE, "w") as f:
        f.write(result.model_dump_json(indent=1) + "\n")
    return result


def _show(result: Result, out: Path) -> None:
    from infercam.benchmarks.bench.plots import plot
    from infercam.benchmarks.bench.result import FILE
    from infercam.benchmarks.bench.table import tables

    for table in tables(result):
        stdout.print(table)
    for device, rate in result.matrix_rate.items():
        stdout.print(f"matrix rate of the {device}: {rate / 1e9:.1f} GFLOP/s")
    for text in _sentences(result):
        stdout.print(escape(text), soft_wrap=True)
    files = [out / FILE]
    try:
        files += plot(result, out)
    except MissingExtra as e:
        stderr.print(f"no plots: {escape(str(e))}", soft_wrap=True)
    stdout.print(f"-> {escape(', '.join(map(str, files)))}", soft_wrap=True)


def _sentences(result: Result) -> Iterator[str]:
    for name, found in result.agreement.items():
        if isinstance(found, dict):
            yield (
                f"the engine's maps ({result.agreement['recipe']}) and the loop's {name}: at most "
                f"{found['largest']:.2g} apart, {100 * found['share beyond 0.001']:.2g} % of map pixels by over 0.001"
            )
    for recipe, shares in result.profile.items():
        yield f"CPU time of {recipe}: " + ", ".join(f"{stage} {100 * s:.1f} %" for stage, s in shares.items())
    yield from (f"note: {note}" for note in result.notes)


def _got_worse(earlier: Result, result: Result) -> bool:
    """Print the comparison; whether anything is worse beyond the noise."""
    from infercam.benchmarks.bench.compare import changed_versions, compare

    for line in changed_versions(earlier, result):
        stdout.print(f"note: differs: {escape(line)}", soft_wrap=True)
    verdicts = compare(earlier, result)
    worse = [v for v in verdicts if v.worse]
    for v in verdicts:
        if v.figure == "time" and not v.worse:
            stdout.print(escape(f"  {v}"), soft_wrap=True)
    for v in worse:
        stdout.print(f"[red]worse:[/red] {escape(str(v))}", soft_wrap=True)
    stdout.print(f"{len(worse)} of {len(verdicts)} figures are worse than in the run of {earlier.date}")
    return bool(worse)


# -- while it runs -----------------------------------------------------------------------------------------------
@contextmanager
def _status() -> Iterator[Say]:
    """What is being measured and how long it will take: a spinner, or lines where stderr is no terminal."""
    with stderr.status("") if stderr.is_terminal else nullcontext() as spinner:

        def say(text: str, left: float | None) -> None:
            about = "" if left is None else f"; about {_minutes(left)} left"
            line = escape(f"{text}{about}")
            if spinner is None:
                stderr.print(line, soft_wrap=True)
            else:
                spinner.update(line)

        yield say


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextmanager
def _writes_to(out: Path) -> Iterator[None]:
    """Nothing but `out` is written: what the system refuses is about that."""
    try:
        yield
    except OSError as e:
        raise StoreError(f"{out}: cannot be written: {e.strerror or e}") from None


@contextmanager
def _ended_by_signals(out: Path) -> Iterator[None]:
    """SIGINT and SIGTERM end the worker with this process; what was measured stays."""

    def end(number: int, _: Any) -> None:
        stderr.print(f"stopped; what was measured is kept in {out}: the same command goes on from there")
        raise SystemExit(128 + number)

    before = {s: signal.signal(s, end) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
