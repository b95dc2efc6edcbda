"""Heads that are not linear, but exact with scalars of the image frozen: norms, activations, gates after the pooling.

What such a node makes is a factor that belongs to the image times what it reads: relu(z) = [z > 0] · z, a LayerNorm
is (z - mean) / deviation. With these factors taken from the pooled vector, once an image, the head is linear in the
pooled vector again, and so it has a response at every position (export/README.md). Here the head is read as a chain
of `FrozenStage`s; frozen.py writes it as a graph, gates.py the factors.

Every tensor of the head is one of two: `Linear` in what some stage made, or `Opaque`, which is only known by running
the classifier's own nodes and can be a factor of the former, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import NodeProto

from infercam.export.graph.gates import at_zero, has_gate
from infercam.export.graph.index import Graph
from infercam.export.graph.linear import Linear, NotAffine, pooled
from infercam.export.graph.rules import RULES, Call, applied, per_channel
from infercam.export.graph.stages import FrozenStage, Kind

NORMS = (
    "LayerNormalization",
    "RMSNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LpNormalization",
)


@dataclass(frozen=True)
class Opaque:
    """A tensor that is not affine in anything; `node` is the first that made it so, `why` says how."""

    node: NodeProto
    why: str


class Freezer:
    """Applies nodes one after the other, making a stage of what is not affine but can be frozen.

    `centring`: `x - mean(x)` over the values of one vector is a stage as well, as a norm's own subtraction is; in a
    head without any other stage it is an affine map of each position.
    """

    def __init__(self, graph: Graph, *, centring: bool) -> None:
        self._graph = graph
        self._centring = centring
        self.stages: list[FrozenStage] = []

    def chain(self, last: Linear) -> list[FrozenStage]:
        """The stages that `last` depends on, the first one first."""
        found: list[FrozenStage] = []
        basis = last.basis
        while basis:
            found.append(self.stages[basis - 1])
            basis = found[-1].z.basis
        return found[::-1]

    def applied(self, node: NodeProto, call: Call, opaque: Sequence[Opaque]) -> list[Linear | Opaque]:
        """The outputs of a node; its `opaque` inputs are None in `call`. Raises Unfit."""
        why = "is not linear"
        if self._centring and not opaque and self._centres(node, call):
            return [self._added(node, "centre", call.inputs[0], 0)]
        if not opaque and node.op_type in RULES:
            try:
                return [*applied(call)]
            except NotAffine as e:
                why = str(e)
        try:
            first = self._frozen(node, call, opaque)
        except NotAffine:  # a norm or activation whose own weights depend on the picture
            first = None
        rest = opaque[0] if opaque else Opaque(node, why)
        return [rest if first is None else first, *[rest] * (len(node.output) - 1)]

    # --- what can be frozen ------------------------------------------------------------------------------

    def _frozen(self, node: NodeProto, call: Call, opaque: Sequence[Opaque]) -> Linear | None:
        if node.op_type in ("Mul", "Div"):
            return self._product(node, call)
        if opaque:
            return None
        if node.op_type in NORMS:
            return self._norm(node, call)
        return self._activation(node, call) if has_gate(node.op_type) else None

    def _added(self, node: NodeProto, kind: Kind, z: object, position: int, groups: int = 1) -> Linear:
        assert isinstance(z, Linear)
        self.stages.append(FrozenStage(node, kind, z, position, groups))
        return pooled(z.size, 0, z.shape, basis=len(self.stages))

    def _centres(self, node: NodeProto, call: Call) -> bool:
        """Whether a node subtracts from a vector its own mean."""
        if node.op_type != "Sub" or not all(isinstance(x, Linear) for x in call.inputs):
            return False
        x, mean = (x for x in call.inputs if isinstance(x, Linear))
        maker = self._graph.producer.get(node.input[1])
        own = maker is not None and maker.op_type == "ReduceMean" and maker.input[0] == node.input[0]
        return own and x.shape[0] == 1 and mean.size < x.size

    def _product(self, node: NodeProto, call: Call) -> Linear | None:
        """A tensor times, or through, another one: the one that was affine earlier is, the other is frozen."""
        linear = [(x.basis, i, x) for i, x in enumerate(call.inputs) if isinstance(x, Linear)]
        if node.op_type == "Div":
            linear = [x for x in linear if x[1] == 0]
        elif len(linear) == 2 and linear[0][0] == linear[1][0]:
            return None  # x * x: neither is the factor of the other
        if not linear or len(call.inputs) != 2:
            return None
        _, position, z = min(linear, key=lambda x: x[:2])
        if not self._keeps_shape(node, z):
            return None
        return self._added(node, "divisor" if node.op_type == "Div" else "factor", z, position)

    def _keeps_shape(self, node: NodeProto, z: Linear) -> bool:
        """Whether a product is as large as that factor, as far as shapes are known."""
        shape = self._graph.shape(node.output[0])
        sizes = [d for d in (shape or ())[1:] if isinstance(d, int)]
        known = shape is not None and len(sizes) == len(shape) - 1
        return bool(z.shape) and z.shape[0] == 1 and (not known or prod(sizes) == z.size)

    def _activation(self, node: NodeProto, call: Call) -> Linear | None:
        linear = call.linears()
        if len(linear) != 1 or (node.op_type not in ("Max", "Min") and linear[0][0] != 0):
            return None
        position, z = linear[0]
        if not z.shape or z.shape[0] != 1:
            return None
        constants = [None if isinstance(x, Linear) else x for x in call.inputs]
        value = at_zero(node.op_type, call.at, constants)
        if np.broadcast_shapes(z.shape, np.shape(value)) != z.shape:
            return None
        out = self._added(node, "activation", z, position)
        return out.shifted(np.asarray(value, np.float64)) if np.any(value) else out

    def _norm(self, node: NodeProto, call: Call) -> Linear | None:
        z = call.linear()
        groups = _groups(node.op_type, call, z) if z.shape and z.shape[0] == 1 else None
        if not groups or z.size <= groups or z.size % groups:
            return None
        out = self._added(node, "norm", z, 0, groups)
        scale, shift = call.number(1), call.number(2)
        if node.op_type not in ("LayerNormalization", "RMSNormalization"):
            scale, shift = (None if v is None else _along_channels(v, z) for v in (scale, shift))
        out = out if scale is None else out.scaled(scale)
        out = out if shift is None else out.shifted(shift)
        return out if out.shape == z.shape else None


def _groups(op: str, call: Call, z: Linear) -> int | None:
    """How many runs of neighbouring values a norm normalises, each on its own; None where it is none of those."""
    rank = len(z.shape)
    axis = int(call.at.get("axis", -1)) % rank
    if op in ("LayerNormalization", "RMSNormalization"):
        return prod(z.shape[:axis])
    if op == "LpNormalization":
        return 1 if z.shape[axis] == z.size and int(call.at.get("p", 2)) in (1, 2) else None
    if rank < 2:
        return None
    return z.shape[1] if op == "InstanceNormalization" else int(call.at.get("num_groups", 0)) or None


def _along_channels(value: np.ndarray, like: Linear) -> np.ndarray:
    """A scale or shift of each channel, or of each group of channels (GroupNormalization before opset 21)."""
    channels = like.shape[1]
    if value.size != channels and value.size and channels % value.size == 0:
        value = np.repeat(value.ravel(), channels // value.size)
    return per_channel(value, like)
