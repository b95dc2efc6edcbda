"""MobileNetV2 1.0 with BatchNorm folded into the convolutions, for two layouts of weights.

`folded`: `stem`, `blocks.N.expand|dw|project`, `head`, `classifier`, trained in TensorFlow: input
x / 127.5 - 1, and stride-2 convolutions that pad so that the output covers the input, which for even
sizes means bottom and right only. `torchvision`: `features.N…`, `classifier.1`, ImageNet mean/std, and
symmetric padding; its BatchNorms are folded on loading.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from infercam.export.checkpoints import COUNTER

OUTPUT_STRIDES = (8, 16, 32)
EXPANSION = 6
STEM, HEAD = 32, 1280
BN_EPS = 1e-5

Padding = Literal["same", "after", "symmetric"]
"""How 3×3 convolutions of stride 2 pad. `same`, TensorFlow's: an even side gets one row after, an odd one a
row before and one after. `after`: one row after whatever the side, which is what a graph does that was
traced at an even size with the choice frozen into it. `symmetric`, PyTorch's: one row on both sides. A 5×5
one gets one row more on each side."""


class BlockStage(NamedTuple):
    """Blocks in a row; the first has the stride."""

    channels: int
    blocks: int
    stride: int
    kernel: int = 3


class Conv(nn.Conv2d):
    """A convolution that keeps sizes (stride 1, padded evenly) or halves them (stride 2, see `Padding`)."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding: Padding = "same",
    ) -> None:
        self.mode: Padding = padding if stride == 2 else "symmetric"
        even = dilation * (kernel // 2) if self.mode == "symmetric" else 0
        self.more = kernel // 2 - 1
        super().__init__(cin, cout, kernel, stride, even, dilation, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mode == "same":  # computed from the input, so that it stays right in an exported graph
            height, width = x.shape[-2:]
            x = F.pad(x, (self.more + width % 2, self.more + 1, self.more + height % 2, self.more + 1))
        elif self.mode == "after":
            x = F.pad(x, (self.more, self.more + 1, self.more, self.more + 1))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """Inverted residual: expand 1×1, depthwise, project 1×1; ReLU6 after the first two."""

    def __init__(
        self,
        cin: int,
        cout: int,
        *,
        expansion: int,
        kernel: int,
        stride: int,
        dilation: int,
        padding: Padding,
        depthwise: type[Conv] = Conv,
    ) -> None:
        super().__init__()
        mid = cin * expansion
        self.residual = stride == 1 and cin == cout
        self.expand = Conv(cin, mid, 1) if expansion > 1 else None
        self.dw = depthwise(mid, mid, kernel, stride=stride, dilation=dilation, groups=mid, padding=padding)
        self.project = Conv(mid, cout, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x if self.expand is None else F.relu6(self.expand(x))
        out = self.project(F.relu6(self.dw(out)))
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """N×3×H×W (scaled as its layout says, float32) to N×C scores.

    Stages that would go beyond `output_stride` are dilated instead: at 16, block 13 has stride 1 and the
    depthwise convolutions of blocks 14 to 16 dilation 2. `depthwise`: what computes those (training has its own).
    """

    stages: ClassVar[tuple[BlockStage, ...]] = (
        BlockStage(16, 1, 1),
        BlockStage(24, 2, 2),
        BlockStage(32, 3, 2),
        BlockStage(64, 4, 2),
        BlockStage(96, 3, 1),
        BlockStage(160, 3, 2),
        BlockStage(320, 1, 1),
    )

    def __init__(
        self,
        classes: int = 20,
        *,
        output_stride: int = 16,
        bias: bool = False,
        padding: Padding = "same",
        depthwise: type[Conv] = Conv,
    ) -> None:
        super().__init__()
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride must be one of {OUTPUT_STRIDES}")
        self.stem = Conv(3, STEM, 3, stride=2, padding=padding)
        self.blocks = nn.Sequential(*self._blocks(output_stride, padding, depthwise))
        self.head = Conv(self.stages[-1].channels, HEAD, 1)
        self.classifier = nn.Linear(HEAD, classes, bias=bias)

    @classmethod
    def _blocks(cls, output_stride: int, padding: Padding, depthwise: type[Conv]) -> list[InvertedResidual]:
        blocks: list[InvertedResidual] = []
        cin, reached, dilation = STEM, 2, 1
        for stage in cls.stages:
            for i in range(stage.blocks):
                stride = stage.stride if i == 0 else 1
                own = dilation  # the block that loses its stride keeps the dilation of those before it
                if stride == 2 and reached == output_stride:
                    stride, dilation = 1, dilation * 2
                reached *= stride
                block = InvertedResidual(
                    cin,
                    stage.channels,
                    expansion=EXPANSION if blocks else 1,
                    kernel=stage.kernel,
                    stride=stride,
                    dilation=own,
                    padding=padding,
                    depthwise=depthwise,
                )
                blocks.append(block)
                cin = stage.channels
        return blocks

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The last feature map: N×1280×h×w, between 0 and 6."""
        return F.relu6(self.head(self.blocks(F.relu6(self.stem(x)))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out

    def forward_cam(self, x: torch.Tensor) -> torch.Tensor:
        """Class activation maps after ReLU, without the bias: N×C×h×w (engine/method/README.md §1)."""
        return F.relu(F.conv2d(self.features(x), self.classifier.weight[:, :, None, None]))


def is_torchvision(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether the names are torchvision's (`features.0.0.weight`)."""
    return "features.0.0.weight" in state


def from_torchvision(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's `mobilenet_v2` state dict in the folded layout: BatchNorms folded, layers renamed.

    Names that do not belong to it are kept, so that fitting reports them.
    """
    out, rest = fold_norms(state, _torchvision_layers(), BN_EPS)
    return out | {re.sub(r"^classifier\.1\.", "classifier.", key): value for key, value in rest.items()}


def fold_norms(
    state: Mapping[str, torch.Tensor], layers: Iterable[tuple[str, str, str]], eps: float
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Convolutions without bias and the BatchNorms after them as convolutions with one.

    layers: names of (convolution, BatchNorm, what both become). Returns what became of those that are there,
    and the rest of the state dict, without BatchNorm's counters.
    """
    out: dict[str, torch.Tensor] = {}
    used: set[str] = set()
    for conv, norm, name in layers:
        keys = [f"{conv}.weight", *(f"{norm}.{k}" for k in ("weight", "bias", "running_mean", "running_var"))]
        if not all(k in state for k in keys):
            continue  # fitting names what is missing
        weight, gamma, beta, mean, var = (state[k].float() for k in keys)
        gain = gamma / torch.sqrt(var + eps)
        out[f"{name}.weight"] = weight * gain[:, None, None, None]
        out[f"{name}.bias"] = beta - mean * gain
        used.update(keys)
    return out, {k: v for k, v in state.items() if k not in used and not k.endswith(COUNTER)}


def _torchvision_layers() -> list[tuple[str, str, str]]:
    """(convolution, BatchNorm, folded name) for every convolution of torchvision's model."""
    layers = [("features.0.0", "features.0.1", "stem"), ("features.18.0", "features.18.1", "head")]
    for i in range(sum(stage.blocks for stage in MobileNetV2.stages)):
        conv = f"features.{i + 1}.conv"
        # Each convolution with ReLU6 is a little sequential of its own; the projection is not.
        steps = ["dw"] if i == 0 else ["expand", "dw"]
        for j, step in enumerate(steps):
            layers.append((f"{conv}.{j}.0", f"{conv}.{j}.1", f"blocks.{i}.{step}"))
        last = len(steps)
        layers.append((f"{conv}.{last}", f"{conv}.{last + 1}", f"blocks.{i}.project"))
    return layers
