"""Saliency maps of many photos by a trained network (network.py); needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from infercam.engine.bundle import sha256_file
from infercam.trainer.loop.config import save_config
from infercam.trainer.photos.batch_job import run_batches
from infercam.trainer.photos.job import JobSummary
from infercam.trainer.photos.photos import Photos
from infercam.trainer.saliency.files import Map, saliency_file, write_saliency
from infercam.trainer.saliency.network import SaliencyNetwork, enlarged

BATCH = 4


class _Prepared(NamedTuple):
    """A photo as the network takes it, and its own size."""

    x: Map
    size: tuple[int, int]


def make_learned_saliency(
    photos: Photos, out: Path, network: SaliencyNetwork, model: Path, *, batch: int = BATCH
) -> JobSummary:
    """Saliency PNGs `out/<id>.png` of every photo that has none yet.

    model: the network's file, whose hash `out/config.json` records with all settings. batch: photos a run, where the
    graph takes any number. Raises InputError for a folder made with another model or settings.
    """
    save_config(
        out, "saliency", network.settings, {"model": {"name": model.name, "sha256": sha256_file(model)}}
    )

    def read(item_id: str) -> _Prepared:
        image = photos.image(item_id)
        return _Prepared(network.prepare(image), image.shape[:2])

    def infer(group: list[_Prepared]) -> list[Map]:
        maps = network.maps([one.x for one in group])
        return [enlarged(found, *one.size) for found, one in zip(maps, group, strict=True)]

    return run_batches(
        "saliency",
        photos.ids,
        out,
        made=lambda item_id: saliency_file(out, item_id).exists(),
        read=read,
        infer=infer,
        write=lambda item_id, saliency: write_saliency(saliency_file(out, item_id), saliency),
        batch=network.batch or batch,
    )
