"""The one command, `infercam`. Rooms add their commands through the entry-point group `infercam.commands`
(a function that takes the typer app), so that engine never imports export, trainer or benchmarks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points, version
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from infercam.engine.commands import register
from infercam.engine.common.errors import InfercamError

app = typer.Typer(
    name="infercam",
    help="Refined class response maps of a frozen classifier.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
stderr = Console(stderr=True)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"infercam {version('infercam')}")
        raise typer.Exit


@app.callback()
def root(show: bool = typer.Option(False, "--version", callback=_version, is_eager=True)) -> None:
    """Refined class response maps of a frozen classifier."""


register(app)


@cache
def command() -> Callable[[], Any]:
    """`infercam` with the commands of every room that is installed; built once in a process."""
    for point in sorted(entry_points(group="infercam.commands"), key=lambda p: p.name):
        point.load()(app)
    return typer.main.get_command(app)


def main() -> None:
    """Console entry: every InfercamError becomes one line on stderr and exit code 1."""
    try:
        command()()
    except InfercamError as e:
        stderr.print(f"[red]error:[/red] {escape(str(e))}", soft_wrap=True, highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
