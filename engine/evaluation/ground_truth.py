"""What maps and labels are scored against: which images, their masks, and what the masks' values stand for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.errors import InputError, shown
from infercam.engine.data import voc
from infercam.engine.data.sources import voc_source
from infercam.engine.evaluation.label_folder import INFO, LabelFolder
from infercam.engine.evaluation.label_png import PNG, read_mask
from infercam.engine.evaluation.mask_values import MaskValues, ValueTable, value_table


def _read_file(id: str, file: Path) -> NDArray[np.uint8]:
    return read_mask(file)


@dataclass(frozen=True)
class GroundTruth:
    """Which images to score and against what, and the words printed beside figures.

    pairs: (id, mask file). `MaskFiles` holds the ids only, for long lists.
    read: gives the (H, W) mask of a pair; must be picklable. Ground truth without mask files has its own.
    classes: names of the mask values from 1, where they are known: then values are matched to the classes of what is
        scored by name. None: value c + 1 is class c of what is scored.
    values: which values the masks have for background and the classes, where those are not 0, 1, 2, …
    """

    pairs: Sequence[tuple[str, Path]]
    masks: str
    split: str
    read: Callable[[str, Path], NDArray[np.uint8]] = _read_file
    classes: Sequence[str] | None = None
    values: MaskValues | None = None

    def table(self, classes: Sequence[str]) -> ValueTable | None:
        """What each mask value is among `classes`, or None where nothing changes.

        Raises InputError where a class of the masks is not among `classes`, or `values` has more than those.
        """
        return value_table(self.values, self.classes, classes)

    def with_values(self, values: MaskValues | None) -> GroundTruth:
        """The same masks, with values that stand for other labels."""
        if values is None:
            return self
        words = f"{self.masks} (values {values}; others ignored)"
        return replace(self, masks=words, values=values)


class MaskFiles(Sequence[tuple[str, Path]]):
    """(id, FOLDER/<id>.png) pairs, made when asked for: 100 bytes an image."""

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.folder, self.ids = folder, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return MaskFiles(self.folder, self.ids[at])
        return self.ids[at], self.folder / f"{self.ids[at]}.png"


def voc_ground_truth(
    root: str | os.PathLike[str], split: str, masks: str | os.PathLike[str] | None = None
) -> GroundTruth:
    """A split of a VOC tree, with its official masks or those of the folder `masks` (`<id>.png`)."""
    source = voc_source(root, split)
    folder = source.root / voc.MASKS if masks is None else mask_folder(masks)
    words = f"VOC masks, {folder}" if masks is None else str(folder)
    return GroundTruth(MaskFiles(folder, [item.id for item in source]), words, split)


def folder_ground_truth(masks: str | os.PathLike[str]) -> GroundTruth:
    """Every `.png` or `.PNG` below a folder; its path there without suffix is the image's id.

    Where the folder says what its values stand for (label_folder.json, as `infercam coco` writes it), they are
    matched by name. Raises InputError for a folder without masks, or with two of one id.
    """
    folder = mask_folder(masks)
    files = {f.relative_to(folder) for suffix in PNG for f in folder.rglob(f"*{suffix}")}
    ids = sorted(f.with_suffix("").as_posix() for f in files)
    if not ids:
        raise InputError(f"{shown(folder)}: no .png masks in it")
    twice = next((id for id, other in pairwise(ids) if id == other), None)
    if twice is not None:
        raise InputError(
            f"{shown(folder)}: {shown(twice)}.png and {shown(twice)}.PNG are two masks of one image"
        )
    return GroundTruth(
        MaskFiles(folder, ids), str(folder), "all masks of the folder", classes=_classes(folder)
    )


def mask_folder(path: str | os.PathLike[str]) -> Path:
    """`path`; raises InputError where it is no folder."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{shown(folder)}: no such folder of masks")
    return folder


def _classes(folder: Path) -> list[str] | None:
    if not (folder / INFO).exists():
        return None
    info = LabelFolder.open(folder).info
    return info.classes if info else None
