"""`infercam saliency` and `infercam saliency-compare`: options; the work is in saliency.py and
compare_saliency.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infercam.trainer.commands.segment import (
    ArchOption,
    ClassesOption,
    HeadOption,
    LabelsArgument,
    MissingOption,
    StrideOption,
    ValImagesOption,
    ValLimitOption,
    ValMasksOption,
    ValSplitOption,
    numbers,
    open_validation,
)
from infercam.trainer.commands.source_options import (
    CocoOption,
    ImagesOption,
    LimitOption,
    ListOption,
    RootOption,
    SplitOption,
    VocOption,
    open_photos,
)
from infercam.trainer.commands.training_options import (
    AcceleratorOption,
    BatchOption,
    ConfigOption,
    CropOption,
    DevicesOption,
    EpochsOption,
    PrecisionOption,
    RandomOption,
    RateOption,
    ThreadsOption,
    WeightsOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from infercam.trainer.segment.compare_saliency import Row


def register(app: typer.Typer) -> None:
    app.command("saliency")(saliency)
    app.command("saliency-compare")(saliency_compare)


def saliency(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the saliency maps, <id>.png.")],
    voc: VocOption = None,
    split: SplitOption = None,
    images: ImagesOption = None,
    coco: CocoOption = None,
    list_file: ListOption = None,
    root: RootOption = None,
    limit: LimitOption = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="ImageNet classifier whose features tell superpixels apart (else colour alone)."),
    ] = None,
    arch: Annotated[str, typer.Option(help="Its architecture.")] = "mobilenetv2",
    config: ConfigOption = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes (default: one a core).")] = None,
) -> None:
    """Saliency maps from photos alone: no masks, no image labels, no saliency data set.

    8-bit PNGs, 0 background to 255 salient. Run it again to go on. Photos that fail are listed in
    OUT/failures.jsonl; the rest goes on, and the exit code is 1.
    """
    from infercam.trainer.commands.labels import pool_size, report
    from infercam.trainer.loop.config import make_config
    from infercam.trainer.saliency.saliency import SaliencyConfig, make_saliency

    photos = open_photos(
        voc=voc, split=split, images=images, coco=coco, list_file=list_file, root=root, limit=limit
    )
    settings = make_config(SaliencyConfig, config)
    done = make_saliency(
        photos, out, settings, weights=weights, arch=arch, workers=pool_size(workers, settings)
    )
    report(done, "saliency", out)


def saliency_compare(
    labels: LabelsArgument,
    saliency: Annotated[Path, typer.Option(help="Folder of saliency maps, <id>.png, 255 salient.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the runs and comparison.json.")],
    voc: VocOption = None,
    split: SplitOption = None,
    images: ImagesOption = None,
    coco: CocoOption = None,
    list_file: ListOption = None,
    root: RootOption = None,
    limit: LimitOption = None,
    val_split: ValSplitOption = None,
    val_images: ValImagesOption = None,
    val_masks: ValMasksOption = None,
    val_limit: ValLimitOption = None,
    modes: Annotated[str, typer.Option(help="Which to compare.")] = "none,background,refine",
    seeds: Annotated[str, typer.Option(help="Seeds; every mode is trained with each.")] = "0",
    missing_saliency: MissingOption = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of eq. 4's saliency term (0.08).")] = None,
    scales: Annotated[str, typer.Option(help="Of the test, for example 0.5,0.75,1,1.25,1.5.")] = "1",
    mirror: Annotated[bool, typer.Option("--mirror/--no-mirror", help="Of the test.")] = False,
    crf: Annotated[bool, typer.Option("--crf/--no-crf", help="Of the test.")] = False,
    arch: ArchOption = None,
    head: HeadOption = None,
    output_stride: StrideOption = None,
    weights: WeightsOption = None,
    random: RandomOption = False,
    classes: ClassesOption = 20,
    config: ConfigOption = None,
    epochs: EpochsOption = None,
    batch: BatchOption = None,
    rate: RateOption = None,
    crop: CropOption = None,
    precision: PrecisionOption = None,
    accelerator: AcceleratorOption = None,
    devices: DevicesOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Train DeepLab without saliency, with it as background cue in the labels, and in the loss (eq. 4): a table.

    Each is scored by its last epoch, which is not chosen by the validation photos. Run it again to go on.
    """
    from infercam.trainer.commands.labels import with_crf
    from infercam.trainer.loop.config import make_config
    from infercam.trainer.segment.compare_saliency import compare_saliency
    from infercam.trainer.segment.predict import SegmentTestConfig
    from infercam.trainer.segment.stage import segment_config

    settings = segment_config(
        config,
        missing_saliency=missing_saliency,
        alpha=alpha,
        arch=arch,
        head=head,
        output_stride=output_stride,
        epochs=epochs,
        batch=batch,
        rate=rate,
        crop=crop,
        precision=precision,
        accelerator=accelerator,
        devices=devices,
        workers=workers,
        threads=threads,
    )
    test = make_config(SegmentTestConfig, None, scales=numbers("--scales", scales), mirror=mirror)
    validation = open_validation(voc, val_split, val_images, val_masks, val_limit)
    if validation is None:
        from infercam.engine.common.errors import InputError

        raise InputError("name the photos to score: --val-split NAME, or --val-images DIR --val-masks DIR")
    rows = compare_saliency(
        open_photos(
            voc=voc, split=split, images=images, coco=coco, list_file=list_file, root=root, limit=limit
        ),
        labels,
        saliency,
        validation,
        out,
        settings,
        modes=modes.split(","),
        seeds=[int(seed) for seed in numbers("--seeds", seeds)],
        test=with_crf(test, crf),
        classes=classes,
        weights=weights,
        random=random,
    )
    print_rows(rows, len(validation.photos), out)


def print_rows(rows: list[Row], photos: int, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from infercam.trainer.segment.compare_saliency import REPORT

    table = Table(box=None, pad_edge=False)
    for heading in (f"mIoU (%) of {photos} photos", "seed", "", "gain over none", "95 % of it", "seconds"):
        table.add_column(heading, justify="left" if heading.startswith("mIoU") else "right")
    for row in rows:
        gain = "" if row.gain is None else f"{100 * row.gain:+.2f}"
        between = (
            "" if row.interval is None else "{:+.2f} to {:+.2f}".format(*(100 * x for x in row.interval))
        )
        table.add_row(row.mode, str(row.seed), f"{100 * row.miou:.2f}", gain, between, f"{row.seconds:.0f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"every figure: {out / REPORT}", soft_wrap=True, markup=False)
