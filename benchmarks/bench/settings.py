"""What `infercam bench` is told. Apart from the work (setup.py), so that the command starts quickly."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from infercam.engine.common.options import option


class BenchSettings(BaseModel):
    """What is measured, of what, and how often."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voc: Path | None = option(None, "VOC tree; with --split. Its masks give the mIoU.")
    split: str | None = option(None, "Split of the VOC tree: train, val, …")
    folder: Path | None = option(None, "Folder of images.")
    list_file: Path | None = option(None, "List of paths or ids, or psa's.", "--list")
    root: Path | None = option(None, "Folder that --list is relative to.")
    gt: Path | None = option(None, "Folder of masks ID.png (default: those of the VOC tree).")
    labels: str | None = option(
        None, "Label file as for `infercam run` (default: what the classifier predicts)."
    )
    model: Path | None = option(
        None, "The classifier as PyTorch loads it: for the plain loop and the CAM libraries."
    )
    arch: str = option("mobilenetv2", "Of --model: resnet38, resnet50 or mobilenetv2.")
    images: int = option(10, "The first so many images.", ge=1)
    few: int | None = option(
        None, "The first so many for what is slow: 8-view loops, waterfall (default: a quarter).", ge=1
    )
    rounds: int = option(3, "Repeats of everything, by turns.", ge=1)
    recipes: str | None = option(None, "Of the engine, separated by commas (default: all).")
    backends: str | None = option(None, "Separated by commas (default: all that work here).")
    precision: str | None = option(None, "Which graph or plan of the bundle.")
    threads: int | None = option(None, "Worker threads (default: all cores).", ge=1)
    only: str | None = option(
        None, "Parts, separated by commas: rows, waterfall, growth, agreement, profile."
    )
    counts: str | None = option(None, "Lengths of lists for the growth, for example 50,200,1000.")
    quick: bool = option(False, "About a minute: few images, two rounds.")
