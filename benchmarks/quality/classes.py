"""Why `fast` and `best` lose on photos of three and more classes, and what mends it.

    python -m infercam.benchmarks.quality.classes BUNDLE --voc ROOT --labels F --answers DIR

Only the network's answers cost time: they are kept in DIR, the rules combine them. Photos of one class are the same
under every rule, so only the others are inferred; with `--maps STORE` (the recipe's, of all photos) those of one
class come from there and the figures are of the whole set. Writes results/NAME.json.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from infercam.benchmarks.common import write_result
from infercam.benchmarks.quality.responses import ImageResponses, Responses
from infercam.engine.bundle import Bundle
from infercam.engine.data.images import read_image
from infercam.engine.data.labels import load_labels
from infercam.engine.data.sources import voc_source
from infercam.engine.evaluation.evaluate import EvalResult, compare, evaluate, read_mask, voc_ground_truth
from infercam.engine.method.host_ops import compete_in_place, normalise_in_place, peaks
from infercam.engine.method.recipe import RECIPES, Recipe, Views
from infercam.engine.store.mapstore import MapStore

Float = NDArray[np.float32]
Counted = tuple[Float, list[int], NDArray[np.uint8]]
console = Console(stderr=True, highlight=False)


class Passes(NamedTuple):
    """One photo's normalised maps, K×H×W each."""

    baseline: Float
    """8 views on the ladder, not erased."""
    first: Float
    erased: Float
    """After erasing what any class lit up."""
    erased_by_class: Float
    """After erasing what the class itself lit up: a pass for each class."""


RULES: dict[str, Callable[[Passes], Any]] = {
    "baseline": lambda p: p.baseline,
    "as it is": lambda p: (p.first + p.erased) / 2,
    "first pass alone": lambda p: p.first,
    "erased by class": lambda p: (p.first + p.erased_by_class) / 2,
    "maximum of both": lambda p: np.maximum(p.first, p.erased),
    "first pass weighs 3/4": lambda p: (3 * p.first + p.erased) / 4,
    "compete": lambda p: (p.first + compete_in_place(p.erased.copy(), p.first)) / 2,
}


def main(
    bundle: Annotated[Path, typer.Argument(help="bundle")],
    voc: Annotated[Path, typer.Option(help="VOC tree")],
    labels: Annotated[str, typer.Option(help="label file")],
    answers: Annotated[Path, typer.Option(help="folder of the network's answers")],
    split: Annotated[str, typer.Option()] = "train",
    recipe: Annotated[str, typer.Option(help="fast or best")] = "fast",
    maps: Annotated[Path | None, typer.Option(help="the recipe's map store of all photos")] = None,
    min_images: Annotated[int, typer.Option(help="frequent classes: in so many photos")] = 7,
    name: Annotated[str, typer.Option(help="results/NAME.json")] = "classes",
) -> None:
    """Score every rule, print it, write results/NAME.json."""
    loaded = Bundle.load(bundle)
    names = loaded.manifest.classes
    source, table = voc_source(voc, split), load_labels(labels, names, voc_root=voc)
    truth = dict(voc_ground_truth(voc, split).pairs)
    network = Responses(loaded, answers)
    several: list[tuple[Passes, list[int], NDArray[np.uint8]]] = []
    single: list[Counted] = []
    store = None if maps is None else MapStore.open(maps)
    for item in source:
        classes, mask = table.lookup(item.id), read_mask(truth[item.id])
        if len(classes) > 1:
            responses = network.of(item.id, read_image(Path(item.path)), classes)
            several.append((passes(responses, RECIPES[recipe]), classes, mask))
            responses.save()
        elif store is not None:
            single.append((store.read(item.id).maps, classes, mask))
    three = [one for one in several if len(set(np.unique(one[2])) - {0, 255}) > 2]
    parts: dict[str, tuple[list[Any], list[Counted]]] = {
        "photos of several classes": (several, []),
        "of three and more": (three, []),
    }
    if store is not None:
        parts["all photos"] = (several, single)
    rows = [
        row for part, (own, more) in parts.items() for row in _rows(part, own, more, len(names), min_images)
    ]
    write_result(name, {"split": split, "recipe": recipe, "min_images": min_images, "rows": rows})


def passes(responses: ImageResponses, recipe: Recipe) -> Passes:
    """The passes of a recipe that does not split, on the whole photo (engine/method/README.md §3)."""
    total = responses.total(recipe.views)
    peak = peaks(total, recipe.peak_quantile)
    floor = recipe.peak_floor * peak / np.float32(recipe.views.count) * np.float32(recipe.later().count)
    first = normalise_in_place(total, 0.0, peak)
    reached = first >= np.float32(recipe.threshold)

    def again(erased: Any) -> Float:
        found = responses.total(recipe.later(), erased)
        return normalise_in_place(found, floor, peaks(found, recipe.peak_quantile))

    own = np.stack([again(mask)[k] for k, mask in enumerate(reached)])
    plain = responses.total(Views())
    return Passes(normalise_in_place(plain, 0.0, peaks(plain)), first, again(reached.any(axis=0)), own)


def _rows(
    part: str,
    photos: list[tuple[Passes, list[int], NDArray[np.uint8]]],
    more: list[Counted],
    n_classes: int,
    min_images: int,
) -> list[dict[str, Any]]:
    found: dict[str, EvalResult] = {}
    out = []
    for rule, combined in RULES.items():
        counted = [(combined(p), classes, mask) for p, classes, mask in photos]
        result = found[rule] = evaluate([*counted, *more], n_classes, min_images=min_images)
        row: dict[str, Any] = {
            "photos": part,
            "count": result.images,
            "rule": rule,
            "miou_all": result.all.miou,
        }
        row["miou_frequent"] = result.frequent and result.frequent.miou
        row["groups"] = {k: g.own.miou for k, g in result.groups.items()}
        row["groups_at_common_threshold"] = {k: g.at_overall_threshold for k, g in result.groups.items()}
        for other in ("baseline", "as it is"):
            if other in found and other != rule:
                gains = compare(found[other], result)
                row[f"over {other}"] = {k: [d.difference, d.interval.std] for k, d in gains.items()}
        out.append(row)
        console.print(f"{part}, {rule}: {100 * result.all.miou:.2f} all labels", row["groups"])
    return out


if __name__ == "__main__":
    typer.run(main)
