"""`infercam refine`: a map store in, a map store out, by the ways that the settings name, in this order: saliency,
the random walk, PAR, the dense CRF. Resumable: a photo is kept while its maps, its saliency and the settings are the
same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infercam.engine.bundle import sha256_file
from infercam.engine.common.errors import InputError, shown
from infercam.engine.store.mapstore import MapStore
from infercam.engine.store.record import MapRecord
from infercam.trainer.affinity.crf import check_crf, refine
from infercam.trainer.affinity.labels import with_background
from infercam.trainer.affinity.pseudo_labels import check_size, chosen_ids, read_maps
from infercam.trainer.photos.job import JobSummary, run_job
from infercam.trainer.photos.photos import Photos
from infercam.trainer.refine.fuse import fused
from infercam.trainer.refine.par import pixel_adaptive
from infercam.trainer.refine.settings import RefineConfig
from infercam.trainer.saliency.files import read_saliency, saliency_file

if TYPE_CHECKING:
    from infercam.trainer.affinity.affinitynet import AffinityNet

Float = NDArray[np.float32]


def make_refined(
    store: MapStore,
    photos: Photos | None,
    out: Path,
    config: RefineConfig,
    *,
    saliency: Path | None = None,
    affinity: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    workers: int = 0,
) -> JobSummary:
    """Refined maps of every photo (without photos: of every image of the store) into the map store `out`.

    saliency: folder of `<id>.png`, with `config.saliency`. affinity: AffinityNet's checkpoint, with `config.walk`;
    device and threads are for it. workers: processes for the rest; 0: this one. Raises InputError where nothing is
    asked for or something that it needs is not given, MissingExtra without the CRF's library, StoreError for the
    stores, and for the checkpoint as `load_affinity`. What concerns one photo is in the summary's failures.
    """
    _check(config, photos, saliency, affinity)
    network: AffinityNet | None = None
    inputs: dict[str, Any] = {"maps": str(store.path), "config": config.model_dump(mode="json")}
    if saliency is not None:
        inputs["saliency"] = str(saliency)
    if affinity is not None:
        from infercam.trainer.affinity.affinitynet import load_affinity
        from infercam.trainer.loop.device import inference_device

        network = load_affinity(affinity, inference_device(device, threads))
        inputs["affinity"] = {"file": str(affinity), "sha256": sha256_file(affinity)}
    target = MapStore.create_or_open(
        out,
        dtype="uint8" if store.info.dtype == "uint8" else "float16",
        classes=store.info.classes,
        settings={**store.info.settings, "refined": inputs},
    )
    refiner = _Refiner(store, photos, target, config, saliency)
    due = _Fingerprints(store, config, saliency, str(inputs.get("affinity", "")))

    def prepare(id: str) -> tuple[Any, ...]:
        return due(id), None if network is None else refiner.walked(id, network)

    return run_job(
        "refine",
        chosen_ids(store, photos),
        target.file,
        refiner,
        out,
        prepare=prepare,
        workers=workers,
        made=lambda id: target.done(id, due(id)),
    )


def _check(config: RefineConfig, photos: Photos | None, saliency: Path | None, affinity: Path | None) -> None:
    if not (config.saliency or config.walk or config.par or config.crf):
        raise InputError("nothing to do: say --saliency DIR, --par, --crf or --affinity CKPT")
    if (config.saliency is None) is not (saliency is None) or (config.walk is None) is not (affinity is None):
        raise ValueError(
            "a rule for saliency needs its folder, a walk its checkpoint, and the other way about"
        )
    if saliency is not None and not saliency.is_dir():
        raise InputError(f"--saliency {shown(saliency)}: no such folder; make it with infercam saliency")
    if photos is None and (config.par or config.crf or config.walk):
        raise InputError(
            "--par, --crf and --affinity look at the photos: --voc ROOT --split NAME, --images DIR or --list FILE"
        )
    if config.crf is not None:
        check_crf()


def by_photo(maps: Float, image: NDArray[np.uint8], config: RefineConfig) -> Float:
    """Maps K×H×W after what looks at the photo's colours (H×W×3 uint8 RGB): PAR, the dense CRF."""
    if config.par is not None:
        maps = pixel_adaptive(image, maps, config.par)
    if config.crf is not None:
        maps = refine(image, with_background(maps, config.crf_alpha), config.crf)[1:]
    return maps


@dataclass(frozen=True)
class _Refiner:
    """What a process of the pool does for one photo; `walked` is this process's part."""

    store: MapStore
    photos: Photos | None
    target: MapStore
    config: RefineConfig
    saliency: Path | None

    def __call__(self, id: str, fingerprint: str, walked: MapRecord | None) -> None:
        record = walked or self._fused(id)
        if self.photos is not None and (self.config.par or self.config.crf):
            record.maps = by_photo(record.maps, self.photos.image(id), self.config)
        self.target.write(record, fingerprint)

    def walked(self, id: str, network: AffinityNet) -> MapRecord:
        """After saliency and the walk: each class's share of the walk's scores, background among them."""
        from infercam.trainer.affinity.affinitynet import edge_affinities
        from infercam.trainer.affinity.random_walk import walk_scores

        assert self.photos is not None and self.config.walk is not None
        record = self._fused(id)
        options = self.config.walk.model_dump(exclude={"least_share", "crf"})
        affinities = edge_affinities(network, self.photos.image(id))
        scores = walk_scores(record.maps, affinities, radius=network.radius, **options)
        record.maps = scores[1:] / np.maximum(scores.sum(axis=0), np.float32(1e-12))
        return record

    def _fused(self, id: str) -> MapRecord:
        record = read_maps(self.store, id)
        size: tuple[int, int] = record.maps.shape[1:]
        if self.photos is not None:
            check_size(record, self.photos.size(id))
        if self.saliency is not None and self.config.saliency is not None:
            found = read_saliency(saliency_file(self.saliency, id), size)
            record.maps = fused(record.maps, found, self.config.saliency)
        return record


@dataclass(frozen=True)
class _Fingerprints:
    """What decides one image's refined maps."""

    store: MapStore
    config: RefineConfig
    saliency: Path | None
    network: str

    def __call__(self, id: str) -> str:
        key = f"{self.config.model_dump_json()} {self.network} {self.store.fingerprint(id)}"
        if self.saliency is not None:
            file = saliency_file(self.saliency, id)
            key += f" {sha256_file(file) if file.is_file() else ''}"
        return hashlib.sha256(key.encode()).hexdigest()[:16]
