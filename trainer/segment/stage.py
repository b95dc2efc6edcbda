"""Training DeepLab on pseudo labels, with or without saliency (eq. 4): settings and the stage that `fit` runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from infercam.engine.bundle import InputSpec, sha256_file
from infercam.engine.common.errors import InputError
from infercam.engine.common.progress import stderr as console
from infercam.trainer.loop.config import save_config
from infercam.trainer.loop.dataset import StageDataset
from infercam.trainer.loop.fit import BEST, FitResult, fit
from infercam.trainer.loop.stage import StageBase
from infercam.trainer.networks.deeplab import STAGE, DeepLab, full_scores, start_deeplab
from infercam.trainer.photos.augment import to_tensor
from infercam.trainer.photos.labelled import LabelledPhotos
from infercam.trainer.photos.photos import Photos
from infercam.trainer.photos.whole_images import gathered, my_share
from infercam.trainer.segment.confusion import confusion, mean_iou
from infercam.trainer.segment.data import SaliencyFolder, SegmentAugment, SegmentItems
from infercam.trainer.segment.saliency_loss import segmentation_loss
from infercam.trainer.segment.settings import SegmentConfig
from infercam.trainer.segment.validation import Validation


class SegmentStage(StageBase):
    """See the module. `best_by` is the validation's mIoU where there is one."""

    name = STAGE
    freeze_batchnorm = False  # DeepLab sees to it: a version 3 head trains its own

    def __init__(
        self,
        network: DeepLab,
        config: SegmentConfig,
        items: SegmentItems,
        validation: Validation | None = None,
    ) -> None:
        self.config, self.validation = config, validation
        self.spec: InputSpec = network.input
        self._facts, self._groups = network.facts(), network.parameter_groups(config.head_scale)
        self.network: nn.Module = network
        self.best_by = "mIoU" if validation else ""
        self.dataset = StageDataset(
            items.labelled.ids, items, SegmentAugment(config, network.input), config.seed
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self._groups

    def loss(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Eq. 4 at the crop's own resolution; also the mean temperature where saliency is used."""
        scores = full_scores(self.network, batch["image"], self.config.output_stride)
        if "saliency" not in batch:
            return {"loss": segmentation_loss(scores, batch["label"]).total}
        saliency, inside = batch["saliency"].float() / 255, batch["inside"] > 0
        found = segmentation_loss(scores, batch["label"], saliency, inside, alpha=self.config.alpha)
        return {
            "loss": found.total,
            "cross_entropy": found.cross_entropy,
            "saliency": found.saliency,
            "tau": found.tau.mean(),
        }

    def validate(self) -> dict[str, float]:
        """`mIoU` of whole photos at their own size, one scale, no mirroring."""
        if self.validation is None:
            return {}
        classes = self._facts["classes"]
        mine = np.zeros((classes, classes), np.int64)
        for item_id in my_share(self.validation.photos.ids):
            image = self.validation.photos.image(item_id)
            truth = self.validation.truth(item_id, classes - 1, image.shape[:2])
            mine += confusion(self.label(image), truth, classes)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        whole = sum(gathered({str(rank): mine}).values(), np.zeros_like(mine))
        if not whole[1:].any():  # else its mIoU would be background's alone
            raise InputError(
                "the validation masks hold no class at all, only background (0) and ignored pixels (255): "
                "their values are class indices from 1, not 255 for the object"
            )
        return {"mIoU": mean_iou(whole)}

    @torch.no_grad()
    def label(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The present network's label of a photo, H×W."""
        device = next(self.network.parameters()).device
        batch = to_tensor(image, self.spec)[None].to(device)
        found = full_scores(self.network, batch, self.config.output_stride)[0].argmax(0)
        return found.to(torch.uint8).cpu().numpy()

    def facts(self) -> dict[str, Any]:
        return self._facts


@dataclass(frozen=True)
class SegmentResult:
    """What a training reports."""

    checkpoint: str
    photos: int
    epochs: int
    best: dict[str, float]
    """Figures of the epoch that best.ckpt holds."""
    last: dict[str, float]
    seconds: float


def train_segment(
    photos: Photos,
    labels: Path,
    out: Path,
    config: SegmentConfig,
    *,
    classes: int = 20,
    weights: Path | None = None,
    random: bool = False,
    saliency: Path | None = None,
    validation: Validation | None = None,
    skip_bad_labels: bool = False,
) -> SegmentResult:
    """Train, or go on with, the DeepLab of folder `out`; best.ckpt is the epoch of the best mIoU, or the last.

    labels: folder of `<id>.png`, 0 background, 1..classes, 255 ignored. saliency: folder of `<id>.png`,
    0..255, for the modes `background` and `refine`. weights: see start_deeplab; `random` to start without.
    Raises InputError (labels, saliency, weights, a folder made with other settings), ExportError,
    TrainingError.
    """
    if (saliency is None) != (config.saliency_mode == "none"):
        raise InputError("give --saliency DIR with --saliency-mode background or refine, and neither without")
    if validation:
        validation.check()
    torch.manual_seed(config.seed)  # of the head
    network, notes = start_deeplab(
        config.arch,
        weights,
        classes=classes + 1,
        output_stride=config.output_stride,
        head=config.head,
        random=random,
    )
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
    labelled, described = LabelledPhotos(photos, labels, classes).checked(skip=skip_bad_labels)
    if config.head == "v3" and min(config.batch, len(labelled.ids)) < 2:
        raise InputError("a version 3 head needs at least 2 photos a batch (its BatchNorm trains)")
    maps = None
    if saliency is not None:
        maps = SaliencyFolder(saliency, labelled.ids, skip_missing=config.missing_saliency != "error")
    inputs = {
        "labels": described,
        "weights": None if weights is None else {"file": weights.name, "sha256": sha256_file(weights)},
        "saliency": None if maps is None else maps.describe(labelled.ids),
        "validation": None if validation is None else validation.photos.describe(),
    }
    save_config(out, STAGE, config, inputs)
    items = SegmentItems(labelled, config.saliency_mode, maps)
    done: FitResult = fit(SegmentStage(network, config, items, validation), out)
    return SegmentResult(
        checkpoint=str(Path(out) / BEST),
        photos=len(labelled.ids),
        epochs=done.epochs,
        best=done.best,
        last=done.history[-1],
        seconds=done.seconds,
    )
