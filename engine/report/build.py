"""Building a report: scores, pictures by several processes, and the page last.

    report.html           the page: figures, table, and the pictures of the images that tell most
    report_files/STAMP/   the other images' pictures (pictures.py); not there where the page holds them all

STAMP names what the pictures were made from (files by size and time, settings). A build that was stopped goes on
in its folder; the page of an earlier build keeps its own folder until the new page is there.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.paths import is_file
from infercam.engine.common.processes import chosen_workers, map_in_processes
from infercam.engine.data.images import DEFAULT_MAX_PIXELS
from infercam.engine.data.sources import Item
from infercam.engine.evaluation.coverage import coverage
from infercam.engine.evaluation.evaluate import Difference, GroundTruth
from infercam.engine.evaluation.mask_values import MaskValues
from infercam.engine.report.chosen import telling
from infercam.engine.report.html import write_page
from infercam.engine.report.pictures import Chunk, PagePicture, Painter, chunk_name
from infercam.engine.report.runs import Scored, ShownRun, differences, score_run

_EMBEDDED, _BESIDE = 8, 16  # images a chunk: a click waits for one
_INLINE = 64  # fewer images are done before new processes have started


@dataclass(frozen=True)
class PageOptions:
    """How a report is made.

    embed: pictures of so many images are in the page itself (None: all). max_images: so many are listed, those
    that tell most (None: all). size: longest side of the pictures, pixels. quality: of the photos, 1..100.
    workers: processes (None: one per core). bootstrap, min_images, gt_values: as for
    `infercam eval`.
    """

    title: str = "Response maps"
    embed: int | None = 200
    max_images: int | None = None
    size: int = 256
    quality: int = 72
    workers: int | None = None
    bootstrap: int = 1000
    min_images: int = 7
    max_pixels: int = DEFAULT_MAX_PIXELS
    gt_values: MaskValues | None = None


class PageWatch(Protocol):
    """Told how far a build is."""

    def start(self, what: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...


class NoWatch:
    def start(self, what: str, total: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass


@dataclass
class PageSummary:
    """What was built: images listed and scored, bytes of the page and beside it, one line per failed image."""

    images: int
    scored: int
    page_bytes: int = 0
    beside_bytes: int = 0
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build_report(
    runs: Sequence[ShownRun],
    items: Sequence[Item],
    out: Path,
    options: PageOptions,
    watch: PageWatch | None = None,
) -> PageSummary:
    """Write the page `out` (a .html file) of some runs on images; an item's mask is its ground truth.

    Scored are the images that have a mask and maps of every run. Images without maps of any run are left out.
    Raises InputError where nothing is left, or a mask does not fit; StoreError where something cannot be
    written. Images that cannot be read stand in the page, and in `PageSummary.errors`, with the reason.
    """
    watch = watch or NoWatch()
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise InputError(f"{shown(out)}: name the page to write, for example report.html")
    notes: list[str] = []
    listed = _with_maps(runs, items, notes)
    truth = _truth(runs, listed, notes).with_values(options.gt_values)
    scored = _score(runs, truth, options, watch)
    gains, more = differences(scored, options.bootstrap)
    notes += more
    iou = np.array([[s.per_image.get(item.id, np.nan) for s in scored] for item in listed], float)
    iou = iou.reshape(len(listed), len(scored))
    if options.max_images is not None and options.max_images < len(listed):
        kept = telling(iou, options.max_images)
        notes.append(f"listed are {len(kept)} of {len(listed)} images, those that tell most")
        listed, iou = [listed[k] for k in kept], iou[kept]

    chunks = _chunks(listed, iou, options)
    beside = out.parent / f"{out.stem}_files"
    stamp = _stamp(runs, listed, chunks, options)
    values = truth.table(runs[0].classes)
    painter = Painter(runs, beside / stamp, options.size, options.quality, options.max_pixels, values)
    summary = PageSummary(len(listed), len(truth.pairs), notes=notes)
    classes = _paint(painter, chunks, len(listed), options, watch, summary)
    if scored:
        _true_classes(classes, listed, scored[0])
    data = {
        "title": options.title,
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="minutes"),
        "version": version("infercam"),
        "classes": runs[0].classes,
        "runs": [_run_json(run, scored[k] if scored else None) for k, run in enumerate(runs)],
        "differences": [_difference_json(k + 1, found, options.bootstrap) for k, found in enumerate(gains)],
        "scored": summary.scored,
        "truth": {"masks": shown("/".join(Path(truth.masks).parts[-2:]))} if scored else None,
        "images": _images_json(listed, iou, classes, chunks),
        "files": f"{quote(beside.name)}/{stamp}/",
        "notes": notes,
        "failed": len(summary.errors),
    }
    inside = [(c.number, painter.folder / chunk_name(c.number)) for c in chunks if c.embedded]
    summary.page_bytes = write_page(out, options.title, data, inside)
    for _, file in inside:
        file.unlink(missing_ok=True)
    _tidy(beside, stamp, keep=len(inside) < len(chunks))
    summary.beside_bytes = sum(f.stat().st_size for f in beside.rglob("*") if f.is_file())
    return summary


def _with_maps(runs: Sequence[ShownRun], items: Sequence[Item], notes: list[str]) -> list[Item]:
    listed = [item for item in items if any(item.id in run for run in runs)]
    if not listed:
        wanted, first = [item.id for item in items], runs[0]
        words = coverage(first.kind, wanted, wanted, "what was named", first.folder.ids(), first.settings)
        raise InputError(f"{', '.join(shown(run.folder.path) for run in runs)}: {words}")
    if len(listed) < len(items):
        notes.append(f"{len(items) - len(listed)} of {len(items)} images have no maps and are left out")
    return listed


def _truth(runs: Sequence[ShownRun], listed: Sequence[Item], notes: list[str]) -> GroundTruth:
    """What can be scored, alike for every run."""
    masked = [item for item in listed if item.mask is not None and is_file(item.mask)]
    common = [item for item in masked if all(item.id in run for run in runs)]
    if not masked:
        notes.append("no ground truth: nothing is scored")
    elif len(common) < len(listed):
        notes.append(
            f"{len(common)} of {len(listed)} images are scored: those with a mask and maps of every run"
        )
    folders = sorted({str(item.mask.parent) for item in common if item.mask})
    masks = folders[0] if len(folders) == 1 else f"{len(folders)} folders"
    return GroundTruth([(item.id, item.mask) for item in common if item.mask], masks, "these images")


def _score(
    runs: Sequence[ShownRun], truth: GroundTruth, options: PageOptions, watch: PageWatch
) -> list[Scored]:
    if not truth.pairs:
        return []
    found = []
    for run in runs:
        watch.start(f"scoring {run.name}", len(truth.pairs))
        found.append(
            score_run(
                run,
                truth,
                min_images=options.min_images,
                workers=options.workers,
                bootstrap=options.bootstrap,
                progress=watch.advance,
            )
        )
    return found


def _chunks(listed: Sequence[Item], iou: NDArray[np.float64], options: PageOptions) -> list[Chunk]:
    """Every image in a chunk: first those that go into the page, then the others, each part in its order."""
    inside = set(telling(iou, len(listed) if options.embed is None else options.embed))
    pictures = [
        PagePicture(number, item.id, item.path, item.mask if item.mask and is_file(item.mask) else None)
        for number, item in enumerate(listed)
    ]
    chunks: list[Chunk] = []
    for embedded, size in ((True, _EMBEDDED), (False, _BESIDE)):
        members = [p for p in pictures if (p.number in inside) == embedded]
        for start in range(0, len(members), size):
            chunks.append(Chunk(len(chunks), members[start : start + size], embedded))
    return chunks


def _stamp(
    runs: Sequence[ShownRun], listed: Sequence[Item], chunks: Sequence[Chunk], options: PageOptions
) -> str:
    """A name for everything that decides the pictures."""
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update(json.dumps([str(part) for part in parts]).encode())

    add(version("infercam"), options.size, options.quality, options.max_pixels, options.gt_values)
    for run in runs:
        add(run.folder.path.absolute(), run.kind, *run.classes)
    for item in listed:
        files = [item.path, item.mask, *(run.file(item.id) for run in runs)]
        add(item.id, *(part for file in files for part in _state(file)))
    for chunk in chunks:
        add(chunk.embedded, *(picture.number for picture in chunk.pictures))
    return digest.hexdigest()[:16]


def _state(file: Path | None) -> tuple[object, ...]:
    try:
        status = file.stat() if file else None
    except OSError:
        status = None
    return (file, status.st_size, status.st_mtime_ns) if status else (file,)


def _paint(
    painter: Painter,
    chunks: Sequence[Chunk],
    images: int,
    options: PageOptions,
    watch: PageWatch,
    summary: PageSummary,
) -> list[list[int]]:
    """Make the pictures; returns the classes of every image's maps."""
    classes: list[list[int]] = [[] for _ in range(images)]
    watch.start("pictures", images)
    workers = min(chosen_workers(options.workers, images, _INLINE), max(len(chunks), 1))
    for painted in map_in_processes(painter, chunks, workers):
        for picture, found in zip(painted.chunk.pictures, painted.classes, strict=True):
            classes[picture.number] = found
        summary.errors += painted.errors
        watch.advance(len(painted.chunk.pictures))
    return classes


