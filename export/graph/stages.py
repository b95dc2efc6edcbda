"""A stage of a head that is not linear (freeze.py finds them, gates.py and frozen.py write them)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnx import NodeProto

from infercam.export.graph.linear import Linear

Kind = Literal["activation", "norm", "factor", "divisor", "centre"]


@dataclass(frozen=True)
class FrozenStage:
    """`gate * (z - centre)`, elementwise: the vector in which what follows is affine.

    Gate and centre are made of the pooled vector (gates.py). `z` is affine in what the stage before makes; in the
    graph it is input `position` of `node`. `groups`: of a norm, how many runs of neighbours it normalises, each on
    its own.
    """

    node: NodeProto
    kind: Kind
    z: Linear
    position: int
    groups: int = 1

    @property
    def tensor(self) -> str:
        """The classifier's own tensor with the values of `z`, biases included, and its shape but for the batch."""
        return str(self.node.input[self.position])
