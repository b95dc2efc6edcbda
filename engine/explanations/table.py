"""What `infercam eval --metric` prints and writes."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from infercam.engine.common.atomic import write_json
from infercam.engine.explanations.evaluate import ExplanationResult


def print_explanations(found: ExplanationResult, json_file: Path | None = None) -> None:
    """Print the figures of `--metric`, and write them to a file."""
    if json_file is not None:
        write_json(json_file, found.to_json())
    console = Console(highlight=False)
    skipped = f", {found.missing} without maps" if found.missing else ""
    console.print(f"{found.images} images, {found.maps} maps of classes{skipped}", soft_wrap=True)
    names = list(found.figures)
    table = Table(box=None, pad_edge=False)
    table.add_column("(%)")
    for heading in (*names, "maps"):
        table.add_column(heading.replace("_", " "), justify="right")
    means = [f"{100 * found.figures[n]:.2f} ± {100 * found.deviations[n]:.2f}" for n in names]
    table.add_row("all classes", *means, str(found.maps))
    for label, row in found.by_class.items():
        own = [f"{100 * row[name]:.1f}" if name in row else "" for name in names]
        table.add_row(label, *own, f"{row['maps']:.0f}")
    console.print(table)
