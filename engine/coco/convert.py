"""`infercam coco`: a split's masks as VOC-like PNGs, its list of ids, its image-level labels.

OUT/
  coco.json        what decides the rest: annotation file and hash, categories, values, crowd, order, empty
  masks/<id>.png   palette PNGs, 0 background, 1..C, 255 ignored: a label folder (engine/evaluation/label_folder.py)
  SPLIT.txt        one id a line
  labels.json      {"classes": [names], "labels": {id: [names]}}
  failures.jsonl   one line an image that could not be done
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infercam.engine.coco.annotations import Annotations
from infercam.engine.coco.masks import CocoMasks, image_classes
from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InfercamError, InputError, StoreError, shown
from infercam.engine.common.paths import is_file
from infercam.engine.common.processes import chosen_workers, map_in_processes
from infercam.engine.data.images import image_size
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.store.failures import Failures, one_line
from infercam.engine.store.image_index import DiskFullError, cannot_write

EMPTY = ("skip", "keep")
WHAT = ("masks", "lists", "labels")
INFO, MASKS, LABELS = "coco.json", "masks", "labels.json"
_CHUNK = 32  # images a task
_INLINE = 300  # fewer are painted before new processes have started


@dataclass
class Converted:
    """What `convert` did; `failures` are (name, reason) pairs, as in failures.jsonl."""

    images: int
    written: int = 0
    kept: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: bool = False


def convert(
    masks: CocoMasks,
    split: str,
    out: Path,
    *,
    what: Sequence[str] = WHAT,
    empty: str = "skip",
    images: Path | None = None,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], object] = lambda: False,
) -> Converted:
    """Write `what` of a split to the folder `out`; masks that are there with the same settings are kept.

    empty: images without annotations are left out ('skip') or have an all-background mask and no labels ('keep').
    images: folder of the pictures; where a picture is there, its size must be the annotations'.
    workers: processes; None: one a core.
    progress: called with numbers of masks that are done. stop: asked between two; masks in flight are finished.

    Raises StoreError where `out` holds another split or other classes, or cannot be written. What is wrong with one
    image is in the result's failures and in OUT/failures.jsonl.
    """
    if empty not in EMPTY:
        raise InputError(f"empty is one of {', '.join(EMPTY)}, not {empty!r}")
    began = time.monotonic()
    annotations = masks.annotations
    names = annotations.names(empty=empty == "keep")
    settings = {"split": split, **masks.describe(), "empty": empty}
    _write_info(out / INFO, split, settings, annotations)
    failures = Failures(out)
    done = Converted(len(names))

    def fail(name: str, reason: str) -> None:
        """One line an image, at once: labels and masks may fail for the same reason."""
        if name not in done.failures:
            done.failures[name] = reason
            failures.add(name, InputError(reason))

    for name, reason in annotations.strays():
        fail(name, reason)
    if "lists" in what:
        broken = annotations.broken()
        _write_lines(out / f"{split}.txt", (name for name in names if name not in broken))
    if "labels" in what:
        _write_lines(out / LABELS, _labels(annotations, names, fail))
    if "masks" in what:
        _masks(masks, names, out / MASKS, settings, images, workers, done, fail, progress, stop)
    failures.close()
    done.seconds = time.monotonic() - began
    return done


def _masks(
    masks: CocoMasks,
    names: list[str],
    out: Path,
    settings: dict[str, Any],
    images: Path | None,
    workers: int | None,
    done: Converted,
    fail: Callable[[str, str], None],
    progress: Callable[[int], None] | None,
    stop: Callable[[], object],
) -> None:
    folder = LabelFolder.create_or_open(out, masks.annotations.classes, settings)
    decides = json.dumps(settings, sort_keys=True)
    fingerprint = f"coco:{hashlib.sha256(decides.encode()).hexdigest()[:32]}"
    left = [name for name in names if not folder.done(name, fingerprint)]
    done.kept = len(names) - len(left)
    if progress:
        progress(done.kept)

    def chunks() -> Any:
        for first in range(0, len(left), _CHUNK):
            if stop():
                done.stopped = True
                return
            yield left[first : first + _CHUNK]

    task = _Paint(masks, folder, fingerprint, images)
    processes = chosen_workers(workers, len(left), _INLINE)
    for written, failed in map_in_processes(task, chunks(), processes):
        done.written += written
        for name, reason in failed:
            fail(name, reason)
        if progress:
            progress(written + len(failed))


@dataclass(frozen=True)
class _Paint:
    """Paints and writes some images' masks, in whatever process; gives how many, and the others' (id, reason)."""

    masks: CocoMasks
    folder: LabelFolder
    fingerprint: str
    images: Path | None

    def __call__(self, names: list[str]) -> tuple[int, list[tuple[str, str]]]:
        failed: list[tuple[str, str]] = []
        for name in names:
            try:
                self._check_size(name)
                self.folder.write(name, self.masks(name), self.fingerprint)
            except DiskFullError:  # the rest would fail as well
                raise
            except InfercamError as e:
                failed.append((name, one_line(e)))
        return len(names) - len(failed), failed

    def _check_size(self, name: str) -> None:
        if self.images is None:
            return
        image = self.masks.annotations.image(name)
        picture = self.images / image.file
        if image.problem is not None or not is_file(picture):
            return
        height, width = image_size(picture)
        if (height, width) != (image.height, image.width):
            annotated = f"{image.width}×{image.height}"
            raise InputError(
                f"{shown(name)}: its picture is {width}×{height}, its annotations are for {annotated}"
            )


def _labels(annotations: Annotations, names: list[str], fail: Callable[[str, str], None]) -> Any:
    """The lines of labels.json."""
    yield f'{{"classes": {json.dumps(annotations.classes, ensure_ascii=False)},\n "labels": {{'
    comma = ""
    for name in names:
        try:
            classes = image_classes(annotations, annotations.image(name))
        except InputError as e:
            fail(name, one_line(e))
            continue
        yield f"{comma}{json.dumps(name)}: {json.dumps(classes, ensure_ascii=False)}"
        comma = ","
    yield "}}"


def _write_info(file: Path, split: str, settings: dict[str, Any], annotations: Annotations) -> None:
    """Refuse a folder of another split: its labels.json would be replaced."""
    if file.exists():
        try:
            there = json.loads(file.read_text(encoding="utf-8"))["split"]
        except (OSError, ValueError, KeyError, TypeError):
            raise StoreError(f"{shown(file)}: damaged; remove it, or write to another folder") from None
        if there != split:
            raise StoreError(
                f"{shown(file.parent)}: holds split {shown(there)}; write {split} to another folder"
            )
    categories = [
        {"id": id, "value": annotations.values[id], "name": name}
        for id, name in annotations.categories.items()
    ]
    record = {**settings, "categories": categories, "coco_categories": annotations.official}
    _write_lines(file, [json.dumps(record, indent=1, ensure_ascii=False)])


def _write_lines(file: Path, lines: Any) -> None:
    try:
        with atomic_write(file, "w") as f:
            f.writelines(f"{line}\n" for line in lines)
    except OSError as e:
        raise cannot_write(file, e) from None
