"""Classifiers without their head, as trainable feature extractors at several levels.

The networks are those of `infercam.export.archs`, under the names of the published checkpoints, so that any
classifier checkpoint that exports can also be trained on. Every backbone gives the same four levels:

    level  stride            resnet38 (psa's name)     resnet50, resnet101  mobilenetv2
    c2     4                 256  (before b4)          256   layer1         24    block 2
    c3     8                 512  (conv4, before b5)   512   layer2         32    block 5
    c4     min(16, output)   1024 (conv5, before b6)   1024  layer3         96    block 12
    c5     output_stride     4096 (conv6, after bn7)   2048  layer4         1280  head

`efficientnet_lite0` has MobileNetV2's blocks with 24, 40, 112 and 1280 channels (blocks 2, 4, 10, head);
`small`, the demo's network, has 32, 48, 64 and 96 channels at strides 4, 8, 8 and 8.
Strides that `output_stride` does not allow are dilations instead. A side of n pixels becomes
ceil(n / stride) cells. ResNet-38's levels are taken after BatchNorm and ReLU, as psa's `forward_as_dict`
does (its output stride may be 8 or 16; at 16, c4 and c5 have stride 16).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infercam.engine.bundle import InputSpec
from infercam.engine.common.errors import InputError
from infercam.export.archs import (
    IMAGENET_INPUT,
    LITE_INPUT,
    MINUS_ONE_TO_ONE,
    efficientnet_lite0,
    mobilenetv2,
    resnet38,
    resnet50,
)
from infercam.export.checkpoints import fit, read_checkpoint, split_off
from infercam.trainer.loop.checkpoint import is_checkpoint
from infercam.trainer.networks.depthwise import Depthwise
from infercam.trainer.networks.small import SmallNet

LEVELS = ("c2", "c3", "c4", "c5")
CAFFE_INPUT = InputSpec(colour="BGR", scale=1.0, mean=(122.675, 116.669, 104.008), std=(1.0, 1.0, 1.0))
WIDTH = 64
State = Mapping[str, Tensor]


class Backbone(nn.Module):
    """N×3×H×W float32, prepared as `input` says -> {level: N×channels×ceil(H/stride)×ceil(W/stride)}.

    `width` (64 as published) scales the channels down for small test networks.
    """

    arch: ClassVar[str]
    heads: ClassVar[tuple[str, ...]]
    """Layers of published checkpoints that are no part of the backbone."""
    net: nn.Module
    channels: dict[str, int]
    strides: dict[str, int]
    input: InputSpec = IMAGENET_INPUT

    def __init__(self, output_stride: int, width: int = WIDTH) -> None:
        super().__init__()
        self.output_stride, self.width = output_stride, width

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def early(self) -> list[nn.Module]:
        """The first layers, general enough that fine-tuning may leave them as they are."""
        raise NotImplementedError

    @classmethod
    def named(cls, state: State, origin: str) -> dict[str, Tensor]:
        """A published state dict under the names of `net`."""
        return dict(state)

    @classmethod
    def options_of(cls, state: State) -> dict[str, Any]:
        """What a published state dict says about the network it was trained in, for the constructor."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What `build_backbone` needs to build it again (JSON-able)."""
        return {"arch": self.arch, "output_stride": self.output_stride, "width": self.width}


