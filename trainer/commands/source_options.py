"""The options that every command of the trainer takes to say which photos it reads, and what they become.

def command(voc: VocOption = None, split: SplitOption = None, images: ImagesOption = None, coco: CocoOption = None,
            list_file: ListOption = None, root: RootOption = None, labels: LabelsOption = None): ...
    photos = open_photos(
        voc=voc, split=split, images=images, coco=coco, list_file=list_file, root=root, labels=labels
    )
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from infercam.trainer.photos.photos import Photos

VocOption = Annotated[Path | None, typer.Option("--voc", help="VOC tree; with --split.")]
CocoOption = Annotated[Path | None, typer.Option("--coco", help="COCO tree; with --split.")]
SplitOption = Annotated[
    str | None, typer.Option("--split", help="Split of the tree: train, val, …, train2014, …")
]
ImagesOption = Annotated[Path | None, typer.Option("--images", help="Folder of images.")]
ListOption = Annotated[Path | None, typer.Option("--list", help="List of paths or ids, or psa's.")]
RootOption = Annotated[Path | None, typer.Option("--root", help="Folder that --list is relative to.")]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        "--labels", help="Image labels: .json, .csv, .npy (psa), folder of VOC XML, `voc-xml`, `coco`."
    ),
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many images.")]


def open_photos(
    *,
    voc: Path | None = None,
    split: str | None = None,
    images: Path | None = None,
    list_file: Path | None = None,
    root: Path | None = None,
    coco: Path | None = None,
    labels: str | Path | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
) -> Photos:
    """The photos that the options name, with labels where `labels` is given.

    classes: the names that labels are indices of (default: VOC's 20).
    Raises InputError for no source or two, for a source that cannot be used, and for a bad label file.
    """
    from infercam.engine.data import voc as voc_layout
    from infercam.engine.inputs import SourceSettings
    from infercam.trainer.photos.photos import Photos

    wanted = SourceSettings(
        images=images, voc=voc, coco=coco, split=split, list_file=list_file, root=root, limit=limit
    )
    names = voc_layout.CLASSES if classes is None else list(classes)
    found = None if labels is None else wanted.labels(labels, names)
    return Photos(wanted.open(), found)


def class_names(file: Path | None, labels: str | Path | None) -> list[str]:
    """Class names: those of a file, else those that a JSON label file names, COCO's for `coco`, else VOC's."""
    import json

    from infercam.engine.data.class_names import read_classes
    from infercam.engine.data.voc import CLASSES

    if file is not None:
        return read_classes(file)
    if labels is not None and str(labels) == "coco":
        from infercam.engine.coco import CLASSES as COCO

        return COCO
    if labels is not None and str(labels).endswith(".json"):
        try:
            found = json.loads(Path(labels).read_text(encoding="utf-8"))["classes"]
        except (OSError, ValueError, KeyError, TypeError):  # the label reader says what is wrong with it
            return CLASSES
        return [str(name) for name in found]
    return CLASSES
