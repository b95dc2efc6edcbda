"""ResNet-50 as irn uses it: strides (2, 2, 2, 1), so output stride 16, and a 1×1 convolution without bias.
Its `Backbone` is also ResNet-101, with torchvision's or Caffe's habits, for segmentation networks.

irn registers every layer several times (`resnet50.conv1`, `stage1.0`, `backbone.0.0`), so a checkpoint may
hold one to three copies of each tensor; plain torchvision names with an `fc` layer are taken as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from infercam.engine.common.errors import ExportError

OUTPUT_STRIDES = (8, 16, 32)
BLOCKS = (3, 4, 6, 3)
BLOCKS_101 = (3, 4, 23, 3)
EXPANSION = 4
Layout = Literal["irn", "torchvision", "caffe"]
"""What differs between trainings of the same shapes. At a layer that lost its stride, the first block is not
dilated further (irn, torchvision) or as much as the rest (caffe); irn does not dilate layer4 at output stride
16; caffe strides in a block's first 1×1 convolution instead of its 3×3, and pools with rounding up."""
# Members of irn's stage1 sequential by position: conv1, bn1, relu, maxpool, layer1.
STAGE1 = {"0": "conv1", "1": "bn1", "4": "layer1"}


class ResNet50Block(nn.Module):
    """1×1, 3×3 (which carries the dilation and, but for Caffe, the stride), 1×1 to four times the width."""

    def __init__(
        self, cin: int, width: int, *, stride: int, dilation: int, project: bool, caffe: bool = False
    ) -> None:
        super().__init__()
        cout = width * EXPANSION
        first, second = (stride, 1) if caffe else (1, stride)
        self.conv1 = nn.Conv2d(cin, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, cout, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.downsample = None
        if project:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + skip)


class ResNet50Trunk(nn.Module):
    """The convolutional part under torchvision's names."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        *,
        output_stride: int,
        width: int,
        blocks: tuple[int, int, int, int] = BLOCKS,
        layout: Layout = "irn",
    ) -> None:
        super().__init__()
        self.caffe = layout == "caffe"
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        plan = _plan(output_stride, layout)
        for i, (count, (stride, dilation)) in enumerate(zip(blocks, plan, strict=True)):
            cin = width if i == 0 else (width << (i - 1)) * EXPANSION
            self.add_module(f"layer{i + 1}", self._layer(cin, width << i, count, stride, dilation))

    def _layer(
        self, cin: int, width: int, blocks: int, stride: int, dilation: tuple[int, int]
    ) -> nn.Sequential:
        first, rest = dilation
        layers = [
            ResNet50Block(cin, width, stride=stride, dilation=first, project=True, caffe=self.caffe),
            *(
                ResNet50Block(width * EXPANSION, width, stride=1, dilation=rest, project=False)
                for _ in range(1, blocks)
            ),
        ]
        return nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1, ceil_mode=self.caffe)
        out: torch.Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return out


def _plan(output_stride: int, layout: Layout) -> list[tuple[int, tuple[int, int]]]:
    """(stride, (dilation of the first block, of the others)) of each layer."""
    out = [(1, (1, 1)), (2, (1, 1))]
    dilation = 1
    for layer in (3, 4):
        before = dilation
        stride = 2 if output_stride >= 2 ** (layer + 1) else 1
        if stride == 1 and not (layout == "irn" and layer == 4):
            dilation *= 2
        out.append((stride, (dilation if layout == "caffe" else before, dilation)))
    return out


class ResNet50(nn.Module):
    """N×3×H×W (ImageNet-normalised RGB, float32) to N×C scores.

    `output_stride` 16 is irn's; 8 is the same function sampled twice as densely (layer3 dilated instead of
    strided); 32 is torchvision's own, for weights that were trained so. `width` is for small test networks.
    """

    def __init__(
        self, classes: int = 20, *, output_stride: int = 16, bias: bool = False, width: int = 64
    ) -> None:
        super().__init__()
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride must be one of {OUTPUT_STRIDES}")
        self.resnet50 = ResNet50Trunk(output_stride=output_stride, width=width)
        self.classifier = nn.Conv2d(width * 8 * EXPANSION, classes, 1, bias=bias)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The last feature map: N×2048×h×w, not negative."""
        out: torch.Tensor = self.resnet50(x)
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.classifier(self.features(x).mean((2, 3), keepdim=True)), 1)

    def forward_cam(self, x: torch.Tensor) -> torch.Tensor:
        """Class activation maps after ReLU, without the bias: N×C×h×w (engine/method/README.md §1)."""
        return F.relu(F.conv2d(self.features(x), self.classifier.weight))


def canonical_name(name: str) -> str:
    """One name per layer: irn's `stage*`, `backbone.*`, `newly_added.*` and torchvision's bare names."""
    head, _, rest = name.partition(".")
    if head == "backbone":
        index, _, rest = rest.partition(".")
        if index.isdecimal():
            head = f"stage{int(index) + 1}"
    if head == "newly_added" and rest.startswith("0."):
        return f"classifier.{rest.removeprefix('0.')}"
    if head == "stage1":
        index, _, rest = rest.partition(".")
        return f"resnet50.{STAGE1.get(index, f'stage1.{index}')}.{rest}"
    if head in {"stage2", "stage3", "stage4"} and rest.startswith("0."):
        return f"resnet50.layer{head[-1]}.{rest.removeprefix('0.')}"
    if head == "fc":
        return f"classifier.{rest}"
    if head in {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}:
        return f"resnet50.{name}"
    return name


def canonical(state: Mapping[str, torch.Tensor], origin: str) -> dict[str, torch.Tensor]:
    """The state dict under this module's names; raises ExportError if two copies of a layer differ."""
    out: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        new = canonical_name(name)
        if new == "classifier.weight" and value.ndim == 2:  # torchvision's fc is a matrix
            value = value[:, :, None, None]
        if new in out and not torch.equal(out[new], value):
            raise ExportError(f"{origin}: {name} and another copy of {new} differ; which is meant is unknown")
        out.setdefault(new, value)
    return out
