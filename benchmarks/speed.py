"""The engine against the plain PyTorch loop, side by side in one run, on real photos.

    python -m infercam.benchmarks.speed --model model.onnx --bundle BUNDLE --voc ROOT --labels labels.json

Every measurement is a process of its own (reading, inference and writing included, start-up not), and the contestants
take turns, so that a drift of the machine's speed touches all alike. Prints medians, the ratio to the loop, peak
memory, and how far the loop's maps and the engine's differ; then a profile of where the engine's time goes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from ..engine.api import Engine
from ..engine.bundle import Bundle
from ..engine.labels import Labels, load_labels
from ..engine.mapstore import MapStore
from ..engine.recipe import RECIPES, Mode
from ..engine.run import Run
from ..engine.safe_pickle import load_npy_dict
from ..engine.sources import Item, voc_source
from .common import timed_process, write_result
from .profiled import ProfiledCpuBackend
from .pytorch_loop import run as run_loop

console = Console(stderr=True, highlight=False)
SAME = ("released", "corrected")  # recipes that the loop has too


def main(
    model: Annotated[Path, typer.Option(help="the classifier, as the loop loads it")],
    bundle: Annotated[Path, typer.Option(help="its bundle")],
    voc: Annotated[Path, typer.Option(help="VOC tree")],
    labels: Annotated[str, typer.Option(help="label file")],
    split: Annotated[str, typer.Option()] = "val",
    arch: Annotated[str, typer.Option()] = "mobilenetv2",
    images: Annotated[int, typer.Option(min=1, help="first so many of the split")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="repeats of each contestant")] = 3,
    recipes: Annotated[str, typer.Option(help="of the engine, separated by commas")] = ",".join(RECIPES),
    name: Annotated[str, typer.Option(help="results/NAME.json")] = "speed",
) -> None:
    """Measure, print a table, write results/NAME.json."""
    data = ["--voc", str(voc), "--split", split, "--labels", labels, "--limit", str(images)]
    loop = [
        sys.executable,
        "-m",
        "infercam.benchmarks.pytorch_loop",
        *data,
        "--arch",
        arch,
        "--weights",
        str(model),
    ]
    run = [sys.executable, "-m", "infercam.engine.cli", "run", str(bundle), *data]
    contestants = {"PyTorch loop, baseline": [*loop, "--mode", "baseline"]}
    contestants |= {f"PyTorch loop, {r}": [*loop, "--recipe", r] for r in SAME}
    contestants["engine, baseline"] = [*run, "--mode", "baseline"]
    contestants |= {f"engine, {r}": [*run, "--recipe", r] for r in recipes.split(",")}
    with tempfile.TemporaryDirectory() as scratch:
        measured = _measure(contestants, rounds, Path(scratch))
        loaded = Bundle.load(bundle)
        table = load_labels(labels, loaded.manifest.classes, voc_root=voc)
        items = list(voc_source(voc, split)[:images])
        same = {r: _difference(r, contestants, Path(scratch), loaded, items, table) for r in SAME}
        profile = {
            r: _profile(r, bundle, voc, split, labels, images, Path(scratch)) for r in ("released", "fast")
        }
    rows = _rows(measured)
    _print(rows, images)
    result = {"images": images, "split": split, "rounds": rows, "maps": same, "profile": profile}
    for recipe, difference in same.items():
        console.print(f"{recipe}: the engine's maps and the loop's: {difference}")
    for recipe, stages in profile.items():
        console.print(f"{recipe}: share of CPU time: {stages}")
    console.print(f"-> {write_result(name, result)}")


def _measure(
    contestants: dict[str, list[str]], rounds: int, scratch: Path
) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for at in range(rounds):
        for name, command in contestants.items():
            out[name].append(
                timed_process(command, scratch / f"{name.replace(' ', '-').replace(',', '')}-{at}")
            )
            console.print(f"round {at + 1}: {name}: {out[name][-1]['seconds_per_image']:.3f} s an image")
    return out


def _rows(measured: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    def median(name: str, key: str) -> float:
        return float(statistics.median(m[key] for m in measured[name]))

    yardstick = median("PyTorch loop, released", "seconds_per_image")
    plain = median("engine, baseline", "seconds_per_image")
    return [
        {
            "name": name,
            "seconds_per_image": median(name, "seconds_per_image"),
            "all": [round(m["seconds_per_image"], 4) for m in runs],
            "times_faster": yardstick / median(name, "seconds_per_image"),
            "over_engine_baseline": median(name, "seconds_per_image") / plain,
            "peak_mb": max(m["peak_mb"] for m in runs),
            "network_pixels_per_image": runs[0]["network_pixels_per_image"],
        }
        for name, runs in measured.items()
    ]


def _print(rows: list[dict[str, Any]], images: int) -> None:
    table = Table(title=f"{images} photos; reading and writing included")
    for heading in ("", "s / image", "× PyTorch loop (released)", "÷ engine's baseline", "peak MB"):
        table.add_column(heading, justify="right" if heading else "left")
    for r in rows:
        table.add_row(
            r["name"],
            f"{r['seconds_per_image']:.3f}",
            f"{r['times_faster']:.1f}",
            f"{r['over_engine_baseline']:.2f}",
            f"{r['peak_mb']:.0f}",
        )
    Console().print(table)


class _SameNetwork(nn.Module):
    """The engine's own response graph, as the loop's network: what then differs is the method alone."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        import onnxruntime

        self._session = onnxruntime.InferenceSession(str(bundle.graph()), providers=["CPUExecutionProvider"])
        self._names = bundle.manifest.response, bundle.manifest.input.name

    def forward_cam(self, x: torch.Tensor) -> torch.Tensor:
        output, given = self._names
        return torch.relu(torch.from_numpy(self._session.run([output], {given: x.numpy()})[0]))


