"""AffinityNet, trained on the labels."""

from __future__ import annotations

from pathlib import Path

from infercam.trainer.affinity.settings import affinity_config
from infercam.trainer.affinity.stage import train_affinity
from infercam.trainer.pipeline.pipeline import Figures, PipelineStep
from infercam.trainer.pipeline.tables import settings_of
from infercam.trainer.pipeline.work import Work


def make(work: Work) -> PipelineStep:
    table = work.config.affinity
    assert table is not None
    settings = settings_of(affinity_config, table.settings(), "affinity")

    def run(out: Path) -> Figures:
        labels = work.out / "labels"
        done = train_affinity(
            work.having(labels, ".png"),
            labels,
            out,
            settings,
            classes=len(work.classes),
            weights=work.weights(table.weights),
            random=table.random,
        )
        return {"pair accuracy": 100 * done.accuracy, "loss": done.loss}

    return work.trained("affinity", run, settings, table, ["labels"])
