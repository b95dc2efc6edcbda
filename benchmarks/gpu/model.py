"""What a GPU would do, from what one did: the batches that the scheduler forms, times measured rates and cold costs.

    python -m infercam.benchmarks.gpu.model --sizes FILE --recipe R [--ladder] --json OUT

FILE: a JSON list of [height, width, number of classes]. OUT: `sizes` (distinct height x width), `distinct_batches`
(views, height, width), `views_per_batch`, `mpx_per_batch`, `waste` (share of blank pixels), all of a runtime that
keeps every shape ready; and `predicted`, images/s by runtime and how often it prepares a shape: a prediction, from
rates_h100.json; it never stands in a table of measurements.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console

from infercam.benchmarks.common import run_command
from infercam.engine.bundle import Bundle, FileEntry, Manifest
from infercam.engine.common.atomic import write_json
from infercam.engine.common.errors import InputError
from infercam.engine.common.paths import read_text
from infercam.engine.common.validation import first_problem
from infercam.engine.method.recipe import MODES, Mode, Recipe, checked_mode, recipe
from infercam.engine.runners.plan import Shape
from infercam.export.plan.profiles import DEVICE_LIMITS, ImageSize, Simulated, simulate

RATES = Path(__file__).with_name("rates_h100.json")
console = Console(stderr=True, highlight=False)


class RuntimeRates(BaseModel):
    """Of one runtime over one network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: float = Field(ge=0, description="seconds for a (views, height, width) that was never run")
    again: float = Field(ge=0, description="seconds for one that was run before and is not ready any more")
    keeps: int = Field(default=0, ge=0, description="shapes that stay ready; 0: all")
    rates: list[tuple[int, int, int, float]] = Field(
        min_length=1, description="(views, height, width) and TFLOP/s, warm"
    )

    def seconds(self, shape: Shape, flop_per_pixel: float) -> float:
        """Of one warm batch: the rate is interpolated over the batch's pixels."""
        pixels = shape[0] * shape[1] * shape[2]
        known = sorted((n * h * w, rate) for n, h, w, rate in self.rates)
        rate = np.interp(pixels, [p for p, _ in known], [r for _, r in known])
        # Below the smallest that was measured a batch takes as long as that one: it is launches that cost.
        return flop_per_pixel * max(pixels, known[0][0]) / (float(rate) * 1e12)


class MeasuredRates(BaseModel):
    """rates_h100.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    date: str
    network: str
    flop_per_pixel: float
    how: str
    runtimes: dict[str, RuntimeRates]


def read_rates(file: Path = RATES) -> MeasuredRates:
    """Raises InputError for a file that holds no rates."""
    try:
        return MeasuredRates.model_validate_json(read_text(file))
    except ValidationError as e:
        raise InputError(f"{file}: {first_problem(e)}") from None


def read_sizes(file: Path) -> list[ImageSize]:
    """Raises InputError for what is no list of [height, width, number of classes]."""
    try:
        rows = json.loads(read_text(file))
        sizes = [ImageSize(str(i), *map(int, row)) for i, row in enumerate(rows) if len(row) == 3]
    except (ValueError, TypeError) as e:
        raise InputError(f"{file}: not a JSON list of [height, width, number of classes]: {e}") from None
    if not sizes or len(sizes) < len(rows):
        raise InputError(
            f"{file}: every entry is [height, width, number of classes], and there is at least one"
        )
    bad = next((s for s in sizes if min(s.height, s.width, s.classes or 0) < 1), None)
    if bad is not None:
        raise InputError(f"{file}: entry {bad.id}: height, width and classes are at least 1")
    return sizes


def simulated(sizes: Sequence[ImageSize], chosen: Recipe, mode: Mode = "both", keeps: int = 0) -> Simulated:
    """The batches that a GPU's scheduler forms of images of those sizes, for a network that takes any, with a runtime
    that keeps so many shapes ready (0: all)."""
    most = max(s.classes or 1 for s in sizes)
    manifest = Manifest(
        name="simulated",
        classes=[f"class {i}" for i in range(most)],
        stride=8,
        bias=[0.0] * most,
        graphs={"fp32": "none.onnx"},
        files={"none.onnx": FileEntry(sha256="0" * 64, size=0)},
    )
    limits = replace(DEVICE_LIMITS, keeps=keeps)
    return simulate(Bundle(Path("simulated"), manifest), sizes, chosen, mode, limits)


def simulations(
    sizes: Sequence[ImageSize], chosen: Recipe, mode: Mode, rates: MeasuredRates
) -> dict[int, Simulated]:
    """By the number of shapes that stay ready: every runtime's, and 0. Each is seconds of work, and done once."""
    return {
        keeps: simulated(sizes, chosen, mode, keeps)
        for keeps in {0, *(runtime.keeps for runtime in rates.runtimes.values())}
    }


