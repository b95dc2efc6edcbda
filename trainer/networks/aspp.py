"""The two heads of DeepLab: ASPP as in version 2 (dilated branches summed) and version 3 (concatenated).

Rates are given for output stride 8 as published and scale with the stride, so that a branch sees the same part
of the picture whatever the stride.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Head = Literal["v2", "v3"]
RATES_V2 = (6, 12, 18, 24)
RATES_V3 = (12, 24, 36)
V3_WIDTH = 256


def make_head(head: Head, channels: int, classes: int, output_stride: int) -> nn.Module:
    """N×channels×h×w -> N×classes×h×w scores."""
    rates = [rate * 8 // output_stride for rate in (RATES_V2 if head == "v2" else RATES_V3)]
    return SummedASPP(channels, classes, rates) if head == "v2" else ASPPv3(channels, classes, rates)


class SummedASPP(nn.Module):
    """DeepLab v2: dilated 3×3 convolutions straight to the scores, summed; c0…c3 as in deeplab-pytorch."""

    def __init__(self, channels: int, classes: int, rates: list[int]) -> None:
        super().__init__()
        for i, rate in enumerate(rates):
            branch = nn.Conv2d(channels, classes, 3, 1, padding=rate, dilation=rate)
            nn.init.normal_(branch.weight, std=0.01)
            assert branch.bias is not None
            nn.init.zeros_(branch.bias)
            self.add_module(f"c{i}", branch)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (branch(x) for branch in self.children())
        return sum(others, first)


class _Pooled(nn.Sequential):
    """The picture's mean, through a 1×1 convolution, at every place."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *_conv(channels, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return pooled.expand(-1, -1, *x.shape[-2:])


class _ConcatenatedASPP(nn.Module):
    def __init__(self, channels: int, width: int, rates: list[int]) -> None:
        super().__init__()
        branches = [_conv(channels, width, 1), *(_conv(channels, width, 3, rate) for rate in rates)]
        self.convs = nn.ModuleList([*branches, _Pooled(channels, width)])
        self.project = nn.Sequential(*_conv(len(self.convs) * width, width, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([branch(x) for branch in self.convs], 1))


class ASPPv3(nn.Sequential):
    """DeepLab v3 under torchvision's names (`classifier` of its deeplabv3_resnet*)."""

    def __init__(self, channels: int, classes: int, rates: list[int], width: int = V3_WIDTH) -> None:
        super().__init__(
            _ConcatenatedASPP(channels, width, rates),
            *_conv(width, width, 3, 1),
            nn.Conv2d(width, classes, 1),
        )


def _conv(channels: int, width: int, kernel: int, rate: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )
