"""The settings of `infercam classify`, and what other networks than ResNet-38 change of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from infercam.engine.common.options import option
from infercam.trainer.loop.config import StageConfig, make_config

Split = Literal["released", "paper"]
"""What becomes of an image of three or more classes: one tile, the whole image (`released`), or each class's
own four (`paper`). One and two classes are cut alike."""


class ClassifyConfig(StageConfig):
    """psa's constants for ResNet-38; see PRESETS for the other networks."""

    epochs: int = Field(default=15, ge=1, description="passes over the photos")
    batch: int = Field(default=16, ge=1, description="images a step, on each device")
    arch: Literal["resnet38", "resnet50", "mobilenetv2", "efficientnet_lite0", "small"] = Field(
        default="resnet38", description="resnet38, resnet50, mobilenetv2, efficientnet_lite0, small"
    )
    output_stride: int | None = Field(default=None, ge=8, le=32, description="None: as published")
    head_scale: float = Field(default=10.0, gt=0, description="rate of the linear layer over the others'")
    freeze_early: bool = Field(default=True, description="leave the first layers of ResNet-38 as they are")
    long_side: tuple[int, int] = Field(
        default=(448, 768), description="longer side of a training picture before the crop, pixels"
    )
    crop: int = Field(default=448, ge=32, description="side of the square crop; what is short is padded")
    jitter: float = Field(default=0.3, ge=0, lt=1, description="of brightness, contrast and saturation")
    side: int = Field(
        default=448, ge=32, description="longer side of whole pictures: validation, and maps for centres"
    )
    augment: Literal["plain", "split-unite"] = Field(default="plain", description="plain or split-unite")
    tile_share: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="training pictures that are tiles: 0.8 is four to one whole image",
    )
    split: Split = Field(default="released", description="tiles of an image of three or more classes")
    keep: Literal["last", "best"] = Field(
        default="last", description="the epoch that is exported: last, or best by the validation's mAP"
    )
    refresh: int = Field(default=3, ge=1, description="epochs between two looks at the classifier's own maps")

    @model_validator(mode="after")
    def _check(self) -> ClassifyConfig:
        if not 32 <= self.long_side[0] <= self.long_side[1]:
            raise ValueError("long_side: write the smaller side first, and no less than 32")
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "resnet38": {},
    "resnet50": {"weight_decay": 1e-4, "long_side": (320, 640), "crop": 512},  # irn's
    "mobilenetv2": {"rate": 0.01},  # no BatchNorm to hold larger steps
    "efficientnet_lite0": {"rate": 0.01},
    "small": {
        "epochs": 12,
        "batch": 32,
        "rate": 0.1,
        "head_scale": 1.0,
        "weight_decay": 1e-4,
        "warmup": 100,
        "long_side": (120, 330),
        "crop": 208,
        "side": 240,
    },
}
"""A network's usual settings, where they are not the defaults."""


def usual_config(file: Path | None = None, **changes: Any) -> ClassifyConfig:
    """Settings of a file and of `changes` (None: not given); what neither gives is as usual for the network.

    Raises InputError for an unknown name or a value out of range.
    """
    given = make_config(ClassifyConfig, file, **changes)
    return make_config(
        ClassifyConfig, None, **{**PRESETS[given.arch], **given.model_dump(exclude_unset=True)}
    )


class HeldOutSettings(BaseModel):
    """Photos whose mean average precision is told after each epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    val_split: str | None = option(None, "Split of the VOC tree whose mAP is told after each epoch.")
    val_list: Path | None = option(None, "The same from a list, relative to --root.")


class DemoSettings(BaseModel):
    """The demo's own classifier, on scenes that are drawn for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    demo: bool = option(False, "The demo's classifier, on scenes drawn in OUT.")
    scenes: int = option(3000, "With --demo: training scenes.", ge=8)
    val_scenes: int = option(300, "With --demo: validation.", ge=8)
