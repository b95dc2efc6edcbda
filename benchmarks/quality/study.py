"""Cost against quality, lever by lever: how `fast` and `best` were found (on training images, never on val).

    python -m infercam.benchmarks.quality.study BUNDLE --voc ROOT --split train --labels labels.json --every 2

Each row changes what its name says. Cost is network pixels in units of the 8-view baseline CAM; seconds are
measured apart, on a few images, without the cache that lets rows share their network passes. Writes
results/NAME.json and results/NAME.png.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console

from infercam.benchmarks.common import RESULTS, write_result
from infercam.benchmarks.quality.cached import CachedCpuBackend
from infercam.engine.api import Engine
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import MissingExtra
from infercam.engine.data.images import read_image
from infercam.engine.data.labels import load_labels
from infercam.engine.data.sources import voc_source
from infercam.engine.evaluation.evaluate import (
    EvalResult,
    JointHistogram,
    compare,
    read_mask,
    summarise,
    voc_ground_truth,
)
from infercam.engine.method.recipe import RECIPES, Mode, Recipe, recipe

console = Console(stderr=True, highlight=False)
TIMED = 5

PLAIN: dict[str, Any] = {"scales": (1.0, 0.5, 1.5, 2.0), "mirror": False}
SMALL: dict[str, Any] = {"scales": (1.0, 0.5), "mirror": True}
OVERLAP: dict[str, Any] = {"overlap": 0.15, "snap": 64}
HONEST: dict[str, Any] = {"iterations": 2, "peak_floor": 1.0, "accumulate": "mean", "peak_quantile": 0.99}


class StudyRow(NamedTuple):
    name: str
    recipe: Recipe
    mode: Mode


def rows() -> list[StudyRow]:
    """The ladder: each group starts from a known recipe and changes one thing at a time."""

    def row(name: str, mode: Mode, base: str = "corrected", **changes: Any) -> StudyRow:
        return StudyRow(name, recipe(base, **changes), mode)

    return [
        row("baseline, 8 views", "baseline"),
        row("baseline, no mirror", "baseline", views=PLAIN),
        row("baseline, scales 0.5 and 1", "baseline", views=SMALL),
        row("baseline, peak at the 0.99 quantile", "baseline", peak_quantile=0.99),
        row("released", "both", "released"),
        row("corrected", "both"),
        row("corrected, 2 iterations", "both", iterations=2),
        row("split", "split"),
        row("split, overlap 15 %, snapped to 64", "split", **OVERLAP),
        row("... mean with the whole image", "split", **OVERLAP, whole="mean"),
        row("... max with the whole image", "split", **OVERLAP, whole="max"),
        row("... mean, peak floor 0.7", "split", **OVERLAP, whole="mean", peak_floor=0.7),
        row(
            "... mean, centre from one view",
            "split",
            **OVERLAP,
            whole="mean",
            centre_views={"scales": (0.5,), "mirror": False},
        ),
        row("... mean, probe 0.3", "split", **OVERLAP, whole="mean", probe=0.3),
        row("erase, 5 iterations", "erase"),
        row("erase, 2 iterations", "erase", iterations=2),
        row("... peak floor 1", "erase", iterations=2, peak_floor=1.0),
        row("... and mean of the iterations", "erase", iterations=2, peak_floor=1.0, accumulate="mean"),
        row("... and peak at the 0.99 quantile", "erase", **HONEST),
        row("... and 3 iterations", "erase", **{**HONEST, "iterations": 3}),
        row("... 2 iterations, no mirror", "erase", **HONEST, views=PLAIN),
        row(
            "... and scales 0.5, 1, 1.5 after the first",
            "erase",
            **HONEST,
            views=PLAIN,
            later_views={"scales": (1.0, 0.5, 1.5), "mirror": False},
        ),
        row(
            "... and scales 0.5, 1 after the first",
            "erase",
            **HONEST,
            views=PLAIN,
            later_views={"scales": (1.0, 0.5), "mirror": False},
        ),
        row(
            "... beside tiles (mean 0.3)",
            "both",
            **HONEST,
            views=PLAIN,
            **OVERLAP,
            whole="mean",
            whole_weight=0.7,
            whole_iterations=2,
        ),
        *(StudyRow(name, RECIPES[name], "both") for name in ("fast", "best") if name in RECIPES),
    ]


class StudyData(NamedTuple):
    """Images of the study, with masks; a few hundred fit in memory."""

    items: list[tuple[str, np.ndarray, list[int]]]
    masks: dict[str, np.ndarray]


def main(
    bundle: Annotated[Path, typer.Argument(help="bundle")],
    voc: Annotated[Path, typer.Option(help="VOC tree")],
    labels: Annotated[str, typer.Option(help="label file")],
    split: Annotated[str, typer.Option()] = "train",
    every: Annotated[int, typer.Option(min=1, help="take every so many-th image")] = 2,
    cache: Annotated[Path | None, typer.Option(help="keep the network's answers here (.npz)")] = None,
    only: Annotated[str | None, typer.Option(help="only rows whose name holds this")] = None,
    name: Annotated[str, typer.Option(help="results/NAME.json and .png")] = "study",
) -> None:
    """Run every row, print it against the baseline, write the table and the plot."""
    loaded = Bundle.load(bundle)
    data = _data(loaded, voc, split, labels, every)
    backend = CachedCpuBackend(loaded, cache=cache)
    wanted = rows()
    wanted = wanted[:1] + [r for r in wanted[1:] if only is None or only in r.name]
    out: list[dict[str, Any]] = []
    base: tuple[EvalResult, float] | None = None
    with Engine(loaded, backend) as engine:
        for row in wanted:
            result, pixels = _evaluate(engine, data, row, loaded.manifest.classes)
            base = base or (result, pixels)
            out.append(_figures(row, result, pixels, base))
            console.print(_line(out[-1]))
            backend.save()
    with Engine.load(loaded) as timed:
        for row, figures in zip(wanted, out, strict=True):
            figures["seconds_per_image"] = _seconds(timed, data, row)
            console.print(f"{row.name}: {figures['seconds_per_image']:.2f} s an image")
    content = {"split": split, "every": every, "images": len(data.items), "timed_images": TIMED, "rows": out}
    console.print(f"-> {write_result(name, content)}")
    plot(out, RESULTS / f"{name}.png")


def _data(bundle: Bundle, voc: Path, split: str, labels: str, every: int) -> StudyData:
    table = load_labels(labels, bundle.manifest.classes, voc_root=voc)
    masks = dict(voc_ground_truth(voc, split).pairs)
    items = [(i.id, read_image(i.path), table.lookup(i.id)) for i in list(voc_source(voc, split))[::every]]
    return StudyData(items, {id: read_mask(masks[id]) for id, _, _ in items})


def _evaluate(engine: Engine, data: StudyData, row: StudyRow, classes: list[str]) -> tuple[EvalResult, float]:
    """Figures of a row, and its network pixels."""
    counted = JointHistogram(len(classes))
    for result in engine.stream(data.items, row.recipe, row.mode):
        if result.error is not None:
            raise result.error
        counted.add(result.maps, result.classes, data.masks[result.id], result.id)
    assert engine.scheduler is not None
    return summarise(counted, class_names=classes), engine.scheduler.stats.pixels


def _seconds(engine: Engine, data: StudyData, row: StudyRow) -> float:
    began = time.perf_counter()
    for _ in engine.stream(data.items[:TIMED], row.recipe, row.mode):
        pass
    return (time.perf_counter() - began) / len(data.items[:TIMED])


def _figures(
    row: StudyRow, result: EvalResult, pixels: float, base: tuple[EvalResult, float]
) -> dict[str, Any]:
    gain = compare(base[0], result)
    frequent = result.frequent or result.all
    return {
        "name": row.name,
        "mode": row.mode,
        "recipe": row.recipe.model_dump(mode="json"),
        "cost": pixels / base[1],
        "miou_frequent": frequent.miou,
        "miou_all": result.all.miou,
        "threshold": frequent.threshold,
        "gain_frequent": gain["frequent"].difference,
        "gain_frequent_std": gain["frequent"].interval.std,
        "gain_all": gain["all"].difference,
        "gain_all_std": gain["all"].interval.std,
    }


def _line(r: dict[str, Any]) -> str:
    return (
        f"{r['name']:45s} cost {r['cost']:5.2f}  "
        f"mIoU {100 * r['miou_frequent']:5.2f} ({100 * r['gain_frequent']:+.2f} ± {100 * r['gain_frequent_std']:.2f})"
        f"  all {100 * r['miou_all']:5.2f} ({100 * r['gain_all']:+.2f} ± {100 * r['gain_all_std']:.2f})"
    )


def plot(figures: Sequence[dict[str, Any]], file: Path) -> None:
    """Quality against cost, with the front of what nothing cheaper beats."""
    try:
        import matplotlib
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "the study's plot") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    front: list[dict[str, Any]] = []
    # of equal points the named recipe, which stands last, is the one to label
    for at in sorted(
        range(len(figures)), key=lambda at: (figures[at]["cost"], -figures[at]["miou_frequent"], -at)
    ):
        r = figures[at]
        if not front or r["miou_frequent"] > front[-1]["miou_frequent"]:
            front.append(r)
    axes.plot([r["cost"] for r in front], [100 * r["miou_frequent"] for r in front], "-", color="0.7")
    for r in figures:
        ours = r["name"] in ("fast", "best")
        axes.plot(r["cost"], 100 * r["miou_frequent"], "D" if ours else "o", color="C3" if ours else "C0")
        if r in front or r["name"] in ("released", "corrected", "split", "baseline, 8 views"):
            axes.annotate(
                r["name"],
                (r["cost"], 100 * r["miou_frequent"]),
                fontsize=8,
                xytext=(5, 4),
                textcoords="offset points",
            )
    axes.set_xlabel("cost: network pixels, in 8-view baseline CAMs")
    axes.set_ylabel("best mIoU, %, over classes with 7 images or more")
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