class ResNet38Backbone(Backbone):
    """Wu et al.'s network A1 as psa, SEAM and SC-CAM use it."""

    arch = "resnet38"
    heads = ("fc8", "fc8_20", "fc8_200", "f8_3", "f8_4", "f8_5", "f9")
    net: resnet38.ResNet38

    def __init__(self, output_stride: int, width: int = WIDTH) -> None:
        super().__init__(output_stride, width)
        widths = tuple(w * width // WIDTH for w in resnet38.WIDTHS)
        net = resnet38.ResNet38(1, output_stride=output_stride, widths=widths)
        del net.fc8
        self.net = net
        self.channels = dict(zip(LEVELS, (widths[2], widths[3], widths[4], widths[6]), strict=True))
        self.strides = {"c2": 4, "c3": 8, "c4": output_stride, "c5": output_stride}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = {}
        x = self.net.conv1a(x)
        for name, block in self.net.named_children():
            level = {"b4": "c2", "b5": "c3", "b6": "c4"}.get(name)
            if level:  # what the block computes first anyway
                out[level] = F.relu(block.get_submodule("bn_branch2a")(x))
            if name.startswith("b") and name != "bn7":
                x = block(x)
        return {**out, "c5": F.relu(self.net.bn7(x))}

    def early(self) -> list[nn.Module]:
        """psa's `not_training`."""
        return [self.net.conv1a, *(self.net.get_submodule(name) for name in ("b2", "b2_1", "b2_2"))]

    @classmethod
    def options_of(cls, state: State) -> dict[str, Any]:
        return _width(state, "conv1a.weight")


class ResNet50Backbone(Backbone):
    """torchvision's and irn's ResNet-50; `layout` says which (see export/archs/resnet50.py)."""

    arch = "resnet50"
    heads = ("classifier",)
    blocks = resnet50.BLOCKS
    net: resnet50.ResNet50Trunk

    def __init__(
        self, output_stride: int, width: int = WIDTH, layout: resnet50.Layout = "torchvision"
    ) -> None:
        super().__init__(output_stride, width)
        if output_stride not in resnet50.OUTPUT_STRIDES:
            raise ValueError(f"output_stride must be one of {resnet50.OUTPUT_STRIDES}")
        self.layout = layout
        self.input = CAFFE_INPUT if layout == "caffe" else IMAGENET_INPUT
        self.net = resnet50.ResNet50Trunk(
            output_stride=output_stride, width=width, blocks=self.blocks, layout=layout
        )
        self.channels = {level: 4 * width * 2**i for i, level in enumerate(LEVELS)}
        self.strides = {"c2": 4, "c3": 8, "c4": min(16, output_stride), "c5": output_stride}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        net = self.net
        x = F.max_pool2d(F.relu(net.bn1(net.conv1(x))), 3, 2, 1, ceil_mode=net.caffe)
        out = {}
        for level, layer in zip(LEVELS, (net.layer1, net.layer2, net.layer3, net.layer4), strict=True):
            out[level] = x = layer(x)
        return out

    def early(self) -> list[nn.Module]:
        return [self.net.conv1, self.net.bn1, self.net.layer1]

    @classmethod
    def named(cls, state: State, origin: str) -> dict[str, Tensor]:
        return {k.removeprefix("resnet50."): v for k, v in resnet50.canonical(state, origin).items()}

    @classmethod
    def options_of(cls, state: State) -> dict[str, Any]:
        named = cls.named(state, "")
        irn = named.keys() != state.keys() and "classifier.weight" in named and "fc.weight" not in state
        return {**_width(named, "conv1.weight"), "layout": "irn" if irn else "torchvision"}

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "layout": self.layout}


class ResNet101Backbone(ResNet50Backbone):
    """The same with 23 blocks in layer3."""

    arch = "resnet101"
    blocks = resnet50.BLOCKS_101


class MobileNetV2Backbone(Backbone):
    """MobileNetV2 1.0 with BatchNorm folded; `padding` and `input` go with the layout of the weights."""

    arch = "mobilenetv2"
    heads = ("classifier",)
    ends = (2, 5, 12, 16)
    """The last block of each level; the head's 1×1 convolution comes after the last."""
    network: ClassVar[type[mobilenetv2.MobileNetV2]] = mobilenetv2.MobileNetV2
    same_input: ClassVar[InputSpec] = MINUS_ONE_TO_ONE
    net: mobilenetv2.MobileNetV2

    def __init__(self, output_stride: int, width: int = WIDTH, padding: mobilenetv2.Padding = "same") -> None:
        if width != WIDTH:
            raise ValueError("it has one width only")
        super().__init__(output_stride, width)
        net = self.network(1, output_stride=output_stride, padding=padding, depthwise=Depthwise)
        del net.classifier
        self.net, self.padding = net, padding
        self.input = IMAGENET_INPUT if padding == "symmetric" else self.same_input
        widths = [stage.channels for stage in net.stages for _ in range(stage.blocks)]
        reached = [widths[end] for end in self.ends[:-1]]
        self.channels = dict(zip(LEVELS, (*reached, mobilenetv2.HEAD), strict=True))
        self.strides = {"c2": 4, "c3": 8, "c4": min(16, output_stride), "c5": output_stride}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu6(self.net.stem(x))
        out = {}
        for i, block in enumerate(self.net.blocks):
            x = block(x)
            if i in self.ends:
                out[LEVELS[self.ends.index(i)]] = x
        return {**out, "c5": F.relu6(self.net.head(x))}

    def early(self) -> list[nn.Module]:
        return [self.net.stem, *list(self.net.blocks)[: self.ends[0] + 1]]

    @classmethod
    def named(cls, state: State, origin: str) -> dict[str, Tensor]:
        return mobilenetv2.from_torchvision(state) if mobilenetv2.is_torchvision(state) else dict(state)

    @classmethod
    def options_of(cls, state: State) -> dict[str, Any]:
        return {"padding": "symmetric" if mobilenetv2.is_torchvision(state) else "same"}

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "padding": self.padding}


