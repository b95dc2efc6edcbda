"""`infercam eval` over 81 classes: images a second and peak memory, and what COCO's annotations cost.

    python -m infercam.benchmarks.scale.evaluation [--images 80000] [--large 2000]

What is measured are the commands themselves, each in a process of its own, over synthetic stores with COCO's classes:

- `small`: `--images` images of 64×48, without and with the bootstrap: what many images cost in time and memory;
- `large`: `--large` images of 640×480, COCO's size: against a folder of masks, and painted from annotations;
- `annotations`: parsing an annotation file of `--large` images, and `infercam coco --masks` of it.

A store repeats 256 distinct images under other ids, as hard links; every one of them is read, decoded and counted.
The maps are smooth hills and the masks discs, one to five classes and seven objects an image; the figures of quality
mean nothing. Nothing is extrapolated.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from rich.console import Console

from infercam.benchmarks.bench.process import tree_memory
from infercam.benchmarks.common import write_result
from infercam.engine.coco import CATEGORIES, CLASSES
from infercam.engine.common.cores import available_cores
from infercam.engine.evaluation.label_png import write_label
from infercam.engine.store.mapstore import MapRecord, MapStore

console = Console(stderr=True, highlight=False)
DISTINCT = 256
SMALL, LARGE = (48, 64), (480, 640)
OBJECTS = 7
_IDS = sorted(CATEGORIES)


def main(
    images: Annotated[int, typer.Option(min=1, help="Images of 64×48.")] = 80_000,
    large: Annotated[int, typer.Option(min=1, help="Images of 640×480.")] = 2_000,
    bootstrap: Annotated[int, typer.Option(min=1, help="Resamples, where there are any.")] = 1000,
    name: Annotated[str, typer.Option(help="results/NAME.json")] = "eval",
) -> None:
    """Measure each once; prints a line each and writes results/NAME.json."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        _small(work / "small", images, bootstrap, rows)
        _large(work / "large", large, bootstrap, rows)
    content = {"distinct_images": DISTINCT, "classes": len(CLASSES) + 1, "rows": rows}
    console.print(f"-> {write_result(name, content)}")


def _small(work: Path, images: int, bootstrap: int, rows: list[dict[str, Any]]) -> None:
    _store(work, images, SMALL)
    what = ["eval", str(work / "maps"), "--gt", str(work / "masks")]
    _measure(rows, "eval, 64×48", images, [*what, "--bootstrap", "0", "--workers", "1"], processes=1)
    for resamples in (0, bootstrap):
        command = [*what, "--bootstrap", str(resamples)]
        _measure(rows, "eval, 64×48", images, command, processes=available_cores(), bootstrap=resamples)


def _large(work: Path, images: int, bootstrap: int, rows: list[dict[str, Any]]) -> None:
    objects = _store(work, images, LARGE)
    tree, split = work / "coco", "train2014"
    size = _annotations(tree / "annotations" / f"instances_{split}.json", images, objects)
    coco = ["--coco", str(tree), "--split", split]
    many, maps = available_cores(), str(work / "maps")
    parse = ["coco", str(tree), "--split", split, "-o", str(work / "lists"), "--lists"]
    _measure(rows, "parse annotations", images, parse, processes=1, megabytes=size / 1e6)
    masks = ["coco", str(tree), "--split", split, "-o", str(work / "out"), "--masks"]
    _measure(rows, "coco --masks, 640×480", images, masks, processes=many)
    shared = {"processes": many, "bootstrap": bootstrap}
    extra = ["--bootstrap", str(bootstrap)]
    against = ["eval", maps, *coco, "--gt", str(work / "out" / "masks"), *extra]
    _measure(rows, "eval, 640×480, masks of a folder", images, against, **shared)
    _measure(rows, "eval, 640×480, masks painted", images, ["eval", maps, *coco, *extra], **shared)


