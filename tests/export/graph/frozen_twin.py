"""Heads with norms and activations after the pooling: as ONNX nodes, and their maps in float64 NumPy.

The twin follows the definition alone: every norm's mean and deviation, and every activation's factor, from the pooled
vector of the image; what a bias becomes is kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, sqrt

import numpy as np

EPS = 1e-5


@dataclass
class Layer:
    """`kind`: linear, a norm or an activation; `how`: one operator (op) or primitives (written)."""

    kind: str
    how: str = "op"
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


FUNCTIONS = {
    "relu": lambda z: np.maximum(z, 0),
    "relu6": lambda z: np.clip(z, 0, 6),
    "clip": lambda z: np.clip(z, 0.25, 1.0),
    "leaky": lambda z: np.where(z > 0, z, 0.1 * z),
    "prelu": lambda z: np.where(z > 0, z, 0.3 * z),
    "hard_swish": lambda z: z * np.clip(z / 6 + 0.5, 0, 1),
    "hard_sigmoid": lambda z: np.clip(0.2 * z + 0.5, 0, 1),
    "gelu": lambda z: z * (1 + np.vectorize(erf)(z / sqrt(2))) / 2,
    "gelu_tanh": lambda z: z * (1 + np.tanh(sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2,
    "silu": lambda z: z * sigmoid(z),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "selu": lambda z: (
        1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(np.minimum(z, 0)))
    ),
    "celu": lambda z: np.where(z > 0, z, 0.5 * np.expm1(np.minimum(z, 0) / 0.5)),
    "softplus": lambda z: np.logaddexp(z, 0),
    "softsign": lambda z: z / (1 + np.abs(z)),
    "mish": lambda z: z * np.tanh(np.logaddexp(z, 0)),
    "maximum": lambda z: np.maximum(z, -0.5),
}
NORMS = ("layer_norm", "rms_norm", "l2_norm")


def gate(kind: str, z: np.ndarray) -> tuple[np.ndarray, float]:
    """(φ(z) - φ(0)) / z, its limit at 0, and φ(0)."""
    f = FUNCTIONS[kind]
    zero = float(f(np.zeros(1))[0])
    near = np.abs(z) < 1e-9
    moved = np.where(near, 1e-6, z)
    return (f(moved) - zero) / moved, zero


def maps(features: np.ndarray, layers: list[Layer]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores N×C, response N×C×h×w and bias N×C of features N×K×h×w."""
    response = features.astype(np.float64)
    value = response.mean((2, 3))
    bias = np.zeros_like(value)
    for layer in layers:
        if layer.kind == "linear":
            w, b = layer.weight.astype(np.float64), layer.bias.astype(np.float64)
            response = np.einsum("ck,nkhw->nchw", w, response)
            value, bias = value @ w.T + b, bias @ w.T + b
        elif layer.kind in NORMS:
            centre = value.mean(1, keepdims=True) if layer.kind == "layer_norm" else np.zeros((len(value), 1))
            apart = value - centre
            if layer.kind == "l2_norm":
                factor = 1 / np.sqrt((apart**2).sum(1, keepdims=True))
            else:
                factor = 1 / np.sqrt((apart**2).mean(1, keepdims=True) + EPS)
            g, b = (1.0, 0.0) if layer.weight is None else (layer.weight.astype(np.float64), layer.bias)
            response = (response - centre[:, :, None, None]) * (factor * g)[:, :, None, None]
            value, bias = apart * factor * g + b, bias * factor * g + b
        else:
            factor, zero = gate(layer.kind, value)
            response, bias = response * factor[:, :, None, None], bias * factor + zero
            value = FUNCTIONS[layer.kind](value)
    return value, response, bias


# --- the same as nodes -----------------------------------------------------------------------------------


def head(t, y: str, layers: list[Layer], convolved: bool) -> str:
    """Nodes of a `Toy` on a pooled vector: (N, K), or (N, K, 1, 1) where `convolved`."""
    for layer in layers:
        if layer.kind == "linear":
            y = _linear(t, y, layer, convolved)
        elif layer.kind in NORMS:
            y = _norm(t, y, layer, convolved)
        else:
            y = activation(t, y, layer.kind, layer.how)
    return t.node("Flatten", y) if convolved else y


def _linear(t, y, layer, convolved):
    w, b = layer.weight, layer.bias
    if convolved:
        return t.node("Conv", y, t.const(w[:, :, None, None]), t.const(b))
    if layer.how == "op":
        return t.node("Gemm", y, t.const(w), t.const(b), transB=1)
    return t.node("Add", t.node("MatMul", y, t.const(w.T.copy())), t.const(b))


def _mean(t, y, op="ReduceMean"):
    if t.opset >= (18 if op == "ReduceMean" else 13):
        return t.node(op, y, t.const(np.array([1])), keepdims=1)
    return t.node(op, y, axes=[1], keepdims=1)


