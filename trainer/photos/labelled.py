"""Photos with a folder of label PNGs (`<id>.png`), as the stages that train on pseudo labels read them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from infercam.engine.common.errors import InputError
from infercam.engine.common.progress import JobProgress
from infercam.engine.common.progress import stderr as console
from infercam.engine.data import voc
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.trainer.photos.label_png import read_label
from infercam.trainer.photos.photos import Photos

LISTED = 10
"""Unusable labels that are named one by one."""


class LabelledPhotos:
    """`id -> image, {"label": …}`, for StageDataset; can be sent to another process.

    classes: how many object classes there are, background not counted; None: as the folder says, else VOC's 20.
    Raises StoreError for no such folder.
    """

    def __init__(self, photos: Photos, folder: Path, classes: int | None = None) -> None:
        self.photos, self.labels = photos, LabelFolder.open(folder)
        info = self.labels.info
        self.classes = classes or len(info.classes if info else voc.CLASSES)

    @property
    def ids(self) -> list[str]:
        return self.photos.ids

    def __call__(self, item_id: str) -> tuple[Any, dict[str, Any]]:
        """The photo H×W×3 uint8 and its label H×W uint8; raises InputError naming the file, for a label that
        is missing, of another size than the photo, or has values outside the classes."""
        image = self.photos.image(item_id)
        return image, {"label": read_label(self.labels.file(item_id), self.classes, image.shape[:2])}

    def checked(self, *, skip: bool = False) -> tuple[LabelledPhotos, dict[str, Any]]:
        """Those that can be used, and what a run records of them (their number and a hash of the labels).

        Reads every label once, of the photos only the headers. What cannot be used is named on stderr.
        skip: leave unusable ones out; otherwise, raises InputError where there are any.
        """
        bad: dict[str, str] = {}
        digest = hashlib.sha256()
        with JobProgress("checking labels", len(self.ids)) as bar:
            for item_id in self.ids:
                try:
                    read_label(self.labels.file(item_id), self.classes, self.photos.size(item_id))
                    digest.update(
                        f"{item_id}\0".encode()
                        + hashlib.sha256(self.labels.file(item_id).read_bytes()).digest()
                    )
                except InputError as e:
                    bad[item_id] = str(e)
                bar.advance(1)
        self._report(bad, skip)
        usable = LabelledPhotos(
            self.photos.only(i for i in self.ids if i not in bad), self.labels.path, self.classes
        )
        return usable, {"count": len(usable.ids), "classes": self.classes, "sha256": digest.hexdigest()}

    def _report(self, bad: dict[str, str], skip: bool) -> None:
        for line in list(bad.values())[:LISTED]:
            console.print(f"label: {line}", soft_wrap=True)
        if len(bad) > LISTED:
            console.print(f"label: and {len(bad) - LISTED} more")
        if len(bad) == len(self.ids):
            raise InputError(f"{self.labels.path}: has no usable label for any of the {len(bad)} photos")
        if bad and not skip:
            raise InputError(
                f"{self.labels.path}: {len(bad)} of {len(self.ids)} photos have no usable label "
                f"(first: {next(iter(bad))}); mend them, or train on the others with --skip-bad-labels"
            )
