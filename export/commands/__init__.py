"""The export room's command lines: parse, call, print. Nothing imports them but the entry point."""

from __future__ import annotations

import typer

from infercam.export.commands import build, export, package, precision


def register(app: typer.Typer) -> None:
    """Add this room's commands to the `infercam` app (entry point `infercam.commands`)."""
    for module in (export, build, precision, package):
        module.register(app)
