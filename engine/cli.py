"""The one command, `infercam`. Rooms add their commands through the entry-point group `infercam.commands`
(a function that takes the typer app), so that engine never imports export, trainer or benchmarks."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import entry_points, version
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from infercam.engine.commands import register
from infercam.engine.common.errors import InfercamError
from infercam.engine.common.usage import usage_line

app = typer.Typer(
    name="infercam",
    help="Refined class response maps of a frozen classifier.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
stderr = Console(stderr=True)
_CannotBeRead: Any = typer.BadParameter.__mro__[2]
"""Base of what typer raises for a command line: ClickException, of its own click or of the one that is installed."""


def _version(show: bool) -> None:
    if show:
        typer.echo(f"infercam {version('infercam')}")
        raise typer.Exit


@app.callback()
def root(show: bool = typer.Option(False, "--version", callback=_version, is_eager=True)) -> None:
    """Refined class response maps of a frozen classifier."""


register(app)


@cache
def command() -> Any:
    """`infercam` with the commands of every room that is installed; built once in a process."""
    for point in sorted(entry_points(group="infercam.commands"), key=lambda p: p.name):
        point.load()(app)
    return typer.main.get_command(app)


def _asked() -> Any:
    """As much of `infercam` as the command line needs: for a command of engine's own the other rooms, a fifth of what
    starting takes, stay unread."""
    own = {one.name for one in app.registered_commands}
    return typer.main.get_command(app) if sys.argv[1:] and sys.argv[1] in own else command()


def main() -> None:
    """Console entry: every InfercamError becomes one line on stderr and exit code 1.

    A command line that cannot be read: one line and exit code 2.
    """
    try:
        code = _asked().main(standalone_mode=False)  # typer would draw a box around what is wrong
    except InfercamError as e:
        _error(str(e))
        code = 1
    except _CannotBeRead as e:
        _error(usage_line(e, command()))
        code = e.exit_code
    except typer.Abort:
        _error("aborted")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _error(line: str) -> None:
    if line:
        stderr.print(f"[red]error:[/red] {escape(line)}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
