"""The constants of `infercam refine`, in a module that imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from infercam.trainer.affinity.crf import CrfConfig
from infercam.trainer.affinity.settings import WalkConfig

SaliencyRule = Literal["mean", "product", "share"]


class ParConfig(BaseModel):
    """The paper's constants but for stride (1) and iterations (10), which were chosen on 300 VOC training photos: 40
    steps at stride 8 gain 5.7 points of mIoU at 14 ms a photo; with more, photos of three classes begin to lose."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stride: int = Field(default=8, ge=1, le=32, description="pixels a cell; 1: the paper's full resolution")
    dilations: Annotated[tuple[int, ...], Field(min_length=1)] = Field(
        default=(1, 2, 4, 8, 12, 24), description="distances of the neighbours, pixels"
    )
    iterations: int = Field(default=40, ge=1, le=1000)
    colour_reach: float = Field(default=0.3, gt=0, description="the paper's w1: smaller keeps within edges")
    distance_share: float = Field(
        default=0.01, ge=0, description="the paper's w2: of the term that knows no colours"
    )


class RefineConfig(BaseModel):
    """Which ways, in this order, and their constants; None: left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    saliency: SaliencyRule | None = Field(
        default=None,
        description="mean: (map + saliency) / 2; product; share: the saliency, shared by the classes' maps",
    )
    walk: WalkConfig | None = Field(
        default=None, description="AffinityNet's random walk (its `crf` is not looked at)"
    )
    par: ParConfig | None = None
    crf: CrfConfig | None = None
    crf_alpha: float = Field(
        default=4, gt=0, description="the dense CRF's background score is (1 - max of the maps)^alpha"
    )
