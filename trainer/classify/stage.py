"""Training a multi-label classifier on image-level labels, plain or with split & unite augmentation.

The loss is the multi-label soft margin; a training picture is the photo, or one of its tiles
(split_unite.py), resized at random, cropped, mirrored and jittered in colour, as psa's and irn's classifiers
are trained. Masks are never read.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from infercam.engine.bundle import InputSpec
from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.progress import stderr as console
from infercam.trainer.classify.average_precision import average_precision
from infercam.trainer.classify.settings import ClassifyConfig, Split
from infercam.trainer.classify.split_unite import (
    Centres,
    load_centres,
    map_centres,
    middle,
    save_centres,
    tiles,
)
from infercam.trainer.loop.dataset import StageDataset
from infercam.trainer.loop.fit import LAST
from infercam.trainer.loop.stage import StageBase
from infercam.trainer.networks.classifiers import Trainable
from infercam.trainer.photos.augment import (
    colour_jitter,
    random_crop,
    random_flip,
    random_long_side,
    to_tensor,
)
from infercam.trainer.photos.photos import Photos
from infercam.trainer.photos.whole_images import gathered, my_share, shape_batches

CENTRES = "centres"


class ClassifyStage(StageBase):
    """See the module. `validation` (may be None) is scored whole, at one scale, after each epoch."""

    name = "classify"

    def __init__(
        self,
        built: Trainable,
        config: ClassifyConfig,
        photos: Photos,
        validation: Photos | None,
        classes: Sequence[str],
        out: Path,
        fixed_centres: Centres | None = None,
    ) -> None:
        self.built, self.config, self.classes = built, config, list(classes)
        self.network: nn.Module = built.network
        self.photos, self.validation = photos, validation
        self.best_by = "mAP" if validation is not None and config.keep == "best" else ""
        self.freeze_batchnorm = not built.scratch and config.arch != "small"
        self._folder = Path(out) / CENTRES
        self._resumed = (Path(out) / LAST).exists()
        self._fixed = fixed_centres
        self.loader = LoadPicture(photos, len(self.classes), config.augment == "split-unite", config.split)
        self.loader.centres = fixed_centres or {}
        self.dataset = StageDataset(
            photos.ids, self.loader, ClassifyAugment(config, built.input), config.seed
        )
        if (
            config.freeze_early and config.arch == "resnet38" and not built.scratch
        ):  # psa's habit; irn trains all of ResNet-50
            for layer in built.early:
                layer.requires_grad_(False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Convolutions; biases and norms, which do not decay; the linear layer, at its own rate."""
        head = set(self.built.head.parameters())
        rest = [p for p in self.built.network.parameters() if p.requires_grad and p not in head]
        return [
            {"params": [p for p in rest if p.ndim > 1]},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
            {"params": list(head), "scale": self.config.head_scale},
        ]

    def loss(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        scores = self.network(batch["image"])
        return {"loss": F.multilabel_soft_margin_loss(scores.float(), batch["labels"])}

    def before_epoch(self, epoch: int) -> None:
        """Look at the classifier's own maps where this epoch refreshes the centres, or read what was found
        when it began; until the first look, tiles meet at the image's centre."""
        if self.config.augment == "plain" or self._fixed is not None:
            return
        if epoch == 0 and not self._resumed:
            shutil.rmtree(self._folder, ignore_errors=True)  # of a run that was begun anew
        latest = epoch // self.config.refresh * self.config.refresh
        if latest == 0:
            return
        file = self._folder / f"epoch_{latest:03d}.json"
        if not file.exists():
            save_centres(file, self.find_centres())
            console.print(
                f"classify: centres of {len(self.photos)} images found anew before epoch {epoch + 1}"
            )
        self.loader.centres = load_centres(file)

    @torch.no_grad()
    def find_centres(self) -> Centres:
        """Centres of mass of the present classifier's maps (one scale, longer side `config.side`)."""
        network = self.built.network
        device = next(network.parameters()).device
        training = network.training
        network.eval()
        found: Centres = {}
        ids = my_share(self.photos.ids)
        for names, images in shape_batches(
            self.photos, ids, self.config.side, self.config.batch, self.built.input
        ):
            maps = network.forward_cam(images.to(device)).float().cpu().numpy()  # type: ignore[operator]
            for name, own in zip(names, maps, strict=True):
                labels, size = self.photos.labels(name), self.photos.size(name)
                found[name] = map_centres(own[labels], *size)
        network.train(training)
        return gathered(found)

    def validate(self) -> dict[str, float]:
        """`mAP` over the classes that the validation photos have; nothing without those."""
        if self.validation is None:
            return {}
        return {"mAP": float(np.nanmean(self.validation_ap(self.validation)))}

    @torch.no_grad()
    def validation_ap(self, photos: Photos) -> NDArray[np.float64]:
        """Average precision of each class (C,), NaN where no photo has it."""
        device = next(self.network.parameters()).device
        scores: dict[str, NDArray[np.float32]] = {}
        ids = my_share(photos.ids)
        for names, images in shape_batches(
            photos, ids, self.config.side, self.config.batch, self.built.input
        ):
            found = self.network(images.to(device)).float().cpu().numpy()
            scores |= dict(zip(names, found, strict=True))
        scores = gathered(scores)
        labels = np.stack([photos.one_hot(i, len(self.classes)) for i in photos])
        return average_precision(np.stack([scores[i] for i in photos]), labels)

    def facts(self) -> dict[str, Any]:
        return {
            "arch": self.config.arch,
            "classes": self.classes,
            "backbone": self.built.facts,
            "input": self.built.input.model_dump(mode="json"),
        }


class LoadPicture:
    """A photo with its labels and, for split & unite, the boxes of its tiles."""

    def __init__(self, photos: Photos, classes: int, with_tiles: bool, split: Split) -> None:
        self.photos, self.classes, self.with_tiles, self.split = photos, classes, with_tiles, split
        self.centres: Centres = {}

    def __call__(self, item_id: str) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        image = self.photos.image(item_id)
        extra: dict[str, Any] = {"labels": self.photos.one_hot(item_id, self.classes)}
        if self.with_tiles:
            height, width = image.shape[:2]
            centres = self.centres.get(item_id) or middle(height, width, int(extra["labels"].sum()))
            extra["tiles"] = tiles(height, width, centres, self.split)
        return image, extra


class ClassifyAugment:
    """A training picture from a photo: a tile or all of it, resized, cropped, mirrored, jittered."""

    def __init__(self, config: ClassifyConfig, spec: InputSpec) -> None:
        self.config, self.spec = config, spec

    def __call__(
        self, rng: np.random.Generator, image: NDArray[np.uint8], extra: dict[str, Any]
    ) -> dict[str, Tensor]:
        config = self.config
        if "tiles" in extra and rng.random() < config.tile_share:
            box = extra["tiles"][rng.integers(len(extra["tiles"]))]
            image = image[box.y0 : box.y1, box.x0 : box.x1]
        image, _ = random_long_side(rng, image, {}, *config.long_side)
        image, _ = random_crop(rng, image, {}, config.crop, {})
        image, _ = random_flip(rng, image, {})
        if config.jitter:
            image = colour_jitter(rng, image, *(3 * [config.jitter]))
        return {"image": to_tensor(image, self.spec), "labels": torch.from_numpy(extra["labels"])}


def check_labels(photos: Photos) -> None:
    """Raises InputError, saying how many and naming the first, where photos have no usable labels."""
    bad: list[InputError] = []
    for item_id in photos:
        try:
            photos.labels(item_id)
        except InputError as e:
            bad.append(e)
    if bad:
        more = f" (and {len(bad) - 1} more of {len(photos)} images)" if len(bad) > 1 else ""
        raise InputError(f"{shown(bad[0])}{more}")
