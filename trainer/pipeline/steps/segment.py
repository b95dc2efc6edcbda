"""DeepLab, trained on the last pseudo labels, with saliency if there is any."""

from __future__ import annotations

from pathlib import Path

from infercam.trainer.pipeline.fingerprints import folder_hash
from infercam.trainer.pipeline.pipeline import Figures, PipelineStep
from infercam.trainer.pipeline.tables import settings_of
from infercam.trainer.pipeline.work import Work
from infercam.trainer.segment.settings import segment_config
from infercam.trainer.segment.stage import train_segment


def make(work: Work) -> PipelineStep:
    table = work.config.segment
    assert table is not None
    settings = settings_of(segment_config, table.settings(), "segment")
    needs = ["walk" if work.config.walk else "labels"]
    saliency = table.saliency
    if saliency is None and work.config.saliency is not None and settings.saliency_mode != "none":
        saliency = work.out / "saliency"
        needs.append("saliency")

    def run(out: Path) -> Figures:
        labels = work.pseudo_labels()
        done = train_segment(
            work.having(labels, ".png"),
            labels,
            out,
            settings,
            classes=len(work.classes),
            weights=work.weights(table.weights),
            random=table.random,
            saliency=saliency,
        )
        return {"loss": done.last["loss"]}

    return work.trained("segment", run, settings, table, needs, saliency=folder_hash(table.saliency))
