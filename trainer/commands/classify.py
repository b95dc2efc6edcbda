"""`infercam classify`: options of the classifier's training. The work is in classify.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infercam.trainer.commands.source_options import (
    CocoOption,
    ImagesOption,
    LabelsOption,
    LimitOption,
    ListOption,
    RootOption,
    SplitOption,
    VocOption,
    class_names,
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
    from infercam.trainer.classify.stage import ClassifyConfig
    from infercam.trainer.photos.photos import Photos

DEMO_SCENES, DEMO_VALIDATION = 3000, 300


def register(app: typer.Typer) -> None:
    app.command("classify")(classify_command)


def classify_command(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run; made, or gone on with.")],
    voc: VocOption = None,
    split: SplitOption = None,
    images: ImagesOption = None,
    coco: CocoOption = None,
    list_file: ListOption = None,
    root: RootOption = None,
    labels: LabelsOption = None,
    limit: LimitOption = None,
    val_split: Annotated[
        str | None, typer.Option(help="Split of the VOC tree whose mAP is told after each epoch.")
    ] = None,
    val_list: Annotated[Path | None, typer.Option(help="The same from a list, relative to --root.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one a line (default: the label file's, else VOC's).")
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="The demo's classifier, on scenes drawn in OUT.")
    ] = False,
    scenes: Annotated[int, typer.Option(min=8, help="With --demo: training scenes.")] = DEMO_SCENES,
    val_scenes: Annotated[int, typer.Option(min=8, help="With --demo: validation.")] = DEMO_VALIDATION,
    arch: Annotated[
        str | None, typer.Option(help="resnet38 (default), resnet50, mobilenetv2, or small.")
    ] = None,
    weights: WeightsOption = None,
    random: RandomOption = False,
    augment: Annotated[str | None, typer.Option(help="plain (default) or split-unite.")] = None,
    centres: Annotated[
        Path | None,
        typer.Option(help="Map store whose centres cut the tiles (default: the classifier's own maps)."),
    ] = None,
    tiles: Annotated[
        str | None, typer.Option(help="Tiles of 3 or more classes: released (default) or paper.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle to write (default: OUT/bundle).")] = None,
    config: ConfigOption = None,
    epochs: EpochsOption = None,
    batch: BatchOption = None,
    rate: RateOption = None,
    crop: CropOption = None,
    long_side: Annotated[
        str | None, typer.Option(help="Longer side before the crop: LOW,HIGH pixels.")
    ] = None,
    seed: SeedOption = None,
    precision: PrecisionOption = None,
    accelerator: AcceleratorOption = None,
    devices: DevicesOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, NAME=JSON; may be repeated.")
    ] = None,
) -> None:
    """Train a multi-label classifier on image-level labels and export it as a bundle.

    Run it again to go on after a stop. With `--augment split-unite` four in five training pictures are tiles,
    cut as the inference cuts them (see the paper's table 4).
    """
    from infercam.engine.common.errors import InputError
    from infercam.trainer.classify.classify import classify
    from infercam.trainer.classify.stage import usual_config

    changes: dict[str, Any] = {
        "arch": "small" if demo and arch is None else arch,
        "augment": augment,
        "split": tiles,
        "epochs": epochs,
        "batch": batch,
        "rate": rate,
        "crop": crop,
        "long_side": long_side and _two("--long-side", long_side),
        "seed": seed,
        "precision": precision,
        "accelerator": accelerator,
        "devices": devices,
        "workers": workers,
        "threads": threads,
        **_others(change),
    }
    chosen = usual_config(config, **changes)
    source = {
        "voc": voc,
        "split": split,
        "images": images,
        "coco": coco,
        "list_file": list_file,
        "root": root,
    }
    if demo:
        if any(source.values()) or labels or val_split or val_list or classes:
            raise InputError("--demo draws its own images; give no other source, labels or classes")
        names, photos, held_out = _demo(out, scenes, val_scenes)
    else:
        names = class_names(classes, labels)
        photos = open_photos(**source, labels=labels, classes=names, limit=limit)
        held_out = _validation(voc, val_split, val_list, root, labels, names)
    result = classify(
        photos,
        out,
        chosen,
        names,
        weights=weights,
        random=random,
        validation=held_out,
        centres=centres,
        bundle=bundle,
    )
    _report(result.ap, result.mean_ap, result.bundle, result.exported_epoch, chosen)


def _demo(out: Path, scenes: int, val_scenes: int) -> tuple[list[str], Photos, Photos]:
    """Class names, training and validation photos of the demo's scenes."""
    from infercam.engine.demo.scenes import CLASS_NAMES
    from infercam.trainer.classify.scene_tree import TRAIN_SEED, VALIDATION_SEED, scene_tree

    found = []
    for name, count, seed in (("train", scenes, TRAIN_SEED), ("val", val_scenes, VALIDATION_SEED)):
        tree = scene_tree(out / "scenes" / name, count, seed)
        found.append(open_photos(voc=tree, split="train", labels=tree / "labels.json", classes=CLASS_NAMES))
    return list(CLASS_NAMES), *found  # type: ignore[return-value]


def _validation(
    voc: Path | None,
    split: str | None,
    list_file: Path | None,
    root: Path | None,
    labels: str | None,
    names: list[str],
) -> Photos | None:
    if split is not None:
        return open_photos(voc=voc, split=split, labels=labels, classes=names)
    if list_file is not None:
        return open_photos(list_file=list_file, root=root or voc, labels=labels, classes=names)
    return None


def _two(option: str, text: str) -> list[int]:
    from infercam.engine.common.errors import InputError

    try:
        low, high = (int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text}: write two whole numbers, LOW,HIGH") from None
    return [low, high]


def _others(change: list[str] | None) -> dict[str, Any]:
    from infercam.engine.common.errors import InputError

    out: dict[str, Any] = {}
    for text in change or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: write NAME=VALUE")
        try:
            out[name] = json.loads(value)
        except ValueError:
            out[name] = value
    return out


def _report(
    ap: dict[str, float], mean: float | None, bundle: str, epoch: int, config: ClassifyConfig
) -> None:
    from rich.console import Console
    from rich.table import Table

    out = Console(highlight=False)
    if ap:
        table = Table(box=None, pad_edge=False)
        table.add_column("average precision (%)")
        table.add_column("", justify="right")
        for name, value in ap.items():
            table.add_row(name, f"{100 * value:.1f}")
        table.add_row("mean", f"{100 * (mean or 0):.1f}")
        out.print(table)
    out.print(f"epoch {epoch} of {config.epochs} -> {bundle}", soft_wrap=True, markup=False)
