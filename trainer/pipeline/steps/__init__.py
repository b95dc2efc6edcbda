"""The steps of the pipeline, one file each: what it reads, writes, and is judged by.

classify -> maps -> labels -> affinity -> walk -> saliency -> segment -> test
"""

from __future__ import annotations

import os
from pathlib import Path

from infercam.engine.common.errors import InputError
from infercam.trainer.pipeline.config import PipelineConfig
from infercam.trainer.pipeline.pipeline import PipelineStep
from infercam.trainer.pipeline.steps import affinity, classify, labels, maps, saliency, segment, test, walk
from infercam.trainer.pipeline.work import Work

STEPS = (classify, maps, labels, affinity, walk, saliency, segment, test)
"""In the order in which they are done; each is named as its table."""


def make_steps(config: PipelineConfig, out: Path) -> list[PipelineStep]:
    """The steps that the settings ask for; every table is checked here, before any work.

    Raises InputError for what a step's settings or files lack, and under torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("a pipeline is one process: use torchrun with the stages' own commands")
    work = Work(config, Path(out))
    wanted = [step for step in STEPS if getattr(config, step.__name__.rpartition(".")[2]) is not None]
    return [step.make(work) for step in wanted]
