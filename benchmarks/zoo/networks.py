"""The libraries' networks with random weights; what is zero or one by default is drawn too, or much is not tested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infercam.benchmarks.zoo.families import Member

if TYPE_CHECKING:
    from torch import nn

OPSET = 18
ONE_SIZE = ", one size"
"""After the name of a way: the batch alone is free."""


@dataclass(frozen=True)
class Specimen:
    """A network as its library has it: `logits` of float32 (N, 3, H, W); `save` writes it as ONNX in a way."""

    classes: int
    logits: Callable[[np.ndarray], np.ndarray]
    save: Callable[[Path, str, int], None]
    module: Any = None
    pixels: float = 1.0
    """How large the pictures' values are: 255 where the network itself brings them to 0..1."""


def build(member: Member) -> Specimen:
    """The network of a library, in evaluation mode; raises whatever the library raises."""
    if member.library == "keras":
        return _keras(member)
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    make = _torchvision if member.library == "torchvision" else _timm
    module = make(member.name)
    randomise(module)
    settle(module, member.size)

    def logits(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = module(torch.from_numpy(x)).numpy()
        return found

    return Specimen(_classes(module, member.size), logits, _saver(module), module)


def _torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model

    more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    module: nn.Module = get_model(name, weights=None, **more)
    return module


def _timm(name: str) -> nn.Module:
    import timm

    module: nn.Module = timm.create_model(name, pretrained=False)
    return module


def _classes(module: nn.Module, size: int) -> int:
    import torch

    with torch.no_grad():
        return int(module(torch.zeros(2, 3, size, size)).shape[1])


def randomise(module: nn.Module) -> None:
    """Draw what an initialisation leaves constant: normalisations' statistics and factors, biases, layer scales, and
    heads that begin with zeros."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, value in module.named_buffers():
            if name.endswith("running_mean"):
                value.add_(noise(value), alpha=0.1)
            elif name.endswith("running_var"):
                value *= (0.2 * noise(value)).exp()
        for _, value in module.named_parameters():
            if float(value.abs().max()) < 1e-3 and value.ndim == 1 and bool((value != 0).any()):
                value.copy_(0.2 + 0.05 * noise(value))  # a layer scale
            elif bool((value == value.flatten()[0]).all()):
                value.add_(noise(value), alpha=0.05)


def settle(module: nn.Module, size: int) -> None:
    """Give normalisations over batches the statistics of noise, as training does: with others the signal dies in a
    deep network, or grows without bounds. In evaluation mode afterwards."""
    import torch

    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    module.eval()
    for norm in norms:
        norm.training = True
    with torch.no_grad():
        module(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)))
    module.eval()


def _saver(module: nn.Module) -> Callable[[Path, str, int], None]:
    def save(file: Path, way: str, size: int) -> None:
        import torch

        example = torch.randn(2, 3, size, size)
        axes = {0: "N"} if way.endswith(ONE_SIZE) else {0: "N", 2: "H", 3: "W"}
        more: dict[str, Any] = (
            {"dynamo": True, "dynamic_shapes": (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)}
            if way.startswith("dynamo")
            else {"dynamo": False, "dynamic_axes": {"image": axes, "scores": {0: "N"}}}
        )
        names: dict[str, Any] = {"input_names": ["image"], "output_names": ["scores"], "opset_version": OPSET}
        torch.backends.mha.set_fastpath_enabled(
            False
        )  # torchvision's ViT is traced through it, and then not written
        with torch.no_grad():
            torch.onnx.export(module, (example,), file, **names, **more)

    return save


def _keras(member: Member) -> Specimen:
    """Keras's own application; tf2onnx writes what it computes."""
    import keras
    import tensorflow as tf
    import tf2onnx

    keras.utils.set_random_seed(0)
    side: int | None = None
    try:
        model, pixels = _settled(keras, member, None)
    except (
        ValueError,
        tf.errors.InvalidArgumentError,
    ):  # NASNet's paddings are right for a size that it knows
        side = member.size
        model, pixels = _settled(keras, member, side)

    def logits(x: np.ndarray) -> np.ndarray:
        return np.asarray(model(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), training=False))

    def save(file: Path, way: str, size: int) -> None:
        signature = [tf.TensorSpec((None, side, side, 3), tf.float32, name="image")]
        function = tf.function(lambda image: model(image, training=False), input_signature=signature)
        tf2onnx.convert.from_function(function, signature, opset=OPSET, output_path=str(file))

    return Specimen(int(model.output_shape[-1]), logits, save, pixels=pixels)


def _settled(keras: Any, member: Member, side: int | None) -> tuple[Any, float]:
    """The application for pictures of one size or any, its constants drawn and its norms settled; `pixels` of it."""
    make = getattr(keras.applications, member.name)
    inputs = keras.Input((side, side, 3), name="image")
    model = make(weights=None, input_tensor=inputs, include_top=True, classifier_activation=None)
    own = any(isinstance(x, keras.layers.Rescaling | keras.layers.Normalization) for x in model.layers)
    pixels = 255.0 if own else 1.0
    rng = np.random.default_rng(0)
    model.set_weights(
        [w + 0.05 * rng.standard_normal(w.shape) if np.ptp(w) == 0 else w for w in model.get_weights()]
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
        if isinstance(layer, keras.layers.Normalization):  # tensors, of which tf2onnx would make inputs
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)
    noise = rng.standard_normal((4, member.size, member.size, 3), dtype=np.float32)
    model(np.float32(pixels) * noise, training=True)
    return model, pixels
