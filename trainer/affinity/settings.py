"""The constants of `infercam labels` and `infercam walk` (method.md §4), as their settings files name them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from infercam.trainer.affinity.crf import CrfConfig


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AffinityLabelConfig(_Settings):
    """Confident foreground and confident background, the rest left open: what AffinityNet learns pairs from."""

    kind: Literal["affinity"] = "affinity"
    low_alpha: float = Field(
        default=4, gt=0, description="large background score: what is still foreground is confident"
    )
    high_alpha: float = Field(
        default=32, gt=0, description="small background score: what is still background is confident"
    )
    crf: CrfConfig | None = CrfConfig()


def _ordered(band: tuple[float, float]) -> tuple[float, float]:
    if band[0] > band[1]:
        raise ValueError("the lower bound comes first")
    return band


class ThresholdLabelConfig(_Settings):
    """The argmax of [threshold, maps], as maps are evaluated."""

    kind: Literal["threshold"] = "threshold"
    threshold: float = Field(ge=0, le=1, description="background score; `infercam eval` tells the best one")
    ignore_between: Annotated[tuple[float, float], AfterValidator(_ordered)] | None = Field(
        default=None, description="leave pixels open whose highest map lies strictly between the two"
    )
    crf: CrfConfig | None = None


LabelConfig = AffinityLabelConfig | ThresholdLabelConfig


class WalkConfig(_Settings):
    """The random walk, and what becomes of its scores."""

    beta: float = Field(
        default=8, gt=0, description="power of the affinities: larger keeps the walk within edges"
    )
    log2_steps: int = Field(default=8, ge=0, le=14, description="the walk has 2^this many steps")
    alpha: float = Field(default=16, gt=0, description="background score (1 - max map)^alpha")
    border: Literal["all", "psa"] = Field(
        default="all", description="pairs at the grid's border: all, or only those that psa's code takes"
    )
    least_share: float = Field(
        default=0, ge=0, le=1, description="leave pixels open whose winner has less of the scores"
    )
    crf: CrfConfig | None = None
