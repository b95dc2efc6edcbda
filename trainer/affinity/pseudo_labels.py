"""From a map store to folders of label PNGs: before AffinityNet (`make_labels`), and by its random walk
(`make_walk`). Resumable: a label is kept while the maps and the settings that made it are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from infercam.engine.common.errors import InputError, shown
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.store.mapstore import MapRecord, MapStore
from infercam.trainer.affinity.crf import CrfConfig, check_crf, refine
from infercam.trainer.affinity.labels import make_label, named_values
from infercam.trainer.affinity.settings import LabelConfig, WalkConfig
from infercam.trainer.photos.job import JobSummary, run_job
from infercam.trainer.photos.label_png import IGNORE
from infercam.trainer.photos.photos import Photos

if TYPE_CHECKING:
    from infercam.trainer.affinity.affinitynet import AffinityNet

WALK, CRF = "walk", "crf"


# -- labels before AffinityNet ---------------------------------------------------------------------------------
def make_labels(
    store: MapStore, photos: Photos | None, out: Path, config: LabelConfig, *, workers: int = 0
) -> JobSummary:
    """Label PNGs of every photo (without photos: of every image of the store) into `out`.

    workers: processes; 0: this one. Raises MissingExtra without the CRF's library where it is asked for,
    InputError where photos are needed and not given or none of them has maps, StoreError for the folder.
    What concerns one photo is in the summary's failures.
    """
    if config.crf is not None:
        check_crf()
        if photos is None:
            raise InputError(
                "the dense CRF needs the photos: --voc ROOT --split NAME, --images DIR or --list FILE (or --no-crf)"
            )
    ids = chosen_ids(store, photos)
    settings = {"stage": "labels", "config": config.model_dump(mode="json"), "maps": str(store.path)}
    folder = LabelFolder.create_or_open(out, store.info.classes, settings)
    maker = _LabelMaker(store, photos, folder, config)
    due = _Fingerprints(store, config)
    return run_job(
        "labels",
        ids,
        folder.file,
        maker,
        out,
        prepare=lambda id: (due(id),),
        workers=workers,
        made=lambda id: folder.done(id, due(id)),
    )


@dataclass(frozen=True)
class _LabelMaker:
    """What a process of the pool does for one photo."""

    store: MapStore
    photos: Photos | None
    folder: LabelFolder
    config: LabelConfig

    def __call__(self, id: str, fingerprint: str) -> None:
        record = read_maps(self.store, id)
        image = None
        if self.photos is not None:
            check_size(record, self.photos.size(id))
            image = self.photos.image(id) if self.config.crf else None
        label = make_label(self.config, record.maps, record.classes, image)
        self.folder.write(id, label, fingerprint)


# -- the random walk -------------------------------------------------------------------------------------------
def make_walk(
    store: MapStore,
    photos: Photos,
    checkpoint: Path,
    out: Path,
    config: WalkConfig,
    *,
    device: str = "auto",
    threads: int | None = None,
    workers: int = 0,
) -> JobSummary:
    """Pseudo labels by AffinityNet's random walk into `out/walk`; with `config.crf` those after it, `out/crf`.

    checkpoint: of `infercam affinity`, or psa's. device: auto, cpu or cuda; threads: of the network on the CPU.
    workers: processes for the CRF and for writing; the network and the walk run in this one. Raises as
    `make_labels`, and for the checkpoint as `load_affinity`.
    """
    from infercam.trainer.affinity.affinitynet import load_affinity
    from infercam.trainer.loop.device import inference_device

    if config.crf is not None:
        check_crf()
    ids = chosen_ids(store, photos)
    network = load_affinity(checkpoint, inference_device(device, threads))
    origin = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    inputs = {"maps": str(store.path), "affinity": {"file": str(checkpoint), "sha256": origin}}
    stages: list[_Stage] = []
    prints: list[_Fingerprints] = []
    for name, part in _parts(config):
        settings = {"stage": "walk", "config": part.model_dump(mode="json"), **inputs}
        stages.append(_Stage(LabelFolder.create_or_open(out / name, store.info.classes, settings), part.crf))
        prints.append(_Fingerprints(store, part, origin))

    def made(id: str) -> bool:
        return all(stage.folder.done(id, due(id)) for stage, due in zip(stages, prints, strict=True))

    def prepare(id: str) -> tuple[Any, ...]:
        record = read_maps(store, id)
        check_size(record, photos.size(id))
        image = photos.image(id)
        scores = _walked(network, image, record.maps, config)
        return scores, record.classes, image if config.crf else None, [due(id) for due in prints]

    writer = _WalkWriter(stages, config.least_share)
    last = stages[-1].folder
    return run_job("walk", ids, last.file, writer, out, prepare=prepare, workers=workers, made=made)


def _parts(config: WalkConfig) -> list[tuple[str, WalkConfig]]:
    """The folders to write, and the settings that decide each."""
    parts = [(WALK, config.model_copy(update={"crf": None}))]
    return parts if config.crf is None else [*parts, (CRF, config)]


@dataclass(frozen=True)
class _Stage:
    folder: LabelFolder
    crf: CrfConfig | None


@dataclass(frozen=True)
class _WalkWriter:
    """What a process of the pool does with one photo's scores (K + 1, H, W)."""

    stages: Sequence[_Stage]
    least_share: float

    def __call__(
        self,
        id: str,
        scores: NDArray[np.float32],
        classes: list[int],
        image: NDArray[np.uint8] | None,
        fingerprints: list[str],
    ) -> None:
        for stage, fingerprint in zip(self.stages, fingerprints, strict=True):
            found = scores if stage.crf is None else refine(_given(image), scores, stage.crf)
            stage.folder.write(id, winners(found, classes, self.least_share), fingerprint)


