"""The constants of `infercam labels`, `affinity` and `walk` (method/README.md §4)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from infercam.engine.common.errors import InputError
from infercam.trainer.affinity.crf import CrfConfig
from infercam.trainer.loop.config import StageConfig, make_config

STRIDE = 8
"""Pixels per cell of AffinityNet's grid."""
RADIUS = 5
"""Pairs of cells are closer than this."""


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


def label_config(kind: str, file: Path | None = None, **changes: Any) -> LabelConfig:
    """Settings of that kind from a file, then `changes`; raises InputError, which names the option."""
    kinds: dict[str, type[LabelConfig]] = {"affinity": AffinityLabelConfig, "threshold": ThresholdLabelConfig}
    if kind not in kinds:
        raise InputError(f"--kind is one of {', '.join(kinds)}, not {kind!r}")
    for name in changes:
        if name not in kinds[kind].model_fields:
            raise InputError(f"--{name.replace('_', '-')} is not for --kind {kind}")
    if kind == "threshold" and file is None and "threshold" not in changes:
        raise InputError("--kind threshold needs --threshold T; `infercam eval MAPS` tells the best one")
    return make_config(kinds[kind], file, **changes)


class AffinityConfig(StageConfig):
    """Defaults: Ahn & Kwak's, as psa trains ResNet-38; PRESETS for the other networks."""

    arch: Literal["resnet38", "resnet50", "resnet101", "mobilenetv2", "efficientnet_lite0", "small"] = Field(
        default="resnet38",
        description="resnet38, resnet50, resnet101, mobilenetv2, efficientnet_lite0, small",
    )
    crop: int = Field(default=448, gt=0, description="side of the training crops, a multiple of 8")
    long_side: tuple[int, int] | None = Field(
        default=None, description="scale pictures so that the longer side is within; null: as they are (psa)"
    )
    new_scale: float = Field(default=10.0, gt=0, description="rate of the new layers over that of the rest")
    freeze_backbone: bool = Field(
        default=False, description="train the new layers alone, quicker; otherwise all but the first"
    )
    jitter: float = Field(default=0.3, ge=0, lt=1, description="brightness, contrast, saturation")
    radius: int = Field(default=RADIUS, ge=2, description="pairs are closer than this, in stride-8 cells")

    @model_validator(mode="after")
    def _check(self) -> AffinityConfig:
        smallest = STRIDE * (2 * self.radius - 1)  # leaves one cell with all its neighbours
        if self.crop % STRIDE or self.crop < smallest:
            raise ValueError(f"crop must be a multiple of {STRIDE}, at least {smallest}")
        if self.long_side and not 1 <= self.long_side[0] <= self.long_side[1]:
            raise ValueError("long_side: write the smaller side first")
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "mobilenetv2": {"rate": 0.01},  # no BatchNorm to hold larger steps
    "efficientnet_lite0": {"rate": 0.01},
}
"""What other networks change of the defaults."""


def affinity_config(file: Path | None = None, **changes: Any) -> AffinityConfig:
    """Settings from a file, then `changes` (None: not given), over the preset of the arch; raises InputError."""
    asked = make_config(AffinityConfig, file, **changes)
    preset = {k: v for k, v in PRESETS.get(asked.arch, {}).items() if k not in asked.model_fields_set}
    return asked.model_copy(update=preset)


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
