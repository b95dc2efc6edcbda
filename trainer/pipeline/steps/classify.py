"""Training the classifier whose maps are wanted."""

from __future__ import annotations

from pathlib import Path

from infercam.trainer.classify.classify import classify
from infercam.trainer.classify.settings import usual_config
from infercam.trainer.pipeline.fingerprints import file_hash, photo_hash, plain
from infercam.trainer.pipeline.pipeline import Figures, PipelineStep
from infercam.trainer.pipeline.tables import settings_of
from infercam.trainer.pipeline.work import Work


def make(work: Work) -> PipelineStep:
    table = work.config.classify
    assert table is not None
    settings = settings_of(usual_config, table.settings(), "classify")
    held_out = work.validation if table.validate_ else None

    def run(out: Path) -> Figures:
        done = classify(
            work.photos,
            out,
            settings,
            work.classes,
            weights=table.weights,
            random=table.random,
            validation=held_out,
        )
        figures = {"loss": done.loss}
        return figures if done.mean_ap is None else {"mAP": 100 * done.mean_ap, **figures}

    inputs = {"photos": work.photo_hash, "weights": file_hash(table.weights), "classes": work.classes}
    if held_out is not None:
        inputs["validation"] = photo_hash(held_out)
    return PipelineStep("classify", run, {**plain(settings), "random": table.random}, inputs)
