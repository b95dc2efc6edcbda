"""Every command line of this room: parse, call, print. Nothing but engine/cli.py imports it."""

from __future__ import annotations

import typer

from infercam.engine.commands import coco, convert, demo, doctor, eval, report, run, serve


def register(app: typer.Typer) -> None:
    """Add the engine's commands to the `infercam` app, in the order in which `--help` shows them."""
    for module in (run, demo, eval, convert, coco, report, doctor, serve):
        module.register(app)
