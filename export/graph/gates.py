"""The factors of frozen stages as ONNX nodes: φ(z)/z of activations, 1/deviation of norms, gates that a head has.

`gate_of` takes what it needs from the classifier's own tensors, which are vectors (one an image), so that its cost
does not depend on the picture's size. Where φ(0) is not 0 it becomes a shift (`at_zero`), and the gate is
(φ(z) - φ(0)) / z; near z = 0, where that loses its digits, the first two terms of its series stand in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from infercam.export.graph.building import NodeBuilder
from infercam.export.graph.index import attributes
from infercam.export.graph.stages import FrozenStage

_REACH = 1e-3
"""Below it the series is used: its third term is below float32's digits, and above it the division has four."""
_TINY = 1e-20
"""Stands for 0 where φ(z)/z has all its digits however small z is."""


@dataclass(frozen=True)
class Near:
    """φ about 0: φ(z) = value + z (slope + curve z) to the right; `left` the same two numbers for z < 0."""

    value: Any = 0.0
    slope: float = 0.0
    curve: float = 0.0
    left: tuple[float, float] | None = None
    reach: float = _REACH


class Maths:
    """Formulas as nodes: tensors by name, numbers and arrays as constants."""

    def __init__(self, build: NodeBuilder) -> None:
        self.build = build
        self._numbers: dict[int, tuple[object, str]] = {}

    def __call__(self, op: str, *inputs: str | float | np.ndarray, **at: Any) -> str:
        names = [x if isinstance(x, str) else self.number(x) for x in inputs]
        return self.build.node(op, names, self.build.tensor("frozen"), **at)

    def number(self, value: float | np.ndarray) -> str:
        """A constant; an array that is given twice is one."""
        if id(value) not in self._numbers:
            name = self.build.constant(np.asarray(value, np.float32), "frozen.c")
            self._numbers[id(value)] = (value, name)  # kept, so that no other gets its id
        return self._numbers[id(value)][1]

    def reshaped(self, x: str, *shape: int) -> str:
        return self("Reshape", x, self.build.constant(np.array(shape, np.int64), "frozen.shape"))

    def reduced(self, op: str, x: str) -> str:
        """Over the last of three axes, which stays."""
        if self.build.opset < (18 if op != "ReduceSum" else 13):
            return self(op, x, axes=[2], keepdims=1)
        return self(op, x, self.build.constant(np.array([2], np.int64), "frozen.axes"), keepdims=1)

    def where(self, op: str, x: str, bound: float) -> str:
        """1.0 where a comparison holds, else 0.0."""
        return self("Cast", self(op, x, bound), to=TensorProto.FLOAT)


def gate_of(maths: Maths, stage: FrozenStage) -> tuple[str | None, str | None]:
    """Gate and centre of a stage, each float32 (N, n, 1), n the values of `stage.z`; None: 1 and 0."""
    if stage.kind == "norm":
        return _of_norm(maths, stage)
    other = stage.node.input[1 - stage.position] if stage.kind != "activation" else ""
    if stage.kind == "centre":
        return None, _flat(maths, stage, other)
    if stage.kind == "divisor":
        other = maths("Reciprocal", other)
    gate = _of_activation(maths, stage) if stage.kind == "activation" else other
    return _flat(maths, stage, gate), None


def _flat(maths: Maths, stage: FrozenStage, x: str) -> str:
    """What broadcasts against the stage's own tensor, one value for each of its elements."""
    full = maths("Mul", x, np.ones(stage.z.shape))
    return maths.reshaped(full, -1, stage.z.size, 1)


# --- norms -----------------------------------------------------------------------------------------------


