"""What is looked up in a contestant's maps: their best mIoU, and how far they are from another's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from infercam.benchmarks.bench.job import BenchJob
from infercam.engine.common.errors import InfercamError
from infercam.engine.common.safe_pickle import load_npy_dict
from infercam.engine.evaluation.evaluate import GroundTruth, evaluate_store
from infercam.engine.store.mapstore import MapStore


def scorer(job: BenchJob, truth: GroundTruth, classes: list[str]) -> Callable[[Path], dict[str, Any]]:
    """Best mIoU over background thresholds, all classes that the masks hold; or why it cannot be had."""

    def look(folder: Path) -> dict[str, Any]:
        try:
            result = evaluate_store(_store(job, folder, classes), truth)
        except InfercamError as e:
            return {"miou": None, "why": str(e)}
        return {"miou": float(result.all.miou), "threshold": float(result.all.threshold)}

    return look


def _store(job: BenchJob, folder: Path, classes: list[str]) -> MapStore:
    if job.kind == "engine":
        return MapStore.open(folder)
    return MapStore.open_foreign(loop_maps(job, folder), "psa", classes)


def loop_maps(job: BenchJob, folder: Path) -> Path:
    """Where the loop and the libraries leave their `ID.npy`."""
    return folder / ("cam" if job.kind == "loop" and job.mode == "baseline" else "maps")


def keeper(job: BenchJob, place: Path) -> Callable[[Path], dict[str, Any]]:
    """Moves the maps to `place`, to be compared once all are there."""

    def look(folder: Path) -> dict[str, Any]:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        (folder if job.kind == "engine" else loop_maps(job, folder)).rename(place)
        return {"name": place.name}

    return look


def apart(engine_maps: Path, loop: Path) -> dict[str, float]:
    """Largest and mean difference, and the share of map pixels that differ by over 0.001, between the engine's
    float32 maps (a psa store) and the loop's; both in 0..1."""
    worst, total, beyond, pixels = 0.0, 0.0, 0, 0
    store = MapStore.open(engine_maps, "psa")
    for id in store.ids():
        ours, theirs = store.read(id), load_npy_dict(loop / f"{id}.npy")
        difference = np.abs(ours.maps - np.stack([theirs[c] for c in ours.classes]))
        worst = max(worst, float(difference.max()))
        total += float(difference.sum())
        beyond += int((difference > 1e-3).sum())
        pixels += difference.size
    return {"largest": worst, "mean": total / pixels, "share beyond 0.001": beyond / pixels}
