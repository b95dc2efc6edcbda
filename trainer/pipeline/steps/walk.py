"""Pseudo labels by AffinityNet's random walk, and after a dense CRF."""

from __future__ import annotations

from pathlib import Path

from infercam.engine.store.mapstore import MapStore
from infercam.trainer.affinity.pseudo_labels import make_walk
from infercam.trainer.affinity.settings import WalkConfig
from infercam.trainer.photos.job import pool_size
from infercam.trainer.pipeline.pipeline import Figures, PipelineStep
from infercam.trainer.pipeline.tables import checked, failures, with_crf_table
from infercam.trainer.pipeline.work import BEST, Work


def make(work: Work) -> PipelineStep:
    table = work.config.walk
    assert table is not None
    settings = checked(WalkConfig, with_crf_table({**table.settings(), "crf": table.crf}), "walk")

    def run(out: Path) -> Figures:
        store = MapStore.open(work.out / "maps")
        job = make_walk(
            store,
            work.having(store.path, ".npz"),
            work.out / "affinity" / BEST,
            out,
            settings,
            device=table.device,
            threads=table.threads,
            workers=pool_size(table.workers, settings.crf),
        )
        failed = failures(job)
        found = work.score_labels(out / "walk", "walk", work.truth)
        if settings.crf is not None:
            refined = work.score_labels(out / "crf", "walk-crf", work.truth)
            found |= {f"{name} after CRF": value for name, value in refined.items()}
        return {**found, **failed}

    return PipelineStep("walk", run, settings.model_dump(mode="json"), needs=("maps", "affinity"))
