"""`infercam bench`: options, progress, tables, exit code. The work is in bench/."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from infercam.benchmarks.bench.settings import BenchSettings
from infercam.engine.common.errors import InputError, MissingExtra, StoreError
from infercam.engine.common.options import options
from infercam.engine.common.signals import ended_by_signals

if TYPE_CHECKING:
    from infercam.benchmarks.bench.result import BenchResult
    from infercam.benchmarks.bench.session import Say

stdout = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
stderr = Console(stderr=True, highlight=False)
_KEPT = "stopped; what was measured is kept in {}: the same command goes on from there"


def register(app: typer.Typer) -> None:
    """Add `infercam bench` to the app."""
    app.command("bench")(options(bench))


def bench(
    settings: BenchSettings,
    bundle: Annotated[
        Path, typer.Argument(help="Bundle made by `infercam export`; `demo`: the embedded one.")
    ] = Path("demo"),
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for bench.json, the plots and what is kept to go on.")
    ] = Path("infercam-bench"),
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
    from infercam.benchmarks.bench.benchmark import measured
    from infercam.benchmarks.bench.compare import check_comparable
    from infercam.benchmarks.bench.result import read_result
    from infercam.benchmarks.bench.setup import make_plan
    from infercam.benchmarks.common import machine
    from infercam.engine.store.output_folder import check_output

    images = [one for one in (settings.folder, settings.voc, settings.root) if one is not None]
    check_output(out, images, [bundle, settings.gt, settings.labels])
    earlier = read_result(compare) if compare else None
    with ended_by_signals(lambda: stderr.print(_KEPT.format(out))), _writes_to(out), _status() as say:
        plan = make_plan(bundle, out, settings, lambda text: say(text, None))
        if earlier is not None:  # before anything is measured
            check_comparable(earlier, plan.subject, machine())
        result = measured(plan, out, again, say)
    _show(result, out)
    if earlier is not None and _got_worse(earlier, result):
        raise typer.Exit(1)


def _show(result: BenchResult, out: Path) -> None:
    from infercam.benchmarks.bench.plots import plot
    from infercam.benchmarks.bench.result import FILE
    from infercam.benchmarks.bench.table import sentences, tables

    for table in tables(result):
        stdout.print(table)
    for text in sentences(result):
        stdout.print(escape(text), soft_wrap=True)
    files = [out / FILE]
    try:
        files += plot(result, out)
    except MissingExtra as e:
        stderr.print(f"no plots: {escape(str(e))}", soft_wrap=True)
    stdout.print(f"-> {escape(', '.join(map(str, files)))}", soft_wrap=True)


def _got_worse(earlier: BenchResult, result: BenchResult) -> bool:
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
