"""What each operator does to a tensor that is affine in the pooled vector (engine/method/README.md §1).

`RULES` says which operators may lie between the pooling and the logits. A rule takes the node's inputs, each either
`Linear` or a constant, for one picture, and returns its outputs; it raises NotAffine with the reason why not, or
Unfit for constants that do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto

from infercam.export.graph.linear import Linear, NotAffine, Unfit, joined

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
JOINING = {"Add", "Sub", "Sum", "Mean", "Concat"}
"""Operators that may read several tensors that depend on the picture."""


@dataclass(frozen=True)
class Call:
    """One node to be applied: its attributes, and its inputs for one picture (None: not given)."""

    op: str
    at: dict[str, Any]
    inputs: Sequence[Linear | np.ndarray | None]
    outputs: int
    batch: int = 1
    """The batch that the source was exported with: a baked target begins with it."""

    def linear(self) -> Linear:
        """The first input; raises NotAffine where it is a constant."""
        return self.linears()[0][1]

    def linears(self) -> list[tuple[int, Linear]]:
        found = [(i, x) for i, x in enumerate(self.inputs) if isinstance(x, Linear)]
        if not found:
            raise NotAffine("reads nothing that depends on the picture")
        return found

    def constant(self, position: int) -> np.ndarray | None:
        """A constant input, None where it is not given; raises NotAffine where it depends on the picture."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if isinstance(value, Linear):
            raise NotAffine("joins two tensors that both depend on the picture")
        return value

    def number(self, position: int) -> np.ndarray | None:
        """A constant input in float64."""
        value = self.constant(position)
        return None if value is None else value.astype(np.float64)

    def integers(self, name: str, position: int) -> list[int] | None:
        """What is an attribute in old operator sets and an input in new ones."""
        if name in self.at:
            return [int(v) for v in np.atleast_1d(self.at[name])]
        value = self.constant(position)
        return None if value is None else [int(v) for v in value.ravel()]


# --- shapes ----------------------------------------------------------------------------------------------


def _same(call: Call) -> Linear:
    return call.linear()


def _cast(call: Call) -> Linear:
    if call.at.get("to") not in _FLOATS:
        raise NotAffine("makes whole numbers")
    return call.linear()


def _flatten(call: Call) -> Linear:
    x = call.linear()
    axis = int(call.at.get("axis", 1)) % (len(x.shape) + 1)
    return x.moved(lambda y: y.reshape(prod(x.shape[:axis]), -1))


def _squeeze(call: Call) -> Linear:
    x = call.linear()
    axes = call.integers("axes", 1)
    rank = len(x.shape)
    gone = {a % rank for a in axes} if axes is not None else {a for a in range(1, rank) if x.shape[a] == 1}
    shape = [d for a, d in enumerate(x.shape) if a not in gone]
    return x.moved(lambda y: y.reshape(shape))


def _unsqueeze(call: Call) -> Linear:
    x = call.linear()
    axes = call.integers("axes", 1) or []
    rank = len(x.shape) + len(axes)
    rest = iter(x.shape)
    new = {a % rank for a in axes}
    shape = [1 if a in new else next(rest, 0) for a in range(rank)]
    return x.moved(lambda y: y.reshape(shape))


def _reshape(call: Call) -> Linear:
    x = call.linear()
    target = call.integers("shape", 1)
    if target is None:
        raise NotAffine("has no target")
    if call.batch > 1 and target[:1] == [call.batch]:
        target[0] = 1
    if not call.at.get("allowzero"):
        target = [x.shape[i] if t == 0 and i < len(x.shape) else t for i, t in enumerate(target)]
    return x.moved(lambda y: y.reshape(target))


def _transpose(call: Call) -> Linear:
    perm = call.at.get("perm")
    return call.linear().moved(lambda y: y.transpose(perm))


def _expand(call: Call) -> Linear:
    x = call.linear()
    target = call.integers("shape", 1) or []
    shape = np.broadcast_shapes(x.shape, tuple(target))
    return x.moved(lambda y: np.broadcast_to(y, shape))


def _gather(call: Call) -> Linear:
    """Picking along an axis; PyTorch's exporter writes a change of strides as 0, 1, 2, … from a flat tensor."""
    x, index = call.linear(), call.constant(1)
    axis = int(call.at.get("axis", 0))
    if index is None:
        raise NotAffine("has no index")
    whole = len(x.shape) == 1 and index.size in (x.size, x.size * call.batch)
    if whole and np.array_equal(index.ravel(), np.arange(index.size)):
        shape = index.shape if index.size == x.size else (1, *index.shape[1:])
        return x.moved(lambda y: y.reshape(shape))
    return x.moved(lambda y: np.take(y, index, axis=axis))