def _true_classes(classes: list[list[int]], listed: Sequence[Item], scored: Scored) -> None:
    """Where there is ground truth, an image's classes are those it shows."""
    truth = {image.id: image.true_labels for image in scored.result.counts or []}
    for number, item in enumerate(listed):
        if item.id in truth:
            classes[number] = [int(label) - 1 for label in truth[item.id] if label > 0]


def _tidy(beside: Path, stamp: str, keep: bool) -> None:
    """Remove the pictures of earlier builds, and the folder itself where the page holds all."""
    for folder in beside.glob("*") if beside.is_dir() else []:
        if re.fullmatch("[0-9a-f]{16}", folder.name) and not (keep and folder.name == stamp):
            shutil.rmtree(folder, ignore_errors=True)
    if beside.is_dir() and not any(beside.iterdir()):
        beside.rmdir()


# -- what page/main.js reads ------------------------------------------------------------------------------------


def _run_json(run: ShownRun, scored: Scored | None) -> dict[str, Any]:
    found: dict[str, Any] = {"name": shown(run.name), "kind": run.kind, "about": _about(run.settings)}
    if scored is None:
        return found
    result = scored.result
    best, often = result.all, result.frequent
    return {
        **found,
        "miou": _round(best.miou),
        "threshold": best.step,
        "curve": [_round(v) for v in best.curve.tolist()],
        "interval": _interval_json(result.intervals.get("all")),
        "labels": len(best.labels),
        "frequent": often
        and {
            "miou": _round(often.miou),
            "threshold": often.step,
            "interval": _interval_json(result.intervals.get("frequent")),
            "labels": len(often.labels),
            "least": result.min_images,
        },
        "iou": [None if np.isnan(v) else _round(v) for v in result.iou.tolist()],
        "imagesWith": result.images_with.tolist(),
        "groups": [
            {"classes": name, "images": group.images, "miou": _round(group.at_overall_threshold)}
            for name, group in result.groups.items()
        ],
    }


