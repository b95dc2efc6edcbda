"""`infercam doctor`: prints what doctor.py finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from infercam.engine.backends.doctor import Report

_STYLES = {"ok": "green", "missing": "yellow", "problem": "red", "note": "dim"}


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle: its graphs and plans are looked at too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what this machine has and lacks: driver, GPUs, libraries, plans that fit, and which backend runs.

    Exit code 0 where the CPU or better works, else 1.
    """
    from infercam.engine.backends.doctor import examine

    report = examine(bundle)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=1))
    else:
        _show(report)
    if not report.works:
        raise typer.Exit(1)


def _show(report: Report) -> None:
    console = Console(highlight=False)
    for title, findings in report.sections.items():
        table = Table(show_header=False, box=None, pad_edge=False)
        for column in range(3):
            table.add_column(overflow="fold", no_wrap=column < 2)
        for f in findings:
            style = _STYLES[f.state]
            detail = escape(f.detail) + (f"\n[bold]-> {escape(f.remedy)}[/bold]" if f.remedy else "")
            table.add_row(f"[{style}]{f.state}[/{style}]", escape(f.name), detail)
        console.print(f"[bold]{title}[/bold]")
        console.print(table)
    verdict = f"`auto` takes: {report.backend}" if report.works else "no backend works here"
    console.print(f"[bold]{verdict}[/bold]")