def _slice(call: Call) -> Linear:
    x = call.linear()
    starts, ends = call.integers("starts", 1) or [], call.integers("ends", 2) or []
    axes = call.integers("axes", 3) or list(range(len(starts)))
    steps = call.integers("steps", 4) or [1] * len(starts)
    window = [slice(None)] * len(x.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        below = step < 0 and end < -x.shape[axis]  # Python's -1 is the last one, ONNX's lowest number none
        window[axis] = slice(start, None if below else end, step)
    return x.moved(lambda y: y[tuple(window)])


def _split(call: Call) -> list[Linear]:
    x = call.linear()
    axis = int(call.at.get("axis", 0))
    sizes = call.integers("split", 1)
    if sizes is None:
        part = -(-x.shape[axis] // call.outputs)
        sizes = [part] * call.outputs
    ends = np.cumsum(sizes)
    pieces = [np.arange(end - n, min(end, x.shape[axis])) for n, end in zip(sizes, ends, strict=True)]
    return [x.moved(partial(np.take, indices=p, axis=axis)) for p in pieces]


def _concat(call: Call) -> Linear:
    """Constants may stand between: they are shifts of nothing."""
    some = call.linear()
    parts = [x if isinstance(x, Linear) else _constant(x, some) for x in call.inputs if x is not None]
    return joined(parts, int(call.at.get("axis", 0)))


def _constant(value: np.ndarray, like: Linear) -> Linear:
    zeros = np.zeros(value.shape)
    return Linear(like.width, like.rows, zeros.astype(np.int64), zeros, value.astype(np.float64), like.basis)


# --- arithmetic ------------------------------------------------------------------------------------------


def _add(call: Call) -> Linear:
    found = [x for _, x in call.linears()]
    total = found[0]
    for other in found[1:]:
        total = total.plus(other)
    for i, given in enumerate(call.inputs):
        if given is not None and not isinstance(given, Linear):
            total = total.shifted(np.asarray(call.number(i)))
    return total.divided(np.array(float(len(call.inputs)))) if call.op == "Mean" else total


def _subtract(call: Call) -> Linear:
    a, b = call.inputs[:2]
    minus = np.array(-1.0)
    if isinstance(a, Linear):
        return a.plus(b.scaled(minus)) if isinstance(b, Linear) else a.shifted(-np.asarray(call.number(1)))
    return call.linear().scaled(minus).shifted(np.asarray(call.number(0)))


def _multiply(call: Call) -> Linear:
    position, x = call.linears()[0]
    return x.scaled(np.asarray(call.number(1 - position)))


def _divide(call: Call) -> Linear:
    if isinstance(call.inputs[1], Linear):
        raise NotAffine("divides by a tensor that depends on the picture")
    return call.linear().divided(np.asarray(call.number(1)))


def _negate(call: Call) -> Linear:
    return call.linear().scaled(np.array(-1.0))


def _reduce(call: Call) -> Linear:
    """Sums and means of the head's own axes: over several heads, or a linear layer written as Mul and ReduceSum."""
    x = call.linear()
    axes = call.integers("axes", 1)
    if axes is None and call.at.get("noop_with_empty_axes"):
        return x
    over = list(range(len(x.shape))) if axes is None else axes
    total = x.summed(over, keep=bool(call.at.get("keepdims", 1)))
    count = prod(x.shape[a] for a in over)
    return total.divided(np.array(float(count))) if call.op == "ReduceMean" else total


def _pool_again(call: Call) -> Linear:
    x = call.linear()
    over = range(2, len(x.shape))
    return x.summed(over, keep=True).divided(np.array(float(prod(x.shape[2:]))))


# --- matrices --------------------------------------------------------------------------------------------


def _gemm(call: Call) -> Linear:
    position, x = call.linears()[0]
    value = call.number(1 - position)
    if value is None:
        raise NotAffine("has no weight")
    turned = [bool(call.at.get(name, 0)) for name in ("transA", "transB")]
    x = x.moved(np.transpose) if turned[position] else x
    out = _product(x, value.T if turned[1 - position] else value, position)
    out = out.scaled(np.array(float(call.at.get("alpha", 1.0))))
    shift = call.number(2)
    return out if shift is None else out.shifted(float(call.at.get("beta", 1.0)) * shift)


def _matmul(call: Call) -> Linear:
    position, x = call.linears()[0]
    value = call.number(1 - position)
    if value is None:
        raise NotAffine("has no weight")
    if value.ndim > 2 and prod(value.shape[:-2]) == 1:
        value = value.reshape(value.shape[-2:])
    if value.ndim != 2:
        raise NotAffine(f"multiplies by a constant of shape {value.shape}, not by one matrix,")
    return _product(x, value, position)


def _product(x: Linear, matrix: np.ndarray, position: int) -> Linear:
    """`x @ matrix` (position 0) or `matrix @ x`."""
    if len(x.shape) == 1:
        return x.mapped(matrix.T if position == 0 else matrix, (matrix.shape[1 - position],))
    if position == 1:
        return _product(x.moved(lambda y: y.swapaxes(-1, -2)), matrix.T, 0).moved(
            lambda y: y.swapaxes(-1, -2)
        )
    if x.size == x.shape[-1]:
        return x.mapped(matrix.T, (*x.shape[:-1], matrix.shape[1]))
    flat = x.moved(lambda y: y.reshape(-1, x.shape[-1]))
    rows = [flat.moved(partial(np.take, indices=i, axis=0)) for i in range(flat.shape[0])]
    out = joined([r.mapped(matrix.T, (1, matrix.shape[1])) for r in rows], 0)
    return out.moved(lambda y: y.reshape(*x.shape[:-1], matrix.shape[1]))


def _conv(call: Call) -> Linear:
    x, weight, bias = call.linear(), call.number(1), call.number(2)
    if weight is None:
        raise NotAffine("has no weight")
    if prod(weight.shape[2:]) != 1 or any(call.at.get("pads", [])):
        size = "x".join(map(str, weight.shape[2:]))
        raise NotAffine(f"is a {size} convolution, not a 1x1 one,")
    if prod(x.shape[2:]) != 1:
        raise NotAffine("is a convolution over more than one position")
    matrix = _dense(weight, int(call.at.get("group", 1)))
    out = x.mapped(matrix, (1, len(matrix), *x.shape[2:]))
    return out if bias is None else out.shifted(per_channel(bias, out))


def _dense(weight: np.ndarray, groups: int) -> np.ndarray:
    """The matrix of a grouped 1x1 convolution's weight (out, in / groups, 1, 1)."""
    rows, columns = weight.shape[:2]
    flat = weight.reshape(rows, columns)
    if groups == 1:
        return flat
    out = np.zeros((rows, columns * groups))
    step = rows // groups
    for g in range(groups):
        out[g * step : (g + 1) * step, g * columns : (g + 1) * columns] = flat[g * step : (g + 1) * step]
    return out


def _batch_norm(call: Call) -> Linear:
    x = call.linear()
    values = [call.number(i) for i in range(1, 5)]
    gamma, beta, mean, var = (per_channel(v, x) for v in values if v is not None)
    scale = gamma / np.sqrt(var + float(call.at.get("epsilon", 1e-5)))
    return x.scaled(scale).shifted(beta - mean * scale)


def per_channel(value: np.ndarray, like: Linear) -> np.ndarray:
    """A vector along axis 1."""
    return value.reshape(1, -1, *(1,) * (len(like.shape) - 2))


def _einsum(call: Call) -> Linear:
    """Any product of one tensor of the picture's and constants, summed: over the space of all its letters."""
    terms, out = _letters(str(call.at["equation"]), [len(_shape(x)) for x in call.inputs])
    position, x = call.linears()[0]
    space = out + "".join(c for c in dict.fromkeys("".join(terms)) if c not in out)
    total = x.moved(lambda y: _spread(y, terms[position], space))
    for i in range(len(call.inputs)):
        if i != position:
            total = total.scaled(_spread(np.asarray(call.number(i)), terms[i], space))
    return total.summed(range(len(out), len(space)), keep=False)


def _shape(x: Linear | np.ndarray | None) -> tuple[int, ...]:
    return () if x is None else tuple(x.shape)


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The terms and the result of an equation, one letter an axis; dots become letters of their own."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = max(r - len(t.replace("...", "")) for t, r in zip(terms, ranks, strict=True))
    dots = "".join(chr(0x3B1 + i) for i in range(max(hidden, 0)))  # Greek: no equation has them
    counts = [r - len(t.replace("...", "")) for t, r in zip(terms, ranks, strict=True)]
    terms = [t.replace("...", dots[len(dots) - n :] if n else "") for t, n in zip(terms, counts, strict=True)]
    if any(len(set(t)) < len(t) for t in terms):
        raise NotAffine("takes a diagonal")
    everything = "".join(terms)
    if not arrow:  # the letters that come once, in alphabetical order
        right = dots + "".join(
            sorted(c for c in set(everything) if everything.count(c) == 1 and c not in dots)
        )
    return terms, right.replace("...", dots)


def _spread(value: np.ndarray, term: str, space: str) -> np.ndarray:
    """A tensor's axes in the order of `space`, with axes of size 1 for the letters that it lacks."""
    present = [c for c in space if c in term]
    ordered = value.transpose([term.index(c) for c in present])
    return ordered.reshape([ordered.shape[present.index(c)] if c in term else 1 for c in space])


_Rule = Callable[[Call], Linear | list[Linear]]
RULES: dict[str, _Rule] = {
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Expand": _expand,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Add": _add,
    "Sum": _add,
    "Mean": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Neg": _negate,
    "ReduceSum": _reduce,
    "ReduceMean": _reduce,
    "GlobalAveragePool": _pool_again,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "Einsum": _einsum,
}


def applied(call: Call) -> list[Linear]:
    """The outputs of a node; raises NotAffine with the reason, or Unfit where its constants do not fit."""
    try:
        found = RULES[call.op](call)
    except Unfit:
        raise
    except (IndexError, KeyError, TypeError, ValueError):  # NumPy's words say nothing to the user
        raise Unfit("its axes or shapes do not go with what it reads") from None
    outputs = found if isinstance(found, list) else [found]
    if not all(x.size for x in outputs):
        raise Unfit("nothing is left of the picture's values")
    return outputs
