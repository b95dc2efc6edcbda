"""Published classifiers that export by name: `infercam export --arch NAME --weights FILE -o BUNDLE`.

Each network is the project's own code under the layer names of the published checkpoints, so that those
load as they are. Importing this package needs no torch; building a network does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infercam.engine.bundle import Bundle, InputSpec, sha256_file
from infercam.engine.common.errors import ExportError
from infercam.engine.data import voc
from infercam.export.checkpoints import State, fit, layers_of, read_checkpoint, split_off
from infercam.export.writing.from_torch import from_torch, import_torch
from infercam.export.writing.pixels import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

VOC_CLASSES = tuple(voc.CLASSES)
IMAGENET_INPUT = InputSpec(scale=1 / 255, mean=IMAGENET_MEAN, std=IMAGENET_STD)
MINUS_ONE_TO_ONE = InputSpec(scale=1 / 127.5, mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0))
LITE_INPUT = InputSpec(scale=1 / 128, mean=(127 / 128,) * 3, std=(1.0, 1.0, 1.0))
"""EfficientNet-Lite's: (x - 127) / 128."""


@dataclass
class Classifier:
    """A network with its weights, and what a bundle must know about it."""

    module: nn.Module  # N×3×H×W float32 -> N×C scores; also has forward_cam
    classes: tuple[str, ...]  # the names of the outputs that are kept
    input: InputSpec
    keep_classes: tuple[int, ...] | None = None  # outputs kept, where not all are
    notes: list[str] = field(default_factory=list)


Builder = Callable[..., Classifier]


def load_arch(
    arch: str,
    weights: str | Path,
    *,
    classes: Sequence[str] | None = None,
    output_stride: int | None = None,
    head: str | None = None,
) -> Classifier:
    """Build a published classifier and load its checkpoint.

    arch: a name of `ARCHS`. classes: output names; may be left out for the 20 VOC classes.
    output_stride: input pixels per response cell; default: as the network was published.
    head: for checkpoints with several linear layers: "20" (default) or "200", SC-CAM's sub-categories.

    Raises ExportError for an unknown name or option, or a checkpoint that does not fit (naming keys).
    """
    try:
        build = ARCHS[arch]
    except KeyError:
        raise ExportError(f"no architecture {arch!r}; known: {', '.join(sorted(ARCHS))}") from None
    import_torch()
    state = read_checkpoint(weights)
    options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
    try:
        return build(state, str(weights), classes=classes, head=head, **options)
    except ValueError as e:  # an output stride the network does not have
        raise ExportError(f"{arch}: {e}") from None


def export_arch(
    arch: str,
    weights: str | Path,
    out: str | Path,
    *,
    classes: Sequence[str] | None = None,
    output_stride: int | None = None,
    head: str | None = None,
    multi_label: bool | None = None,
    name: str | None = None,
    images: Sequence[np.ndarray] = (),
    tolerance: float = 1e-4,
    fold_batch_norm: bool = True,
    overwrite: bool = False,
) -> Bundle:
    """Export a published classifier's checkpoint as a bundle; see `load_arch` and `from_torch`.

    What the checkpoint holds beyond the classifier is logged and recorded in the manifest's `source.notes`.
    `multi_label` defaults to True, as VOC classifiers are; pass False for single-label (ImageNet) weights.
    """
    classifier = load_arch(arch, weights, classes=classes, output_stride=output_stride, head=head)
    for note in classifier.notes:
        log.warning("%s: %s", weights, note)
    spec, file = classifier.input, Path(weights)
    return from_torch(
        classifier.module,
        out,
        classes=classifier.classes,
        keep_classes=classifier.keep_classes,
        mean=spec.mean,
        std=spec.std,
        scale=spec.scale,
        colour=spec.colour,
        multi_label=True if multi_label is None else multi_label,
        name=name or file.stem,
        source={
            "kind": "arch",
            "arch": arch,
            "weights": file.name,
            "weights_sha256": sha256_file(file),
            "notes": classifier.notes,
        },
        images=images,
        tolerance=tolerance,
        fold_batch_norm=fold_batch_norm,
        overwrite=overwrite,
    )


def _resnet38(
    state: State, origin: str, *, classes: Sequence[str] | None, head: str | None, **options: Any
) -> Classifier:
    """psa's classifier, SEAM's (21 outputs, background first) or SC-CAM's (20 and 200 outputs)."""
    from infercam.export.archs.resnet38 import ResNet38

    notes: list[str] = []
    state, ignored = split_off(state, ("f8_3", "f8_4", "f9"))
    if ignored:
        layers = ", ".join(layers_of(ignored))
        notes.append(f"{layers} (SEAM's pixel correlation module) are not part of the classifier; ignored")
    if "fc8_20.weight" in state:
        state, dropped = _choose_head(state, origin, head or "20")
        notes.append(f"{dropped} ignored (head {head or '20'} is exported)")
    elif head is not None:
        raise ExportError(
            f"{origin}: --head is for checkpoints with fc8_20 and fc8_200; this one has neither"
        )
    rows = _rows(state, "fc8.weight", 20)
    keep = None
    if ignored and rows == 21:  # SEAM: its background score never becomes a map
        keep = tuple(range(1, 21))
        notes.append("output 0 of 21 (background) dropped; 20 classes remain")
    module = ResNet38(rows, **options)
    fit(module, state, what="resnet38", origin=origin)
    names = _names(classes, rows if keep is None else len(keep), origin)
    return Classifier(module, names, IMAGENET_INPUT, keep, notes)


