"""The picture of an evaluation (`infercam eval --plot`); needs matplotlib."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError, MissingExtra, StoreError
from infercam.engine.evaluation.histogram import STEPS
from infercam.engine.evaluation.scores import EvalResult

FORMATS = (".png", ".pdf", ".svg")


def plot_evaluation(result: EvalResult, file: str | os.PathLike[str]) -> None:
    """Write mIoU against the threshold, and the IoU of every class, side by side; PNG, PDF or SVG.

    Raises MissingExtra without matplotlib, InputError for another suffix, StoreError where it cannot be
    written.
    """
    check_plot(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = np.flatnonzero(~np.isnan(result.iou))
    # A figure of its own, not pyplot: no global state, no display.
    figure = Figure(figsize=(12, max(4.0, 1.2 + 0.24 * len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _curves(left, result)
    _bars(right, result, rows)
    figure.suptitle(f"{result.images} images of {result.split or 'the list'} against {result.ground_truth}")
    try:
        with atomic_write(file) as out:
            figure.savefig(out, format=Path(file).suffix[1:].lower(), dpi=120)
    except OSError as e:
        raise StoreError(f"{file}: cannot be written: {e.strerror or e}") from None


def check_plot(file: str | os.PathLike[str]) -> None:
    """Raise now what `plot_evaluation` would raise after the evaluation."""
    if Path(file).suffix.lower() not in FORMATS:
        raise InputError(f"{file}: a plot is written as {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "--plot") from None


def _curves(axes: Any, result: EvalResult) -> None:
    thresholds = np.arange(STEPS) / STEPS
    lines = {"all classes": (result.all, "-", 2.0)}
    if result.frequent is not None:
        lines[f"classes in at least {result.min_images} images"] = (result.frequent, "-", 2.0)
    for name, group in result.groups.items():
        classes = "class" if name == "1" else "classes"
        lines[f"images with {name} {classes} ({group.images})"] = (group.own, "--", 1.0)
    for name, (score, style, width) in lines.items():
        label = f"{name}: {100 * score.miou:.1f} at {score.threshold:.2f}"
        (line,) = axes.plot(thresholds, 100 * score.curve, style, lw=width, label=label)
        axes.plot(score.threshold, 100 * score.miou, "o", ms=4, color=line.get_color())
    axes.set(xlabel="background threshold", ylabel="mean IoU (%)", xlim=(0, 1), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _bars(axes: Any, result: EvalResult, rows: np.ndarray) -> None:
    names = [f"{result.label_names[r]} ({result.images_with[r]})" for r in rows]
    axes.barh(range(len(rows)), 100 * result.iou[rows], color="tab:blue")
    axes.set_yticks(range(len(rows)), names, fontsize="small")
    axes.invert_yaxis()
    axes.set(xlabel=f"IoU (%) at threshold {result.all.threshold:.2f}", xlim=(0, 100))
    axes.grid(axis="x", alpha=0.3)
