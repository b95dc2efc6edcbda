"""What `infercam build` is told. Apart from the work (workflow.py), so that the command starts quickly."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from infercam.engine.common.options import option
from infercam.engine.inputs import SourceSettings


class PlanSourceSettings(BaseModel):
    """Images like those to come, for an exact recipe; without any the plan is for the ladder. See SourceSettings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: Path | None = option(None, "Folder of images like those to come.")
    voc: Path | None = option(None, "VOC tree; with --split.")
    split: str | None = option(None, "Split of the VOC tree: train, val, …")
    list_file: Path | None = option(None, "List of paths or ids, or psa's.", "--list")
    root: Path | None = option(None, "Folder that --list is relative to.")

    def settings(self) -> SourceSettings:
        return SourceSettings(**self.model_dump())


class BuildSettings(BaseModel):
    """What the plan is for, what it is checked by, and what TensorRT is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: str | None = option(
        None,
        "tensorrt (for this GPU) or tensorrt-rtx (for RTX cards, no GPU needed); default: what can run here.",
    )
    targets: str | None = option(
        None, "tensorrt-rtx: cards to build for, as sm75,sm86,sm120; default: all from compute 8.0 on."
    )
    largest_view: int | None = option(
        None,
        "Without images: longest side in pixels of the views that the plan takes; default: of the largest square "
        "view that --batch-pixels allows.",
        ge=64,
    )
    labels: str | None = option(
        None, "The images' classes, as in `infercam run`; default: their numbers are drawn."
    )
    recipe: str = option("released", "Recipe whose batches the plan is for.")
    mode: str = option("both", "baseline, split, erase, both.")
    limit: int = option(200, "Sizes of so many images, spread over all, are looked at.", ge=1)
    profiles: int = option(4, "Optimisation profiles, at most.", ge=1, le=16)
    batch_pixels: int = option(4_000_000, "Network pixels in one batch, at most.", ge=1)
    centres: str = option(
        "drawn", "Where tiles are split: `drawn`, or `cpu`: by running --check-images images on the CPU."
    )
    check_images: int = option(16, "The plan is compared on so many images.", ge=1)
    max_error: float | None = option(None, "Largest mean relative error of the responses.", ge=0)
    min_iou: float | None = option(None, "Least mean IoU of the maps at threshold 0.3.", ge=0, le=1)
    max_miou_drop: float | None = option(None, "Most points of best mIoU lost, where there are masks.", ge=0)
    workspace: int | None = option(None, "Megabytes of scratch memory that a layer may take.", ge=1)
    version_compatible: bool = option(False, "For the lean runtime of later versions too.")
    hardware_compatible: bool = option(False, "For every GPU of compute capability 8.0 or later.")
    strip_weights: bool = option(False, "A small plan: weights come from the bundle on loading.")
    refit: bool = option(False, "Refittable: weights of a classifier trained again go in without a build.")
    cache: Path | None = option(
        None,
        "Folder for plans, of several bundles if you like (`infercam run` looks where INFERCAM_PLANS says); "
        "default BUNDLE/plans.",
    )
    force: bool = option(False, "Build even where a plan that fits is there.")
