"""Pictures of a result: quality against cost, the waterfall, the growth; need matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infercam.benchmarks.bench.result import BenchResult, ResultRow
from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import MissingExtra

NAMES = ("quality-cost.png", "waterfall.png", "growth.png")


def plot(result: BenchResult, folder: Path) -> list[Path]:
    """Write those pictures for which there are figures; raises MissingExtra."""
    drawings = dict(zip(NAMES, (_quality, _waterfall, _growth), strict=True))
    return [file for name, draw in drawings.items() if (file := draw(result, folder / name)) is not None]


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure of its own, not pyplot: no global state, no display."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "the plots") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _save(figure: Any, file: Path) -> Path:
    with atomic_write(file) as out:
        figure.savefig(out, format="png", dpi=120)
    return file


def _quality(result: BenchResult, file: Path) -> Path | None:
    """Best mIoU against seconds an image, for the rows that were scored; the front of what nothing cheaper beats."""
    rows = [r for r in result.rows if r.miou is not None and r.seconds_per_image is not None]
    if len(rows) < 2:
        return None
    figure, axes = _figure(9, 5.5)
    for r in rows:
        seconds, quality = _place(r)
        ours = r.name.startswith("engine")
        axes.plot(seconds, quality, "D" if ours else "o", color="C0" if ours else "C1")
        axes.annotate(r.name, (seconds, quality), fontsize=8, xytext=(5, 4), textcoords="offset points")
    front = [p for p in map(_place, rows) if not any(q[0] < p[0] and q[1] >= p[1] for q in map(_place, rows))]
    axes.plot(*zip(*sorted(front), strict=True), "-", color="0.7", zorder=0)
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.set_xlabel("seconds an image, reading and writing included")
    axes.set_ylabel(f"best mIoU, %, {rows[0].miou_images} images")
    axes.set_title(f"{result.subject.bundle} on {result.machine.get('processor', '?')}", fontsize=10)
    axes.grid(alpha=0.3)
    return _save(figure, file)


def _place(r: ResultRow) -> tuple[float, float]:
    assert r.seconds_per_image is not None and r.miou is not None
    return r.seconds_per_image.median, 100 * r.miou


def _waterfall(result: BenchResult, file: Path) -> Path | None:
    measured = [(s.name, s.seconds_per_image) for s in result.waterfall if s.seconds_per_image is not None]
    if len(measured) < 2:
        return None
    figure, axes = _figure(9, 0.8 + 0.5 * len(measured))
    first = measured[0][1].median
    for at, (_, s) in enumerate(measured):
        error = [[s.median - s.low], [s.high - s.median]]
        axes.barh(at, s.median, color="C1" if at == 0 else "C0", xerr=error, ecolor="0.3", capsize=3)
        axes.annotate(f"{s.median:.3g} s, {first / s.median:.1f} ×", (s.high, at), fontsize=8, va="center",
                      xytext=(6, 0), textcoords="offset points")  # fmt: skip
    axes.set_yticks(range(len(measured)), [name for name, _ in measured], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlabel(f"seconds an image, {result.subject.few} image(s); bar: median, whisker: all rounds")
    return _save(figure, file)


def _growth(result: BenchResult, file: Path) -> Path | None:
    measured = [g for g in result.growth if g.exponent is not None]
    if not measured:
        return None
    figure, every = _figure(4 * len(measured), 3.8, len(measured))
    for axes, g in zip(every if len(measured) > 1 else [every], measured, strict=True):
        x = [p.x for p in g.points]
        for p in g.points:
            axes.plot([p.x] * len(p.seconds.all), p.seconds.all, ".", color="C0")
        axes.plot(x, [p.seconds.median for p in g.points], "-", color="C0")
        axes.set(xscale="log", yscale="log", xlabel=g.what.replace(" (", "\n("), ylabel="seconds")
        axes.xaxis.label.set_fontsize(8)
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.set_xticks([], minor=True)
        error = f" ± {g.error:.2f}" if g.error is not None else ""
        axes.set_title(f"exponent {g.exponent:.2f}{error}", fontsize=10)
        axes.grid(alpha=0.3, which="both")
    return _save(figure, file)
