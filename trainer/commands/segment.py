"""`infercam segment`: options; the work is in segment/stage.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infercam.engine.common.options import Changes, options
from infercam.engine.common.progress import stderr
from infercam.engine.inputs import SourceSettings
from infercam.trainer.commands.shared import (
    ConfigOption,
    LabelsArgument,
    RandomOption,
    SkipOption,
    WeightsOption,
    noted,
)
from infercam.trainer.segment.settings import SegmentConfig
from infercam.trainer.segment.validation import ValidationSettings


def register(app: typer.Typer) -> None:
    app.command("segment")(options(segment))


def segment(
    labels: LabelsArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run: best.ckpt and more.")],
    source: SourceSettings,
    validation: ValidationSettings,
    changes: Annotated[dict[str, Any], Changes(SegmentConfig)],
    saliency: Annotated[
        Path | None, typer.Option(help="Folder of saliency maps, <id>.png, 255 salient.")
    ] = None,
    weights: WeightsOption = None,
    random: RandomOption = False,
    classes: Annotated[int, typer.Option(min=1, max=254, help="Object classes of the labels.")] = 20,
    skip_bad_labels: SkipOption = False,
    config: ConfigOption = None,
) -> None:
    """Train DeepLab on pseudo labels, with saliency if there is any (the paper's eq. 4).

    Run it again to go on after a stop. Ends with OUT/best.ckpt: the epoch of the best validation mIoU, or the
    last one where there is no validation.
    """
    from infercam.engine.store.output_folder import check_output
    from infercam.trainer.photos.photos import open_photos
    from infercam.trainer.segment.settings import segment_config
    from infercam.trainer.segment.stage import train_segment

    if saliency is not None:
        changes.setdefault("saliency_mode", "refine")
    settings = segment_config(config, **changes)
    photos = noted(open_photos(source))
    check_output(out, photos.ends(), [labels, saliency])
    done = train_segment(
        photos,
        labels,
        out,
        settings,
        classes=classes,
        weights=weights,
        random=random,
        saliency=saliency,
        validation=validation.open(),
        skip_bad_labels=skip_bad_labels,
    )
    score = ""
    if "mIoU" in done.best:
        score = f", mIoU {100 * done.best['mIoU']:.2f} (epoch {done.best['epoch']:.0f})"
    stderr.print(
        f"{done.checkpoint}: {done.epochs} epochs on {done.photos} photos, loss {done.last['loss']:.3f}"
        f"{score}, {done.seconds:.0f} s",
        soft_wrap=True,
    )
