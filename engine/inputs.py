"""What commands are given, as settings that Python users can fill in too: images, labels, ground truth.

SourceSettings(voc="VOC2012", split="train").open()              # a Source
GroundTruthSettings(voc="VOC2012", split="val").open()           # a GroundTruth
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from infercam.engine.common.errors import InputError
from infercam.engine.common.options import option

if TYPE_CHECKING:
    from infercam.engine.data.labels import Labels
    from infercam.engine.data.sources import Source
    from infercam.engine.evaluation.ground_truth import GroundTruth

FolderOrUri = Annotated[str, BeforeValidator(lambda given: None if given is None else os.fspath(given))]
"""A folder's path, or a URI (s3://…)."""


class SourceSettings(BaseModel):
    """One source of images: a folder, a list, a VOC tree or a COCO tree."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: FolderOrUri | None = option(None, "Folder of images, or its URI (s3://…).")
    voc: Path | None = option(None, "VOC tree; with --split.")
    coco: Path | None = option(None, "COCO tree; with --split.")
    split: str | None = option(None, "Split of the tree: train, val, …, train2014, …")
    list_file: Path | None = option(None, "List of paths or ids, or psa's.", "--list")
    root: FolderOrUri | None = option(None, "Folder, or URI of one, that --list is relative to.")
    limit: int | None = option(None, "Only the first so many images.", ge=1)

    def open(self) -> Source:
        """The images. Raises InputError for no source or several, or one that cannot be used."""
        source = self._chosen()
        return source[: self.limit] if self.limit else source

    def _chosen(self) -> Source:
        from infercam.engine.data.sources import folder_source, list_source, voc_source

        given = [one for one in (self.images, self.voc, self.list_file, self.coco) if one is not None]
        if len(given) != 1 or (self.split is None) is not (self.voc is None and self.coco is None):
            raise InputError(
                "give one source of images: --images DIR, or --voc ROOT --split NAME, or --list FILE, "
                "or --coco ROOT --split NAME"
            )
        if self.voc is not None and self.split is not None:
            return voc_source(self.voc, self.split)
        if self.coco is not None and self.split is not None:
            from infercam.engine.coco import coco_source

            return coco_source(self.coco, self.split)
        if self.images is not None:
            return folder_source(self.images)
        assert self.list_file is not None
        return list_source(self.list_file, self.root)

    def labels(self, spec: str | Path, classes: list[str]) -> Labels:
        """The images' labels, as indices of `classes`, from a file or folder, or what the tree itself says.

        spec: as `--labels`: a file, a folder of VOC XML, `voc-xml`, or `coco`. Raises InputError.
        """
        from infercam.engine.data.labels import load_labels

        if str(spec) == "coco" and self.coco is not None and self.split is not None:
            from infercam.engine.coco import coco_labels

            return coco_labels(self.coco, self.split, classes)
        return load_labels(spec, classes, voc_root=self.voc or self.root, root=self._folder())

    def _folder(self) -> Path | None:
        """The folder on this machine that ids are below, where there is one."""
        from infercam.engine.data.storage import is_uri

        folder = self.images or self.root or self.voc or (self.list_file and self.list_file.parent)
        return None if folder is None or is_uri(folder) else Path(folder)


class GroundTruthSettings(BaseModel):
    """Masks to score against: those of a VOC or COCO tree, or a folder of <id>.png."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voc: Path | None = option(None, "A VOC tree (the folder with JPEGImages, or one above it).")
    split: str | None = option(None, "A split of the VOC or COCO tree, for example val or val2014.")
    coco: Path | None = option(None, "A COCO tree (annotations/instances_SPLIT.json): masks painted from it.")
    gt: Path | None = option(
        None, "Folder of <id>.png masks instead of the tree's own; alone: all of its masks."
    )
    gt_values: str | None = option(
        None,
        "Mask values of background, the first class, …, as 0,255 (0,,255: none of the first); others are ignored.",
    )

    def open(self) -> GroundTruth:
        """Raises InputError for none or several, or one that cannot be used."""
        from infercam.engine.evaluation.mask_values import MaskValues

        values = None if self.gt_values is None else MaskValues.parse(self.gt_values)
        if values is not None and self.coco is not None and self.gt is None:
            raise InputError(
                "--gt-values: masks painted from COCO have its classes; it is for masks of --gt or --voc"
            )
        return self._chosen().with_values(values)

    def _chosen(self) -> GroundTruth:
        from infercam.engine.evaluation.ground_truth import folder_ground_truth, voc_ground_truth

        if self.voc is not None and self.coco is None and self.split is not None:
            return voc_ground_truth(self.voc, self.split, self.gt)
        if self.coco is not None and self.voc is None and self.split is not None:
            from infercam.engine.coco import coco_ground_truth

            return coco_ground_truth(self.coco, self.split, self.gt)
        if self.voc is None and self.coco is None and self.split is None and self.gt is not None:
            return folder_ground_truth(self.gt)
        raise InputError(
            "name the ground truth: --voc ROOT --split NAME, or --gt FOLDER of masks, or --coco ROOT --split NAME"
        )
