"""ResNet-50 as irn uses it: strides (2, 2, 2, 1), so output stride 16, and a 1×1 convolution without bias.

irn registers every layer several times (`resnet50.conv1`, `stage1.0`, `backbone.0.0`), so a checkpoint may
hold one to three copies of each tensor; plain torchvision names with an `fc` layer are taken as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from ...engine.errors import ExportError

OUTPUT_STRIDES = (8, 16, 32)
BLOCKS = (3, 4, 6, 3)
EXPANSION = 4
# Members of irn's stage1 sequential by position: conv1, bn1, relu, maxpool, layer1.
STAGE1 = {"0": "conv1", "1": "bn1", "4": "layer1"}


class Bottleneck(nn.Module):
    """torchvision's bottleneck: 1×1, 3×3 (which carries stride and dilation), 1×1 to four times the width."""

    def __init__(self, cin: int, width: int, *, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        cout = width * EXPANSION
        self.conv1 = nn.Conv2d(cin, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
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


class Backbone(nn.Module):
    """The convolutional part under torchvision's names."""

    def __init__(self, *, output_stride: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        # Stride of layer3 and layer4; what a stride loses, the convolutions after it gain as dilation, but
        # for layer4 at stride 16: irn trained it with stride 1 and no dilation.
        stride3, dilation3 = (1, 2) if output_stride == 8 else (2, 1)
        stride4, dilation4 = (2 if output_stride == 32 else 1), dilation3
        self.layer1 = self._layer(width, width, BLOCKS[0], 1, (1, 1))
        self.layer2 = self._layer(width * 4, width * 2, BLOCKS[1], 2, (1, 1))
        self.layer3 = self._layer(width * 8, width * 4, BLOCKS[2], stride3, (1, dilation3))
        self.layer4 = self._layer(width * 16, width * 8, BLOCKS[3], stride4, (dilation3, dilation4))

    @staticmethod
    def _layer(cin: int, width: int, blocks: int, stride: int, dilation: tuple[int, int]) -> nn.Sequential:
        first, rest = dilation
        layers = [Bottleneck(cin, width, stride=stride, dilation=first, project=True)]
        for _ in range(1, blocks):
            layers.append(Bottleneck(width * EXPANSION, width, stride=1, dilation=rest, project=False))
        return nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        out: torch.Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
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
        self.resnet50 = Backbone(output_stride=output_stride, width=width)
        self.classifier = nn.Conv2d(width * 8 * EXPANSION, classes, 1, bias=bias)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The last feature map: N×2048×h×w, not negative."""
        out: torch.Tensor = self.resnet50(x)
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.classifier(self.features(x).mean((2, 3), keepdim=True)), 1)

    def forward_cam(self, x: torch.Tensor) -> torch.Tensor:
        """Class activation maps after ReLU, without the bias: N×C×h×w (method.md §1)."""
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
