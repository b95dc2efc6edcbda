"""Small networks of the usual kinds, with random weights, as PyTorch modules: what `infercam build` is tried on."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infercam.export.archs.mobilenetv2 import MobileNetV2
from infercam.export.archs.resnet38 import ResNet38
from infercam.export.archs.resnet50 import ResNet50

CLASSES = 5
WIDTH, HEADS, WINDOW = 16, 2, 4


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, L, WIDTH), written out as timm and torchvision's Swin have it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        return x + self.out((attention @ v).transpose(1, 2).reshape(b, tokens, WIDTH))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.Linear(4 * WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Vit(nn.Module):
    """Patches of 8, two blocks, positions of one size (so a bundle of that size), mean over the tokens."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, 8)
        self.positions = nn.Parameter(torch.randn(1, (size // 8) ** 2, WIDTH))
        self.blocks = nn.Sequential(Attention(), Mlp(), Attention(), Mlp())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class Windows(nn.Module):
    """Swin's block: attention within windows of 4×4, after a roll by half of one where `shifted`."""

    def __init__(self, shifted: bool) -> None:
        super().__init__()
        self.shift = WINDOW // 2 if shifted else 0
        self.attention, self.mlp = Attention(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        windows = x.reshape(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c).permute(0, 1, 3, 2, 4, 5)
        windows = self.mlp(self.attention(windows.reshape(-1, WINDOW * WINDOW, c)))
        x = windows.reshape(b, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c).permute(0, 1, 3, 2, 4, 5)
        return torch.roll(x.reshape(b, h, w, c), (self.shift, self.shift), (1, 2))


class Swin(nn.Module):
    """Patches of 4, two window blocks, a patch merging, a window block, mean over the tokens: sides in multiples."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.first, self.second, self.third = Windows(False), Windows(True), Windows(False)
        self.merge = nn.Linear(4 * WIDTH, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.patches(x).permute(0, 2, 3, 1)))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.head(self.norm(self.third(self.merge(x))).mean((1, 2)))


class ConvNext(nn.Module):
    """ConvNeXt's head: a LayerNorm of the pooled features, so that the bias depends on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.depthwise(self.stem(x)))
        return self.head(self.norm(x.mean((2, 3))))


class MobileNetV3(nn.Module):
    """MobileNetV3's head: a hidden layer with hard swish, after a gate (squeeze and excitation) in the body."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.excite = (
            nn.Conv2d(3, 16, 3, 4, 1),
            nn.Conv2d(16, 4, 1),
            nn.Conv2d(4, 16, 1),
        )
        self.hidden, self.head = nn.Linear(16, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        x = x * F.hardsigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(F.hardswish(self.hidden(x.mean((2, 3)))))


def _random(module: nn.Module) -> nn.Module:
    """Weights that neither kill nor blow up what passes, and batch norms as after training."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
    return module.eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenetv2": lambda: MobileNetV2(CLASSES),
    "resnet50": lambda: ResNet50(CLASSES, width=8),
    "resnet38": lambda: ResNet38(CLASSES, widths=(8, 12, 16, 16, 24, 32, 48)),
    "vit": Vit,
    "swin": Swin,
    "convnext": ConvNext,
    "mobilenetv3": MobileNetV3,
}


def network(name: str) -> nn.Module:
    """The module of that name, the same weights every time."""
    torch.manual_seed(0)
    return _random(NETWORKS[name]())
