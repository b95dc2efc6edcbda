"""The demo's work: the committed bundle over generated scenes in every mode, each evaluated.

It goes the way of `infercam run` and `infercam eval`: a VOC tree in, map stores out, best mIoU from them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infercam.engine.api import Engine
from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.common.paths import os_reason
from infercam.engine.data.labels import load_labels
from infercam.engine.data.sources import voc_source
from infercam.engine.demo.scenes import write_voc_tree
from infercam.engine.evaluation.evaluate import (
    Difference,
    EvalResult,
    ImageCounts,
    add_intervals,
    compare,
    evaluate_store,
    voc_ground_truth,
)
from infercam.engine.method.recipe import MODES, Mode, Recipe
from infercam.engine.run.run import Run, Summary
from infercam.engine.store.mapstore import MapStore

BUNDLE = Path(__file__).parent / "bundle"
"""The committed bundle; `infercam classify --demo -o DIR` makes another."""

DEMO_SEED = 2022
"""Of the demo's scenes; the classifier was trained and chosen on others (trainer/classify/scene_tree.py)."""

SPLIT = "val"
RESAMPLES = 500
VOC, MAPS, GALLERY, RESULTS, MARK = "voc", "maps", "gallery.png", "results.json", "about.txt"

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many images of it are done, and of how many."""


@dataclass(frozen=True)
class ModeOutcome:
    """One mode: what the run did, its figures, and its gain over the baseline (None for that itself)."""

    mode: Mode
    summary: Summary
    result: EvalResult
    gain: Difference | None

    @property
    def found(self) -> float:
        """Share of the object pixels that get their class at the best threshold (recall)."""
        right, _, true = self._objects()
        return right / max(true, 1)

    @property
    def right(self) -> float:
        """Share of the pixels labelled as objects at the best threshold that are of that class (precision)."""
        right, predicted, _ = self._objects()
        return right / max(predicted, 1)

    def _objects(self) -> tuple[int, int, int]:
        step = self.result.all.step
        counts: Sequence[ImageCounts] = self.result.counts or []
        right = sum(int(c.hits[c.labels > 0, step].sum()) for c in counts)
        predicted = sum(int(c.predicted[c.labels > 0, step].sum()) for c in counts)
        return right, predicted, sum(int(c.true_counts[c.true_labels > 0].sum()) for c in counts)


@dataclass(frozen=True)
class Ablation:
    """All modes, in the order of MODES (the baseline first), on the scenes under `folder`/voc."""

    folder: Path
    ids: list[str]
    recipe: Recipe
    backend: str
    outcomes: list[ModeOutcome]

    def store(self, mode: Mode) -> MapStore:
        return MapStore.open(self.folder / MAPS / mode)


def ablation(
    engine: Engine, out: Path, images: int, recipe: Recipe, seed: int, progress: Progress
) -> Ablation:
    """Write `images` scenes and run and evaluate every mode on them.

    An earlier demo in `out` is replaced. Raises InputError where `out` holds something else, StoreError where
    it cannot be written.
    """
    prepare(out)
    progress("scenes", 0, images)
    try:
        ids = write_voc_tree(out / VOC, images, seed, progress=lambda done: progress("scenes", done, images))
    except OSError as e:
        raise StoreError(f"{out}: cannot be written: {os_reason(e)}") from None
    outcomes: list[ModeOutcome] = []
    for mode in MODES:
        summary = _run(engine, out, recipe, mode, progress)
        result = evaluate_store(
            MapStore.open(out / MAPS / mode), voc_ground_truth(out / VOC, SPLIT), workers=1
        )
        add_intervals(result, RESAMPLES)
        gain = compare(outcomes[0].result, result, RESAMPLES)["all"] if outcomes else None
        outcomes.append(ModeOutcome(mode, summary, result, gain))
    return Ablation(out, ids, recipe, engine.backend.name, outcomes)


def prepare(out: Path) -> None:
    """Make `out` an empty demo folder: removes what an earlier demo left there, and nothing else ever.

    A demo's folder is known by its MARK file; any other folder must be empty. Raises InputError where it is
    not, StoreError where it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is not a folder; give another with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / MARK).is_file():
            if any(out.iterdir()):
                raise InputError(f"{out}: holds files that are not a demo's; give another folder with --out")
            with atomic_write(out / MARK, "w") as f:
                f.write(
                    "Made by `infercam demo`, which replaces everything beside this file when run again.\n"
                )
        for folder in (VOC, MAPS):
            if (out / folder).exists():
                shutil.rmtree(out / folder)
        for file in (GALLERY, RESULTS):
            (out / file).unlink(missing_ok=True)
    except OSError as e:
        raise StoreError(f"{out}: cannot be written: {os_reason(e)}") from None


def _run(engine: Engine, out: Path, recipe: Recipe, mode: Mode, progress: Progress) -> Summary:
    source = voc_source(out / VOC, SPLIT)
    labels = load_labels(out / VOC / "labels.json", engine.manifest.classes)

    def watch(summary: Summary, _: object) -> None:
        progress(mode, summary.done, summary.images)

    job = Run(engine, source, labels, out / MAPS / mode, recipe=recipe, mode=mode, watch=watch)
    summary = job()
    if summary.failed:
        raise StoreError(f"{summary.failed} scenes failed: see {job.failures.file}")
    progress(mode, summary.done, summary.images)
    return summary