def _measure(rows: list[dict[str, Any]], what: str, images: int, command: list[str], **more: Any) -> None:
    """Run one command; its seconds include the start of Python and of the processes."""
    peak, began = 0, time.perf_counter()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "infercam.engine.cli", *command], stdout=output, stderr=subprocess.STDOUT
        )
        while child.poll() is None:
            peak = max(peak, tree_memory(child.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        if child.returncode:
            output.seek(0)
            raise SystemExit(f"infercam {' '.join(command)} failed:\n{output.read().decode()}")
    row = {"what": what, "images": images, **more, "seconds": round(seconds, 2)}
    rows.append(row | {"images_per_second": round(images / seconds, 1), "peak_mb": round(peak / 2**20)})
    details = ", ".join(f"{key} {value:g}" for key, value in more.items())
    console.print(
        f"{what}: {images} images, {details}: {seconds:.1f} s, {images / seconds:.1f} images/s, "
        f"peak {peak / 2**20:.0f} MB"
    )


# -- what is scored --------------------------------------------------------------------------------------------------
Disc = tuple[int, float, float, float]
"""(class, x, y, radius)"""


def _store(work: Path, images: int, size: tuple[int, int]) -> list[list[Disc]]:
    """A map store and a folder of masks of `images` images; gives the distinct images' objects."""
    rng = np.random.default_rng(0)
    store = MapStore.create_or_open(work / "maps", classes=CLASSES, settings={"benchmark": "synthetic"})
    (work / "masks").mkdir()
    found = []
    for number in range(min(DISTINCT, images)):
        objects = _draw(rng, size)
        found.append(objects)
        classes = sorted({c for c, *_ in objects})
        maps = np.stack([_response(objects, c, size, rng) for c in classes])
        store.write(MapRecord(_id(number), classes, [CLASSES[c] for c in classes], maps), "benchmark")
        write_label(work / "masks" / f"{_id(number)}.png", _mask(objects, size))
    for number in range(DISTINCT, images):
        for folder, suffix in ((work / "maps", ".npz"), (work / "masks", ".png")):
            os.link(folder / f"{_id(number % DISTINCT)}{suffix}", folder / f"{_id(number)}{suffix}")
    return found


def _id(number: int) -> str:
    return f"COCO_train2014_{number:012d}"


def _draw(rng: np.random.Generator, size: tuple[int, int]) -> list[Disc]:
    """Objects of one to five classes, the largest first."""
    height, width = size
    classes = rng.choice(len(CLASSES), rng.integers(1, 6), replace=False)
    radii = sorted(height * (0.03 + 0.3 * rng.random(OBJECTS) ** 2), reverse=True)
    return [
        (int(rng.choice(classes)), width * float(rng.random()), height * float(rng.random()), float(radius))
        for radius in radii
    ]


def _mask(objects: list[Disc], size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    for label, x, y, radius in objects:
        cv2.circle(mask, (round(x), round(y)), max(round(radius), 1), label + 1, -1)
    return mask


def _response(objects: list[Disc], label: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A hill at each object of the class and a little noise, at stride 16, resized as a CAM is."""
    height, width = size
    rows, columns = max(height // 16, 2), max(width // 16, 2)
    y, x = np.mgrid[:rows, :columns] * np.array([height / rows, width / columns])[:, None, None]
    hills = [np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * r * r)) for c, a, b, r in objects if c == label]
    coarse = (np.max(hills, axis=0) + 0.1 * rng.random((rows, columns))).astype(np.float32)
    fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(fine / fine.max(), np.float32)


def _annotations(file: Path, images: int, distinct: list[list[Disc]]) -> int:
    """An annotation file of those images, polygons of 40 corners; gives its bytes."""
    file.parent.mkdir(parents=True)
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    height, width = LARGE
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(images):
        entries.append(
            {"id": number + 1, "file_name": f"{_id(number)}.jpg", "height": height, "width": width}
        )
        for label, x, y, radius in distinct[number % len(distinct)]:
            points = np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1).round(2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": _IDS[label],
                    "iscrowd": 0,
                    "area": round(float(np.pi * radius**2), 2),
                    "segmentation": [points.ravel().tolist()],
                }
            )
    categories = [{"id": id, "name": name} for id, name in CATEGORIES.items()]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content), encoding="utf-8")
    return file.stat().st_size


if __name__ == "__main__":
    typer.run(main)
