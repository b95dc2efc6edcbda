"""DeepLab: a classifier's features, dilated to output stride 8 or 16, under an ASPP head.

    arch           features                    layout of published weights
    resnet101/50   layer4, 2048 channels       torchvision (RGB, ImageNet mean/std) or caffe (BGR minus mean)
    mobilenetv2    head, 1280 channels         folded or torchvision, see export/archs/mobilenetv2.py
    resnet38       conv6, 4096 channels        psa

BatchNorm of the backbone stays as it was loaded, as is usual with so small batches; one that starts from
random weights trains it, and so does a version 3 head with its own. Checkpoints of other tools are taken as
they are, see published.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from infercam.engine.bundle import InputSpec
from infercam.engine.common.errors import InputError
from infercam.export.checkpoints import fit
from infercam.trainer.loop.checkpoint import is_checkpoint, load_checkpoint, load_network
from infercam.trainer.networks.aspp import Head, make_head
from infercam.trainer.networks.backbones import Backbone, build_backbone, load_backbone
from infercam.trainer.networks.published import Published, read_published

STAGE = "segment"
OUTPUT_STRIDES = (8, 16)
RESNETS = ("resnet50", "resnet101")


class DeepLab(nn.Module):
    """N×3×H×W float32, prepared as `input` says -> N×classes×h×w scores at the output stride.

    Class 0 is background.
    """

    def __init__(
        self, backbone: Backbone, classes: int, head: Head = "v2", *, train_batchnorm: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.train_batchnorm = backbone, train_batchnorm
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
        """Training mode, but for the backbone's BatchNorm (see `train_batchnorm`)."""
        super().train(mode)
        for norm in self._frozen():
            norm.eval()
        return self

    def _frozen(self) -> Iterable[nn.Module]:
        if self.train_batchnorm:
            return ()
        return (m for m in self.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))

    def parameter_groups(self, head_scale: float = 10.0) -> list[dict[str, Any]]:
        """deeplab-pytorch's: the head at `head_scale` times the rate, its biases at twice that, undecayed."""
        head = list(self.classifier.named_parameters())
        return [
            {"params": [p for p in self.backbone.parameters() if p.requires_grad]},
            {"params": [p for name, p in head if not name.endswith("bias")], "scale": head_scale},
            {
                "params": [p for name, p in head if name.endswith("bias")],
                "scale": 2 * head_scale,
                "weight_decay": 0.0,
            },
        ]

    def facts(self) -> dict[str, Any]:
        """What `build_deeplab` needs to build it again (JSON-able)."""
        return {"backbone": self.backbone.facts(), "classes": self.classes, "head": self.head}


def full_scores(network: nn.Module, x: Tensor, output_stride: int) -> Tensor:
    """Scores at the pictures' own size: N×3×H×W -> N×C×H×W.

    Strided convolutions see the pixels 0, stride, 2 stride, …, so scores belong to exactly those places where
    both sides are a multiple of the stride plus one (321 and 513 are); other sizes are padded to that.
    """
    height, width = x.shape[-2:]
    down, right = (-(side - 1) % output_stride for side in (height, width))
    scores = network(F.pad(x, (0, right, 0, down)))
    size = (height + down, width + right)
    return F.interpolate(scores, size, mode="bilinear", align_corners=True)[..., :height, :width]


def build_deeplab(facts: Mapping[str, Any]) -> DeepLab:
    """A network with random weights from `DeepLab.facts`; raises InputError for what it does not know."""
    _check_stride(facts["backbone"]["output_stride"])
    return DeepLab(build_backbone(**facts["backbone"]), facts["classes"], facts["head"])


def _check_stride(output_stride: int) -> None:
    if output_stride not in OUTPUT_STRIDES:
        raise InputError(f"output stride {output_stride}: DeepLab has 8 or 16")


def load_deeplab(file: Path, output_stride: int | None = None) -> DeepLab:
    """A trained network: `infercam segment`'s best.ckpt or last.ckpt, or a published DeepLab over ResNet.

    output_stride: of published weights (default 8, as they were trained); ours know their own.
    Raises InputError or ExportError (one line) for a file of another kind, stage or architecture.
    """
    file = Path(file)
    if _ours(file):
        state, facts = load_checkpoint(file, STAGE)
        network = build_deeplab(facts)
        load_network(network, state, file)
        return network
    found = read_published(file)
    if found.arch is None or found.head is None:
        names = ", ".join(list(found.backbone)[:3])
        raise InputError(
            f"{file}: not a DeepLab over ResNet-50 or -101 with an ASPP head (it holds {names}, …)"
        )
    version, classes = found.head
    backbone = {"arch": found.arch, "output_stride": output_stride or 8, **found.options}
    network = build_deeplab({"backbone": backbone, "classes": classes, "head": version})
    _fit(network, found, file, with_head=True)
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

    weights: what load_backbone takes (a classifier's checkpoint, or one of the trainer's stages): the head
    then starts anew; or a published DeepLab, whose head is taken too if it is of the same version and
    classes; None with `random`.
    Raises InputError for an unknown arch or missing weights; ExportError where the weights are of another
    architecture, naming keys.
    """
    _check_stride(output_stride)
    found = None
    if arch in RESNETS and weights is not None and not _ours(weights):
        found = read_published(weights)
    if found is None or not (found.classifier or found.layout == "caffe"):  # a classifier
        backbone = load_backbone(arch, weights, output_stride=output_stride, random=random)
        return DeepLab(backbone, classes, head, train_batchnorm=weights is None), []
    network = DeepLab(build_backbone(arch, output_stride=output_stride, **found.options), classes, head)
    whole = found.head == (head, classes)
    assert weights is not None, "found in them"
    _fit(network, found, weights, with_head=whole)
    if whole or found.head is None:
        return network, []
    version, rows = found.head
    return network, [f"{weights}: its head ({version}, {rows} classes) is left out; a new one starts"]


def _ours(file: Path) -> bool:
    return file.suffix != ".safetensors" and is_checkpoint(file)


def _fit(network: DeepLab, found: Published, origin: Path, *, with_head: bool) -> None:
    fit(network.backbone.net, found.backbone, what=network.backbone.arch, origin=origin)
    if with_head:
        fit(network.classifier, found.classifier, what=f"ASPP {network.head}", origin=origin)
