"""`infercam saliency-compare`: options and its table; the work is in segment/compare_saliency.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infercam.engine.common.errors import InputError
from infercam.engine.common.options import Changes, numbers, options
from infercam.engine.inputs import SourceSettings
from infercam.trainer.commands.shared import ConfigOption, LabelsArgument, RandomOption, WeightsOption
from infercam.trainer.segment.settings import SegmentConfig, SegmentTestConfig
from infercam.trainer.segment.validation import ValidationSettings

if TYPE_CHECKING:
    from infercam.trainer.segment.compare_saliency import ComparisonRow


def register(app: typer.Typer) -> None:
    app.command("saliency-compare")(options(saliency_compare))


def saliency_compare(
    labels: LabelsArgument,
    saliency: Annotated[Path, typer.Option(help="Folder of saliency maps, <id>.png, 255 salient.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the runs and comparison.json.")],
    source: SourceSettings,
    validation: ValidationSettings,
    changes: Annotated[dict[str, Any], Changes(SegmentConfig, hide=("saliency_mode", "seed"))],
    modes: Annotated[str, typer.Option(help="Which to compare.")] = "none,background,refine",
    seeds: Annotated[str, typer.Option(help="Seeds; every mode is trained with each.")] = "0",
    scales: Annotated[str, typer.Option(help="Of the test, for example 0.5,0.75,1,1.25,1.5.")] = "1",
    mirror: Annotated[bool, typer.Option("--mirror/--no-mirror", help="Of the test.")] = False,
    crf: Annotated[bool, typer.Option("--crf/--no-crf", help="Of the test.")] = False,
    weights: WeightsOption = None,
    random: RandomOption = False,
    classes: Annotated[int, typer.Option(min=1, max=254, help="Object classes of the labels.")] = 20,
    config: ConfigOption = None,
) -> None:
    """Train DeepLab without saliency, with it as background cue in the labels, and in the loss (eq. 4): a table.

    Each is scored by its last epoch, which is not chosen by the validation photos. Run it again to go on.
    """
    from infercam.engine.store.output_folder import check_output
    from infercam.trainer.affinity.crf import with_crf
    from infercam.trainer.loop.config import make_config
    from infercam.trainer.photos.photos import open_photos
    from infercam.trainer.segment.compare_saliency import compare_saliency
    from infercam.trainer.segment.settings import segment_config

    settings = segment_config(config, **changes)
    test = make_config(SegmentTestConfig, None, scales=numbers("--scales", scales), mirror=mirror)
    held_out = validation.open()
    if held_out is None:
        raise InputError("name the photos to score: --val-split NAME, or --val-images DIR --val-masks DIR")
    photos = open_photos(source)
    check_output(out, photos.ends(), [labels, saliency])
    rows = compare_saliency(
        photos,
        labels,
        saliency,
        held_out,
        out,
        settings,
        modes=modes.split(","),
        seeds=[int(seed) for seed in numbers("--seeds", seeds)],
        test=with_crf(test, crf),
        classes=classes,
        weights=weights,
        random=random,
    )
    print_rows(rows, len(held_out.photos), out)


def print_rows(rows: list[ComparisonRow], photos: int, out: Path) -> None:
    from infercam.trainer.segment.compare_saliency import REPORT

    table = Table(box=None, pad_edge=False)
    for heading in (
        f"mIoU (%) of {photos} photos",
        "seed",
        "",
        "gain over none",
        "95 % of it",
        "tau",
        "seconds",
    ):
        table.add_column(heading, justify="left" if heading.startswith("mIoU") else "right")
    for row in rows:
        gain = "" if row.gain is None else f"{100 * row.gain:+.2f}"
        between = (
            "" if row.interval is None else "{:+.2f} to {:+.2f}".format(*(100 * x for x in row.interval))
        )
        tau = f"{row.tau[0]:.3f} to {row.tau[-1]:.3f}" if row.tau else ""
        table.add_row(
            row.mode, str(row.seed), f"{100 * row.miou:.2f}", gain, between, tau, f"{row.seconds:.0f}"
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"every figure: {out / REPORT}", soft_wrap=True, markup=False)
