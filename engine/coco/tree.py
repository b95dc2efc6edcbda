"""A COCO tree as the rest of the engine sees it: a source of images, their labels, their ground truth.

    ROOT/annotations/instances_SPLIT.json    ROOT/SPLIT/FILE.jpg  or  ROOT/images/SPLIT/FILE.jpg

SPLIT: train2014, val2014, train2017, val2017, or any other name of such a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infercam.engine.coco.annotations import Annotations
from infercam.engine.coco.masks import CocoMasks, image_classes
from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.paths import check_folder, is_file, is_folder
from infercam.engine.common.progress import reading_bar
from infercam.engine.data.images import without_suffix
from infercam.engine.data.labels import Labels
from infercam.engine.data.sources import Item, Source
from infercam.engine.evaluation.ground_truth import GroundTruth, MaskFiles, mask_folder

ANNOTATIONS = "annotations"
_PREFIX, _SUFFIX = "instances_", ".json"


def open_annotations(root: str | os.PathLike[str], split: str) -> Annotations:
    """The annotations of a split; the first time they are parsed, with a bar where stderr is a terminal.

    Raises InputError for a folder without such a file (naming those there are), and as `Annotations.open`.
    """
    file = annotation_file(Path(root), split)
    return open_file(file)


def open_file(file: Path) -> Annotations:
    """As `Annotations.open`, with a bar where stderr is a terminal."""
    with reading_bar() as bar:
        total = file.stat().st_size if is_file(file) else None
        task = bar.add_task(f"reading {shown(file.name)}", total=total, visible=False)
        return Annotations.open(file, lambda n: bar.update(task, advance=n, visible=True))


def annotation_file(root: Path, split: str) -> Path:
    """ROOT/annotations/instances_SPLIT.json; raises InputError, which lists the splits there are."""
    check_folder(root, f"; --coco takes the folder that holds {ANNOTATIONS}")
    file = root / ANNOTATIONS / f"{_PREFIX}{split}{_SUFFIX}"
    if "/" not in split and "\\" not in split and is_file(file):
        return file
    found = sorted((root / ANNOTATIONS).glob(f"{_PREFIX}*{_SUFFIX}"))
    have = ", ".join(shown(f.name[len(_PREFIX) : -len(_SUFFIX)]) for f in found) or "none"
    raise InputError(
        f"{shown(root)}: no split {shown(repr(split))}, {ANNOTATIONS}/{_PREFIX}SPLIT{_SUFFIX} (there are: {have})"
    )


def image_folder(root: Path, split: str) -> Path:
    """ROOT/SPLIT or ROOT/images/SPLIT; raises InputError where there is neither."""
    folders = [root / split, root / "images" / split]
    for folder in folders:
        if is_folder(folder):
            return folder
    raise InputError(f"{shown(root)}: has no folder of images, {shown(split)} or images/{shown(split)}")


def coco_source(root: str | os.PathLike[str], split: str) -> Source:
    """A split's images that have annotations, by ascending image id; an item's id is its file name without suffix.

    Raises InputError where the tree, the split or its images are not there, and as `Annotations.open`.
    """
    top = Path(root)
    folder = image_folder(top, split) if is_folder(top) else top
    annotations = open_annotations(top, split)
    files = annotations.files()
    if not files:
        raise InputError(f"{shown(annotations.file)}: none of its images has annotations")
    return Source("coco", top, files, _Locator(folder), split=split, notes=notes(annotations))


def notes(annotations: Annotations, *, empty: str = "skip") -> list[str]:
    """Lines worth telling: what of the file is not used, and whether it is COCO's."""
    name = shown(annotations.file.name)
    found = []
    left_out = len(annotations.files(empty=True)) - len(annotations.files()) if empty == "skip" else 0
    if left_out:
        found.append(f"{name}: {left_out} images without annotations left out")
    strays = annotations.strays()
    if strays:
        some = "; ".join(": ".join(stray) for stray in strays[:3]) + ("; …" if len(strays) > 3 else "")
        found.append(f"{name}: {len(strays)} entries passed over: {some}")
    if not annotations.official:
        number = len(annotations.classes)
        found.append(f"{name}: its {number} categories are not COCO's 80; numbered by ascending id")
    return found


def open_source(path: Path, split: str | None) -> tuple[Annotations, str, Path | None]:
    """What `infercam coco` is given, a tree and a split or an annotation file: (annotations, split, images).

    `images` is the folder of the pictures where the tree has one.
    """
    if is_file(path):
        return open_file(path), split or path.stem.removeprefix(_PREFIX), None
    if split is None:
        raise InputError("name the split of the COCO tree: --split train2014, val2014, train2017, val2017")
    annotations = open_annotations(path, split)
    try:
        return annotations, split, image_folder(path, split)
    except InputError:  # masks can be made without pictures
        return annotations, split, None


@dataclass(frozen=True)
class _Locator:
    folder: Path

    def __call__(self, file: str) -> Item:
        return Item(without_suffix(file), self.folder / file)


def coco_labels(root: str | os.PathLike[str], split: str, classes: Sequence[str]) -> CocoLabels:
    """Image-level labels of a split for the bundle's `classes`; raises as `open_annotations`."""
    return CocoLabels(open_annotations(root, split), classes)


class CocoLabels(Labels):
    """The classes of an image's annotations, looked up one image at a time, by name."""

    def __init__(self, annotations: Annotations, classes: Sequence[str]) -> None:
        super().__init__("coco", annotations.file, {}, list(classes), sha256=annotations.sha256)
        self.annotations = annotations

    def __len__(self) -> int:
        return len(self.annotations.files())

    def _labels(self, item_id: str) -> Iterable[str | int]:
        return image_classes(self.annotations, self.annotations.image(item_id))


def coco_ground_truth(
    root: str | os.PathLike[str], split: str, masks: str | os.PathLike[str] | None = None, **choices: str
) -> GroundTruth:
    """A split's ground truth, painted from its annotations, or the masks of a folder (`<id>.png`).

    choices: of `CocoMasks`. Images without annotations are left out, and those that are broken or have a broken
    annotation (`GroundTruth.masks` says how many).
    """
    annotations = open_annotations(root, split)
    broken = annotations.broken()
    names = [name for name in annotations.names() if name not in broken]
    left_out = f"; {len(broken)} broken images left out" if broken else ""
    if masks is not None:
        folder = mask_folder(masks)
        words = f"{folder}{left_out}"
        return GroundTruth(MaskFiles(folder, names), words, split, classes=annotations.classes)
    painter = CocoMasks(annotations, **choices)
    words = f"{painter.words}{left_out}"
    return GroundTruth(_Painted(names, annotations.file), words, split, painter, annotations.classes)


class _Painted(Sequence[tuple[str, Path]]):
    """(id, annotation file) pairs, made when asked for."""

    def __init__(self, names: list[str], file: Path) -> None:
        self.names, self.file = names, file

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [(name, self.file) for name in self.names[at]]
        return self.names[at], self.file
