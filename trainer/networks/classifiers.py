"""Classifiers to train: a backbone with weights, and a linear layer without bias for the classes at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infercam.engine.bundle import InputSpec
from infercam.export.archs import resnet50
from infercam.trainer.networks.backbones import Backbone, load_backbone, read_weights

STRIDES = {"small": 8, "resnet38": 8, "resnet50": 16, "mobilenetv2": 16, "efficientnet_lite0": 16}
"""Every architecture that can be trained, with its usual output stride (the last two were published with 32)."""


@dataclass(frozen=True)
class Trainable:
    """A classifier and what its stage must know of it."""

    network: nn.Module
    """N×3×H×W float32 -> N×C scores; `forward_cam` gives N×C×h×w maps after ReLU."""
    head: nn.Module
    """Its linear layer."""
    early: Sequence[nn.Module]
    """The first layers, which fine-tuning may leave as they are."""
    input: InputSpec
    facts: dict[str, Any]
    """Of its backbone (`Backbone.facts`), for checkpoints."""
    new_head: bool
    scratch: bool
    """Whether it starts from random weights."""


def build_classifier(
    arch: str,
    classes: int,
    weights: Path | None,
    *,
    output_stride: int | None = None,
    seed: int = 0,
    random: bool = False,
) -> Trainable:
    """A network with published weights and a linear layer of `classes` rows.

    The checkpoint's own linear layer is kept where it scores as many classes and has no bias; otherwise the
    layer starts anew, from the seed. Raises what `load_backbone` raises.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scratch = random or (weights is None and arch == "small")
        stride = output_stride or STRIDES.get(arch, 16)
        backbone = load_backbone(arch, weights, output_stride=stride, random=scratch)
        network, head = _with_head(backbone, classes)
        nn.init.normal_(head.weight, std=0.01)  # type: ignore[arg-type]
    old = None if weights is None else _old_head(backbone, weights)
    kept = old is not None and old.shape[0] == classes
    if old is not None and kept:
        with torch.no_grad():
            head.weight.copy_(old.reshape(head.weight.shape))  # type: ignore[operator, arg-type]
    return Trainable(network, head, backbone.early(), backbone.input, backbone.facts(), not kept, scratch)


def _with_head(backbone: Backbone, classes: int) -> tuple[nn.Module, nn.Module]:
    """The published network around the backbone's layers, with a new head: (network, head)."""
    width = backbone.channels["c5"]
    if backbone.arch == "resnet50":
        network = resnet50.ResNet50(classes, output_stride=backbone.output_stride, width=backbone.width)
        network.resnet50 = backbone.net  # type: ignore[assignment]
        return network, network.classifier
    head = nn.Conv2d(width, classes, 1, bias=False)
    if backbone.arch == "resnet38":
        backbone.net.fc8 = head
        return backbone.net, head
    backbone.net.classifier = linear = nn.Linear(width, classes, bias=False)
    return backbone.net, linear


def _old_head(backbone: Backbone, weights: Path) -> Tensor | None:
    """The checkpoint's linear layer; None where it has none under the usual name, or one with a bias."""
    raw, _ = read_weights(weights, type(backbone))
    state = backbone.named(raw, str(weights))
    name = backbone.heads[0]
    return None if f"{name}.bias" in state else state.get(f"{name}.weight")
