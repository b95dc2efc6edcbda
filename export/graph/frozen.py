"""Writing a head with frozen stages (freeze.py) as a response graph, gradient-free, in plain ONNX nodes.

Of each stage, `gate * (W x + b - centre)`, the response keeps `gate * (W x - centre)` at every position x, and the
bias takes what b becomes on the way. So mean(response) + bias = scores holds for every image; where a bias lies
before a gate, the bias depends on the image and is an output of its own.

There are two ways from features to response, of the same result. `chain`: every position through all layers (W1,
gate, W2, gate, …). `matrix`: one matrix C×K an image, W2 · diag(gate) · W1, then over the positions. Which multiplies
less at a usual map's size is taken: the chain with many classes, the matrix with few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from infercam.export.graph.building import NodeBuilder, joined_maps, maps_of
from infercam.export.graph.gates import Maths, gate_of
from infercam.export.graph.head import Head, Leaf
from infercam.export.graph.index import fresh_name
from infercam.export.graph.linear import Linear

POSITIONS = 192
"""Of the map by which the way is chosen: 500×375 pixels at stride 32."""
MEAN = "frozen.mean"
"""The tensor of the pooled features, from which all gates come (and the nodes' names begin)."""


@dataclass(frozen=True)
class _Step:
    """One stage as matrices: `gate * (weight z + shift - centre)`; names of tensors (N, n, 1), None: nothing."""

    weight: np.ndarray | None
    """(n, m), or (n,): one factor each."""
    shift: np.ndarray
    gate: str | None
    centre: str | None

    @property
    def is_elementwise(self) -> bool:
        return self.weight is None or self.weight.ndim == 1


def write_frozen(
    build: NodeBuilder, head: Head, rows: Sequence[int] | None, response: str, bias: str
) -> np.ndarray | None:
    """Add the nodes that make `response` (N, C, h, w) of the features; returns the constant bias (C,), float64.

    Where the bias depends on the image the nodes that make `bias` (N, C) are added too, and None is returned.
    `rows`: the classes to keep, in order. Raises ExportError where the features are no float32 map.
    """
    assert head.weight is not None
    maps = maps_of(build, head.poolings)
    maths = Maths(build)
    _feed(build, maps, head.leaves)
    last = head.weight if rows is None else head.weight[rows]
    constant = head.bias if rows is None else head.bias[rows]
    steps = [_Step(*_matrix(s.z), *gate_of(maths, s)) for s in head.stages]
    count = next((i for i, s in enumerate(steps) if not s.is_elementwise), len(steps))
    features = _on_features(maths, joined_maps(build, maps), steps[:count])
    weights = [_constant(maths, s.weight) for s in steps[count:]]
    if count == len(steps):
        weight = build.constant(last.astype(np.float32)[:, :, None, None], "response.weight")
        build.node("Conv", [features, weight], response, kernel_shape=[1, 1])
    else:
        _over_positions(maths, features, steps[count:], weights, last, response)
    return _bias(maths, steps, [None] * count + weights, last, constant, bias)


def _matrix(z: Linear) -> tuple[np.ndarray | None, np.ndarray]:
    """The weight of a stage's layer, as simple as it is, and its shift (n,)."""
    shift = z.shift.ravel()
    if z.is_identity:
        return None, shift
    if z.rows is None and z.size == z.width and np.array_equal(z.index.ravel(), np.arange(z.width)):
        return z.scale.ravel(), shift
    return z.dense(), shift


def _constant(maths: Maths, weight: np.ndarray | None) -> str | None:
    """A layer's weight in the graph: (n, m), or (1, n, 1) for one factor each."""
    if weight is None:
        return None
    return maths.build.shared(weight, "frozen.w") if weight.ndim == 2 else maths.number(weight[None, :, None])


def _feed(build: NodeBuilder, maps: Sequence[str], leaves: Sequence[Leaf]) -> None:
    """Give the classifier's own head the means of these maps for what it pooled, perhaps a fixed window."""
    means = [build.node("GlobalAveragePool", [m], build.tensor(MEAN)) for m in maps]
    for leaf in leaves:
        name = leaf.node.output[0]
        leaf.node.output[0] = fresh_name(build.model, f"{name}.unused")
        target = build.constant(np.array([-1, *leaf.shape[1:]], np.int64), "frozen.shape")
        build.node("Reshape", [means[leaf.pooling], target], name)


def _on_features(maths: Maths, features: str, steps: Sequence[_Step]) -> str:
    """Stages that take each channel on its own, on the map (N, K, h, w) itself."""
    for step in steps:
        if step.weight is not None:
            features = maths("Mul", features, step.weight[None, :, None, None])
        for op, x in (("Sub", step.centre), ("Mul", step.gate)):
            if x is not None:
                features = maths(op, features, maths.reshaped(x, 0, 0, 1, 1))
    return features


def _over_positions(
    maths: Maths,
    features: str,
    steps: Sequence[_Step],
    weights: Sequence[str | None],
    last: np.ndarray,
    response: str,
) -> None:
    """The stages from the first with a matrix on, and the last layer, over all positions (N, K, h·w)."""
    shape = maths("Shape", features)
    flat = maths.reshaped(features, 0, 0, -1)
    way = _by_matrix if matrix_is_cheaper(_widths(steps, last)) else _by_chain
    out = way(maths, flat, steps, weights, maths.number(last))
    axes = maths.build.constant(np.array([2, 3], np.int64), "frozen.axes")
    keep = maths.build.constant(np.array([0, 0], np.int64), "frozen.keep")
    target = maths("Concat", keep, maths("Gather", shape, axes, axis=0), axis=0)
    maths.build.node("Reshape", [out, target], response)


def _widths(steps: Sequence[_Step], last: np.ndarray) -> list[int]:
    """How many values there are before each layer with a matrix, and the number of classes at the end."""
    matrices = [s.weight for s in steps if s.weight is not None and s.weight.ndim == 2]
    return [*(w.shape[1] for w in matrices), last.shape[1], last.shape[0]]


def matrix_is_cheaper(widths: Sequence[int], positions: int = POSITIONS) -> bool:
    """Whether one matrix an image takes fewer multiplications than every position through all layers.

    widths: of the features, of what each hidden layer makes, and the number of classes.
    """
    classes = widths[-1]
    chain = positions * sum(a * b for a, b in pairwise(widths))
    matrix = classes * sum(a * b for a, b in pairwise(widths[:-1])) + positions * classes * widths[0]
    return matrix < chain


def _by_chain(maths: Maths, x: str, steps: Sequence[_Step], weights: Sequence[str | None], last: str) -> str:
    for step, weight in zip(steps, weights, strict=True):
        x = _through(maths, x, step, weight, step.centre)
    return maths("MatMul", last, x)


def _by_matrix(maths: Maths, x: str, steps: Sequence[_Step], weights: Sequence[str | None], last: str) -> str:
    """From the last layer back to the features, N×C×K; what the centres take away is one column N×C×1."""
    matrix, column = last, None
    for step, weight in zip(reversed(steps), reversed(weights), strict=True):
        if step.gate is not None:
            size = len(step.shift)
            matrix = maths("Mul", matrix, maths.reshaped(step.gate, -1, 1, size))
        if step.centre is not None:
            away = maths("MatMul", matrix, step.centre)
            column = away if column is None else maths("Add", column, away)
        if weight is not None and step.is_elementwise:
            matrix = maths("Mul", matrix, maths.reshaped(weight, 1, 1, -1))
        elif weight is not None:
            matrix = maths("MatMul", matrix, weight)
    out = maths("MatMul", matrix, x)
    return out if column is None else maths("Sub", out, column)


def _through(maths: Maths, x: str, step: _Step, weight: str | None, centre: str | None) -> str:
    """Columns (N, m, P) through one stage."""
    if weight is not None:
        x = maths("Mul", x, weight) if step.is_elementwise else maths("MatMul", weight, x)
    for op, other in (("Sub", centre), ("Mul", step.gate)):
        x = x if other is None else maths(op, x, other)
    return x


def _bias(
    maths: Maths,
    steps: Sequence[_Step],
    weights: Sequence[str | None],
    last: np.ndarray,
    constant: np.ndarray,
    bias: str,
) -> np.ndarray | None:
    """What the layers' biases amount to behind the gates; centres are the response's alone."""
    column: str | None = None
    for step, weight in zip(steps, weights, strict=True):
        if column is not None:
            own = _constant(maths, step.weight) if weight is None else weight
            column = _through(maths, column, _Step(step.weight, step.shift, None, None), own, None)
        if np.any(step.shift):
            shift = maths.number(step.shift[None, :, None])
            column = shift if column is None else maths("Add", column, shift)
        if column is not None and step.gate is not None:
            column = maths("Mul", column, step.gate)
    if column is None:
        return constant
    out = maths("MatMul", maths.number(last), column)
    out = maths("Add", out, constant[None, :, None]) if np.any(constant) else out
    maths.build.node(
        "Reshape", [out, maths.build.constant(np.array([-1, len(last)], np.int64), "frozen.shape")], bias
    )
    return None