def _of_norm(maths: Maths, stage: FrozenStage) -> tuple[str, str | None]:
    op, at = stage.node.op_type, attributes(stage.node)
    size, groups = stage.z.size, stage.groups
    ones = np.ones((1, 1, size // groups))
    x = maths.reshaped(stage.tensor, -1, groups, size // groups)
    if op == "LpNormalization":
        one = int(at.get("p", 2)) == 1
        length = maths.reduced("ReduceSum", maths("Abs", x)) if one else _length(maths, x)
        gate, centre = maths("Reciprocal", maths("Add", length, _TINY)), None
    else:
        mean = None if op == "RMSNormalization" else maths.reduced("ReduceMean", x)
        apart = x if mean is None else maths("Sub", x, mean)
        variance = maths.reduced("ReduceMean", maths("Mul", apart, apart))
        deviation = maths("Sqrt", maths("Add", variance, float(at.get("epsilon", 1e-5))))
        gate = maths("Reciprocal", deviation)
        centre = None if mean is None else maths.reshaped(maths("Mul", mean, ones), -1, size, 1)
    return maths.reshaped(maths("Mul", gate, ones), -1, size, 1), centre


def _length(maths: Maths, x: str) -> str:
    return maths("Sqrt", maths.reduced("ReduceSum", maths("Mul", x, x)))


# --- activations -----------------------------------------------------------------------------------------


def has_gate(op: str) -> bool:
    """Whether an operator is an activation that is known here."""
    return op in _NATURAL or op in _NEAR


def at_zero(op: str, at: Mapping[str, Any], constants: Sequence[np.ndarray | None]) -> np.ndarray | float:
    """φ(0) of an activation; `constants` are the node's inputs (None: the one that depends on the picture)."""
    return 0.0 if op in _NATURAL else _NEAR[op](at, constants).value


def _of_activation(maths: Maths, stage: FrozenStage) -> str:
    node, at = stage.node, attributes(stage.node)
    if node.op_type in _NATURAL:
        return _NATURAL[node.op_type](maths, stage.tensor, at, list(node.input[1:]))
    constants = [
        maths.build.graph_constant(i) if k != stage.position else None for k, i in enumerate(node.input)
    ]
    return _divided(maths, stage.tensor, node.output[0], _NEAR[node.op_type](at, constants))


def _divided(maths: Maths, z: str, value: str, near: Near) -> str:
    """(φ(z) - φ(0)) / z, and the series where z is nearly 0; made without Where, which old operator sets lack."""
    close = maths.where("Less", maths("Abs", z), near.reach)
    far = maths("Sub", 1.0, close)
    safe = maths("Add", maths("Mul", z, far), close)
    above = maths("Sub", value, near.value) if np.any(near.value) else value
    gate = maths("Div", maths("Mul", above, far), safe)
    series = _series(maths, z, near.slope, near.curve)
    if near.left is not None:
        right = maths.where("Greater", z, 0.0)
        left = maths("Mul", _series(maths, z, *near.left), maths("Sub", 1.0, right))
        series = maths("Add", maths("Mul", series, right), left)
    return maths("Add", gate, maths("Mul", close, series))


def _series(maths: Maths, z: str, slope: float, curve: float) -> str:
    return maths("Add", maths("Mul", z, curve), slope)


def _step(low: float, high: float = 1.0, at: float = 0.0) -> Callable[[Maths, str], str]:
    """`high` above `at`, else `low`."""

    def gate(maths: Maths, z: str) -> str:
        above = maths.where("Greater", z, at)
        return above if (low, high) == (0.0, 1.0) else maths("Add", maths("Mul", above, high - low), low)

    return gate


def _prelu(maths: Maths, z: str, at: Mapping[str, Any], more: Sequence[str]) -> str:
    above = maths.where("Greater", z, 0.0)
    return maths("Add", above, maths("Mul", maths("Sub", 1.0, above), more[0]))


def _gelu(maths: Maths, z: str, at: Mapping[str, Any], more: Sequence[str]) -> str:
    if at.get("approximate", "none") == "tanh":
        cubic = maths("Mul", maths("Add", maths("Mul", maths("Mul", z, z), 0.044715), 1.0), z)
        bent = maths("Tanh", maths("Mul", cubic, float(np.sqrt(2 / np.pi))))
    else:
        bent = maths("Erf", maths("Mul", z, float(np.sqrt(0.5))))
    return maths("Mul", maths("Add", bent, 1.0), 0.5)


_Gate = Callable[[Maths, str, Mapping[str, Any], Sequence[str]], str]
_NATURAL: dict[str, _Gate] = {
    "Relu": lambda m, z, at, more: _step(0.0)(m, z),
    "LeakyRelu": lambda m, z, at, more: _step(float(at.get("alpha", 0.01)))(m, z),
    "ThresholdedRelu": lambda m, z, at, more: _step(0.0, at=float(at.get("alpha", 1.0)))(m, z),
    "Abs": lambda m, z, at, more: _step(-1.0)(m, z),
    "PRelu": _prelu,
    "HardSwish": lambda m, z, at, more: m("HardSigmoid", z, alpha=1 / 6, beta=0.5),
    "Swish": lambda m, z, at, more: m("Sigmoid", m("Mul", z, float(at.get("alpha", 1.0)))),
    "Mish": lambda m, z, at, more: m("Tanh", m("Softplus", z)),
    "Softsign": lambda m, z, at, more: m("Reciprocal", m("Add", m("Abs", z), 1.0)),
    "Gelu": _gelu,
}
"""Activations of which φ(z)/z has a formula of its own; φ(0) is 0."""


def _clip(at: Mapping[str, Any], constants: Sequence[np.ndarray | None]) -> Near:
    low, high = (
        (float(v) if v is not None else default)
        for v, default in (
            (_bound(at, constants, "min", 1), -np.inf),
            (_bound(at, constants, "max", 2), np.inf),
        )
    )
    return Near(float(min(max(0.0, low), high)), reach=_TINY)


def _bound(at: Mapping[str, Any], constants: Sequence[np.ndarray | None], name: str, position: int) -> Any:
    if name in at:
        return at[name]
    value = constants[position] if len(constants) > position else None
    return None if value is None else np.asarray(value).ravel()[0]


def _extreme(choose: Callable[..., np.ndarray]) -> _Expansion:
    """Of Max and Min with constants."""

    def near(at: Mapping[str, Any], constants: Sequence[np.ndarray | None]) -> Near:
        value = np.zeros(())
        for c in constants:
            value = value if c is None else choose(value, c)
        return Near(value, reach=_TINY)

    return near


def _elu(scale: float, alpha: float, stretch: float = 1.0) -> Near:
    """scale * alpha * (exp(z / stretch) - 1) to the left, scale * z to the right."""
    slope = scale * alpha / stretch
    return Near(0.0, scale, 0.0, (slope, slope / (2 * stretch)))


def _hard_sigmoid(at: Mapping[str, Any], constants: Sequence[np.ndarray | None]) -> Near:
    alpha, beta = float(at.get("alpha", 0.2)), float(at.get("beta", 0.5))
    room = min(beta, 1 - beta) / max(abs(alpha), _TINY)
    if room <= 0:
        return Near(min(max(beta, 0.0), 1.0), reach=_TINY)
    return Near(beta, alpha, reach=min(_REACH, room))


_Expansion = Callable[[Mapping[str, Any], Sequence[np.ndarray | None]], Near]
_NEAR: dict[str, _Expansion] = {
    "Clip": _clip,
    "Max": _extreme(np.maximum),
    "Min": _extreme(np.minimum),
    "Elu": lambda at, c: _elu(1.0, float(at.get("alpha", 1.0))),
    "Selu": lambda at, c: _elu(
        float(at.get("gamma", 1.0507009873554805)), float(at.get("alpha", 1.6732632423543772))
    ),
    "Celu": lambda at, c: _elu(1.0, float(at.get("alpha", 1.0)), float(at.get("alpha", 1.0))),
    "Sigmoid": lambda at, c: Near(0.5, 0.25),
    "HardSigmoid": _hard_sigmoid,
    "Tanh": lambda at, c: Near(0.0, 1.0),
    "Erf": lambda at, c: Near(0.0, 2 / float(np.sqrt(np.pi))),
    "Softplus": lambda at, c: Near(float(np.log(2)), 0.5, 0.125),
}
"""Activations whose value is divided by z."""
