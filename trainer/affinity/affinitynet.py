"""AffinityNet (Ahn & Kwak, CVPR 2018; engine/method/README.md §4): an embedding g of every stride-8 cell, such that
exp(-mean|g_i - g_j|) says whether two neighbouring cells belong to the same class."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from infercam.engine.common.errors import InfercamError, InputError
from infercam.engine.method.reference import normalise
from infercam.export.checkpoints import fit, read_checkpoint
from infercam.trainer.affinity.loss import pair_distance
from infercam.trainer.affinity.random_walk import search_offsets
from infercam.trainer.affinity.settings import RADIUS, STRIDE
from infercam.trainer.loop.checkpoint import is_checkpoint, load_checkpoint, load_network
from infercam.trainer.networks.backbones import Backbone, ResNet38Backbone, build_backbone

STAGE = "affinity"
# The level that each new layer reads and how many channels it makes of it, by psa's names: conv4, conv5, conv6.
HEADS = {"f8_3": ("c3", 64), "f8_4": ("c4", 128), "f8_5": ("c5", 256)}
EMBEDDING = sum(channels for _, channels in HEADS.values())


class AffinityNet(nn.Module):
    """N×3×H×W float32, prepared as `input` says -> embedding N×448×ceil(H/8)×ceil(W/8).

    Three levels of the backbone, each through a 1×1 convolution, concatenated and mixed by a fourth; ELU after
    each. The first layers of the backbone do not train (psa's `not_training`), or, with `freeze_backbone`,
    none of them (irn's habit).
    """

    def __init__(self, backbone: Backbone, radius: int = RADIUS, *, freeze_backbone: bool = False) -> None:
        super().__init__()
        if backbone.output_stride != STRIDE:
            raise ValueError(f"AffinityNet's backbone has output stride {STRIDE}")
        self.backbone, self.radius = backbone, radius
        self.offsets = tuple(search_offsets(radius))
        """(dy, dx) of the pairs, in the order of `affinities`."""
        for name, (level, channels) in HEADS.items():
            layer = nn.Conv2d(backbone.channels[level], channels, 1, bias=False)
            nn.init.kaiming_normal_(layer.weight)
            self.add_module(name, layer)
        self.f9 = nn.Conv2d(EMBEDDING, EMBEDDING, 1, bias=False)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)
        for module in [backbone] if freeze_backbone else backbone.early():
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        levels = self.backbone(x)
        parts = [F.elu(self.get_submodule(name)(levels[level])) for name, (level, _) in HEADS.items()]
        return F.elu(self.f9(torch.cat(parts, 1)))

    def affinities(self, x: Tensor) -> Tensor:
        """Affinity of every cell to each of its forward neighbours: N×3×H×W (H and W multiples of 8) ->
        N×P×H/8×W/8 float32 in (0, 1]; 0 where the neighbour is outside the grid."""
        distance = pair_distance(self(x), self.offsets)
        return torch.exp(-distance) * self._inside(distance)

    def _inside(self, distance: Tensor) -> Tensor:
        """P×h×w for N×P×h×w: whether the neighbour is on the grid."""
        height, width = distance.shape[-2:]
        device = distance.device
        dy, dx = torch.tensor(self.offsets, device=device).T[:, :, None, None]
        y = torch.arange(height, device=device)[:, None] + dy
        x = torch.arange(width, device=device)[None] + dx
        return (y < height) & (x >= 0) & (x < width)

    def new_layers(self) -> list[nn.Module]:
        """Those that start from random weights."""
        return [*(self.get_submodule(name) for name in HEADS), self.f9]

    @torch.no_grad()
    def scale_new_layers(self, x: Tensor) -> None:
        """Bring the random layers to the scale of this backbone, by a few pictures N×3×H×W.

        psa's initial weights are for ResNet-38's levels, whose values are small. With another backbone they set
        neighbours so far apart (MobileNetV2: exp(-5)) that training begins with hundreds of steps of shrinking.
        Here each level comes in at a root mean square of 1, and neighbours begin at a mean distance of 1.
        """
        levels = self.backbone(x)
        for name, (level, _) in HEADS.items():
            layer = cast(nn.Conv2d, self.get_submodule(name))
            layer.weight /= levels[level].square().mean().sqrt().clamp(min=1e-6)
        distance = pair_distance(self(x), self.offsets)
        inside = self._inside(distance).expand_as(distance)
        self.f9.weight /= distance[inside].mean().clamp(min=1e-6)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint must say so that `load_affinity` can build it again."""
        return {"backbone": self.backbone.facts(), "radius": self.radius}


@torch.inference_mode()
def edge_affinities(net: AffinityNet, image: NDArray) -> Tensor:
    """Affinities of one picture, for the random walk.

    image: H×W×3 uint8 RGB. Returns P×ceil(H/8)×ceil(W/8) float32 on the network's device: the affinity of each
    cell to its neighbour at `net.offsets[k]`, 0 where that lies outside. As in psa, the normalised picture is
    padded with zeros at the bottom and on the right to whole cells.
    """
    device = next(net.parameters()).device
    x = torch.from_numpy(normalise(image, net.backbone.input))[None].to(device)
    height, width = x.shape[-2:]
    return net.affinities(F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE)))[0]


def load_affinity(file: Path, device: str | torch.device = "cpu") -> AffinityNet:
    """A trained AffinityNet in evaluation mode: a checkpoint of `infercam affinity`, or psa's (a state dict of
    ResNet-38 with f8_3, f8_4, f8_5 and f9).

    Raises InputError or ExportError, in one line, for a file that is missing, damaged or of another network.
    """
    file = Path(file)
    net = _load_own(file) if is_checkpoint(file) else _load_psa(file)
    return net.to(device).eval()


def _load_own(file: Path) -> AffinityNet:
    state, facts = load_checkpoint(file, STAGE)
    try:
        net = AffinityNet(build_backbone(**facts["backbone"]), facts["radius"])
    except (InfercamError, KeyError, TypeError, ValueError) as e:
        raise InputError(f"{file}: does not say which AffinityNet it holds ({e})") from None
    load_network(net, state, file)
    return net


def _load_psa(file: Path) -> AffinityNet:
    state = read_checkpoint(file)
    if missing := [name for name in (*HEADS, "f9") if f"{name}.weight" not in state]:
        raise InputError(
            f"{file}: not an AffinityNet, {', '.join(missing)} missing; give a checkpoint of "
            "`infercam affinity`, or psa's (resnet38)"
        )
    net = AffinityNet(build_backbone("resnet38", output_stride=STRIDE, **ResNet38Backbone.options_of(state)))
    fit(net, psa_names(state), what="psa's AffinityNet (resnet38)", origin=file)
    return net


def psa_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """psa's flat names as this module has them: the backbone's layers under `backbone.net`."""
    own = (*HEADS, "f9")
    return {k if k.split(".")[0] in own else f"backbone.net.{k}": v for k, v in state.items()}
