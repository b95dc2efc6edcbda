"""Training AffinityNet on affinity labels: settings, augmentation, and the stage that `fit` runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from infercam.engine.bundle import InputSpec, sha256_file
from infercam.trainer.affinity.affinitynet import STAGE, AffinityNet
from infercam.trainer.affinity.loss import (
    affinity_loss,
    cell_labels,
    pair_accuracy,
    pair_distance,
    pair_groups,
)
from infercam.trainer.affinity.settings import STRIDE, AffinityConfig
from infercam.trainer.loop.config import save_config
from infercam.trainer.loop.dataset import StageDataset, collate, raise_if_broken
from infercam.trainer.loop.fit import BEST, fit
from infercam.trainer.loop.stage import StageBase
from infercam.trainer.networks.backbones import load_backbone
from infercam.trainer.photos.augment import (
    colour_jitter,
    random_crop,
    random_flip,
    random_long_side,
    to_tensor,
)
from infercam.trainer.photos.label_png import IGNORE
from infercam.trainer.photos.labelled import LabelledPhotos
from infercam.trainer.photos.photos import Photos


class PairAugment:
    """Picture and label -> `image` 3×crop×crop, `cells` (crop/8)² uint8; picklable."""

    def __init__(self, config: AffinityConfig, spec: InputSpec) -> None:
        self.config, self.spec = config, spec

    def __call__(self, rng: np.random.Generator, image: Any, planes: dict[str, Any]) -> dict[str, Tensor]:
        config = self.config
        if config.long_side:
            image, planes = random_long_side(rng, image, planes, *config.long_side)
        image = colour_jitter(rng, image, config.jitter, config.jitter, config.jitter)
        image, planes = random_crop(rng, image, planes, config.crop, {"label": IGNORE})
        image, planes = random_flip(rng, image, planes)
        cells = cell_labels(planes["label"], STRIDE)
        return {"image": to_tensor(image, self.spec), "cells": torch.from_numpy(cells)}


class AffinityStage(StageBase):
    """Pairs of neighbouring cells of random crops, with the three-part loss."""

    name = STAGE

    def __init__(self, network: AffinityNet, config: AffinityConfig, items: LabelledPhotos) -> None:
        self.config = config
        self.offsets = network.offsets
        self._facts = network.facts()
        self.network: nn.Module = network
        self.dataset = StageDataset(
            items.ids, items, PairAugment(config, network.backbone.input), config.seed
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """psa's: biases at twice the rate without decay, new layers at `new_scale` times the rate."""
        network = cast(AffinityNet, self.network)
        trained = {n: p for n, p in network.backbone.named_parameters() if p.requires_grad}
        biases = [p for n, p in trained.items() if n.endswith("bias")]
        groups: list[dict[str, Any]] = [
            {"params": [p for n, p in trained.items() if not n.endswith("bias")]},
            {"params": biases, "scale": 2.0, "weight_decay": 0.0},
            {
                "params": [p for layer in network.new_layers() for p in layer.parameters()],
                "scale": self.config.new_scale,
            },
        ]
        return [group for group in groups if group["params"]]

    def loss(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Also `accuracy`: the share of pairs told rightly (affinity_loss.pair_accuracy)."""
        distance = pair_distance(self.network(batch["image"]), self.offsets)
        groups = pair_groups(batch["cells"], self.offsets)
        return {**affinity_loss(distance, groups), "accuracy": pair_accuracy(distance, groups)}

    def facts(self) -> dict[str, Any]:
        return self._facts


@dataclass(frozen=True)
class AffinityResult:
    """What a finished run reports."""

    checkpoint: str
    photos: int
    epochs: int
    loss: float
    """Mean of the last epoch."""
    accuracy: float
    """Of the last epoch's training pairs (affinity_loss.pair_accuracy)."""
    seconds: float
    """Of the process that finished it."""


def _first_pictures(dataset: StageDataset, count: int) -> Tensor:
    """The first crops of the first epoch, N×3×crop×crop; raises InputError for a photo that cannot be read."""
    batch = collate([dataset[0, i] for i in range(min(count, len(dataset)))])
    raise_if_broken(batch)
    images: Tensor = batch["image"]
    return images


def train_affinity(
    photos: Photos,
    labels: Path,
    out: Path,
    config: AffinityConfig,
    *,
    classes: int | None = None,
    weights: Path | None = None,
    random: bool = False,
    skip_bad_labels: bool = False,
) -> AffinityResult:
    """Train, or go on with, the AffinityNet of folder `out`; best.ckpt is its last epoch.

    labels: folder of `<id>.png`, 0 background, 1..classes, 255 ignored. classes: their number, where the
    folder does not say it (None: VOC's 20). weights: a classifier's checkpoint
    of `config.arch`; `random` to start without.
    Raises InputError (labels, weights, a folder made with other settings), ExportError, TrainingError.
    """
    torch.manual_seed(config.seed)  # of the new layers
    backbone = load_backbone(config.arch, weights, output_stride=STRIDE, random=random)
    network = AffinityNet(backbone, config.radius, freeze_backbone=config.freeze_backbone)
    items, described = LabelledPhotos(photos, labels, classes).checked(skip=skip_bad_labels)
    inputs = {
        "labels": described,
        "weights": None if weights is None else {"file": weights.name, "sha256": sha256_file(weights)},
    }
    save_config(out, STAGE, config, inputs)
    stage = AffinityStage(network, config, items)
    if config.arch != "resnet38":
        network.scale_new_layers(_first_pictures(stage.dataset, config.batch))
    done = fit(stage, out)
    return AffinityResult(
        checkpoint=str(Path(out) / BEST),
        photos=len(items.ids),
        epochs=done.epochs,
        loss=done.best["loss"],
        accuracy=done.best["accuracy"],
        seconds=done.seconds,
    )
