"""`infercam affinity`: options; the work is in affinity/stage.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    SeedOption,
    ThreadsOption,
    WeightsOption,
    WorkersOption,
)


def register(app: typer.Typer) -> None:
    app.command("affinity")(affinity)


def affinity(
    labels: Annotated[Path, typer.Argument(help="Affinity labels, PNGs made by `infercam labels`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run: best.ckpt and more.")],
    voc: VocOption = None,
    split: SplitOption = None,
    images: ImagesOption = None,
    coco: CocoOption = None,
    list_file: ListOption = None,
    root: RootOption = None,
    limit: LimitOption = None,
    arch: Annotated[
        str | None, typer.Option(help="resnet38 (default), resnet50, resnet101, mobilenetv2.")
    ] = None,
    weights: WeightsOption = None,
    random: RandomOption = False,
    classes: Annotated[
        int | None,
        typer.Option(min=1, max=254, help="Object classes of another tool's labels (default: VOC's 20)."),
    ] = None,
    freeze_backbone: Annotated[
        bool | None, typer.Option("--freeze-backbone", help="Train the new layers alone (quicker).")
    ] = None,
    skip_bad_labels: Annotated[
        bool, typer.Option("--skip-bad-labels", help="Leave out photos whose label cannot be used.")
    ] = False,
    config: ConfigOption = None,
    epochs: EpochsOption = None,
    batch: BatchOption = None,
    rate: RateOption = None,
    crop: CropOption = None,
    seed: SeedOption = None,
    precision: PrecisionOption = None,
    accelerator: AcceleratorOption = None,
    devices: DevicesOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Train AffinityNet: which neighbouring cells of a photo belong together, for `infercam walk`.

    Run it again to go on after a stop. Ends with OUT/best.ckpt.
    """
    from infercam.engine.common.progress import stderr as console
    from infercam.trainer.affinity.stage import affinity_config, train_affinity

    settings = affinity_config(
        config,
        arch=arch,
        epochs=epochs,
        batch=batch,
        rate=rate,
        crop=crop,
        freeze_backbone=freeze_backbone,
        seed=seed,
        precision=precision,
        accelerator=accelerator,
        devices=devices,
        workers=workers,
        threads=threads,
    )
    photos = open_photos(
        voc=voc, split=split, images=images, coco=coco, list_file=list_file, root=root, limit=limit
    )
    for note in photos.notes:
        console.print(f"note: {note}", soft_wrap=True)
    done = train_affinity(
        photos,
        labels,
        out,
        settings,
        classes=classes,
        weights=weights,
        random=random,
        skip_bad_labels=skip_bad_labels,
    )
    console.print(
        f"{done.checkpoint}: {done.epochs} epochs on {done.photos} photos, loss {done.loss:.3f}, "
        f"{100 * done.accuracy:.1f} % of pairs told rightly, {done.seconds:.0f} s",
        soft_wrap=True,
    )