def predicted(
    images: int, by_keeps: Mapping[int, Simulated], rates: MeasuredRates
) -> dict[str, dict[str, float]]:
    """By runtime: images/s `cold`, every shape prepared on the way, and `warm`, all that it keeps ready beforehand;
    and how often it prepares a shape. by_keeps: what `simulations` gave for so many images."""
    out = {}
    for name, runtime in rates.runtimes.items():
        found = by_keeps[runtime.keeps]
        arithmetic = sum(n * runtime.seconds(s, rates.flop_per_pixel) for s, n in found.shapes.items())
        returns = (found.prepared - len(found.shapes)) * runtime.again
        cold = arithmetic + returns + len(found.shapes) * runtime.first
        ready = min(runtime.keeps or len(found.shapes), len(found.shapes))
        warm = arithmetic + (found.prepared - ready) * runtime.again
        rate = {"cold": round(images / cold, 3), "warm": round(images / warm, 3)}
        out[name] = rate | {"prepared": found.prepared}
    return out


def report(sizes: Sequence[ImageSize], chosen: Recipe, mode: Mode, rates: MeasuredRates) -> dict[str, Any]:
    """What OUT holds."""
    by_keeps = simulations(sizes, chosen, mode, rates)
    found = by_keeps[0]
    s = found.stats
    return {
        "recipe": chosen.name,
        "mode": mode,
        "ladder": chosen.ladder,
        "images": len(sizes),
        "sizes": len({shape[1:] for shape in found.shapes}),
        "distinct_batches": len(found.shapes),
        "batches": s.batches,
        "changes": found.changes,
        "views_per_batch": round(s.views / s.batches, 3),
        "mpx_per_batch": round(s.pixels / s.batches / 1e6, 4),
        "waste": round(s.blank_pixels / (s.pixels + s.blank_pixels), 4),
        "predicted": predicted(len(sizes), by_keeps, rates),
        "predicted_from": f"{rates.device}, {rates.date}; {rates.network}",
    }


def main(
    sizes: Annotated[Path, typer.Option(help="JSON list of [height, width, number of classes].")],
    recipe_name: Annotated[str, typer.Option("--recipe", help="paper, released, corrected, fast, best.")],
    ladder: Annotated[bool, typer.Option("--ladder", help="View sizes from the ladder.")] = False,
    mode: Annotated[str, typer.Option(help=f"{', '.join(MODES)}.")] = "both",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    rates: Annotated[Path, typer.Option(help="Measured rates and cold costs.")] = RATES,
) -> None:
    """Simulate the batches of a GPU, and predict its images/s from measured rates."""
    chosen = recipe(recipe_name, ladder=True) if ladder else recipe(recipe_name)
    found = report(read_sizes(sizes), chosen, checked_mode(mode), read_rates(rates))
    if json_file is not None:
        write_json(json_file, found)
    for name, value in found.items():
        console.print(f"{name}: {json.dumps(value)}", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
