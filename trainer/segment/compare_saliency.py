"""The paper's argument about saliency, as one table: without it, as a background cue in the labels (the
conventional way), and in the loss of eq. 4. The same photos, labels, seeds and steps for all.

    OUT/<mode>-seed<n>/        the run (stage.py), trained without looking at the validation photos
    OUT/<mode>-seed<n>/labels  labels of the validation photos by its last epoch
    OUT/comparison.json        every figure
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.common.progress import stderr as console
from infercam.engine.evaluation.evaluate import GroundTruth
from infercam.engine.evaluation.evaluate_labels import evaluate_labels
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.evaluation.resampling import compare
from infercam.engine.evaluation.scores import EvalResult
from infercam.engine.store.failures import FAILURES
from infercam.trainer.loop.fit import HISTORY
from infercam.trainer.photos.photos import Photos
from infercam.trainer.segment.data import SaliencyFolder
from infercam.trainer.segment.predict import segment_photos
from infercam.trainer.segment.settings import SegmentConfig, SegmentTestConfig
from infercam.trainer.segment.stage import train_segment
from infercam.trainer.segment.validation import Validation

MODES = ("none", "background", "refine")
REPORT = "comparison.json"
LABELS = "labels"


@dataclass(frozen=True)
class ComparisonRow:
    """One run. Shares in 0..1."""

    mode: str
    seed: int
    miou: float
    """Of the validation photos by the last epoch, mean over the classes that they have."""
    gain: float | None = None
    """Over mode `none` with the same seed, and the middle 95 % of it over resampled photos."""
    interval: tuple[float, float] | None = None
    seconds: float = 0.0
    """Of training, in the process that ended it: a resumed run does not count what came before."""
    tau: tuple[float, ...] = ()
    """Eq. 4's temperature, mean over the pictures of each epoch: how far labels and saliency agree."""


def compare_saliency(
    photos: Photos,
    labels: Path,
    saliency: Path,
    validation: Validation,
    out: Path,
    config: SegmentConfig,
    *,
    modes: Sequence[str] = MODES,
    seeds: Sequence[int] = (0,),
    test: SegmentTestConfig | None = None,
    classes: int = 20,
    weights: Path | None = None,
    random: bool = False,
    resamples: int = 1000,
) -> list[ComparisonRow]:
    """Train and score every mode with every seed; what an earlier call finished is kept.

    test: how the validation photos are labelled (default: one scale, not mirrored, no CRF).
    Raises InputError for an unknown mode and as train_segment; StoreError where the report cannot be written.
    """
    unknown = set(modes) - set(MODES)
    if unknown or not modes or not seeds:
        raise InputError(f"modes are some of {', '.join(MODES)}, not {', '.join(sorted(unknown)) or 'none'}")
    validation.check()
    SaliencyFolder(
        saliency, photos.ids, skip_missing=config.missing_saliency != "error"
    )  # before hours of work
    test = test or SegmentTestConfig(scales=(1.0,), mirror=False)
    rows = []
    for seed in seeds:
        first: EvalResult | None = None
        for mode in [m for m in MODES if m in modes]:
            run = out / f"{mode}-seed{seed}"
            console.print(f"saliency-compare: {run.name}")
            changes = {"saliency_mode": mode, "seed": seed}
            done = train_segment(
                photos,
                labels,
                run,
                config.model_copy(update=changes),
                classes=classes,
                weights=weights,
                random=random,
                saliency=None if mode == "none" else saliency,
            )
            found = _scored(validation, Path(done.checkpoint), run / LABELS, test, config)
            row = _row(mode, seed, found, first, resamples, _seconds(run, done.seconds))
            rows.append(replace(row, tau=_tau(run)))
            first = found if mode == "none" else first
            _report(out, rows, config, test, len(photos), len(validation.photos))
    return rows


def _scored(
    validation: Validation, checkpoint: Path, out: Path, test: SegmentTestConfig, config: SegmentConfig
) -> EvalResult:
    """The validation photos' labels and their score; raises InputError where some could not be labelled."""
    done = segment_photos(
        validation.photos, checkpoint, out, test, device=config.accelerator, threads=config.threads
    )
    if done.stopped:
        raise SystemExit(128 + done.stopped)
    if done.failures:
        raise InputError(
            f"{len(done.failures)} validation photos could not be labelled: see {out / FAILURES}"
        )
    pairs = [(i, validation.mask(i)) for i in validation.photos.ids]
    truth = GroundTruth([(i, file) for i, file in pairs if file is not None], "masks", "validation")
    return evaluate_labels(LabelFolder.open(out), truth).scores


def _row(
    mode: str, seed: int, found: EvalResult, first: EvalResult | None, resamples: int, seconds: float
) -> ComparisonRow:
    if first is None:
        return ComparisonRow(mode, seed, found.all.miou, seconds=seconds)
    gain = compare(first, found, resamples)["all"]
    between = (gain.interval.low, gain.interval.high)
    return ComparisonRow(mode, seed, found.all.miou, gain.difference, between, seconds)


def _seconds(run: Path, seconds: float) -> float:
    """Of the process that trained: a call that finds the run finished does not overwrite it."""
    file = run / "seconds.json"
    if file.exists():
        return float(json.loads(file.read_text(encoding="utf-8")))
    with atomic_write(file, "w") as f:
        json.dump(seconds, f)
    return seconds


def _tau(run: Path) -> tuple[float, ...]:
    """Of every epoch; none where the saliency is not in the loss."""
    lines = (run / HISTORY).read_text(encoding="utf-8").splitlines()
    return tuple(epoch["tau"] for epoch in map(json.loads, lines) if "tau" in epoch)


def _report(
    out: Path,
    rows: list[ComparisonRow],
    config: SegmentConfig,
    test: SegmentTestConfig,
    trained: int,
    validated: int,
) -> None:
    content: dict[str, Any] = {
        "rows": [asdict(row) for row in rows],
        "means": {mode: mean for mode in MODES if (mean := mean_miou(rows, mode)) is not None},
        "train_photos": trained,
        "validation_photos": validated,
        "config": config.model_dump(mode="json", exclude={"saliency_mode", "seed"}),
        "test": test.model_dump(mode="json"),
    }
    try:
        with atomic_write(out / REPORT, "w") as f:
            json.dump(content, f, indent=1)
            f.write("\n")
    except OSError as e:
        raise StoreError(f"{out / REPORT}: cannot be written: {e.strerror}") from None


def mean_miou(rows: Sequence[ComparisonRow], mode: str) -> float | None:
    """Over the seeds; None without a run of that mode."""
    found = [row.miou for row in rows if row.mode == mode]
    return float(np.mean(found)) if found else None
