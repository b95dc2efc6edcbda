"""Saliency maps from the photos alone."""

from __future__ import annotations

from pathlib import Path

from infercam.trainer.pipeline.pipeline import Figures, PipelineStep
from infercam.trainer.pipeline.tables import checked, failures
from infercam.trainer.pipeline.work import Work
from infercam.trainer.saliency.saliency import SaliencyConfig, make_saliency


def make(work: Work) -> PipelineStep:
    table = work.config.saliency
    assert table is not None
    settings = checked(SaliencyConfig, table.settings(), "saliency")

    def run(out: Path) -> Figures:
        job = make_saliency(
            work.photos,
            out,
            settings,
            weights=work.weights(table.weights),
            arch=table.arch,
            workers=table.workers,
        )
        return {"photos": float(job.done + job.kept), **failures(job)}

    inputs = {"photos": work.photo_hash, "weights": work.weights_hash(table.weights)}
    key = {**settings.model_dump(mode="json"), "arch": table.arch}
    return PipelineStep("saliency", run, key, inputs, needs=work.builds_on(table.weights, []))
