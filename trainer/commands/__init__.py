"""The trainer's commands. Each module registers its own; none imports torch before it runs."""

from __future__ import annotations

from importlib import import_module

import typer

COMMANDS: tuple[str, ...] = (
    "affinity",
    "classify",
    "labels",
    "pipeline",
    "refine",
    "saliency",
    "saliency_compare",
    "segment",
    "segment_test",
    "walk",
)


def register(app: typer.Typer) -> None:
    """Add the trainer's commands to the `infercam` app (entry point `infercam.commands`)."""
    for name in COMMANDS:
        import_module(f"{__package__}.{name}").register(app)
