"""What several commands of the trainer take and print alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infercam.engine.common.progress import stderr

if TYPE_CHECKING:
    from infercam.trainer.photos.job import JobSummary
    from infercam.trainer.photos.photos import Photos

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="TOML or JSON of settings (a config.json of an earlier run too)."),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", help="Pre-trained classifier: .safetensors, .pth, or a run's best.ckpt."),
]
RandomOption = Annotated[bool, typer.Option("--random", help="Start from random weights.")]
SkipOption = Annotated[
    bool, typer.Option("--skip-bad-labels", help="Leave out photos whose label cannot be used.")
]
CrfOption = Annotated[bool | None, typer.Option("--crf/--no-crf", help="Refine by a dense CRF.")]
AcceleratorOption = Annotated[str | None, typer.Option("--accelerator", help="auto, cpu, cuda.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of the network.")]
PoolOption = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Processes (default: one a core with a CRF, else none)."),
]
MapsArgument = Annotated[Path, typer.Argument(help="Map store made by `infercam run`.", show_default=False)]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", help="psa or irn: MAPS is a folder of that tool (read without running it)."),
]
MapClassesOption = Annotated[
    Path | None,
    typer.Option("--classes", help="Class names, for folders of other tools; VOC's if not given."),
]
LabelsArgument = Annotated[
    Path, typer.Argument(help="Folder of pseudo labels, <id>.png.", show_default=False)
]


def noted(photos: Photos) -> Photos:
    """The photos, once what is worth telling of their source is told."""
    for note in photos.notes:
        stderr.print(f"note: {note}", soft_wrap=True)
    return photos


def report(done: JobSummary, what: str, out: Path) -> None:
    """One line, and the exit code where something failed or was stopped."""
    stderr.print(done.line(what, out), soft_wrap=True)
    for reason in done.reasons:
        stderr.print(f"  {reason}", soft_wrap=True, markup=False)
    if done.exit_code():
        raise typer.Exit(done.exit_code())
