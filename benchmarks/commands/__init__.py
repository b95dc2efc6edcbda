"""The benchmarks' command line."""

from __future__ import annotations

import typer

from infercam.benchmarks.commands import bench


def register(app: typer.Typer) -> None:
    """Add this room's command to the `infercam` app (entry point `infercam.commands`)."""
    bench.register(app)
