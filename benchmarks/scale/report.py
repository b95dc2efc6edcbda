"""`infercam report` of many maps: time and memory to build it, its size, and how fast a browser opens and moves it.

    python -m infercam.benchmarks.scale.report [--images 10000] [--runs 2]

Draws synthetic scenes (--scenes of them, repeated under other names), writes two runs of maps made from their
masks, builds the report by the command line and opens it from file:// in headless Chromium where there is one.
About 4 minutes on 2 cores for 10,000 images. Writes results/report.json.
"""

from __future__ import annotations

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
from numpy.typing import NDArray
from rich.console import Console

from infercam.benchmarks.common import write_result
from infercam.benchmarks.scale.browser import launched, missing
from infercam.engine.demo.scenes import CLASS_NAMES, scene_id, write_voc_tree
from infercam.engine.evaluation.label_png import read_mask
from infercam.engine.store.mapstore import MapRecord, MapStore

console = Console(stderr=True, highlight=False)


def main(
    images: Annotated[int, typer.Option(min=1, help="rows of the report")] = 10_000,
    runs: Annotated[int, typer.Option(min=1, max=6, help="runs side by side")] = 2,
    scenes: Annotated[int, typer.Option(min=1, help="distinct pictures")] = 250,
    bootstrap: Annotated[int, typer.Option(min=0)] = 1000,
    name: Annotated[str, typer.Option(help="results/NAME.json")] = "report",
) -> None:
    """Measure once; prints a line each and writes results/NAME.json."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        console.print(f"making {images} images and {runs} runs")
        stores = make_inputs(root, images, runs, min(scenes, images))
        built = build(root, stores, bootstrap)
        console.print(f"built: {built}")
        opened: dict[str, Any] = {"left_out": missing()} if missing() else look(root / "report.html")
        console.print(f"opened: {opened}")
    found = {
        "images": images,
        "runs": runs,
        "distinct_scenes": min(scenes, images),
        "build": built,
        "browser": opened,
    }
    console.print(f"-> {write_result(name, found)}")


def make_inputs(root: Path, images: int, runs: int, scenes: int) -> list[Path]:
    """A VOC tree of `images` names for `scenes` pictures, and that many runs of maps; returns the stores."""
    voc = root / "voc"
    drawn = write_voc_tree(voc, scenes, seed=5)
    ids = [scene_id(k) for k in range(images)]
    for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
        for k in range(scenes, images):
            (voc / folder / f"{ids[k]}{suffix}").symlink_to(f"{drawn[k % scenes]}{suffix}")
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("".join(f"{id}\n" for id in ids))
    stores = []
    for run in range(runs):
        store = MapStore.create_or_open(
            root / f"run-{run + 1}", classes=list(CLASS_NAMES), settings={"recipe": f"synthetic {run + 1}"}
        )
        records = [
            _maps(read_mask(voc / "SegmentationClass" / f"{id}.png"), (run, k)) for k, id in enumerate(drawn)
        ]
        for k, id in enumerate(ids):
            classes, maps = records[k % scenes]
            store.write(MapRecord(id, classes, [CLASS_NAMES[c] for c in classes], maps), "synthetic")
        stores.append(store.path)
    return stores


def _maps(mask: NDArray[np.uint8], seed: tuple[int, int]) -> tuple[list[int], NDArray[np.float32]]:
    """Maps as a classifier might give them: smooth, displaced, unsure at the edges."""
    rng = np.random.default_rng(seed)
    classes = [int(v) - 1 for v in np.unique(mask) if 0 < v < 255]
    maps = []
    for c in classes:
        shift = rng.normal(0, 6, 2).round().astype(int)
        there = np.roll(mask == c + 1, tuple(shift), (0, 1)).astype(np.float32)
        coarse = cv2.GaussianBlur(there, (0, 0), rng.uniform(5, 12 + 4 * seed[0]))
        grain = cv2.resize(
            rng.uniform(0.4, 1, (7, 8)).astype(np.float32), mask.shape[::-1], interpolation=cv2.INTER_LINEAR
        )
        maps.append(coarse * grain)
    stacked = np.stack(maps)
    return classes, (stacked / (stacked.max(axis=(1, 2), keepdims=True) + 1e-5)).astype(np.float32)


def build(root: Path, stores: list[Path], bootstrap: int) -> dict[str, Any]:
    """The command itself, as a process of its own."""
    out = root / "report.html"
    command = [sys.executable, "-m", "infercam.engine.cli", "report", *map(str, stores)]
    command += ["--voc", str(root / "voc"), "--split", "val", "-o", str(out), "--bootstrap", str(bootstrap)]
    began = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
        errors = child.stderr.read().decode() if child.stderr else ""
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"infercam report failed:\n{errors}")
    seconds = time.perf_counter() - began
    beside = [f for f in (root / "report_files").rglob("*") if f.is_file()]
    return {
        "seconds": round(seconds, 1),
        "peak_mb_of_main_process": round(usage.ru_maxrss / 1024),
        "page_mb": round(out.stat().st_size / 1e6, 2),
        "beside_mb": round(sum(f.stat().st_size for f in beside) / 1e6, 1),
        "files_beside": len(beside),
    }


def look(page_file: Path) -> dict[str, Any]:
    """Open the page from file://: seconds until an image is shown, and what moving about costs."""
    with launched() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        began = time.perf_counter()
        page.goto(page_file.as_uri())
        page.wait_for_selector("[data-shows]")
        found: dict[str, Any] = {
            "browser": browser.version,
            "seconds_to_first_image": round(time.perf_counter() - began, 3),
        }
        found |= page.evaluate(COUNT)
        page.focus("#list")
        found["seconds_to_last_image"] = _timed(page, lambda: page.keyboard.press("End"))
        found["seconds_to_search"] = _timed(page, lambda: page.fill("#search", "0001"))
        found["ms_a_slider_step"] = round(page.evaluate(SLIDE), 2)
        found["rows_after_that"] = page.evaluate(COUNT)["rows_in_page"]
        return found


def _timed(page: Any, act: Any) -> float:
    """Seconds until another image is shown."""
    before = page.get_attribute(".panels", "data-shows")
    began = time.perf_counter()
    act()
    page.wait_for_selector(f'.panels[data-shows]:not([data-shows="{before}"])')
    return round(time.perf_counter() - began, 3)


COUNT = """() => ({
  elements: document.querySelectorAll('*').length,
  rows_in_page: document.querySelectorAll('.row').length,
  heap_mb: Math.round(performance.memory.usedJSHeapSize / 1e5) / 10,
})"""

SLIDE = """() => {
  const slider = document.getElementById('threshold');
  const began = performance.now();
  for (let step = 0; step < 50; step++) {
    slider.value = 2 * step;
    slider.dispatchEvent(new Event('input'));
  }
  return (performance.now() - began) / 50;
}"""


if __name__ == "__main__":
    typer.run(main)
