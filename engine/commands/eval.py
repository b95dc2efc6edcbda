"""`infercam eval`: options, progress, tables. The work is in evaluation/."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.common.progress import counting_bar
from infercam.engine.data.class_names import read_classes
from infercam.engine.evaluation.evaluate import (
    MISSING,
    EvalResult,
    GroundTruth,
    add_intervals,
    evaluate_store,
)
from infercam.engine.evaluation.evaluate_labels import LabelResult, evaluate_labels, holds_labels
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.evaluation.plots import check_plot, plot_evaluation
from infercam.engine.evaluation.scores import Score
from infercam.engine.inputs import GroundTruthSettings
from infercam.engine.store.open_maps import open_maps

_OUT = typer.Argument(help="A map store, or a folder of label PNGs.", show_default=False)
_VOC = typer.Option(None, help="A VOC tree (the folder with JPEGImages, or one above it).")
_SPLIT = typer.Option(None, help="A split of the VOC or COCO tree, for example val or val2014.")
_COCO = typer.Option(None, help="A COCO tree (annotations/instances_SPLIT.json): masks painted from it.")
_GT = typer.Option(None, help="Folder of <id>.png masks instead of the tree's own; alone: all of its masks.")
_FORMAT = typer.Option(None, "--format", help="psa or irn: read these pickled maps (restricted unpickler).")
_CLASSES = typer.Option(
    None, help="Class names, for folders of other tools: a file, voc or coco (default voc)."
)
_JSON = typer.Option(None, "--json", help="Write every figure to this file.")


def register(app: typer.Typer) -> None:
    app.command("eval")(eval_command)


def eval_command(
    out: Path = _OUT,
    voc: Path | None = _VOC,
    split: str | None = _SPLIT,
    coco: Path | None = _COCO,
    gt: Path | None = _GT,
    format: str | None = _FORMAT,
    classes: Path | None = _CLASSES,
    json_file: Path | None = _JSON,
    plot: Path | None = typer.Option(None, help="Draw curves and classes to this .png, .pdf or .svg."),
    min_images: int = typer.Option(7, min=1, help="Also average only classes in at least so many images."),
    bootstrap: int = typer.Option(1000, min=0, help="Resamples of the images for the intervals; 0: none."),
    missing: str = typer.Option("error", help="Images without maps: error, skip, or zero activation."),
    workers: int = typer.Option(0, min=0, help="Processes; 0: one per core, or one for a short list."),
) -> None:
    """Score maps or labels against ground truth: mIoU, per class, by classes per image.

    Of maps, the best mIoU over background thresholds. Of labels, PNGs of class indices, the mIoU as they are;
    pixels that they leave open (255) are not scored.
    """
    if missing not in MISSING:
        raise InputError(f"--missing is one of {', '.join(MISSING)}, not {missing!r}")
    if plot is not None:
        check_plot(plot)
    truth = GroundTruthSettings(voc=voc, coco=coco, split=split, gt=gt).open()
    options: dict[str, Any] = {
        "missing": missing,
        "min_images": min_images,
        "workers": workers or None,
        "keep_images": bootstrap > 0,
    }
    if format is None and holds_labels(out):
        if plot is not None:
            raise InputError("--plot draws curves over thresholds, which labels have not; leave it away")
        labels = LabelFolder.open(out)
        names = None if classes is None else read_classes(classes)
        with _counting(truth) as progress:
            scored = evaluate_labels(labels, truth, classes=names, progress=progress, **options)
        _resample(scored.scores, bootstrap)
        report_labels(scored, json_file)
        return
    store = open_maps(out, format, classes)
    with _counting(truth) as progress:
        result = evaluate_store(store, truth, progress=progress, **options)
    _resample(result, bootstrap)
    _write_json(json_file, result.to_json())
    if plot is not None:
        plot_evaluation(result, plot)
    _report(result)


@contextmanager
def _counting(truth: GroundTruth) -> Iterator[Callable[[int], None]]:
    with counting_bar() as bar:
        task = bar.add_task("counting", total=len(truth.pairs))
        yield lambda n: bar.advance(task, n)


def _resample(result: EvalResult, resamples: int) -> None:
    if resamples:
        with counting_bar("resamples") as bar:
            task = bar.add_task("resampling", total=resamples)
            add_intervals(result, resamples, progress=lambda n: bar.advance(task, n))


def _write_json(file: Path | None, content: dict[str, Any]) -> None:
    if file is None:
        return
    try:
        with atomic_write(file, "w") as f:
            json.dump(content, f, indent=1, allow_nan=False)
            f.write("\n")
    except OSError as e:
        raise StoreError(f"{file}: cannot be written: {e.strerror or e}") from None


def _report(result: EvalResult) -> None:
    console = Console(highlight=False)
    _head(console, result, "maps")
    console.print(_means(result, thresholds=True))
    if result.groups:
        console.print(_groups(result))
    console.print(_classes(result, f" at threshold {result.all.threshold:.2f}"))
    if result.active_share is not None:
        console.print(
            f"object pixels with any activation above 0: {100 * result.active_share:.1f} % "
            f"({result.images} images)",
            soft_wrap=True,
        )


def report_labels(found: LabelResult, json_file: Path | None = None) -> None:
    """Print the figures of labels, and write them all to a file."""
    _write_json(json_file, found.to_json())
    console, result = Console(highlight=False), found.scores
    _head(console, result, "labels")
    console.print(_means(result, thresholds=False))
    if result.groups:
        table = Table(box=None, pad_edge=False)
        _columns(table, "mIoU (%) of images with", "", "labels", "images")
        for name, group in result.groups.items():
            own = group.own
            table.add_row(_group_name(name), f"{100 * own.miou:.2f}", str(len(own.labels)), str(group.images))
        console.print(table)
    console.print(_classes(result, ""))
    console.print(
        f"pixels labelled rightly: {100 * found.pixel_accuracy:.2f} %; left open (255) and not scored: "
        f"{100 * found.ignored_share:.1f} %",
        soft_wrap=True,
    )


def _head(console: Console, result: EvalResult, what: str) -> None:
    skipped = f", {result.missing} without {what}" if result.missing else ""
    console.print(
        f"{result.images} images of {result.split}{skipped}; ground truth: {result.ground_truth}",
        soft_wrap=True,
        markup=False,
    )


def _means(result: EvalResult, thresholds: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    first = "best mIoU (%) over" if thresholds else "mIoU (%) over"
    _columns(table, first, "", "95 % interval", *(["threshold"] if thresholds else []), "labels", "images")

    def row(name: str, score: Score, interval: str) -> None:
        at = [f"{score.threshold:.2f}"] if thresholds else []
        table.add_row(
            name, f"{100 * score.miou:.2f}", interval, *at, str(len(score.labels)), str(result.images)
        )

    row("all classes", result.all, _interval(result, "all"))
    if result.frequent is not None:
        name = f"classes in at least {result.min_images} images"
        row(name, result.frequent, _interval(result, "frequent"))
    return table


def _group_name(name: str) -> str:
    return f"{name} class{'' if name == '1' else 'es'}"


def _columns(table: Table, first: str, *others: str) -> None:
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")


def _groups(result: EvalResult) -> Table:
    table = Table(box=None, pad_edge=False)
    _columns(
        table, "mIoU (%) of images with", f"at {result.all.threshold:.2f}", "best", "at", "labels", "images"
    )
    for name, group in result.groups.items():
        own = group.own
        table.add_row(
            _group_name(name),
            f"{100 * group.at_overall_threshold:.2f}",
            f"{100 * own.miou:.2f}",
            f"{own.threshold:.2f}",
            str(len(own.labels)),
            str(group.images),
        )
    return table


def _interval(result: EvalResult, name: str) -> str:
    found = result.intervals.get(name)
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}" if found else ""


def _classes(result: EvalResult, at: str) -> Table:
    table = Table(box=None, pad_edge=False)
    _columns(table, f"IoU (%){at}", "", "images")
    for label in result.all.labels:
        iou = f"{100 * result.iou[label]:.1f}"
        table.add_row(result.label_names[label], iou, str(int(result.images_with[label])))
    return table
