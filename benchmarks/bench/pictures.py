"""The pictures that every contestant gets: user's own, a VOC split's, or synthetic scenes. One list, in one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infercam.engine.api import Engine
from infercam.engine.bundle import sha256_file
from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError
from infercam.engine.data.images import read_image
from infercam.engine.data.labels import load_labels
from infercam.engine.data.sources import Item, Source, voc_source
from infercam.engine.demo.scenes import SIZE, scene_id, write_voc_tree
from infercam.engine.evaluation.evaluate import GroundTruth

FILE = "pictures.json"
SCENE_SEED = 2022
VOC_SIZE = (375, 500)
"""Of synthetic scenes for a classifier that is not the demo's: the commonest photo of VOC."""
PREDICTED_ABOVE = 0.5


class BenchPicture(BaseModel):
    """One picture: its id, file, class indices, size in pixels, and its mask where there is one."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    file: Path
    classes: list[int] = Field(min_length=1)
    height: int
    width: int
    mask: Path | None = None


class Pictures(BaseModel):
    """The list, and in words where it comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    pictures: list[BenchPicture] = Field(min_length=1)
    digest: str = Field(description="SHA-256 over ids, classes and the files' bytes")
    notes: list[str] = []

    def __len__(self) -> int:
        return len(self.pictures)

    def items(self, count: int) -> list[tuple[str, Path]]:
        return [(p.id, p.file) for p in self.pictures[:count]]

    def labels(self) -> dict[str, list[int]]:
        return {p.id: p.classes for p in self.pictures}

    def source(self, count: int) -> Source:
        """The first `count` as what `infercam run` reads."""
        by_id = {p.id: Item(p.id, p.file) for p in self.pictures[:count]}
        return Source("benchmark", Path(), list(by_id), by_id.__getitem__)

    def truth(self, count: int) -> GroundTruth | None:
        """Masks of the first `count`; None where one of them has none."""
        pairs = [(p.id, p.mask) for p in self.pictures[:count] if p.mask is not None]
        return GroundTruth(pairs, self.kind, "") if len(pairs) == count else None


class Lookup(NamedTuple):
    """Labels as `run.Run` asks for them."""

    labels: dict[str, list[int]]

    def lookup(self, id: str) -> list[int]:
        return self.labels[id]

    def describe(self) -> dict[str, Any]:
        return {"kind": "benchmark"}


def save(pictures: Pictures, folder: Path) -> Path:
    with atomic_write(folder / FILE, "w") as f:
        f.write(pictures.model_dump_json(indent=1) + "\n")
    return folder / FILE


def load(file: Path) -> Pictures:
    """Raises InputError where the file is not such a list."""
    try:
        return Pictures.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as e:
        raise InputError(f"{file}: not a list of pictures: {str(e).splitlines()[0]}") from None


# -- where they come from --------------------------------------------------------------------------------------------
def synthetic(
    engine: Engine, folder: Path, count: int, demo: bool, progress: Callable[[int], None]
) -> Pictures:
    """Scenes of the demo under `folder`. For another classifier than the demo's they have VOC's size, labels that
    go round its classes, and no masks: its maps cannot be scored on them."""
    root = folder / f"scenes-{'demo' if demo else 'voc'}-{count}"
    if not (root / "labels.json").is_file():  # it is written last
        write_voc_tree(root, count, SCENE_SEED, SIZE if demo else VOC_SIZE, progress=progress)
    classes = len(engine.manifest.classes)
    own = json.loads((root / "labels.json").read_text(encoding="utf-8"))["labels"]
    given = {
        scene_id(i): [i % classes] if i % 3 else sorted({i % classes, (i + 1) % classes})
        for i in range(count)
    }
    wanted = {id: engine.class_indices(names) for id, names in own.items()} if demo else given
    masks = root / "SegmentationClass" if demo else None
    kind = "synthetic scenes of the demo" if demo else "synthetic scenes, with labels that mean nothing"
    return collect(list(voc_source(root, "val")), wanted.__getitem__, kind, masks)


