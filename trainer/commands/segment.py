"""`infercam segment` and `infercam segment-test`: options; the work is in segment/stage.py, segment/predict.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from infercam.trainer.segment.stage import Validation

LabelsArgument = Annotated[
    Path, typer.Argument(help="Folder of pseudo labels, <id>.png.", show_default=False)
]
ArchOption = Annotated[
    str | None, typer.Option(help="resnet101 (default), resnet50, mobilenetv2, resnet38, small.")
]
HeadOption = Annotated[str | None, typer.Option(help="ASPP of DeepLab v2 (default) or v3.")]
StrideOption = Annotated[
    int | None, typer.Option("--output-stride", help="8 or 16 (default: 8; mobilenetv2 16).")
]
SaliencyOption = Annotated[
    Path | None, typer.Option("--saliency", help="Folder of saliency maps, <id>.png, 255 salient.")
]
MissingOption = Annotated[
    str | None,
    typer.Option("--missing-saliency", help="error (default), or cross-entropy: train those without it."),
]
ClassesOption = Annotated[int, typer.Option(min=1, max=254, help="Object classes of the labels.")]
ValSplitOption = Annotated[
    str | None, typer.Option("--val-split", help="Split of the VOC tree to validate on after each epoch.")
]
ValImagesOption = Annotated[
    Path | None, typer.Option("--val-images", help="The same from a folder; with --val-masks.")
]
ValMasksOption = Annotated[Path | None, typer.Option("--val-masks", help="Their ground truth, <id>.png.")]
ValLimitOption = Annotated[
    int | None, typer.Option("--val-limit", min=1, help="Only the first so many of them.")
]
SkipOption = Annotated[
    bool, typer.Option("--skip-bad-labels", help="Leave out photos whose label cannot be used.")
]


def register(app: typer.Typer) -> None:
    app.command("segment")(segment)
    app.command("segment-test")(segment_test)


def segment(
    labels: LabelsArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run: best.ckpt and more.")],
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
    saliency: SaliencyOption = None,
    saliency_mode: Annotated[
        str | None,
        typer.Option(
            help="none; background: cut the labels where saliency says so; refine: eq. 4 "
            "(the default with --saliency)."
        ),
    ] = None,
    missing_saliency: MissingOption = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of eq. 4's saliency term (0.08).")] = None,
    arch: ArchOption = None,
    head: HeadOption = None,
    output_stride: StrideOption = None,
    weights: WeightsOption = None,
    random: RandomOption = False,
    classes: ClassesOption = 20,
    skip_bad_labels: SkipOption = False,
    config: ConfigOption = None,
    epochs: EpochsOption = None,
    batch: BatchOption = None,
    rate: RateOption = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Steps over which the rate rises.")] = None,
    crop: CropOption = None,
    seed: SeedOption = None,
    precision: PrecisionOption = None,
    accelerator: AcceleratorOption = None,
    devices: DevicesOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Train DeepLab on pseudo labels, with saliency if there is any (the paper's eq. 4).

    Run it again to go on after a stop. Ends with OUT/best.ckpt: the epoch of the best validation mIoU, or the
    last one where there is no validation.
    """
    from infercam.engine.common.progress import stderr as console
    from infercam.trainer.segment.stage import segment_config, train_segment

    settings = segment_config(
        config,
        saliency_mode=saliency_mode or ("refine" if saliency else None),
        missing_saliency=missing_saliency,
        alpha=alpha,
        arch=arch,
        head=head,
        output_stride=output_stride,
        epochs=epochs,
        batch=batch,
        rate=rate,
        warmup=warmup,
        crop=crop,
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
    done = train_segment(
        photos,
        labels,
        out,
        settings,
        classes=classes,
        weights=weights,
        random=random,
        saliency=saliency,
        validation=open_validation(voc, val_split, val_images, val_masks, val_limit),
        skip_bad_labels=skip_bad_labels,
    )
    score = (
        f", mIoU {100 * done.best['mIoU']:.2f} (epoch {done.best['epoch']:.0f})"
        if "mIoU" in done.best
        else ""
    )
    console.print(
        f"{done.checkpoint}: {done.epochs} epochs on {done.photos} photos, loss {done.last['loss']:.3f}"
        f"{score}, {done.seconds:.0f} s",
        soft_wrap=True,
    )


def segment_test(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="best.ckpt of `infercam segment`, or a published DeepLab.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the label PNGs.")],
    voc: VocOption = None,
    split: SplitOption = None,
    images: ImagesOption = None,
    coco: CocoOption = None,
    list_file: ListOption = None,
    root: RootOption = None,
    limit: LimitOption = None,
    scales: Annotated[
        str | None, typer.Option(help="Scales whose scores are averaged (default 0.5,0.75,1,1.25,1.5).")
    ] = None,
    mirror: Annotated[
        bool | None, typer.Option("--mirror/--no-mirror", help="Mirrored views too (default).")
    ] = None,
    crf: Annotated[
        bool | None, typer.Option("--crf/--no-crf", help="Refine by a dense CRF (default: not).")
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(help="Also write the folder and archive for VOC's server to this folder.")
    ] = None,
    competition: Annotated[
        str, typer.Option(help="comp5 (VOC's photos only) or comp6 (others too), for --submission.")
    ] = "comp6",
    classes: Annotated[
        Path | None, typer.Option("--classes", help="Class names, one a line (default: VOC's).")
    ] = None,
    output_stride: Annotated[
        int | None, typer.Option("--output-stride", help="Of a published DeepLab: 8 (default) or 16.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file.")] = None,
    config: ConfigOption = None,
    accelerator: AcceleratorOption = None,
    threads: ThreadsOption = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes for the CRF (default: one a core with it).")
    ] = None,
) -> None:
    """Label photos with a trained DeepLab; score the labels where every photo has a ground truth.

    Run it again to go on: what the same checkpoint made with the same settings is kept. Photos that fail are
    listed in OUT/failures.jsonl; the rest goes on, and the exit code is 1.
    """
    from infercam.engine.commands.eval import report_labels
    from infercam.engine.common.errors import InputError
    from infercam.trainer.commands.labels import pool_size, report, with_crf
    from infercam.trainer.loop.config import make_config
    from infercam.trainer.segment.predict import (
        SegmentTestConfig,
        score_photos,
        segment_photos,
        write_submission,
    )

    if competition not in ("comp5", "comp6"):
        raise InputError(f"--competition is comp5 or comp6, not {competition!r}")
    settings = make_config(
        SegmentTestConfig, config, scales=scales and numbers("--scales", scales), mirror=mirror
    )
    settings = with_crf(settings, crf)
    photos = open_photos(
        voc=voc, split=split, images=images, coco=coco, list_file=list_file, root=root, limit=limit
    )
    done = segment_photos(
        photos,
        checkpoint,
        out,
        settings,
        class_names=_names(classes),
        output_stride=output_stride,
        device=accelerator or "auto",
        threads=threads,
        workers=pool_size(workers, settings.crf),
    )
    report(done, "segment-test", out)
    scored = score_photos(photos, out, split or "all")
    if scored is not None:
        report_labels(scored, json_file)
    elif json_file is not None:
        raise InputError("--json: nothing to write, the photos have no ground truth")
    if submission is not None:
        archive = write_submission(photos, out, submission, f"{competition}_test_cls")
        typer.echo(f"for VOC's evaluation server: {archive}")


def open_validation(
    voc: Path | None, split: str | None, images: Path | None, masks: Path | None, limit: int | None
) -> Validation | None:
    """What the --val options name; None without any. Raises InputError where they do not go together."""
    from infercam.engine.common.errors import InputError
    from infercam.trainer.segment.stage import Validation

    if split is not None and voc is not None and images is None and masks is None:
        photos = open_photos(voc=voc, split=split, limit=limit)
        return Validation(photos, photos.mask_path)
    if images is not None and masks is not None and split is None:
        return Validation(open_photos(images=images, limit=limit), lambda item_id: masks / f"{item_id}.png")
    if split is None and images is None and masks is None:
        return None
    raise InputError("validation: give --voc ROOT --val-split NAME, or --val-images DIR --val-masks DIR")


def _names(file: Path | None) -> list[str] | None:
    from infercam.engine.data.class_names import read_classes

    return None if file is None else read_classes(file)


def numbers(option: str, text: str) -> list[float]:
    from infercam.engine.common.errors import InputError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: write numbers separated by commas") from None
