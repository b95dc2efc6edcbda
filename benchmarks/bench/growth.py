"""How time and memory grow: with the number of images, their area, the classes in each, the iterations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infercam.benchmarks.bench import pictures as lists
from infercam.benchmarks.bench.contestants import Field
from infercam.benchmarks.bench.job import BenchJob
from infercam.benchmarks.bench.pictures import Pictures

RECIPE = "fast"


@dataclass(frozen=True)
class Axis:
    """What is varied, and a job for each value of it."""

    name: Literal["images", "area", "classes", "iterations"]
    what: str
    jobs: dict[float, BenchJob]


def axes(f: Field, pictures: Pictures, folder: Path, counts: Sequence[int], quick: bool) -> list[Axis]:
    """Every axis has four values in a geometric series (three where `quick`); each job is a process of its own, so
    that its peak memory is its own. Prepares the lists and, for the areas, the pictures under `folder`."""
    few = max(1, min(2, f.few))
    return [
        _images(f, pictures, folder, counts),
        _area(f, pictures, folder, few, (0.25, 1, 4) if quick else (0.25, 1, 2, 4)),
        _classes(f, pictures, folder, few, (1, 2, 4) if quick else (1, 2, 4, 8, 16)),
        _iterations(f, few, (1, 2, 4) if quick else (1, 2, 4, 8)),
    ]


def _images(f: Field, pictures: Pictures, folder: Path, counts: Sequence[int]) -> Axis:
    jobs = {}
    for count in sorted(set(counts)):
        listed = _saved(lists.repeated(pictures, count), folder / f"images-{count}")
        jobs[float(count)] = f.engine(count, recipe=RECIPE, **listed)
    return Axis("images", f"images in the list ({RECIPE})", jobs)


def _area(f: Field, pictures: Pictures, folder: Path, few: int, factors: Sequence[float]) -> Axis:
    chosen = pictures.pictures[:few]
    mean = sum(p.height * p.width for p in chosen) / len(chosen)
    jobs = {}
    for factor in factors:
        area = round(mean * factor)
        listed = _saved(lists.resized(pictures, few, area, folder / "area"), folder / f"area-{area}")
        jobs[float(area)] = f.engine(few, recipe=RECIPE, **listed)
    return Axis("area", f"pixels in the image ({RECIPE})", jobs)


def _classes(f: Field, pictures: Pictures, folder: Path, few: int, numbers: Sequence[int]) -> Axis:
    of = len(f.bundle.manifest.classes)
    jobs = {}
    for number in (n for n in numbers if n <= of):
        listed = _saved(lists.relabelled(pictures, few, number, of), folder / f"classes-{number}")
        jobs[float(number)] = f.engine(few, recipe=RECIPE, **listed)
    return Axis("classes", f"classes in the image ({RECIPE})", jobs)


def _iterations(f: Field, few: int, numbers: Sequence[int]) -> Axis:
    """The whole image erased again and again, whether or not anything is newly erased."""
    jobs = {
        float(n): f.engine(
            few, recipe="corrected", mode="erase", changes={"iterations": n, "stop_share": 0.0}
        )
        for n in numbers
    }
    return Axis("iterations", "erase iterations (corrected, whole image, never stopped early)", jobs)


def _saved(pictures: Pictures, folder: Path) -> dict[str, Any]:
    """The list as a job names it."""
    return {"pictures": lists.save(pictures, folder), "digest": pictures.digest}
