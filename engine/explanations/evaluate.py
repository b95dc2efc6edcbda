"""`infercam eval --metric`: figures of maps that need no threshold, and, but for pointing, no masks (pointing.py,
insertion.py). Every map of a class counts alike; the bootstrap is over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from infercam.engine.api import Engine
from infercam.engine.common.errors import InputError
from infercam.engine.common.options import option
from infercam.engine.data import voc
from infercam.engine.data.images import read_image
from infercam.engine.data.sources import voc_source
from infercam.engine.data.voc_xml import read_objects
from infercam.engine.explanations.insertion import FILLS, Fill, insertion_deletion
from infercam.engine.explanations.pointing import ClassBox, pointed, region_of_boxes, region_of_mask
from infercam.engine.inputs import GroundTruthSettings, SourceSettings
from infercam.engine.live import LiveEngine
from infercam.engine.store.mapstore import MapStore

Rows = dict[int, dict[str, float]]
"""Of one image: class -> figure -> value."""
Region = Callable[[str, int, tuple[int, int]], NDArray[np.bool_] | None]
"""(id, class, (height, width)): where the class is, or None where it is not."""
Measure = Callable[[str, list[int], NDArray[np.float32]], Rows]
RESAMPLES = 1000
METRICS = ("pointing", "insertion")


@dataclass
class ExplanationResult:
    """What was measured: figure -> mean over maps, its standard deviation by bootstrap, and by class."""

    images: int
    maps: int
    missing: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    deviations: dict[str, float] = field(default_factory=dict)
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def pointing(region: Region) -> Measure:
    """`pointing_game` and `energy_inside` of the maps whose class is in the image."""

    def measure(id: str, classes: list[int], maps: NDArray[np.float32]) -> Rows:
        found: Rows = {}
        for label, values in zip(classes, maps, strict=True):
            inside = region(id, label, values.shape)
            if inside is not None:
                hit, energy = pointed(values, inside)
                found[label] = {"pointing_game": hit, "energy_inside": energy}
        return found

    return measure


def in_masks(read: Callable[[str], NDArray[np.uint8]]) -> Region:
    """Where each image's mask has the class; raises InputError for a mask of another size than the maps."""

    def region(id: str, label: int, size: tuple[int, int]) -> NDArray[np.bool_] | None:
        mask = read(id)
        if mask.shape != size:
            raise InputError(f"{id}: maps are {size[1]}×{size[0]}, the mask {mask.shape[1]}×{mask.shape[0]}")
        return region_of_mask(mask, label)

    return region


def in_boxes(boxes: Callable[[str], Sequence[ClassBox]]) -> Region:
    """What the boxes of the class cover."""
    return lambda id, label, size: region_of_boxes(boxes(id), label, size)


def inserting(live: LiveEngine, files: dict[str, Path], steps: int, fill: Fill) -> Measure:
    """`insertion`, `deletion` and their difference, by the live engine; files: the pictures by id."""

    def measure(id: str, classes: list[int], maps: NDArray[np.float32]) -> Rows:
        image = read_image(files[id])
        if image.shape[:2] != maps.shape[1:]:
            (h, w), (ih, iw) = maps.shape[1:], image.shape[:2]
            raise InputError(f"{id}: maps are {w}×{h}, the photo {iw}×{ih}; make the maps from these photos")
        areas = insertion_deletion(live, image, maps, classes, steps, fill)
        return {
            label: {"insertion": a.insertion, "deletion": a.deletion, "difference": a.insertion - a.deletion}
            for label, a in zip(classes, areas, strict=True)
        }

    return measure


def evaluate_explanations(
    store: MapStore,
    ids: Sequence[str],
    measures: Sequence[Measure],
    *,
    missing: str = "error",
    progress: Callable[[], None] | None = None,
    seed: int = 0,
) -> ExplanationResult:
    """Every measure of every image's maps.

    missing: error (InputError) or skip, for images without maps. Raises InputError or StoreError for maps that cannot
    be read or do not fit, and where nothing was scored.
    """
    absent = [id for id in ids if id not in store]
    if absent and (missing == "error" or len(absent) == len(ids)):
        raise InputError(
            f"{store.path}: has no maps for {len(absent)} of {len(ids)} images (first: {absent[0]}); "
            "make them, or leave them out with --missing skip"
        )
    images: list[Rows] = []
    for id in ids:
        if id in store:
            record = store.read(id)
            rows: Rows = {}
            for measure in measures:
                for label, found in measure(id, record.classes, record.maps).items():
                    rows.setdefault(label, {}).update(found)
            images.append(rows)
        if progress:
            progress()
    result = _summary(images, store.info.classes, seed)
    result.missing, result.settings = len(absent), store.info.settings
    return result


