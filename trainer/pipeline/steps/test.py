"""The trained DeepLab on photos that nothing was trained on."""

from __future__ import annotations

from pathlib import Path

from infercam.trainer.photos.job import pool_size
from infercam.trainer.pipeline.fingerprints import photo_hash
from infercam.trainer.pipeline.pipeline import Figures, PipelineStep
from infercam.trainer.pipeline.tables import checked, failures, with_crf_table
from infercam.trainer.pipeline.work import BEST, Work, ground_truth
from infercam.trainer.segment.predict import segment_photos
from infercam.trainer.segment.settings import SegmentTestConfig


def make(work: Work) -> PipelineStep:
    table = work.config.test
    assert table is not None
    settings = checked(SegmentTestConfig, with_crf_table(table.settings()), "test")
    photos = work.validation

    def run(out: Path) -> Figures:
        job = segment_photos(
            photos,
            work.out / "segment" / BEST,
            out,
            settings,
            class_names=work.classes,
            device=table.device,
            threads=table.threads,
            workers=pool_size(table.workers, settings.crf),
        )
        failed = failures(job)
        truth = ground_truth(photos, work.config.data.val_split or "")
        return {**work.score_labels(out, "test", truth), **failed}

    inputs = {"photos": photo_hash(photos)}
    return PipelineStep("test", run, settings.model_dump(mode="json"), inputs, needs=("segment",))
