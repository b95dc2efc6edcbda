"""Seconds an image and peak memory against the number of images: both should be flat.

    python -m infercam.benchmarks.scaling BUNDLE --voc ROOT --labels labels.json --counts 50,200,1000

Longer lists repeat the split's images under other names (links in a scratch folder); each count is a process.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..engine.bundle import Bundle
from ..engine.labels import load_labels
from ..engine.sources import voc_source
from .common import timed_process, write_result

console = Console(stderr=True, highlight=False)


def main(
    bundle: Annotated[Path, typer.Argument(help="bundle")],
    voc: Annotated[Path, typer.Option(help="VOC tree")],
    labels: Annotated[str, typer.Option(help="label file")],
    split: Annotated[str, typer.Option()] = "val",
    recipe: Annotated[str, typer.Option()] = "fast",
    counts: Annotated[str, typer.Option(help="numbers of images, separated by commas")] = "50,200,1000",
    name: Annotated[str, typer.Option(help="results/NAME.json")] = "scaling",
) -> None:
    """Measure each count once; prints a line each and writes results/NAME.json."""
    rows = []
    for count in (int(c) for c in counts.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            rows.append({"images": count, **_count(count, bundle, voc, labels, split, recipe, Path(scratch))})
        row = rows[-1]
        console.print(f"{count} images: {row['seconds_per_image']:.4f} s each, peak {row['peak_mb']:.0f} MB")
    console.print(f"-> {write_result(name, {'recipe': recipe, 'rows': rows})}")


def _count(
    count: int, bundle: Path, voc: Path, labels: str, split: str, recipe: str, scratch: Path
) -> dict[str, Any]:
    table = load_labels(labels, Bundle.load(bundle).manifest.classes, voc_root=voc)
    folder, names = scratch / "images", {}
    folder.mkdir()
    for at, item in enumerate(islice(cycle(voc_source(voc, split)), count)):
        name = f"{at:06d}"
        (folder / f"{name}{item.path.suffix}").symlink_to(item.path.resolve())
        names[name] = table.lookup(item.id)
    file = scratch / "labels.json"
    file.write_text(json.dumps(names), encoding="utf-8")
    command = [sys.executable, "-m", "infercam.engine.cli", "run", str(bundle), "--recipe", recipe]
    return timed_process([*command, "--images", str(folder), "--labels", str(file)], scratch / "maps")


if __name__ == "__main__":
    typer.run(main)