def _difference(
    recipe: str,
    contestants: dict[str, list[str]],
    scratch: Path,
    bundle: Bundle,
    items: list[Item],
    labels: Labels,
) -> dict[str, Any]:
    """How far the engine's float32 maps are from the loop's: over PyTorch's own convolutions, which differ in the
    sixth digit and so now and then tip a pixel over the erasing threshold, and over the engine's network."""
    folder = scratch / f"same-{recipe}"
    timed_process([*contestants[f"engine, {recipe}"], "--format", "psa"], folder)
    found = {item.id: labels.lookup(item.id) for item in items}
    pairs = [(item.id, item.path) for item in items]
    run_loop(_SameNetwork(bundle), pairs, found, scratch / f"shared-{recipe}", recipe, "both", False)
    store = MapStore.open(folder, "psa")
    return {
        "images": len(items),
        "over PyTorch's network": _apart(store, scratch / f"PyTorch-loop-{recipe}-0" / "maps"),
        "over the same network": _apart(store, scratch / f"shared-{recipe}" / "maps"),
    }


def _apart(store: MapStore, theirs: Path) -> dict[str, float]:
    worst, total, beyond, pixels = 0.0, 0.0, 0, 0
    for id in store.ids():
        ours = store.read(id)
        loop = load_npy_dict(theirs / f"{id}.npy")
        difference = np.abs(ours.maps - np.stack([loop[c] for c in ours.classes]))
        worst = max(worst, float(difference.max()))
        total += float(difference.sum())
        beyond += int((difference > 1e-3).sum())
        pixels += difference.size
    return {"largest": worst, "mean": total / pixels, "share beyond 0.001": beyond / pixels}


def _profile(
    recipe: str, bundle: Path, voc: Path, split: str, labels: str, images: int, scratch: Path
) -> dict[str, float]:
    """Shares of the process's CPU time, by stage; `other` holds reading, writing, scheduling and Python."""
    loaded = Bundle.load(bundle)
    backend = ProfiledCpuBackend(loaded)
    mode: Mode = "both"
    with Engine(loaded, backend) as engine:
        table = load_labels(labels, engine.manifest.classes, voc_root=voc)
        source = voc_source(voc, split)[:images]
        began = time.process_time()
        Run(engine, source, table, scratch / f"profile-{recipe}", recipe=RECIPES[recipe], mode=mode)()
        total = time.process_time() - began
    stages = dict(backend.stages.seconds)
    stages["read, write, schedule"] = total - sum(stages.values())
    return {k: round(v / total, 4) for k, v in sorted(stages.items(), key=lambda kv: -kv[1])}


if __name__ == "__main__":
    typer.run(main)
