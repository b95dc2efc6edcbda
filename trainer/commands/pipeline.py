"""`infercam pipeline`: options and the table at the end. The work is in pipeline/."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from infercam.trainer.pipeline.pipeline import StepOutcome


def register(app: typer.Typer) -> None:
    app.command("pipeline")(pipeline_command)


def pipeline_command(
    config: Annotated[Path, typer.Argument(help="Settings: a TOML file with a table for each step.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the pipeline, one below for each step.")
    ],
    until: Annotated[str | None, typer.Option(help="Stop after this step.")] = None,
    redo: Annotated[
        str | None, typer.Option(help="Do this step, and what builds on it, again although nothing changed.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """From photos and image-level labels to a segmentation network: every step that the settings have a table for.

    classify, maps, labels, affinity, walk, saliency, segment, test. A step that was done with the same settings
    and inputs is kept; one whose settings changed is done again, with all that builds on it (the earlier result
    stays in STEP.old). Run it again to go on after a stop. Ends with a table and OUT/summary.json.
    """
    from rich.console import Console

    from infercam.engine.store.output_folder import check_output
    from infercam.trainer.pipeline.config import read_pipeline
    from infercam.trainer.pipeline.pipeline import Pipeline
    from infercam.trainer.pipeline.steps import make_steps

    console = Console(highlight=False)
    settings = read_pipeline(config)
    check_output(out, settings.data.folders())
    pipeline = Pipeline(out, make_steps(settings, out))
    if dry_run:
        for step, what in pipeline.plan(until, redo).items():
            console.print(f"{step:10} {what}")
        return
    console.print(table(pipeline.run(until, redo)))


def table(outcomes: list[StepOutcome]) -> Table:
    """A line for every step: its figures and seconds."""
    from rich.table import Table

    out = Table(box=None, pad_edge=False)
    out.add_column("step")
    out.add_column("")
    out.add_column("figures")
    out.add_column("seconds", justify="right")
    for o in outcomes:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in o.figures.items())
        out.add_row(o.step, o.status, figures, "" if o.status == "left" else f"{o.seconds:.0f}")
    return out
