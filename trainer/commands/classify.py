"""`infercam classify`: options and the table of the classes; the work is in classify/."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infercam.engine.common.options import Changes, options, settings_text
from infercam.engine.inputs import SourceSettings
from infercam.trainer.classify.settings import ClassifyConfig, DemoSettings, HeldOutSettings
from infercam.trainer.commands.shared import ConfigOption, RandomOption, WeightsOption

if TYPE_CHECKING:
    from infercam.trainer.classify.classify import ClassifyResult


def register(app: typer.Typer) -> None:
    app.command("classify")(options(classify_command))


def classify_command(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run; made, or gone on with.")],
    source: SourceSettings,
    held_out: HeldOutSettings,
    demo: DemoSettings,
    changes: Annotated[dict[str, Any], Changes(ClassifyConfig, hide=("split",))],
    labels: Annotated[
        str | None,
        typer.Option(help="Image labels: .json, .csv, .npy (psa), folder of VOC XML, `voc-xml`, `coco`."),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one a line (default: the label file's, else VOC's).")
    ] = None,
    weights: WeightsOption = None,
    random: RandomOption = False,
    centres: Annotated[
        Path | None,
        typer.Option(help="Map store whose centres cut the tiles (default: the classifier's own maps)."),
    ] = None,
    tiles: Annotated[
        str | None, typer.Option(help="Tiles of 3 or more classes: released (default) or paper.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle to write (default: OUT/bundle).")] = None,
    config: ConfigOption = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, NAME=JSON; may be repeated.")
    ] = None,
) -> None:
    """Train a multi-label classifier on image-level labels and export it as a bundle.

    Run it again to go on after a stop. With `--augment split-unite` four in five training pictures are tiles,
    cut as the inference cuts them (see the paper's table 4).
    """
    from infercam.trainer.classify.classify import classify
    from infercam.trainer.classify.inputs import open_inputs
    from infercam.trainer.classify.settings import usual_config

    if demo.demo:
        changes.setdefault("arch", "small")
    chosen = usual_config(config, **{**changes, "split": tiles, **settings_text(change)})
    names, photos, validation = open_inputs(out, source, held_out, demo, labels, classes)
    result = classify(
        photos,
        out,
        chosen,
        names,
        weights=weights,
        random=random,
        validation=validation,
        centres=centres,
        bundle=bundle,
    )
    _report(result, chosen.epochs)


def _report(result: ClassifyResult, epochs: int) -> None:
    out = Console(highlight=False)
    if result.ap:
        table = Table(box=None, pad_edge=False)
        table.add_column("average precision (%)")
        table.add_column("", justify="right")
        for name, value in result.ap.items():
            table.add_row(name, f"{100 * value:.1f}")
        table.add_row("mean", f"{100 * (result.mean_ap or 0):.1f}")
        out.print(table)
    out.print(f"epoch {result.exported_epoch} of {epochs} -> {result.bundle}", soft_wrap=True, markup=False)
