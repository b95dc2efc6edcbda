"""Quality and cost of every recipe and mode on a set with ground truth: the README's table.

    python -m infercam.benchmarks.quality BUNDLE --voc ROOT --split val --labels labels.json -o DIR

Map stores are kept in DIR and resumed; seconds are those of the run that made them, alone on the machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infercam.benchmarks.common import write_result
from infercam.engine.api import Engine
from infercam.engine.data.labels import Labels, load_labels
from infercam.engine.data.sources import Source, voc_source
from infercam.engine.evaluation.evaluate import (
    EvalResult,
    GroundTruth,
    compare,
    evaluate_store,
    voc_ground_truth,
)
from infercam.engine.method.recipe import MODES, RECIPES, Mode, Recipe
from infercam.engine.run.run import Run
from infercam.engine.store.mapstore import MapStore

SAME_AS_ANOTHER = (
    ("corrected", "split"),  # one iteration erases nothing, so the mended quirks do not show: released's
    ("fast", "split"),  # nothing is split: the first pass alone
    ("best", "split"),
    ("fast", "erase"),  # the same as both
    ("best", "erase"),
)
console = Console(stderr=True, highlight=False)


def main(
    bundle: Annotated[Path, typer.Argument(help="bundle made by infercam export")],
    voc: Annotated[Path, typer.Option(help="VOC tree")],
    labels: Annotated[str, typer.Option(help="label file")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the map stores")],
    split: Annotated[str, typer.Option(help="split of the VOC tree")] = "val",
    recipes: Annotated[str, typer.Option(help="which, separated by commas")] = ",".join(RECIPES),
    modes: Annotated[str, typer.Option(help="which, separated by commas")] = "split,erase,both",
    limit: Annotated[int | None, typer.Option(min=1)] = None,
    ladder: Annotated[
        bool | None,
        typer.Option(help="View sizes from the ladder, or exact ones; default: as the recipe has it."),
    ] = None,
    name: Annotated[str, typer.Option(help="results/NAME.json")] = "quality",
) -> None:
    """Run, evaluate and compare; prints a table and writes results/NAME.json."""
    source = voc_source(voc, split)
    source = source[:limit] if limit else source
    truth = voc_ground_truth(voc, split)
    truth = GroundTruth(truth.pairs[: len(source)], truth.masks, truth.split)
    with Engine.load(bundle) as engine:
        table = load_labels(labels, engine.manifest.classes, voc_root=voc)
        base = _one(engine, source, table, truth, out, _exact(RECIPES["released"]), "baseline")
        rows = [_row(base, base)]
        if ladder:
            on_ladder = _one(engine, source, table, truth, out, _chosen("released", ladder), "baseline")
            rows.append(_row(on_ladder, base))
        wanted = [m for m in MODES if m in modes.split(",") and m != "baseline"]
        for recipe in recipes.split(","):
            for mode in [m for m in wanted if (recipe, m) not in SAME_AS_ANOTHER]:
                one = _one(engine, source, table, truth, out, _chosen(recipe, ladder), mode)
                rows.append(_row(one, base))
                console.print(_line(rows[-1]))
    _print(rows, len(source), truth)
    write_result(name, {"images": len(source), "split": split, "ground_truth": "VOC masks", "rows": rows})


def _exact(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"ladder": False})


def _chosen(name: str, ladder: bool | None) -> Recipe:
    return RECIPES[name] if ladder is None else RECIPES[name].model_copy(update={"ladder": ladder})


def _one(
    engine: Engine, source: Source, labels: Labels, truth: GroundTruth, out: Path, recipe: Recipe, mode: Mode
) -> tuple[Recipe, Mode, dict[str, Any], EvalResult]:
    folder = out / f"{recipe.name}-{mode}{'-ladder' if recipe.ladder else ''}"
    record = folder / "run.json"
    run = Run(engine, source, labels, folder, recipe=recipe, mode=mode)
    summary = run()
    if summary.done:
        record.write_text(summary.to_json(), encoding="utf-8")
    result = evaluate_store(MapStore.open(folder), truth, workers=1, bootstrap=1000)
    return recipe, mode, json.loads(record.read_text(encoding="utf-8")), result


def _row(
    one: tuple[Recipe, Mode, dict[str, Any], EvalResult],
    base: tuple[Recipe, Mode, dict[str, Any], EvalResult],
) -> dict[str, Any]:
    recipe, mode, run, result = one
    gain = compare(base[3], result)
    frequent = result.frequent or result.all
    return {
        "recipe": recipe.name,
        "mode": mode,
        "ladder": recipe.ladder,
        "miou_all": result.all.miou,
        "miou_frequent": frequent.miou,
        "threshold": frequent.threshold,
        "gain_all": gain["all"].difference,
        "gain_all_std": gain["all"].interval.std,
        "gain_frequent": gain["frequent"].difference,
        "gain_frequent_std": gain["frequent"].interval.std,
        "active_share": result.active_share,
        "groups": {k: g.own.miou for k, g in result.groups.items()},
        "seconds_per_image": run["seconds"] / run["done"],
        "overhead": (run["seconds"] / run["done"]) / (base[2]["seconds"] / base[2]["done"]),
        "cost": (run["network_pixels"] / run["done"]) / (base[2]["network_pixels"] / base[2]["done"]),
        "iterations": run["mean_iterations"],
        "bytes_per_image": run["map_bytes"] / run["done"],
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['recipe']:10s} {row['mode']:8s} mIoU {100 * row['miou_all']:.1f} all, "
        f"{100 * row['miou_frequent']:.1f} frequent ({100 * row['gain_frequent']:+.1f} ± "
        f"{100 * row['gain_frequent_std']:.1f}), cost {row['cost']:.2f}, "
        f"{row['seconds_per_image']:.2f} s an image, {row['overhead']:.2f} x baseline"
    )


def _print(rows: list[dict[str, Any]], images: int, truth: GroundTruth) -> None:
    table = Table(title=f"{images} images, {truth.split}; best mIoU against {truth.masks}")
    for heading in ("recipe", "mode", "mIoU all", "mIoU ≥ 7 images", "gain", "cost", "s / image", "overhead"):
        table.add_column(heading, justify="left" if heading in ("recipe", "mode") else "right")
    for r in rows:
        table.add_row(
            r["recipe"],
            r["mode"],
            f"{100 * r['miou_all']:.1f}",
            f"{100 * r['miou_frequent']:.1f} @ {r['threshold']:.2f}",
            f"{100 * r['gain_frequent']:+.1f} ± {100 * r['gain_frequent_std']:.1f}",
            f"{r['cost']:.2f}",
            f"{r['seconds_per_image']:.2f}",
            f"{r['overhead']:.2f}",
        )
    Console().print(table)
