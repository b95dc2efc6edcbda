"""Is the folder that a command writes to evidently one that it reads? That is said before anything is written.

Maps among photos, or a store.json in a bundle, do harm: what reads that folder next finds files that are none of its
own, and a picture may be written over. A new folder, an empty one, one that is ours already, and one with any other
files are taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from infercam.engine.bundle import MANIFEST
from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.paths import is_file, is_folder
from infercam.engine.data import voc
from infercam.engine.data.storage import is_uri

OURS = ("store.json", "label_folder.json", "coco.json")
"""Each names a folder of ours that may be gone on with: of maps, of labels, of `infercam coco`."""

_OF_VOC = (voc.IMAGES, voc.MASKS, voc.ANNOTATIONS, voc.SETS, "SegmentationObject")
Place = str | os.PathLike[str]


def check_output(
    out: Place, images: Iterable[Place] = (), reads: Iterable[Place | None] = (), option: str = "-o"
) -> None:
    """Raise InputError, which says what to do, where `out` is evidently an input.

    images: of the command's images some files (see `Source.ends`), or their folder: `out` may not be or hold them.
    reads: other folders and files that the command reads: `out` may not be one of them.
    """
    problem = _problem(out, list(images), [one for one in reads if one is not None])
    if problem is not None:
        raise InputError(f"{option} {shown(out)}: {problem}; name another folder (a new one is made)")


def _problem(out: Place, images: list[Place], reads: list[Place]) -> str | None:
    """Why `out` is an input, or None."""
    if is_uri(out):
        there = _plain_uri(out)
        below = any(f"{_plain_uri(one)}/".startswith(f"{there}/") for one in images if is_uri(one))
        return "holds the images of this command" if below else None
    folder = Path(out)
    if not is_folder(folder) or not any(folder.iterdir()):
        return None  # a file that is in the way is told by whoever writes
    if any(_same(one, folder) for one in reads if not is_uri(one)):
        return "is what this command reads"
    if any(is_file(folder / name) for name in OURS):
        return None
    if any(_holds(folder, one) for one in images if not is_uri(one)):
        return "holds the images of this command"
    if is_file(folder / MANIFEST) and next(folder.glob("*.onnx"), None):
        return "is a bundle"
    return _data_set(folder)


def _data_set(folder: Path) -> str | None:
    inside = folder.absolute()
    if is_folder(folder / voc.IMAGES) or is_folder(folder / voc.SETS):
        return "is a VOC tree"
    if inside.name in _OF_VOC and is_folder(inside.parent / voc.IMAGES):
        return f"is the {inside.name} of a VOC tree"
    if next(folder.glob("annotations/instances_*.json"), None):
        return "is a COCO tree"
    return None


def _plain_uri(uri: Place) -> str:
    """Without options, credentials and what pathlib does to its slashes."""
    text = re.sub("^([^:/]+):/+", r"\1://", os.fspath(uri)).partition("?")[0]
    return re.sub("//[^/@]*@", "//", text).rstrip("/")


def _same(one: Place, folder: Path) -> bool:
    try:
        return os.path.samefile(one, folder)  # noqa: PTH121 - of a path that may be no path at all (`voc-xml`)
    except (OSError, ValueError):
        return False


def _holds(folder: Path, one: Place) -> bool:
    """Whether a file or folder lies in `folder`, at whatever depth, or is it; links are followed."""
    try:
        return Path(one).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        return False