def _walked(
    network: AffinityNet, image: NDArray[np.uint8], maps: NDArray[np.float32], config: WalkConfig
) -> NDArray[np.float32]:
    from infercam.trainer.affinity.affinitynet import edge_affinities
    from infercam.trainer.affinity.random_walk import walk_scores

    options = config.model_dump(exclude={"least_share", "crf"})
    return walk_scores(maps, edge_affinities(network, image), radius=network.radius, **options)


def winners(
    scores: NDArray[np.float32], classes: Sequence[int], least_share: float = 0.0
) -> NDArray[np.uint8]:
    """The label (H, W) uint8 of scores (K + 1, H, W), background first, of K classes.

    255 where the winner has less than `least_share` of its pixel's scores.
    """
    label = named_values(scores.argmax(axis=0), classes)
    if least_share > 0:
        label[scores.max(axis=0) < least_share * scores.sum(axis=0)] = IGNORE
    return label


def _given(image: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    assert image is not None  # prepared wherever there is a CRF
    return image


# -- maps ------------------------------------------------------------------------------------------------------
def read_maps(store: MapStore, id: str) -> MapRecord:
    """One photo's maps; raises InputError where the store has none, StoreError for a corrupt file."""
    if id not in store:
        raise InputError(f"{id}: no maps in {store.path}; make them with infercam run")
    return store.read(id)


def check_size(record: MapRecord, size: tuple[int, int]) -> None:
    if record.maps.shape[1:] != size:
        (h, w), (photo_h, photo_w) = record.maps.shape[1:], size
        raise InputError(
            f"{record.id}: maps are {w}×{h}, the photo {photo_w}×{photo_h}; make the maps from these photos"
        )


def chosen_ids(store: MapStore, photos: Photos | None) -> list[str]:
    """The images to do; raises InputError where the maps are of other images altogether."""
    if photos is None:
        ids = store.ids()
        if not ids:
            raise InputError(f"{store.path}: has no maps")
        return ids
    ids = photos.ids
    if not any(id in store for id in ids):
        some = ", ".join(map(shown, ids[:3])) + (", …" if len(ids) > 3 else "")
        raise InputError(
            f"{store.path}: has maps for none of the {len(ids)} photos ({some}); "
            "was it made from another image list?"
        )
    return ids


@dataclass(frozen=True)
class _Fingerprints:
    """What decides one image's label: its maps, the settings, and a network."""

    store: MapStore
    config: BaseModel
    network: str = ""

    def __call__(self, id: str) -> str:
        key = f"{self.config.model_dump_json()} {self.network} {self.store.fingerprint(id)}"
        return hashlib.sha256(key.encode()).hexdigest()[:16]