class EfficientNetLite0Backbone(MobileNetV2Backbone):
    """EfficientNet-Lite0 with BatchNorm folded, of either published layout."""

    arch = "efficientnet_lite0"
    ends = (2, 4, 10, 15)
    network = efficientnet_lite0.EfficientNetLite0
    same_input = LITE_INPUT

    @classmethod
    def named(cls, state: State, origin: str) -> dict[str, Tensor]:
        return efficientnet_lite0.folded(state)

    @classmethod
    def options_of(cls, state: State) -> dict[str, Any]:
        return {}


class SmallBackbone(Backbone):
    """The demo's small network (small.py): for synthetic scenes and tests."""

    arch = "small"
    heads = ("classifier",)
    ends = (2, 4, 5, 6)
    """The last convolution of each level."""
    net: SmallNet

    def __init__(self, output_stride: int, width: int = WIDTH) -> None:
        if output_stride != 8:
            raise ValueError("output_stride must be 8")
        super().__init__(output_stride, width)
        self.net = SmallNet(1, width)
        del self.net.classifier
        self.channels = {level: self.net.widths[end] for level, end in zip(LEVELS, self.ends, strict=True)}
        self.strides = {"c2": 4, "c3": 8, "c4": 8, "c5": 8}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = {}
        for i in range(len(self.net.widths)):
            x = self.net.features[3 * i : 3 * i + 3](x)  # convolution, BatchNorm, ReLU
            if i in self.ends:
                out[LEVELS[self.ends.index(i)]] = x
        return out

    def early(self) -> list[nn.Module]:
        return []


BACKBONES: dict[str, type[Backbone]] = {
    b.arch: b
    for b in (
        ResNet38Backbone,
        ResNet50Backbone,
        ResNet101Backbone,
        MobileNetV2Backbone,
        EfficientNetLite0Backbone,
        SmallBackbone,
    )
}


def build_backbone(arch: str, *, output_stride: int, **options: Any) -> Backbone:
    """A backbone with random weights; takes what `Backbone.facts` gives.

    Raises InputError for an unknown name, or an output stride that the network does not have.
    """
    try:
        return _class(arch)(output_stride, **options)
    except (TypeError, ValueError) as e:
        raise InputError(f"{arch}: {e}") from None


def load_backbone(
    arch: str, weights: Path | None, *, output_stride: int, random: bool = False, **options: Any
) -> Backbone:
    """A backbone with the weights of a classifier, or of a checkpoint of one of the trainer's stages.

    weights: .safetensors, a PyTorch state dict under any name the arch is published with (its linear layer
    is left out), or a stage's best.ckpt (whose facts may hold `Backbone.facts` as "backbone"); None only
    with `random`, which starts from nothing. options: of the backbone (layout, padding), where the file does
    not tell them, or to have it otherwise.
    Raises InputError for an unknown arch or output stride, or missing weights; ExportError for a file that
    cannot be read or does not fit, naming keys.
    """
    cls = _class(arch)
    if weights is None:
        if not random:
            raise InputError(
                f"{arch}: give pre-trained weights (--weights FILE), or --random to start without"
            )
        return build_backbone(arch, output_stride=output_stride, **options)
    raw, told = read_weights(Path(weights), cls)
    state, _ = split_off(cls.named(raw, str(weights)), cls.heads)
    backbone = build_backbone(arch, output_stride=output_stride, **{**told, **options})
    fit(backbone.net, state, what=arch, origin=weights)
    return backbone


def read_weights(file: Path, cls: type[Backbone]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Name -> tensor as the file has them, and options of the backbone, of a published file or of a stage's
    checkpoint; raises as `load_backbone`."""
    if file.suffix == ".safetensors" or not is_checkpoint(file):
        state = read_checkpoint(file)
        return state, cls.options_of(state)
    raw = torch.load(file, map_location="cpu", weights_only=True)
    facts = json.loads(raw["facts"]).get("backbone", {"arch": cls.arch})
    if facts["arch"] != cls.arch:
        raise InputError(f"{file}: a checkpoint of {facts['arch']}, not {cls.arch}")
    part = {
        k.removeprefix("backbone.net."): v for k, v in raw["network"].items() if k.startswith("backbone.net.")
    }
    state = part or raw["network"]
    told = {k: v for k, v in facts.items() if k not in ("arch", "output_stride")}
    return state, {**cls.options_of(state), **told}


def _width(state: State, stem: str) -> dict[str, int]:
    """The constructor's `width`, from the first convolution."""
    return {"width": int(state[stem].shape[0])} if stem in state else {}


def _class(arch: str) -> type[Backbone]:
    try:
        return BACKBONES[arch]
    except KeyError:
        raise InputError(f"no architecture {arch!r}; known: {', '.join(BACKBONES)}") from None


__all__ = ["BACKBONES", "LEVELS", "Backbone", "build_backbone", "load_backbone"]
