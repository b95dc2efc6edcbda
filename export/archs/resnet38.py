"""ResNet-38 (Wu et al., "Wider or Deeper") as the weakly supervised segmentation work uses it.

Full pre-activation residual blocks, dilated from `b5` on, output stride 8; layer names are those of the
`res38_cls.pth` checkpoints of psa, of SEAM and of SC-CAM, so that they load as they are. This is the
classifier of the paper (engine/method/README.md §1): no bias in the linear layer `fc8`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
DEPTHS = {"b2": 3, "b3": 3, "b4": 6, "b5": 3}
OUTPUT_STRIDES = (8, 16)


class ResNet38Block(nn.Module):
    """Two 3×3 convolutions, each after BatchNorm and ReLU; `conv_branch1` projects where shapes differ."""

    def __init__(
        self, cin: int, mid: int, cout: int, *, stride: int = 1, dilation: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        first, second = dilation
        self.bn_branch2a = nn.BatchNorm2d(cin)
        self.conv_branch2a = nn.Conv2d(cin, mid, 3, stride, first, first, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(mid)
        self.conv_branch2b1 = nn.Conv2d(mid, cout, 3, 1, second, second, bias=False)
        self.conv_branch1 = None
        if cin != cout or stride != 1:
            self.conv_branch1 = nn.Conv2d(cin, cout, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.bn_branch2a(x))
        skip = x if self.conv_branch1 is None else self.conv_branch1(active)
        out: torch.Tensor = F.relu(self.bn_branch2b1(self.conv_branch2a(active)))
        return skip + self.conv_branch2b1(out)


class ResNet38Bottleneck(nn.Module):
    """1×1, dilated 3×3, 1×1, with dropout of whole channels in training (`b6`, `b7`)."""

    def __init__(self, cin: int, cout: int, *, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(cin)
        self.conv_branch2a = nn.Conv2d(cin, cout // 4, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(cout // 4)
        self.conv_branch2b1 = nn.Conv2d(cout // 4, cout // 2, 3, 1, dilation, dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(cout // 2)
        self.conv_branch2b2 = nn.Conv2d(cout // 2, cout, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(cin, cout, 1, bias=False)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.bn_branch2a(x))
        out = F.relu(self.bn_branch2b1(self.conv_branch2a(active)))
        out = self.conv_branch2b1(self.dropout(out))
        out = self.dropout(F.relu(self.bn_branch2b2(out)))
        total: torch.Tensor = self.conv_branch1(active) + self.conv_branch2b2(out)
        return total


class ResNet38(nn.Module):
    """N×3×H×W (ImageNet-normalised RGB, float32) to N×C scores.

    `output_stride` 8 is how it was trained. 16 strides `b5` and halves the dilations after it: the same
    function sampled at every other cell in both directions, for about two thirds of the arithmetic less
    behind `b4`. `widths` (conv1a, b2, b3, b4, b5, b6, b7) is for small test networks.
    """

    def __init__(
        self, classes: int = 20, *, output_stride: int = 8, widths: tuple[int, ...] = WIDTHS
    ) -> None:
        super().__init__()
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride must be one of {OUTPUT_STRIDES}")
        sparse = output_stride == 16
        late = 1 if sparse else 2  # dilation of b5; twice that in b6 and b7
        w1, w2, w3, w4, w5, w6, w7 = widths
        self.conv1a = nn.Conv2d(3, w1, 3, padding=1, bias=False)
        self._stage("b2", w1, w2, w2, stride=2)
        self._stage("b3", w2, w3, w3, stride=2)
        self._stage("b4", w3, w4, w4, stride=2)
        self._stage("b5", w4, w4, w5, stride=2 if sparse else 1, dilation=late)
        self.b6 = ResNet38Bottleneck(w5, w6, dilation=2 * late, dropout=0.3)
        self.b7 = ResNet38Bottleneck(w6, w7, dilation=2 * late, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(w7)
        self.dropout7 = nn.Dropout2d(0.5)
        self.fc8 = nn.Conv2d(w7, classes, 1, bias=False)

    def _stage(self, name: str, cin: int, mid: int, cout: int, *, stride: int, dilation: int = 1) -> None:
        """Add blocks `name`, `name_1`, …; only the first changes width, resolution and dilation."""
        for i in range(DEPTHS[name]):
            block = ResNet38Block(
                cin if i == 0 else cout,
                mid,
                cout,
                stride=stride if i == 0 else 1,
                dilation=(1 if i == 0 else dilation, dilation),
            )
            self.add_module(name if i == 0 else f"{name}_{i}", block)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The last feature map: N×4096×h×w, not negative."""
        x = self.conv1a(x)
        for name, depth in DEPTHS.items():
            for i in range(depth):
                x = self.get_submodule(name if i == 0 else f"{name}_{i}")(x)
        return F.relu(self.bn7(self.b7(self.b6(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.dropout7(self.features(x)).mean((2, 3), keepdim=True)
        return torch.flatten(self.fc8(pooled), 1)

    def forward_cam(self, x: torch.Tensor) -> torch.Tensor:
        """Class activation maps after ReLU: N×C×h×w (engine/method/README.md §1)."""
        return F.relu(F.conv2d(self.features(x), self.fc8.weight))
