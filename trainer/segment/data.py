"""Photos with pseudo labels and, by the saliency mode, saliency maps: what `infercam segment` trains on.

none        labels alone
background  the conventional way: wherever the saliency map says background (at most half), the label
            becomes background too, whatever it was; elsewhere it stays. Saliency is not seen again.
refine      labels as they are; the saliency map goes to the loss of eq. 4 (saliency_loss.py)
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infercam.engine.bundle import InputSpec
from infercam.engine.common.errors import InputError, shown
from infercam.trainer.photos.augment import random_crop, random_flip, random_scale, to_tensor
from infercam.trainer.photos.label_png import IGNORE
from infercam.trainer.photos.labelled import LabelledPhotos
from infercam.trainer.saliency.files import read_saliency, saliency_file
from infercam.trainer.segment.saliency_loss import THRESHOLD

if TYPE_CHECKING:
    from infercam.trainer.segment.settings import SegmentConfig

SaliencyMode = Literal["none", "background", "refine"]
Pixels = NDArray[np.uint8]


class SaliencyFolder:
    """`<id>.png`, 0 background … 255 salient, for the photos of a run."""

    def __init__(self, folder: Path, ids: list[str], *, skip_missing: bool = False) -> None:
        """Raises InputError, with their number and the first, where photos have none and may not lack one."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{shown(self.folder)}: no such folder of saliency maps")
        self.missing = frozenset(i for i in ids if not saliency_file(self.folder, i).is_file())
        if not self.missing or (skip_missing and len(self.missing) < len(ids)):
            return
        first = next(i for i in ids if i in self.missing)
        raise InputError(
            f"{shown(self.folder)}: {len(self.missing)} of {len(ids)} photos have no saliency map (first: "
            f"{shown(first)}.png); make them (infercam saliency), or train without theirs "
            "(--missing-saliency cross-entropy)"
        )

    def read(self, item_id: str, size: tuple[int, int]) -> Pixels | None:
        """H×W uint8, None for one that is missing; raises InputError."""
        if item_id in self.missing:
            return None
        return read_saliency(saliency_file(self.folder, item_id), size)

    def describe(self, ids: list[str]) -> dict[str, Any]:
        """Their number and a hash over all of them."""
        digest = hashlib.sha256()
        there = [i for i in ids if i not in self.missing]
        for item_id in there:
            data = saliency_file(self.folder, item_id).read_bytes()
            digest.update(f"{item_id}\0".encode() + hashlib.sha256(data).digest())
        return {"count": len(there), "sha256": digest.hexdigest()}


class SegmentItems:
    """`id -> image, planes` for StageDataset: `label`, and with `refine` `saliency` and `inside` (1 where there
    is a saliency map at all)."""

    def __init__(self, labelled: LabelledPhotos, mode: SaliencyMode, saliency: SaliencyFolder | None) -> None:
        self.labelled, self.mode, self.saliency = labelled, mode, saliency

    def __call__(self, item_id: str) -> tuple[Pixels, dict[str, Pixels]]:
        image, planes = self.labelled(item_id)
        if self.saliency is None or self.mode == "none":
            return image, planes
        found = self.saliency.read(item_id, image.shape[:2])
        if self.mode == "background":
            return image, {"label": planes["label"] if found is None else cut(planes["label"], found)}
        known = np.full(image.shape[:2], found is not None, np.uint8)
        return image, {
            **planes,
            "saliency": np.zeros_like(known) if found is None else found,
            "inside": known,
        }


def cut(label: Pixels, saliency: Pixels) -> Pixels:
    """The label with everything background that the saliency map calls so (mode `background`)."""
    return np.where(saliency <= THRESHOLD * 255, np.uint8(0), label)


class SegmentAugment:
    """Picture and planes -> `image` 3×crop×crop float32, `label` and the other planes crop×crop uint8."""

    fill = {"label": IGNORE, "saliency": 0, "inside": 0}  # noqa: RUF012

    def __init__(self, config: SegmentConfig, spec: InputSpec) -> None:
        self.config, self.spec = config, spec

    def __call__(self, rng: np.random.Generator, image: Any, planes: dict[str, Any]) -> dict[str, Tensor]:
        image, planes = random_scale(rng, image, planes, *self.config.scale)
        image, planes = random_crop(rng, image, planes, self.config.crop, self.fill)
        image, planes = random_flip(rng, image, planes)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(p)) for name, p in planes.items()}
        return {"image": to_tensor(image, self.spec), **tensors}
