"""The training photos: ids, files and image-level labels, as every stage reads them.

Built on the engine's sources and label files, with the same ids, so that what the engine wrote for an image
(its maps) and what a stage writes (its pseudo label) find each other. Holds names only and can be sent to
another process; a picture is decoded when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.errors import InputError, shown
from infercam.engine.data import voc
from infercam.engine.data.class_names import DATA_SETS, read_classes
from infercam.engine.data.images import DEFAULT_MAX_PIXELS, image_size, read_image
from infercam.engine.data.labels import Labels
from infercam.engine.data.sources import Source
from infercam.engine.inputs import SourceSettings


class Photos:
    """Images by id, in the source's order, with their labels where a label file was given."""

    def __init__(
        self, source: Source, labels: Labels | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
    ) -> None:
        self._files: dict[str, tuple[str, str | None]] = {
            item.id: (str(item.path), None if item.mask is None else str(item.mask)) for item in source
        }
        self._labels = labels
        self._source = source.describe()
        self._max_pixels = max_pixels
        self.notes = list(source.notes)
        """Lines worth telling the user (repeated lines of a list, files that are no pictures)."""

    @property
    def ids(self) -> list[str]:
        return list(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._files

    def ends(self) -> list[str]:
        """The first and the last photo's file: see check_output."""
        files = list(self._files.values())
        return [files[at][0] for at in (0, -1)] if files else []

    def path(self, item_id: str) -> Path:
        """The image's file; raises InputError for an id that the source does not have."""
        return Path(self._file(item_id)[0])

    def mask_path(self, item_id: str) -> Path | None:
        """The ground truth's file where the source names one (it may be missing): for validation only."""
        mask = self._file(item_id)[1]
        return None if mask is None else Path(mask)

    def image(self, item_id: str) -> NDArray[np.uint8]:
        """The picture, H×W×3 uint8 RGB; raises InputError where it cannot be read."""
        return read_image(self.path(item_id), self._max_pixels)

    def size(self, item_id: str) -> tuple[int, int]:
        """(height, width) from the file's header; raises InputError."""
        return image_size(self.path(item_id))

    def labels(self, item_id: str) -> list[int]:
        """The image's class indices, ascending, at least one; raises InputError where there are none."""
        if self._labels is None:
            raise InputError(f"{shown(item_id)}: no image labels were given; name them with --labels FILE")
        return self._labels.lookup(item_id)

    def one_hot(self, item_id: str, classes: int) -> NDArray[np.float32]:
        """The image's labels as a row of 0s and 1s, (classes,) float32; raises InputError."""
        row = np.zeros(classes, np.float32)
        row[self.labels(item_id)] = 1
        return row

    def only(self, ids: Iterable[str]) -> Photos:
        """The same source cut down to `ids`, in the source's order; raises InputError for an unknown one."""
        wanted = {item_id: self._file(item_id) for item_id in ids}
        part = object.__new__(Photos)
        part.__dict__ = {**self.__dict__, "_files": {i: f for i, f in self._files.items() if i in wanted}}
        return part

    def describe(self) -> dict[str, Any]:
        """What a stage records of its input: the source, and the label file with its hash."""
        labels = None if self._labels is None else self._labels.describe()
        return {"source": {**self._source, "count": len(self)}, "labels": labels}

    def _file(self, item_id: str) -> tuple[str, str | None]:
        try:
            return self._files[item_id]
        except KeyError:
            where = self._source["split"] or self._source["root"]
            raise InputError(f"{shown(item_id)}: not one of the {len(self)} images of {where}") from None


def open_photos(
    source: SourceSettings, labels: str | Path | None = None, classes: Sequence[str] | None = None
) -> Photos:
    """The photos of a source, with labels where `labels` is given.

    classes: the names that labels are indices of (default: VOC's 20).
    Raises InputError for no source or two, for a source that cannot be used, and for a bad label file.
    """
    names = voc.CLASSES if classes is None else list(classes)
    return Photos(source.open(), None if labels is None else source.labels(labels, names))


def class_names(file: Path | None, labels: str | Path | None) -> list[str]:
    """Class names: those of a file, else those that a JSON label file names, COCO's for `coco`, else VOC's."""
    if file is not None:
        return read_classes(file)
    if labels is not None and str(labels) == "coco":
        return list(DATA_SETS["coco"])
    if labels is not None and str(labels).endswith(".json"):
        try:
            found = json.loads(Path(labels).read_text(encoding="utf-8"))["classes"]
        except (OSError, ValueError, KeyError, TypeError):  # the label reader says what is wrong with it
            return list(voc.CLASSES)
        return [str(name) for name in found]
    return list(voc.CLASSES)
