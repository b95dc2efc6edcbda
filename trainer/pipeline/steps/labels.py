"""Labels of the maps: what AffinityNet, or DeepLab, is trained on."""

from __future__ import annotations

from pathlib import Path

from infercam.engine.store.mapstore import MapStore
from infercam.trainer.affinity.pseudo_labels import make_labels
from infercam.trainer.affinity.settings import AffinityLabelConfig, LabelConfig, ThresholdLabelConfig
from infercam.trainer.photos.job import pool_size
from infercam.trainer.pipeline.pipeline import Figures, PipelineStep
from infercam.trainer.pipeline.tables import checked, failures, with_crf_table
from infercam.trainer.pipeline.work import Work


def make(work: Work) -> PipelineStep:
    table = work.config.labels
    assert table is not None
    given = with_crf_table(table.settings())
    settings: LabelConfig
    if given.get("kind") == "threshold":
        settings = checked(ThresholdLabelConfig, given, "labels")
    else:
        settings = checked(AffinityLabelConfig, given, "labels")

    def run(out: Path) -> Figures:
        store = MapStore.open(work.out / "maps")
        photos, workers = work.having(store.path, ".npz"), pool_size(table.workers, settings.crf)
        failed = failures(make_labels(store, photos, out, settings, workers=workers))
        return {**work.score_labels(out, "labels", work.truth), **failed}

    return PipelineStep("labels", run, settings.model_dump(mode="json"), needs=("maps",))