def _norm(t, y, layer, convolved):
    shape = (1, -1, 1, 1) if convolved else (1, -1)
    if layer.kind == "l2_norm":
        if layer.how == "op":
            return t.node("LpNormalization", y, axis=1, p=2)
        length = t.node("Sqrt", _mean(t, t.node("Mul", y, y), "ReduceSum"))
        return t.node("Div", y, length)
    if layer.kind == "layer_norm" and layer.how == "op" and t.opset >= 17:
        g, b = t.const(layer.weight), t.const(layer.bias)
        if not convolved:
            return t.node("LayerNormalization", y, g, b, epsilon=EPS)
        y = t.node("Transpose", y, perm=[0, 2, 3, 1])
        y = t.node("LayerNormalization", y, g, b, epsilon=EPS)
        return t.node("Transpose", y, perm=[0, 3, 1, 2])
    d = t.node("Sub", y, _mean(t, y)) if layer.kind == "layer_norm" else y
    square = t.node("Mul", d, d)
    root = t.node("Sqrt", t.node("Add", _mean(t, square), t.const(np.float32(EPS))))
    if layer.kind == "layer_norm":
        y = t.node("Div", d, root)
    else:
        y = t.node("Mul", d, t.node("Reciprocal", root))
    y = t.node("Mul", y, t.const(layer.weight.reshape(shape)))
    return t.node("Add", y, t.const(layer.bias.reshape(shape)))


def activation(t, y, kind, how="op"):
    """One activation, as its operator where the opset has it and `how` wants it, else as exporters write it out."""

    def number(v):
        return t.const(np.float32(v))

    def over(op, *more, **at):
        return t.node(op, y, *more, **at)

    ops = {
        "relu": lambda: over("Relu"),
        "relu6": lambda: over("Clip", number(0), number(6)),
        "clip": lambda: over("Clip", number(0.25), number(1)),
        "leaky": lambda: over("LeakyRelu", alpha=0.1),
        "prelu": lambda: over("PRelu", t.const(np.full((1,), 0.3, np.float32))),
        "hard_sigmoid": lambda: over("HardSigmoid"),
        "sigmoid": lambda: over("Sigmoid"),
        "tanh": lambda: over("Tanh"),
        "elu": lambda: over("Elu"),
        "selu": lambda: over("Selu"),
        "celu": lambda: over("Celu", alpha=0.5),
        "softplus": lambda: over("Softplus"),
        "softsign": lambda: over("Softsign"),
        "maximum": lambda: over("Max", number(-0.5)),
    }
    if kind in ops:
        return ops[kind]()
    if how == "op" and kind == "hard_swish" and t.opset >= 14:
        return over("HardSwish")
    if how == "op" and kind in ("gelu", "gelu_tanh") and t.opset >= 20:
        return over("Gelu", approximate="tanh" if kind == "gelu_tanh" else "none")
    if kind == "hard_swish":
        return over(
            "Mul", t.node("Div", t.node("Clip", over("Add", number(3)), number(0), number(6)), number(6))
        )
    if kind == "gelu":
        e = t.node("Add", t.node("Erf", over("Div", number(2**0.5))), number(1))
        return t.node("Mul", over("Mul", e), number(0.5))
    if kind == "gelu_tanh":
        cube = t.node("Mul", over("Pow", number(3)), number(0.044715))
        e = t.node("Tanh", t.node("Mul", over("Add", cube), number(sqrt(2 / np.pi))))
        return t.node("Mul", over("Mul", number(0.5)), t.node("Add", e, number(1)))
    if kind == "mish":
        return over("Mul", t.node("Tanh", over("Softplus")))
    return over("Mul", over("Sigmoid"))  # silu


def layers_of(rng, kinds, channels, hidden, classes, how="op"):
    """A head: `kinds` of norms and activations, "linear" for a hidden layer, and a linear layer at the end."""
    found, width = [], channels
    for kind in [*kinds, "last"]:
        if kind in ("linear", "last"):
            out = hidden if kind == "linear" else classes
            w = rng.normal(0, 1 / np.sqrt(width), (out, width)).astype(np.float32)
            found.append(Layer("linear", how, w, rng.normal(0, 0.5, out).astype(np.float32)))
            width = out
        elif kind in ("layer_norm", "rms_norm"):
            g, b = (rng.normal(s, 0.5, width).astype(np.float32) for s in (1, 0))
            found.append(Layer(kind, how, g, b))
        else:
            found.append(Layer(kind, how))
    return found


def toy_of(toys, layers, *, channels, convolved=False, opset=20, shape=("N", 3, "H", "W")):
    t = toys.Toy(shape=shape, opset=opset)
    y = t.node("GlobalAveragePool", t.features(channels=channels))
    return t.model(head(t, y if convolved else t.node("Flatten", y), layers, convolved))