def _choose_head(state: State, origin: str, head: str) -> tuple[State, str]:
    """SC-CAM's state dict with the chosen linear layer as `fc8`; the other layer's name."""
    heads = {"20": "fc8_20", "200": "fc8_200"}
    if head not in heads:
        raise ExportError(f"{origin}: no head {head!r}; choose 20 or 200")
    chosen, other = heads[head], heads["200" if head == "20" else "20"]
    rest, _ = split_off(state, (other,))
    return {k.replace(f"{chosen}.", "fc8."): v for k, v in rest.items()}, other


def _resnet50(
    state: State, origin: str, *, classes: Sequence[str] | None, head: str | None, **options: Any
) -> Classifier:
    """irn's CAM classifier, or torchvision's names with `fc`."""
    from infercam.export.archs.resnet50 import ResNet50, canonical

    _no_head(head, "resnet50", origin)
    named = canonical(state, origin)
    rows = _rows(named, "classifier.weight", 20)
    module = ResNet50(rows, bias="classifier.bias" in named, **options)
    fit(module, named, what="resnet50", origin=origin)
    return Classifier(module, _names(classes, rows, origin), IMAGENET_INPUT)


def _mobilenetv2(
    state: State, origin: str, *, classes: Sequence[str] | None, head: str | None, **options: Any
) -> Classifier:
    """The folded layout (input x/127.5 - 1, "same" padding) or torchvision's (ImageNet, symmetric)."""
    from infercam.export.archs.mobilenetv2 import MobileNetV2, Padding, from_torchvision, is_torchvision

    _no_head(head, "mobilenetv2", origin)
    torchvision = is_torchvision(state)
    if torchvision:
        state = from_torchvision(state)
    rows = _rows(state := _linear(state), "classifier.weight", 20)
    padding: Padding = "symmetric" if torchvision else "same"
    module = MobileNetV2(rows, bias="classifier.bias" in state, padding=padding, **options)
    fit(module, state, what="mobilenetv2", origin=origin)
    spec = IMAGENET_INPUT if torchvision else MINUS_ONE_TO_ONE
    return Classifier(module, _names(classes, rows, origin), spec)


def _efficientnet_lite0(
    state: State, origin: str, *, classes: Sequence[str] | None, head: str | None, **options: Any
) -> Classifier:
    """efficientnet-pytorch's names or timm's, or the folded ones that `infercam classify` writes."""
    from infercam.export.archs.efficientnet_lite0 import EfficientNetLite0, folded

    _no_head(head, "efficientnet_lite0", origin)
    rows = _rows(state := _linear(folded(state)), "classifier.weight", 20)
    module = EfficientNetLite0(rows, bias="classifier.bias" in state, **options)
    fit(module, state, what="efficientnet_lite0", origin=origin)
    return Classifier(module, _names(classes, rows, origin), LITE_INPUT)


def _linear(state: State) -> State:
    """`classifier.weight` as a matrix where it was saved as a 1×1 convolution."""
    weight = state.get("classifier.weight")
    return state if weight is None or weight.ndim == 2 else {**state, "classifier.weight": weight.flatten(1)}


def _no_head(head: str | None, arch: str, origin: str) -> None:
    if head is not None:
        raise ExportError(
            f"{origin}: --head is for SC-CAM's resnet38 checkpoints; {arch} has one linear layer"
        )


def _rows(state: State, key: str, default: int) -> int:
    """How many classes the linear layer scores; the default where it is absent (fitting then says so)."""
    return int(state[key].shape[0]) if key in state else default


def _names(classes: Sequence[str] | None, count: int, origin: str) -> tuple[str, ...]:
    if classes is not None:
        if len(classes) != count:
            raise ExportError(f"{origin}: scores {count} classes but {len(classes)} names are given")
        return tuple(classes)
    if count == len(VOC_CLASSES):
        return VOC_CLASSES
    if count == 10 * len(VOC_CLASSES):  # SC-CAM: ten sub-categories of each class, class by class
        return tuple(f"{name}/{i}" for name in VOC_CLASSES for i in range(10))
    raise ExportError(
        f"{origin}: scores {count} classes, which is not VOC's 20; give their names (--classes)"
    )


ARCHS: dict[str, Builder] = {
    "resnet38": _resnet38,
    "resnet50": _resnet50,
    "mobilenetv2": _mobilenetv2,
    "efficientnet_lite0": _efficientnet_lite0,
}

__all__ = ["ARCHS", "VOC_CLASSES", "Classifier", "export_arch", "load_arch"]
