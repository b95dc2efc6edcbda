"""The layout of a PASCAL VOC tree, as other tools and data sets copy it.

ROOT/JPEGImages/ID.jpg  SegmentationClass/ID.png  Annotations/ID.xml  ImageSets/Segmentation/SPLIT.txt
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.paths import check_folder, existing, is_file, is_folder

CLASSES = [
    *["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"],
    *["diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"],
    "tvmonitor",
]
"""The 20 object classes in the order that every label file without names assumes."""

IMAGES = "JPEGImages"
MASKS = "SegmentationClass"
ANNOTATIONS = "Annotations"
SETS = "ImageSets"
_SET_KINDS = ("Segmentation", "Main")  # where a split is looked for, in this order


def find_root(path: str | os.PathLike[str]) -> Path:
    """The folder that holds JPEGImages: `path`, or the VOC20xx folder in it or in its VOCdevkit.

    Raises InputError where there is none, or several and no VOC2012 among them.
    """
    root = Path(path)
    check_folder(root, f"; --voc takes the folder that holds {IMAGES}")
    if is_folder(root / IMAGES):
        return root
    inside = sorted(d.parent for depth in ("", "VOCdevkit/") for d in root.glob(f"{depth}VOC20*/{IMAGES}"))
    if not inside:
        raise InputError(f"{shown(root)}: no VOC tree: it has no {IMAGES} folder, nor a VOC2012 with one")
    named_2012 = [d for d in inside if d.name == "VOC2012"]
    if len(inside) > 1 and len(named_2012) != 1:
        raise InputError(f"{shown(root)}: holds several VOC trees; name one: {', '.join(map(shown, inside))}")
    return named_2012[0] if named_2012 else inside[0]


def split_file(root: Path, split: str) -> Path:
    """The list of a split: ImageSets/Segmentation/SPLIT.txt, else Main; 'Main/train' asks for that one.

    Raises InputError, which lists the splits there are.
    """
    if re.fullmatch(r"(\w+/)?[\w.-]+", split) and ".." not in split:
        folders = [""] if "/" in split else [f"{kind}/" for kind in _SET_KINDS]
        for folder in folders:
            file = root / SETS / f"{folder}{split}.txt"
            if is_file(file):
                return file
    have = ", ".join(splits(root)) or "none"
    raise InputError(f"{shown(root)}: no split {shown(repr(split))} under {SETS} (there are: {have})")


def splits(root: Path) -> list[str]:
    """The splits of a tree, but for Main's lists per class; those hidden by one of Segmentation as Main/x."""
    found: list[str] = []
    for kind in _SET_KINDS:
        names = sorted(f.stem for f in (root / SETS / kind).glob("*.txt"))
        if kind == "Main":
            names = [n for n in names if not n.startswith(tuple(f"{c}_" for c in CLASSES))]
        found += [f"{kind}/{n}" if n in found else n for n in names]
    return found


def image_path(root: Path, item_id: str) -> Path:
    return root / IMAGES / f"{item_id}.jpg"


def mask_path(root: Path, item_id: str) -> Path:
    return existing(root / MASKS / f"{item_id}.png", ".PNG")


@cache
def palette() -> bytes:
    """The 768 bytes of PASCAL VOC's palette: entry i spreads the bits of i over red, green and blue."""
    table = bytearray(3 * 256)
    for i in range(256):
        for digit in range(3):  # the octal digits of i, the lowest into the colours' highest bits
            for channel in range(3):
                table[3 * i + channel] |= ((i >> (3 * digit + channel)) & 1) << (7 - digit)
    return bytes(table)