def _summary(images: list[Rows], names: Sequence[str], seed: int) -> ExplanationResult:
    figures = list(dict.fromkeys(name for rows in images for row in rows.values() for name in row))
    if not figures:
        raise InputError("nothing to score: no image has a map of a class that its ground truth has")
    result = ExplanationResult(len(images), sum(map(len, images)))
    draws = np.random.default_rng(seed).multinomial(
        len(images), np.full(len(images), 1 / len(images)), RESAMPLES
    )
    for name in figures:
        sums = np.array([sum(row.get(name, 0.0) for row in rows.values()) for rows in images])
        counts = np.array([sum(name in row for row in rows.values()) for rows in images], float)
        resampled = (draws @ sums) / np.maximum(draws @ counts, 1)
        result.figures[name] = float(sums.sum() / counts.sum())
        result.deviations[name] = float(resampled.std())
    for label in sorted({label for rows in images for label in rows}):
        own = [rows[label] for rows in images if label in rows]
        scored = {name: [row[name] for row in own if name in row] for name in figures}
        result.by_class[names[label]] = {"maps": float(len(own))} | {
            name: float(np.mean(values)) for name, values in scored.items() if values
        }
    return result


# -- from settings ---------------------------------------------------------------------------------------------
class ExplanationSettings(BaseModel):
    """What `infercam eval --metric` is told beside the maps, the ground truth and the images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = option(
        "miou",
        "miou; or pointing (masks, or --boxes), insertion (no masks; --bundle and the images), or both.",
    )
    boxes: bool = option(False, "pointing: by the boxes of the VOC tree's annotations.")
    bundle: Path | None = option(None, "insertion: the classifier.")
    steps: int = option(30, "insertion: pixels go in so many steps.", ge=1, le=1000)
    fill: str = option("mean", "insertion: what is empty: mean (of the picture), black or blur.")
    backend: str = option("auto", "insertion: where the classifier runs; as for run.")
    threads: int | None = option(None, "insertion: CPU threads (default: all cores).", ge=1)

    def metrics(self) -> list[str]:
        """Those of METRICS; empty for miou. Raises InputError for another one."""
        if self.metric == "miou":
            return []
        names = self.metric.split(",")
        for name in names:
            if name not in METRICS:
                raise InputError(f"--metric is miou, or of {', '.join(METRICS)}; not {name!r}")
        if self.fill not in FILLS:
            raise InputError(f"--fill is one of {', '.join(FILLS)}, not {self.fill!r}")
        return names

    def refuse_what_miou_leaves_alone(self, source: SourceSettings) -> None:
        """Raises InputError for an option that would be without effect."""
        if self.boxes:
            raise InputError("--boxes goes with --metric pointing")
        given: dict[str, Any] = {
            "--images": source.images,
            "--list": source.list_file,
            "--root": source.root,
            "--limit": source.limit,
            "--bundle": self.bundle,
        }
        for name, value in given.items():
            if value is not None:
                raise InputError(
                    f"{name} goes with --metric insertion; mIoU is of the ground truth's own images"
                )


def score_explanations(
    store: MapStore,
    settings: ExplanationSettings,
    ground_truth: GroundTruthSettings,
    source: SourceSettings,
    *,
    missing: str = "error",
    watching: Callable[[int], Callable[[], None]] | None = None,
) -> ExplanationResult:
    """The metrics that the settings name, of a store's maps; see ExplanationSettings.

    watching: gets the number of images, and returns what is called after each. Raises InputError for what is not
    given or does not fit, and as Engine.load.
    """
    metrics = settings.metrics()
    measures: list[Measure] = []
    ids: list[str] = []
    with ExitStack() as opened:
        if "pointing" in metrics:
            region, ids = _region(store, settings, ground_truth)
            measures.append(pointing(region))
        if "insertion" in metrics:
            if settings.bundle is None:
                raise InputError("--metric insertion asks the classifier: give --bundle")
            files = {item.id: Path(item.path) for item in source.open()}
            ids = [id for id in ids if id in files] if ids else list(files)
            engine = opened.enter_context(Engine.load(settings.bundle, settings.backend, settings.threads))
            if engine.manifest.classes != store.info.classes:
                raise InputError(f"{store.path}: holds maps of other classes than {settings.bundle}")
            live = opened.enter_context(LiveEngine(engine))
            fill = next(one for one in FILLS if one == settings.fill)
            measures.append(inserting(live, files, settings.steps, fill))
        progress = watching(len(ids)) if watching else None
        result = evaluate_explanations(store, ids, measures, missing=missing, progress=progress)
    result.settings = {"maps": result.settings, "metric": settings.model_dump(mode="json")}
    return result


def _region(
    store: MapStore, settings: ExplanationSettings, ground_truth: GroundTruthSettings
) -> tuple[Region, list[str]]:
    """Where objects are, by the masks or by the boxes of annotations; and the images."""
    names = {name: label for label, name in enumerate(store.info.classes)}
    if settings.boxes:
        if ground_truth.voc is None or ground_truth.split is None:
            raise InputError("--boxes reads the annotations of a VOC tree: --voc ROOT --split NAME")
        root = voc.find_root(ground_truth.voc)

        def boxes(id: str) -> list[ClassBox]:
            found = read_objects(root / voc.ANNOTATIONS / f"{id}.xml")
            return [
                ClassBox(names[name], *box) for name, _, box in found if box is not None and name in names
            ]

        return in_boxes(boxes), [item.id for item in voc_source(ground_truth.voc, ground_truth.split)]
    truth = ground_truth.open()
    table = truth.table(store.info.classes)
    masks = dict(truth.pairs)

    def read(id: str) -> NDArray[np.uint8]:
        mask = truth.read(id, masks[id])
        return mask if table is None else table.apply(mask, id)[0]

    return in_masks(read), list(masks)
