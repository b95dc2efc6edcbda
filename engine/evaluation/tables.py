"""What `infercam eval` prints and writes: tables of maps' and of labels' figures."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from infercam.engine.common.atomic import write_json
from infercam.engine.evaluation.evaluate import EvalResult
from infercam.engine.evaluation.evaluate_labels import LabelResult
from infercam.engine.evaluation.scores import Score


def print_maps(result: EvalResult) -> None:
    console = Console(highlight=False)
    _head(console, result, "maps")
    console.print(_means(result, thresholds=True))
    if result.groups:
        console.print(_groups(result))
    console.print(_classes(result, f" at threshold {result.all.threshold:.2f}"))
    console.print(
        f"object pixels with any activation above 0: {100 * result.active_share:.1f} % ({result.images} images)",
        soft_wrap=True,
    )


def print_labels(found: LabelResult, json_file: Path | None = None) -> None:
    """Print the figures of labels, and write them all to a file."""
    if json_file is not None:
        write_json(json_file, found.to_json())
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
    if result.unlisted:
        share = 100 * result.unlisted / (result.unlisted + result.pixels + result.ignored)
        console.print(
            f"not scored: {result.unlisted} pixels ({share:.1f} %) whose value is not in --gt-values",
            soft_wrap=True,
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
