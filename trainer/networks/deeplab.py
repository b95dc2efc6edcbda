"""DeepLab: a classifier's features, dilated to output stride 8 or 16, under an ASPP head.

    arch           features                    layout of published weights
    resnet101/50   layer4, 2048 channels       torchvision (RGB, ImageNet mean/std) or caffe (BGR minus mean)
    mobilenetv2    head, 1280 channels         folded or torchvision, see export/archs/mobilenetv2.py
    resnet38       conv6, 4096 channels        psa

BatchNorm of the backbone stays as it was loaded, as is usual with so small batches; a version 3 head trains
its own. Checkpoints of other tools are taken as they are, see `named`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from infercam.engine.bundle import InputSpec
from infercam.engine.errors import InputError
from infercam.export.archs import IMAGENET_INPUT, resnet50
from infercam.export.checkpoints import fit, read_checkpoint
from torch import Tensor, nn

from ..checkpoint import is_checkpoint, load_checkpoint, load_network
from .aspp import Head, make_head
from .backbones import (
    WIDTH,
    Backbone,
    MobileNetV2Backbone,
    ResNet38Backbone,
    ResNet50Backbone,
    load_backbone,
)

STAGE = "segment"
OUTPUT_STRIDES = (8, 16)
CAFFE_INPUT = InputSpec(colour="BGR", scale=1.0, mean=(122.675, 116.669, 104.008), std=(1.0, 1.0, 1.0))
State = Mapping[str, Tensor]


class ResNetFeatures(ResNet50Backbone):
    """ResNet-50 with the dilations that segmentation networks were trained with; the last level only."""

    blocks = resnet50.BLOCKS

    def __init__(
        self, output_stride: int, width: int = WIDTH, layout: resnet50.Layout = "torchvision"
    ) -> None:
        Backbone.__init__(self, output_stride, width)
        self.net = resnet50.Backbone(
            output_stride=output_stride, width=width, blocks=self.blocks, layout=layout
        )
        self.layout = layout
        self.input = CAFFE_INPUT if layout == "caffe" else IMAGENET_INPUT
        self.channels, self.strides = {"c5": width * 8 * resnet50.EXPANSION}, {"c5": output_stride}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"c5": self.net(x)}

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "layout": self.layout}


class ResNet101Features(ResNetFeatures):
    arch = "resnet101"
    blocks = resnet50.BLOCKS_101


FEATURES: dict[str, type[Backbone]] = {
    b.arch: b for b in (ResNet101Features, ResNetFeatures, MobileNetV2Backbone, ResNet38Backbone)
}
RESNETS = (ResNet101Features, ResNetFeatures)


class DeepLab(nn.Module):
    """N×3×H×W float32, prepared as `input` says -> N×classes×h×w scores at the output stride.

    Class 0 is background.
    """

    def __init__(self, backbone: Backbone, classes: int, head: Head = "v2") -> None:
        super().__init__()
        self.backbone = backbone
        self.classes, self.head = classes, head
        self.classifier = make_head(head, backbone.channels["c5"], classes, backbone.output_stride)
        for norm in self._frozen():
            norm.requires_grad_(False)

    @property
    def input(self) -> InputSpec:
        return self.backbone.input

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.backbone(x)["c5"])

    def train(self, mode: bool = True) -> DeepLab:
        """Training mode, but for the backbone's BatchNorm."""
        super().train(mode)
        for norm in self._frozen():
            norm.eval()
        return self

    def _frozen(self) -> Iterable[nn.Module]:
        return (m for m in self.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """deeplab-pytorch's: the head at 10 times the rate, its biases at 20 times and without decay."""
        head = list(self.classifier.named_parameters())
        return [
            {"params": [p for p in self.backbone.parameters() if p.requires_grad]},
            {"params": [p for name, p in head if not name.endswith("bias")], "scale": 10.0},
            {"params": [p for name, p in head if name.endswith("bias")], "scale": 20.0, "weight_decay": 0.0},
        ]

    def facts(self) -> dict[str, Any]:
        """What `build_deeplab` needs to build it again (JSON-able)."""
        return {"backbone": self.backbone.facts(), "classes": self.classes, "head": self.head}


def build_deeplab(facts: Mapping[str, Any]) -> DeepLab:
    """A network with random weights from `DeepLab.facts`; raises InputError for what it does not know."""
    options = dict(facts["backbone"])
    arch = options.pop("arch")
    if arch not in FEATURES:
        raise InputError(f"no architecture {arch!r} for segmentation; known: {', '.join(FEATURES)}")
    if options["output_stride"] not in OUTPUT_STRIDES:
        raise InputError(f"output stride {options['output_stride']}: DeepLab has 8 or 16")
    return DeepLab(FEATURES[arch](**options), facts["classes"], facts["head"])


def load_deeplab(file: Path, output_stride: int | None = None) -> DeepLab:
    """A trained network: `infercam segment`'s best.ckpt or last.ckpt, or a published DeepLab over ResNet.

    output_stride: of published weights (default 8, as they were trained); ours know their own.
    Raises InputError or ExportError (one line) for a file of another kind, stage or architecture.
    """
    file = Path(file)
    if file.suffix != ".safetensors" and is_checkpoint(file):
        state, facts = load_checkpoint(file, STAGE)
        network = build_deeplab(facts)
        load_network(network, state, file)
        return network
    state = named(read_checkpoint(file))
    arch, head = _arch(state), _head(state)
    if arch is None or head is None:
        raise InputError(
            f"{file}: not a DeepLab over ResNet-50 or -101 with an ASPP head; its layers begin with "
            f"{', '.join(list(state)[:3])}"
        )
    backbone = {"arch": arch, "output_stride": output_stride or 8, "layout": _layout(state)}
    network = build_deeplab({"backbone": backbone, "classes": head[1], "head": head[0]})
    _fit_parts(network, state, file, with_head=True)
    return network


def start_deeplab(
    arch: str,
    weights: Path | None,
    *,
    classes: int = 21,
    output_stride: int = 8,
    head: Head = "v2",
    random: bool = False,
) -> tuple[DeepLab, list[str]]:
    """A network to train, and lines that say what was taken of `weights`.

    weights: a classifier's checkpoint of that architecture (the head then starts anew), a published DeepLab
    (its head is taken too if it is of the same version and classes), a checkpoint of one of the trainer's
    stages, or None with `random`.
    Raises InputError for an unknown arch or missing weights; ExportError where the weights are of another
    architecture, naming keys.
    """
    facts: dict[str, Any] = {"backbone": {"arch": arch, "output_stride": output_stride}}
    facts |= {"classes": classes, "head": head}
    if weights is None:
        if not random:
            raise InputError(f"{arch}: give pre-trained weights (--weights FILE), or --random to start without")
        return build_deeplab(facts), []
    weights = Path(weights)
    build = FEATURES.get(arch)
    ours = weights.suffix != ".safetensors" and is_checkpoint(weights)
    if build not in RESNETS or ours:
        build_deeplab(facts)  # complains of an unknown name or stride
        return _from_backbone(arch, weights, facts), []
    state = named(read_checkpoint(weights))
    facts["backbone"]["layout"] = _layout(state)
    network = build_deeplab(facts)
    found = _head(state)
    _fit_parts(network, state, weights, with_head=found == (head, classes))
    if found in (None, (head, classes)):
        return network, []
    version, rows = found
    return network, [f"{weights}: its {version} head for {rows} classes is not taken, ours starts anew"]


def _from_backbone(arch: str, weights: Path, facts: Mapping[str, Any]) -> DeepLab:
    """The backbone of a classifier, or of any stage's checkpoint; the head starts anew."""
    if arch not in ("resnet101", "resnet50"):
        backbone = load_backbone(arch, weights, output_stride=facts["backbone"]["output_stride"])
        return DeepLab(backbone, facts["classes"], facts["head"])
    state, stored = _any_checkpoint(weights)
    found = stored.get("backbone", {}).get("arch", "another architecture")
    if found != arch:
        raise InputError(f"{weights}: a checkpoint of {found}, not {arch}")
    options = {k: stored["backbone"][k] for k in ("width", "layout") if k in stored["backbone"]}
    network = build_deeplab({**facts, "backbone": {**facts["backbone"], **options}})
    part = {k.removeprefix("backbone.net."): v for k, v in state.items() if k.startswith("backbone.net.")}
    fit(network.backbone.net, part, what=arch, origin=weights)
    return network


def _any_checkpoint(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Of whichever stage wrote it."""
    import torch

    stage = torch.load(file, map_location="cpu", weights_only=True)["stage"]
    return load_checkpoint(file, stage)


# -- names of published checkpoints ----------------------------------------------------------------------------
WRAPPERS = re.compile(r"^(?:(?:module|base|scale_net|scale|Scale)\.)+")
KAZUTO_BLOCK = re.compile(r"^layer([2-5])\.block(\d+)\.(reduce|conv3x3|increase|shortcut)\.(conv|bn)\.(.+)$")
KAZUTO_STEP = {"reduce": "1", "conv3x3": "2", "increase": "3"}


def named(state: State) -> dict[str, Tensor]:
    """A published state dict under torchvision's names for the backbone, `classifier.*` for the head.

    Understood: torchvision's deeplabv3 (`backbone.*`, `classifier.*`; the auxiliary head is left out) and
    plain ResNets, irn's classifier, deeplab-pytorch's v2 (`base.layer1.conv1.conv.weight`, `base.aspp.c0.*`,
    older ones with `scale.` or `aspp.stages.c0`), and v2 ports with `layer5.conv2d_list.*`. The last two are
    Caffe's layout, which `_layout` sees from the marker that is left in `classifier.c*`'s company.
    """
    out: dict[str, Tensor] = {}
    for key, value in resnet50.canonical(state, "checkpoint").items():
        new = _name(WRAPPERS.sub("", key))
        if new is not None:
            out[new] = value
    return out


def _name(key: str) -> str | None:
    key = resnet50.canonical_name(key).removeprefix("resnet50.")
    key = re.sub(r"^backbone\.(?=(conv1|bn1|layer\d)\.)", "", key)
    if key.startswith(("aux_classifier.", "fc.")) or re.fullmatch(r"classifier\.(weight|bias)", key):
        return None  # of a classifier, or only used in training
    if m := re.match(r"^(?:aspp\.(?:stages\.)?c|layer5\.conv2d_list\.)(\d)\.(.+)$", key):
        return f"classifier.c{m[1]}.{m[2]}"
    return key
