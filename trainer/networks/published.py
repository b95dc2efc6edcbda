"""Checkpoints of ResNets and DeepLabs as other tools publish them, under one set of names.

Understood, each with or without `module.` and the like before every name:
- torchvision's deeplabv3 (`backbone.*`, `classifier.*`; the auxiliary head is left out), plain ResNets with or
  without `fc`, and irn's classifier: torchvision's layout;
- deeplab-pytorch's v1 and v2 (`layer1.conv1.conv.weight`, `aspp.c0.weight`, older `aspp.stages.c0.weight`,
  under `base.`, `scale.` or `scale_net.`), and v2 ports with `layer5.conv2d_list.0.weight`: Caffe's layout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from infercam.export.archs.resnet50 import BLOCKS, BLOCKS_101, Layout, canonical
from infercam.export.checkpoints import read_checkpoint
from infercam.trainer.networks.aspp import Head

_WRAPPERS = re.compile(r"^(?:(?:module|base|scale_net|scale|Scale)\.)+")
_BACKBONE = re.compile(r"^backbone\.(?=(?:conv1|bn1|layer\d)\.)")
_UNUSED = re.compile(r"^(?:aux_classifier|fc)\.|^classifier\.(?:weight|bias)$")
_CAFFE_HEAD = re.compile(r"^(?:aspp\.(?:stages\.)?c|layer5\.conv2d_list\.)(\d)\.")
_CAFFE_STEM = re.compile(r"^layer1\.conv1\.(?:conv|(bn))\.")
_CAFFE_BLOCK = re.compile(r"^layer([2-5])\.block(\d+)\.(reduce|conv3x3|increase|shortcut)\.(conv|bn)\.")
_STEPS = {"reduce": 1, "conv3x3": 2, "increase": 3}
_BLOCKS = {BLOCKS: "resnet50", BLOCKS_101: "resnet101"}


@dataclass
class Published:
    """A checkpoint's tensors under torchvision's names (`conv1`, `layer1.0.conv1`, …) and ASPP's."""

    backbone: dict[str, Tensor]
    classifier: dict[str, Tensor]
    layout: Layout

    @property
    def arch(self) -> str | None:
        """By the number of blocks; None for another network."""
        layers = range(1, 5)
        found = (re.match(r"layer(\d)\.(\d+)\.", name) for name in self.backbone)
        blocks = {(int(m[1]), int(m[2])) for m in found if m}
        return _BLOCKS.get(tuple(1 + max((b for i, b in blocks if i == n), default=-1) for n in layers))  # type: ignore[arg-type]

    @property
    def options(self) -> dict[str, Any]:
        """Of deeplab.ResNetFeatures: the layout, and the stem's width (64, but for small test networks)."""
        width = len(self.backbone["conv1.weight"]) if "conv1.weight" in self.backbone else 64
        return {"layout": self.layout, "width": width}

    @property
    def head(self) -> tuple[Head, int] | None:
        """Version and classes of its ASPP; None where it has none."""
        if "c0.weight" in self.classifier:
            return "v2", len(self.classifier["c0.weight"])
        if "0.convs.0.0.weight" in self.classifier and "4.weight" in self.classifier:
            return "v3", len(self.classifier["4.weight"])
        return None


def read_published(file: Path) -> Published:
    """Read a published checkpoint; raises ExportError where it cannot be read (see read_checkpoint)."""
    state = {_WRAPPERS.sub("", name): value for name, value in read_checkpoint(file).items()}
    caffe = any(_CAFFE_STEM.match(name) or _CAFFE_HEAD.match(name) for name in state)
    out = Published({}, {}, "caffe" if caffe else "torchvision")
    for name, value in canonical({_renamed(name): v for name, v in state.items()}, str(file)).items():
        name = name.removeprefix("resnet50.")
        if name.startswith("classifier.") and not _UNUSED.match(name):
            out.classifier[name.removeprefix("classifier.")] = value
        elif not _UNUSED.match(name):
            out.backbone[name] = value
    return out


def _renamed(name: str) -> str:
    """The name as torchvision has it; ASPP's branches as `classifier.c0`."""
    if m := _CAFFE_HEAD.match(name):
        return f"classifier.c{m[1]}.{name[m.end() :]}"
    if m := _CAFFE_STEM.match(name):
        return f"{'bn1' if m[1] else 'conv1'}.{name[m.end() :]}"
    if m := _CAFFE_BLOCK.match(name):
        layer, block, step, kind = int(m[1]) - 1, int(m[2]) - 1, m[3], m[4]
        inner = f"downsample.{int(kind == 'bn')}" if step == "shortcut" else f"{kind}{_STEPS[step]}"
        return f"layer{layer}.{block}.{inner}.{name[m.end() :]}"
    return _BACKBONE.sub("", name)
