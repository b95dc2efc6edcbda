"""Batch norms of a frozen network: folded into the layer before, or one scale and one shift.

In inference a batch norm is a·x + c per channel, with a = scale / sqrt(variance + epsilon) and c = shift - a·mean.
After a layer with weights that nothing else reads, a goes into the weight and c into the bias, exactly but for
rounding: sums are in float64 and rounded once, to the weight's own type. Where that cannot be (before a convolution,
as in a pre-activation ResNet; a layer with other readers) the batch norm becomes a plain scale and shift: still a
BatchNormalization, of mean 0 and variance 1, because this is the scale and shift that runtimes fuse with the ReLU
behind it; a Mul and an Add cost passes of their own (export/README.md). In half precision two numbers are then
rounded, not four.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper

from infercam.export.graph.building import NodeBuilder
from infercam.export.graph.index import Graph, attributes, label, used_by
from infercam.export.graph.passes import tidy

_EPSILON = 1e-5  # ONNX's default
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class _Affine:
    """a·x + c per channel, float64 (C,)."""

    scale: np.ndarray
    shift: np.ndarray


def fold_batch_norms(model: ModelProto) -> list[str]:
    """Fold what can be folded and make a scale and shift of the rest, in place; notes of what was done.

    A batch norm in training mode, or whose parameters are computed, stays as it is, with a note.
    """
    folder = _Folder(model)
    folded = shifted = 0
    notes = []
    for node in [n for n in model.graph.node if n.op_type == "BatchNormalization"]:
        affine = folder.affine(node)
        if isinstance(affine, str):
            notes.append(f"{label(node)} is left as it is: {affine}")
        elif folder.fold(node, affine):
            folded += 1
        else:
            folder.make_shift(node, affine)
            shifted += 1
    parts = [f"{folded} folded into the layer before"] if folded else []
    parts += [f"{shifted} made a scale and a shift"] if shifted else []
    if not parts:
        return notes
    tidy(model)
    return [f"batch norms: {', '.join(parts)}", *notes]


class _Folder:
    def __init__(self, model: ModelProto) -> None:
        self.build = NodeBuilder(model)
        self.graph = Graph(model)
        self.readers = Counter(name for n in model.graph.node for name in used_by(n))
        self.readers.update(o.name for o in model.graph.output)
        self.shared: dict[tuple[float, int, np.dtype], str] = {}

    def affine(self, node: NodeProto) -> _Affine | str:
        """What a batch norm does, or why that is not known."""
        at = attributes(node)
        if at.get("training_mode", 0) or any(node.output[1:]):
            return "it is in training mode; export the classifier in evaluation mode"
        if not at.get("spatial", 1):
            return "it has parameters for every position"
        found = [self.graph.constant(i) for i in node.input[1:]]
        values = [v for v in found if v is not None and v.ndim == 1]
        if len(values) != 4 or len({v.size for v in values}) > 1:
            return "its parameters are no constants"
        scale, shift, mean, variance = (v.astype(np.float64) for v in values)
        with np.errstate(all="ignore"):
            factor = scale / np.sqrt(variance + at.get("epsilon", _EPSILON))
            affine = _Affine(factor, shift - factor * mean)
            rounded = [v.astype(values[0].dtype) for v in (affine.scale, affine.shift)]
        return affine if all(np.isfinite(v).all() for v in rounded) else "its parameters are not finite"

    def fold(self, norm: NodeProto, affine: _Affine) -> bool:
        """Put the batch norm into the layer before; False, and nothing is changed, where that is not exact."""
        layer = self.graph.producer.get(norm.input[0])
        if layer is None or layer.op_type not in _LAYERS or self.readers[norm.input[0]] > 1:
            return False
        weight = self.graph.constant(layer.input[1])
        bias = self._bias(layer, len(affine.scale))
        if weight is None or bias is None:
            return False
        factors = self._factors(layer, weight, affine.scale)
        if factors is None:
            return False
        with np.errstate(over="ignore"):
            values = [weight.astype(np.float64) * factors, bias * affine.scale + affine.shift]
            rounded = [v.astype(weight.dtype) for v in values]
        if not all(np.isfinite(v).all() for v in rounded):
            return False
        base = layer.input[1]
        names = [
            self.build.constant(v, f"{base}.{what}")
            for v, what in zip(rounded, ("folded", "shift"), strict=True)
        ]
        self._replace(layer, norm, names)
        return True

    def _bias(self, layer: NodeProto, channels: int) -> np.ndarray | None:
        """What the layer adds, float64 (C,); None where that is not known or not the same for all rows."""
        if len(layer.input) < 3 or not layer.input[2]:
            return np.zeros(channels)
        value = self.graph.constant(layer.input[2])
        if value is None or value.size not in (1, channels) or value.size != (value.shape or (1,))[-1]:
            return None
        beta = attributes(layer).get("beta", 1.0) if layer.op_type == "Gemm" else 1.0
        return np.broadcast_to(beta * value.ravel().astype(np.float64), (channels,))

    def _factors(self, layer: NodeProto, weight: np.ndarray, scale: np.ndarray) -> np.ndarray | None:
        """`scale` as it multiplies the weight; None where the layer's channels are not the batch norm's."""
        at = attributes(layer)
        if layer.op_type == "Conv":
            return scale.reshape(-1, *[1] * (weight.ndim - 1)) if len(weight) == len(scale) else None
        if layer.op_type == "ConvTranspose":  # (input channels, outputs of a group, …)
            group = at.get("group", 1)
            if group * weight.shape[1] != len(scale) or len(weight) % group:
                return None
            rows = np.repeat(scale.reshape(group, -1), len(weight) // group, axis=0)
            return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))
        if weight.ndim != 2 or (layer.op_type == "MatMul" and self.graph.rank(layer.input[0]) != 2):
            return (
                None  # of a batch norm's input the second axis is the channel, of a matrix's product the last
            )
        factors = scale[:, None] if at.get("transB", 0) else scale[None]
        return factors if weight.shape[0 if at.get("transB", 0) else 1] == len(scale) else None

    def _replace(self, layer: NodeProto, norm: NodeProto, constants: list[str]) -> None:
        """The layer with other constants makes what the batch norm made."""
        inputs = [layer.input[0], *constants]
        del layer.input[:]
        layer.input.extend(inputs)
        if layer.op_type == "MatMul":
            layer.op_type = "Gemm"
        for attribute in [a for a in layer.attribute if a.name == "beta"]:
            layer.attribute.remove(attribute)  # the bias has it already
        layer.output[0] = norm.output[0]
        self.graph.producer[norm.output[0]] = layer  # the next batch norm may go into it too
        self.graph.initializers.update({t.name: t for t in self.build.model.graph.initializer[-2:]})
        self.build.model.graph.node.remove(norm)

    def make_shift(self, norm: NodeProto, affine: _Affine) -> None:
        """A batch norm of mean 0 and variance 1 that does the same."""
        value = self.graph.constant(norm.input[1])
        assert value is not None
        epsilon = attributes(norm).get("epsilon", _EPSILON)
        own = [(affine.scale * np.sqrt(1 + epsilon), "scale"), (affine.shift, "shift")]
        names = [self.build.constant(v.astype(value.dtype), f"{norm.input[1]}.{what}") for v, what in own]
        names += [self._filled(v, value) for v in (0.0, 1.0)]
        inputs = [norm.input[0], *names]
        norm.CopyFrom(
            helper.make_node(norm.op_type, inputs, norm.output[:1], name=norm.name, epsilon=epsilon)
        )

    def _filled(self, number: float, like: np.ndarray) -> str:
        """A constant vector, one for all batch norms of that many channels."""
        key = (number, like.size, like.dtype)
        if key not in self.shared:
            self.shared[key] = self.build.constant(np.full(like.shape, number, like.dtype), "norm.constant")
        return self.shared[key]
