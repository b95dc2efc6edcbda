"""A classifier from photos and image-level labels to a verified bundle, in one resumable folder.

OUT/config.json, last.ckpt, best.ckpt, history.jsonl   as every stage has them (fit.py)
OUT/centres/                                           of split & unite, when they were refreshed
OUT/bundle/                                            what `infercam run` takes
OUT/result.json                                        average precision and seconds
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infercam.engine.bundle import Bundle, sha256_file
from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import BundleError, InputError, StoreError
from infercam.engine.store.mapstore import MapStore
from infercam.trainer.classify.settings import ClassifyConfig
from infercam.trainer.classify.split_unite import store_centres
from infercam.trainer.classify.stage import ClassifyStage, check_labels
from infercam.trainer.loop.checkpoint import load_checkpoint, load_network
from infercam.trainer.loop.config import save_config
from infercam.trainer.loop.fit import BEST, FitResult, fit
from infercam.trainer.networks.classifiers import Trainable, build_classifier
from infercam.trainer.networks.small import SmallNet, folded
from infercam.trainer.photos.photos import Photos
from infercam.trainer.photos.whole_images import first_process

RESULT, BUNDLE = "result.json", "bundle"


@dataclass(frozen=True)
class ClassifyResult:
    """What a finished run reports; `result.json` holds it."""

    bundle: str
    epochs: int
    exported_epoch: int
    seconds: float
    """Of the process that finished it."""
    loss: float
    """Mean training loss of that epoch."""
    mean_ap: float | None
    """Over the classes of the validation photos; None without those."""
    ap: dict[str, float]


def classify(
    photos: Photos,
    out: Path,
    config: ClassifyConfig,
    classes: Sequence[str],
    *,
    weights: Path | None = None,
    random: bool = False,
    validation: Photos | None = None,
    centres: Path | None = None,
    bundle: Path | None = None,
) -> ClassifyResult:
    """Train, or go on with, the classifier of folder `out`, and export it.

    weights: a published checkpoint, or a run's best.ckpt; `random` to start without. centres: a map store
    whose centres of mass split & unite uses, instead of the classifier's own. bundle: default OUT/bundle.
    Raises InputError (labels, weights, a folder made with other settings), TrainingError, ExportError.
    """
    out = Path(out)
    if weights is not None and not weights.is_file():
        raise InputError(f"{weights}: no such checkpoint file")
    check_labels(photos)
    if validation is not None:
        check_labels(validation)
    store = None if centres is None else MapStore.open(centres)
    origin = None if weights is None else {"file": weights.name, "sha256": sha256_file(weights)}
    inputs = {
        "photos": photos.describe(),
        "validation": None if validation is None else validation.describe(),
        "classes": list(classes),
        "weights": origin,
        "centres": None if store is None else store.info.settings,
    }
    built = build_classifier(
        config.arch,
        len(classes),
        weights,
        output_stride=config.output_stride,
        seed=config.seed,
        random=random,
    )
    save_config(out, ClassifyStage.name, config, inputs)
    fixed = None if store is None else store_centres(store, photos)
    stage = ClassifyStage(built, config, photos, validation, classes, out, fixed)
    done = fit(stage, out)
    return _finish(stage, built, done, out, Path(bundle) if bundle else out / BUNDLE, origin)


def _finish(
    stage: ClassifyStage,
    built: Trainable,
    done: FitResult,
    out: Path,
    bundle: Path,
    weights: dict[str, Any] | None,
) -> ClassifyResult:
    """Score the epoch that is kept class by class and export it, unless that is done."""
    checkpoint = out / BEST
    state, _ = load_checkpoint(checkpoint, stage.name)
    load_network(built.network, state, checkpoint)
    stage.network = built.network.eval()
    ap: dict[str, float] = {}
    if stage.validation is not None:
        found = stage.validation_ap(stage.validation)
        ap = {c: round(float(v), 4) for c, v in zip(stage.classes, found, strict=True) if not np.isnan(v)}
    result = ClassifyResult(
        bundle=str(bundle),
        epochs=done.epochs,
        exported_epoch=int(done.best["epoch"]),
        seconds=done.seconds,
        loss=done.best["loss"],
        mean_ap=round(float(np.mean(list(ap.values()))), 4) if ap else None,
        ap=ap,
    )
    if not first_process():
        return result
    hashed = sha256_file(checkpoint)
    source = {
        "command": "infercam classify",
        "settings": stage.config.model_dump(mode="json"),
        "images": len(stage.photos),
        "weights": weights,
        "checkpoint_sha256": hashed,
        "validation_map": result.mean_ap,
        "validation_ap": ap,
    }
    exported = _exported(bundle, hashed)
    if not exported:
        export_bundle(stage, built, bundle, source)
    if exported and (out / RESULT).exists():  # its seconds are of the run that trained
        return result
    try:
        with atomic_write(out / RESULT, "w") as f:
            json.dump(asdict(result), f, indent=1)
            f.write("\n")
    except OSError as e:
        raise StoreError(f"{out / RESULT}: cannot be written: {e.strerror}") from None
    return result


def _exported(bundle: Path, checkpoint: str) -> bool:
    """Whether the bundle is there, whole, and of that checkpoint."""
    try:
        return Bundle.load(bundle).manifest.source.get("checkpoint_sha256") == checkpoint
    except BundleError:
        return False


def export_bundle(stage: ClassifyStage, built: Trainable, out: Path, source: dict[str, Any]) -> Bundle:
    """Write the bundle, verified on two photos besides the built-in inputs; raises ExportError, MissingExtra."""
    from infercam.export import from_torch

    built.network.cpu()
    network = folded(built.network) if isinstance(built.network, SmallNet) else built.network
    spec = built.input
    shown = stage.validation or stage.photos
    return from_torch(
        network,
        out,
        classes=stage.classes,
        mean=spec.mean,
        std=spec.std,
        scale=spec.scale,
        colour=spec.colour,
        multi_label=True,
        name=f"{stage.config.arch}, {stage.config.augment}",
        source=source,
        images=[shown.image(i) for i in shown.ids[:2]],
        overwrite=True,
    )
