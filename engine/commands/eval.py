"""`infercam eval`: options and progress. The work is in evaluation/."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from infercam.engine.common.atomic import write_json
from infercam.engine.common.errors import InputError
from infercam.engine.common.options import options
from infercam.engine.common.progress import counting_bar
from infercam.engine.data.class_names import read_classes
from infercam.engine.evaluation.evaluate import (
    MISSING,
    EvalResult,
    GroundTruth,
    add_intervals,
    evaluate_store,
)
from infercam.engine.evaluation.evaluate_labels import evaluate_labels, holds_labels
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.evaluation.plots import check_plot, plot_evaluation
from infercam.engine.evaluation.tables import print_labels, print_maps
from infercam.engine.explanations.evaluate import ExplanationSettings, score_explanations
from infercam.engine.explanations.table import print_explanations
from infercam.engine.inputs import GroundTruthSettings, SourceSettings
from infercam.engine.store.open_maps import open_maps


def register(app: typer.Typer) -> None:
    app.command("eval")(eval_command)


@options
def eval_command(
    out: Annotated[Path, typer.Argument(help="A map store, or a folder of label PNGs.", show_default=False)],
    ground_truth: GroundTruthSettings,
    source: SourceSettings,
    explanations: ExplanationSettings,
    format: Annotated[
        str | None,
        typer.Option("--format", help="psa or irn: read these pickled maps (restricted unpickler)."),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Class names, for folders of other tools: a file, voc or coco (default voc)."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw curves and classes to this .png, .pdf or .svg.")
    ] = None,
    min_images: Annotated[
        int, typer.Option(min=1, help="Also average only classes in at least so many images.")
    ] = 7,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples of the images for the intervals; 0: none.")
    ] = 1000,
    missing: Annotated[
        str, typer.Option(help="Images without maps: error, skip, or zero activation.")
    ] = "error",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes; 0: one per core, or one for a short list.")
    ] = 0,
) -> None:
    """Score maps or labels against ground truth: mIoU, per class, by classes per image; or maps by other metrics.

    Of maps, the best mIoU over background thresholds. Of labels, PNGs of class indices, the mIoU as they are;
    pixels that they leave open (255) are not scored.
    """
    if missing not in MISSING:
        raise InputError(f"--missing is one of {', '.join(MISSING)}, not {missing!r}")
    if plot is not None:
        check_plot(plot)
    if explanations.metrics():
        store = open_maps(out, format, classes)
        with counting_bar() as bar:
            watch = partial(_watching, bar)
            found = score_explanations(
                store, explanations, ground_truth, source, missing=missing, watching=watch
            )
        print_explanations(found, json_file)
        return
    explanations.refuse_what_miou_leaves_alone(source)
    truth = ground_truth.open()
    how: dict[str, Any] = {
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
            scored = evaluate_labels(labels, truth, classes=names, progress=progress, **how)
        _resample(scored.scores, bootstrap)
        print_labels(scored, json_file)
        return
    store = open_maps(out, format, classes)
    with _counting(truth) as progress:
        result = evaluate_store(store, truth, progress=progress, **how)
    _resample(result, bootstrap)
    if json_file is not None:
        write_json(json_file, result.to_json())
    if plot is not None:
        plot_evaluation(result, plot)
    print_maps(result)


@contextmanager
def _counting(truth: GroundTruth) -> Iterator[Callable[[int], None]]:
    with counting_bar() as bar:
        task = bar.add_task("counting", total=len(truth.pairs))
        yield lambda n: bar.advance(task, n)


def _watching(bar: Progress, images: int) -> Callable[[], None]:
    return partial(bar.advance, bar.add_task("measuring", total=images), 1)


def _resample(result: EvalResult, resamples: int) -> None:
    if resamples:
        with counting_bar("resamples") as bar:
            task = bar.add_task("resampling", total=resamples)
            add_intervals(result, resamples, progress=lambda n: bar.advance(task, n))
