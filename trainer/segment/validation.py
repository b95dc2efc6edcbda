"""Photos with ground truth, to judge a network by while it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from infercam.engine.common.errors import InputError
from infercam.engine.common.options import option
from infercam.engine.common.paths import existing
from infercam.engine.inputs import SourceSettings
from infercam.trainer.photos.label_png import read_label
from infercam.trainer.photos.photos import Photos, open_photos


class ValidationSettings(BaseModel):
    """Of the VOC tree that is trained on, or of a folder with one of masks; none: no validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voc: Path | None = option(None, "VOC tree; with --split.")
    val_split: str | None = option(None, "Split of the VOC tree to validate on after each epoch.")
    val_images: Path | None = option(None, "The same from a folder; with --val-masks.")
    val_masks: Path | None = option(None, "Their ground truth, <id>.png.")
    val_limit: int | None = option(None, "Only the first so many of them.", ge=1)

    def open(self) -> Validation | None:
        """The photos; None where none are named. Raises InputError where the settings do not go together."""
        split, images, masks = self.val_split, self.val_images, self.val_masks
        if split is not None and self.voc is not None and images is None and masks is None:
            photos = open_photos(SourceSettings(voc=self.voc, split=split, limit=self.val_limit))
            return Validation(photos, photos.mask_path)
        if images is not None and masks is not None and split is None:
            photos = open_photos(SourceSettings(images=images, limit=self.val_limit))
            return Validation(photos, lambda item_id: existing(masks / f"{item_id}.png", ".PNG"))
        if split is None and images is None and masks is None:
            return None
        raise InputError("validation: give --voc ROOT --val-split NAME, or --val-images DIR --val-masks DIR")


@dataclass(frozen=True)
class Validation:
    """Photos with ground truth to validate on after each epoch."""

    photos: Photos
    mask: Callable[[str], Path | None]

    def check(self) -> None:
        """Raises InputError, with their number and the first, where photos have no mask."""
        files = {i: self.mask(i) for i in self.photos.ids}
        missing = [i for i, file in files.items() if file is None or not file.is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(files)} validation photos have no ground truth "
                f"(first: {files[missing[0]] or missing[0]})"
            )

    def truth(self, item_id: str, classes: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """H×W uint8; raises InputError as read_label."""
        file = self.mask(item_id)
        assert file is not None
        return read_label(file, classes, size)
