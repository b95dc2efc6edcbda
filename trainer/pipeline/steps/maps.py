"""Response maps of every photo: what `infercam run` does."""

from __future__ import annotations

from pathlib import Path

from infercam.engine.bundle import Bundle
from infercam.engine.method.recipe import recipe
from infercam.trainer.pipeline.maps import make_maps
from infercam.trainer.pipeline.pipeline import Figures, PipelineStep
from infercam.trainer.pipeline.work import Work


def make(work: Work) -> PipelineStep:
    table = work.config.maps
    chosen = recipe(table.recipe, **table.set)
    bundle = table.bundle or work.out / "classify" / "bundle"

    def run(out: Path) -> Figures:
        failed = make_maps(bundle, work.config.data, out, chosen, table)
        return {**work.score_maps(out), **failed}

    inputs = {"photos": work.photo_hash}
    if table.bundle is not None:
        inputs["bundle"] = Bundle.load(table.bundle).hash
    settings = {"recipe": chosen.model_dump(mode="json", exclude={"name"}), "mode": table.mode}
    return PipelineStep("maps", run, settings, inputs, needs=("classify",) if work.config.classify else ())