def _about(settings: dict[str, Any]) -> str:
    """A run's recipe and mode in a few words, where its settings tell."""
    recipe = settings.get("recipe")
    name = recipe.get("name") if isinstance(recipe, dict) else recipe
    words = [name, settings.get("mode")]
    return ", ".join(shown(word) for word in words if isinstance(word, str))


def _difference_json(run: int, found: dict[str, Difference], resamples: int) -> dict[str, Any]:
    sets = {
        name: {"gain": _round(d.difference), "interval": _interval_json(d.interval) if resamples else None}
        for name, d in found.items()
    }
    return {"run": run, "sets": sets}


def _interval_json(interval: Any) -> list[float] | None:
    return interval and [_round(interval.low), _round(interval.high)]


def _round(value: float) -> float:
    return round(float(value), 4)


def _images_json(
    listed: Sequence[Item], iou: NDArray[np.float64], classes: list[list[int]], chunks: Sequence[Chunk]
) -> dict[str, Any]:
    """The table by columns; `places`: for each chunk the numbers of its images, `embedded` of them in the page."""
    return {
        "ids": [shown(item.id) for item in listed],
        "classes": classes,
        "iou": [[None if np.isnan(v) else _round(v) for v in row] for row in iou.tolist()],
        "places": [[picture.number for picture in chunk.pictures] for chunk in chunks],
        "embedded": sum(chunk.embedded for chunk in chunks),
    }
