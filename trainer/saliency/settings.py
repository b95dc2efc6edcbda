"""The settings of `infercam saliency --model`, in a module that imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Three = tuple[float, float, float]


class SaliencyModelConfig(BaseModel):
    """How a network is fed and read; what is None is found in the file or taken from the preset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal["u2net", "isnet", "birefnet"] | None = Field(
        default=None,
        description="u2net, isnet, birefnet: scaling and side of that family (None: by the file's name)",
    )
    side: int | None = Field(
        default=None, ge=32, description="of the square input (None: the graph's, or the preset's)"
    )
    divide: Literal["max", "255", "1"] | None = Field(
        default=None,
        description="pixels are divided by the picture's max, by 255 or by 1, before mean and std",
    )
    mean: Three | None = Field(default=None, description="subtracted from each channel, RGB")
    std: Three | None = Field(default=None, description="each channel is divided by it")
    output: str | None = Field(default=None, description="name of the output (None: the first)")
    sigmoid: bool | None = Field(
        default=None, description="the output needs a sigmoid (None: where a trial leaves 0..1)"
    )
    stretch: bool = Field(default=True, description="each photo's own minimum becomes 0, its maximum 1")
