"""The small classifier of `infercam demo`: seven convolutions, trained from nothing in minutes."""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# out channels, stride, dilation
LAYERS = ((16, 2, 1), (32, 2, 1), (32, 1, 1), (48, 2, 1), (48, 1, 1), (64, 1, 1), (96, 1, 2))


class SmallNet(nn.Module):
    """Seven 3×3 convolutions with BatchNorm, output stride 8, then global average pooling and a linear layer.

    Input N×3×H×W float32, ImageNet-normalised; output N×C scores. `width` other than 64 scales the channels.
    """

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.widths = [out * width // 64 for out, _, _ in LAYERS]
        blocks: list[nn.Module] = []
        cin = 3
        for cout, (_, stride, dilation) in zip(self.widths, LAYERS, strict=True):
            conv = nn.Conv2d(cin, cout, 3, stride, padding=dilation, dilation=dilation, bias=False)
            blocks += [conv, nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]
            cin = cout
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(cin, classes, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(image).mean((2, 3)))
        return scores

    def forward_cam(self, image: Tensor) -> Tensor:
        """Class activation maps after ReLU: N×C×h×w (engine/method/README.md §1)."""
        return F.relu(F.conv2d(self.features(image), self.classifier.weight[:, :, None, None]))


def folded(net: SmallNet) -> SmallNet:
    """A copy in evaluation mode with every BatchNorm folded into its convolution: the same scores, fewer nodes
    in the exported graph."""
    copied = copy.deepcopy(net).eval()
    layers: list[nn.Module] = []
    for layer in copied.features:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(cast(nn.Conv2d, layers[-1]), layer)
        else:
            layers.append(layer)
    copied.features = nn.Sequential(*layers)
    return copied.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
