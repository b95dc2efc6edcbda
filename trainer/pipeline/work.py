"""What the steps of the pipeline share: the photos, the classes, the ground truth if there is one, the weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from infercam.engine.bundle import Bundle
from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError
from infercam.engine.evaluation.evaluate import GroundTruth, evaluate_store
from infercam.engine.evaluation.evaluate_labels import evaluate_labels
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.inputs import SourceSettings
from infercam.engine.store.mapstore import MapStore
from infercam.trainer.loop.config import StageConfig
from infercam.trainer.photos.photos import Photos, class_names, open_photos
from infercam.trainer.pipeline.config import CLASSIFY, PipelineConfig
from infercam.trainer.pipeline.fingerprints import file_hash, photo_hash, plain
from infercam.trainer.pipeline.pipeline import Figures, PipelineStep

EVAL = "eval"
BEST = "best.ckpt"


@dataclass
class Work:
    """The settings, the pipeline's folder, and what several steps need; each is made when first asked for."""

    config: PipelineConfig
    out: Path

    @cached_property
    def classes(self) -> list[str]:
        bundle = self.config.maps.bundle
        if bundle is not None:
            return list(Bundle.load(bundle).manifest.classes)
        return class_names(self.config.data.classes, self.config.data.labels)

    @cached_property
    def photos(self) -> Photos:
        data = self.config.data
        return open_photos(data.source(), data.labels, self.classes)

    @cached_property
    def validation(self) -> Photos:
        data = self.config.data
        return open_photos(SourceSettings(voc=data.voc, split=data.val_split), data.labels, self.classes)

    @cached_property
    def photo_hash(self) -> str:
        return photo_hash(self.photos)

    @cached_property
    def truth(self) -> GroundTruth | None:
        return ground_truth(self.photos, self.config.data.split or "")

    def pseudo_labels(self) -> Path:
        """What DeepLab is trained on: the last labels that are made."""
        walk = self.config.walk
        if walk is None:
            return self.out / "labels"
        return self.out / "walk" / ("crf" if walk.crf is not False else "walk")

    def having(self, folder: Path, suffix: str) -> Photos:
        """The photos that the step before could do; raises InputError where there are none."""
        ids = [i for i in self.photos if (folder / f"{i}{suffix}").is_file()]
        if not ids:
            raise InputError(f"{folder}: has nothing for any of the {len(self.photos)} photos")
        return self.photos.only(ids)

    # -- weights: of a file, or of the pipeline's own classifier --------------------------------------------
    def weights(self, asked: Path | str | None) -> Path | None:
        return self.out / CLASSIFY / BEST if asked == CLASSIFY else asked  # type: ignore[return-value]

    def weights_hash(self, asked: Path | str | None) -> str | None:
        return None if asked == CLASSIFY else file_hash(asked)  # type: ignore[arg-type]

    def builds_on(self, weights: Path | str | None, needs: list[str]) -> tuple[str, ...]:
        return tuple([*needs, CLASSIFY] if weights == CLASSIFY else needs)

    def trained(
        self,
        name: str,
        run: Callable[[Path], Figures],
        settings: StageConfig,
        table: Any,
        needs: list[str],
        **inputs: Any,
    ) -> PipelineStep:
        """A step that trains a network from `table.weights`."""
        inputs |= {"photos": self.photo_hash, "weights": self.weights_hash(table.weights)}
        key = {**plain(settings), "random": table.random}
        return PipelineStep(name, run, key, inputs, needs=self.builds_on(table.weights, needs))

    # -- figures -------------------------------------------------------------------------------------------
    def score_maps(self, store: Path) -> Figures:
        """Best mIoU over the background thresholds, where there are masks."""
        if self.truth is None:
            return {}
        found = evaluate_store(MapStore.open(store), self.truth, missing="skip", workers=None)
        self._keep("maps", found.to_json())
        return {"best mIoU": 100 * found.all.miou, "at threshold": found.all.threshold}

    def score_labels(self, folder: Path, name: str, truth: GroundTruth | None) -> Figures:
        """mIoU, and the share of the pixels that the labels leave open."""
        if truth is None:
            return {}
        labels = LabelFolder.open(folder)
        found = evaluate_labels(labels, truth, classes=self.classes, missing="skip", workers=None)
        self._keep(name, found.to_json())
        figures = {"mIoU": 100 * found.scores.all.miou}
        return {**figures, "left open": 100 * found.ignored_share} if found.ignored_share else figures

    def _keep(self, name: str, figures: Mapping[str, Any]) -> None:
        """The whole evaluation beside the steps: DIR/eval/NAME.json."""
        with atomic_write(self.out / EVAL / f"{name}.json", "w") as f:
            json.dump(figures, f, indent=1)
            f.write("\n")


def ground_truth(photos: Photos, split: str) -> GroundTruth | None:
    """Masks of photos, to report by; None where not all have one."""
    pairs = []
    for item_id in photos:
        mask = photos.mask_path(item_id)
        if mask is None or not mask.is_file():
            return None
        pairs.append((item_id, mask))
    return GroundTruth(pairs, "masks of the source", split)
