"""The settings of `infercam segment`, and what other networks than DeepLab's usual one change of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from infercam.trainer.affinity.crf import CrfConfig
from infercam.trainer.loop.config import StageConfig, make_config

ALPHA = 0.08
"""Weight of eq. 4's saliency term."""


class SegmentConfig(StageConfig):
    """Defaults: deeplab-pytorch's for DeepLab v2 over ResNet-101 on VOC; PRESETS for the other networks."""

    arch: Literal["resnet101", "resnet50", "mobilenetv2", "efficientnet_lite0", "resnet38", "small"] = Field(
        default="resnet101",
        description="resnet101, resnet50, mobilenetv2, efficientnet_lite0, resnet38, small",
    )
    head: Literal["v2", "v3"] = Field(default="v2", description="ASPP: v2 summed, v3 concatenated")
    output_stride: Literal[8, 16] = Field(
        default=8, description="8 or 16 (mobilenetv2, efficientnet_lite0: 16)"
    )
    epochs: int = Field(default=20, ge=1, description="passes over the photos")
    batch: int = Field(default=10, ge=1, description="photos a step, on each device")
    rate: float = Field(default=2.5e-4, gt=0, description="of the backbone")
    head_scale: float = Field(default=10.0, gt=0, description="rate of the head over the backbone's")
    crop: int = Field(default=321, ge=33, description="side of the training crops, pixels (321 or 513)")
    scale: tuple[float, float] = Field(default=(0.5, 1.5), description="range of the random scale")
    saliency_mode: Literal["none", "background", "refine"] = Field(
        default="none",
        description="background: cut the labels where saliency says so; refine: eq. 4, the default with --saliency",
    )
    missing_saliency: Literal["error", "cross-entropy"] = Field(
        default="error", description="error, or cross-entropy: train photos without it by the labels alone"
    )
    alpha: float = Field(default=ALPHA, ge=0, description="weight of the saliency term in eq. 4")

    @model_validator(mode="after")
    def _check(self) -> SegmentConfig:
        if not 0.1 <= self.scale[0] <= self.scale[1] <= 10:
            raise ValueError("scale: write the smaller factor first, both within 0.1 and 10")
        return self


FOLDED: dict[str, Any] = {"rate": 2e-3, "head_scale": 1.0, "clip": 5.0, "output_stride": 16}
"""Networks without BatchNorm, which holds larger steps."""
PRESETS: dict[str, dict[str, Any]] = {
    "mobilenetv2": FOLDED,
    "efficientnet_lite0": FOLDED,
    "small": {"rate": 1e-2, "output_stride": 8},
}
"""What other networks change of the defaults."""


def segment_config(file: Path | None = None, **changes: Any) -> SegmentConfig:
    """Settings from a file, then `changes` (None: not given), over the preset of the arch; raises InputError."""
    asked = make_config(SegmentConfig, file, **changes)
    given = asked.model_dump(exclude_unset=True)
    return make_config(SegmentConfig, None, **{**PRESETS.get(asked.arch, {}), **given})


class SegmentTestConfig(BaseModel):
    """Defaults: the scales of deeplab-pytorch, whose scores are averaged here, and psa's CRF where asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scales: tuple[float, ...] = Field(
        default=(0.5, 0.75, 1.0, 1.25, 1.5), min_length=1, description="scales whose scores are averaged"
    )
    mirror: bool = Field(default=True, description="mirrored views too")
    least_peak: float = Field(
        default=0.05, ge=0, lt=1, description="classes below this everywhere are out (the CRF's time)"
    )
    crf: CrfConfig | None = None