def given(
    engine: Engine, source: Source, count: int, labels: str | None, voc: Path | None, masks: Path | None
) -> Pictures:
    """The first `count` of a source, with the labels of a file; or, without one, those that the classifier predicts.

    Pictures that cannot be read or have no label are passed over, with a note. Raises InputError if none is left.
    """
    items = list(source[:count])
    if labels is None:
        lookup: Callable[[str], Sequence[int]] = _Predicted(engine, {i.id: i.path for i in items})
    else:
        lookup = load_labels(labels, engine.manifest.classes, voc_root=voc).lookup
    kind = f"VOC {source.split}" if source.kind == "voc" else source.kind
    return collect(items, lookup, f"{kind}, predicted labels" if labels is None else kind, masks)


def collect(
    items: Sequence[Item], lookup: Callable[[str], Sequence[int]], kind: str, masks: Path | None
) -> Pictures:
    """Read every picture once (which also brings the files into the system's cache) and look up its classes."""
    found, notes, digest = [], [], hashlib.sha256()
    for item in items:
        try:
            pixels = read_image(item.path)
            classes = list(lookup(item.id))
            if not classes:
                raise InputError(f"{item.id}: has no class")
        except InputError as e:
            notes.append(f"passed over: {e}")
            continue
        mask = masks / f"{item.id}.png" if masks is not None else None
        if mask is not None and not mask.is_file():
            mask = None
        height, width = pixels.shape[:2]
        path = item.path.resolve()
        found.append(
            BenchPicture(id=item.id, file=path, classes=classes, height=height, width=width, mask=mask)
        )
        digest.update(f"{item.id} {classes} {sha256_file(path)} {mask and sha256_file(mask)}\n".encode())
    if not found:
        raise InputError(
            f"none of {len(items)} pictures can be used; the first: {(notes or ['there is none'])[0]}"
        )
    return Pictures(kind=kind, pictures=found, digest=digest.hexdigest()[:16], notes=notes)


class _Predicted:
    """The classes that the classifier itself sees; its best one where none passes the threshold."""

    def __init__(self, engine: Engine, files: dict[str, Path]) -> None:
        self.engine, self.files = engine, files

    def __call__(self, id: str) -> list[int]:
        pixels = read_image(self.files[id])
        return self.engine.predict(pixels, PREDICTED_ABOVE) or [int(np.argmax(self.engine.scores(pixels)))]


# -- lists that differ in one thing only, for the growth -------------------------------------------------------------
def repeated(pictures: Pictures, count: int) -> Pictures:
    """A list of `count` pictures: the given ones over and over, under ids of their own."""
    out = [
        p.model_copy(update={"id": f"{i:06d}", "mask": None})
        for i, p in enumerate(pictures.pictures[i % len(pictures)] for i in range(count))
    ]
    return pictures.model_copy(update={"pictures": out, "digest": f"{pictures.digest} x {count}"})


def resized(pictures: Pictures, count: int, area: int, folder: Path) -> Pictures:
    """The first `count`, each with about `area` pixels in all, written as PNG."""
    out = []
    for p in pictures.pictures[:count]:
        scale = (area / (p.height * p.width)) ** 0.5
        height, width = max(1, round(p.height * scale)), max(1, round(p.width * scale))
        file = folder / f"{p.id.replace('/', '-')}-{height}x{width}.png"
        if not file.is_file():
            small = Image.fromarray(read_image(p.file)).resize((width, height), Image.Resampling.BICUBIC)
            with atomic_write(file) as f:
                small.save(f, "PNG")
        out.append(p.model_copy(update={"file": file, "height": height, "width": width, "mask": None}))
    return pictures.model_copy(update={"pictures": out, "digest": f"{pictures.digest} at {area}"})


def relabelled(pictures: Pictures, count: int, classes: int, of: int) -> Pictures:
    """The first `count`, each with `classes` of the bundle's `of` classes: its own first, then others."""
    out = []
    for p in pictures.pictures[:count]:
        others = [c for c in range(of) if c not in p.classes]
        chosen = sorted([*p.classes, *others][:classes])
        out.append(p.model_copy(update={"classes": chosen, "mask": None}))
    return pictures.model_copy(update={"pictures": out, "digest": f"{pictures.digest} with {classes}"})
