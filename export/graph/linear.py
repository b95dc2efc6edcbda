"""A tensor of the head as an affine function of the pooled vector, in float64.

Every element is a factor times one row of a matrix, applied to the pooled values, plus a shift. What only moves,
picks, repeats or scales elements (most of what exporters write around a head) never touches the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

_LARGEST = 1 << 28  # elements of a matrix: 2 GB, more than any classifier's head


class NotAffine(Exception):
    """Why a node is not affine in the pooled vector: the rest of a sentence that begins with the node."""


class Unfit(ValueError):
    """Why a node's constants do not fit what they meet, in words for the user."""


class Mixed(NotAffine):
    """Of tensors that are affine in different vectors: one before, one after an activation or a norm."""

    def __init__(self) -> None:
        super().__init__("joins branches that are not linear in the same vector")


@dataclass(frozen=True)
class Linear:
    """`scale * (rows @ pooled)[index] + shift`, elementwise; the arrays have the tensor's shape for one picture."""

    width: int
    """How many values are pooled."""
    rows: np.ndarray | None
    """(R, width); None is the identity."""
    index: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    basis: int = 0
    """Which vector the "pooled" values are: 0 the pooled one, i what the i-th frozen stage makes (freeze.py)."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.index.shape

    @property
    def size(self) -> int:
        return int(self.index.size)

    @property
    def is_identity(self) -> bool:
        """Whether the elements are the pooled values in order, but for a shift."""
        plain = self.rows is None and self.size == self.width
        return (
            plain
            and bool(np.all(self.scale == 1))
            and np.array_equal(self.index.ravel(), np.arange(self.width))
        )

    def moved(self, move: Callable[[np.ndarray], np.ndarray]) -> Linear:
        """What a function that moves, picks or repeats elements makes of it."""
        return replace(self, index=move(self.index), scale=move(self.scale), shift=move(self.shift))

    def scaled(self, by: np.ndarray) -> Linear:
        return self._filled(scale=self.scale * by, shift=self.shift * by)

    def divided(self, by: np.ndarray) -> Linear:
        return self._filled(scale=self.scale / by, shift=self.shift / by)

    def shifted(self, by: np.ndarray) -> Linear:
        return self._filled(scale=self.scale, shift=self.shift + by)

    def _filled(self, scale: np.ndarray, shift: np.ndarray) -> Linear:
        """With new factors and shifts, all brought to one shape."""
        index, scale, shift = np.broadcast_arrays(self.index, scale, shift)
        return replace(self, index=index, scale=scale, shift=shift)

    def plus(self, other: Linear) -> Linear:
        """The sum of two; raises NotAffine where it needs too large a matrix, or of different vectors."""
        if self.basis != other.basis:
            raise Mixed
        shape = np.broadcast_shapes(self.shape, other.shape)
        a, b = (x.moved(lambda y: np.broadcast_to(y, shape)) for x in (self, other))
        if a.rows is b.rows and np.array_equal(a.index, b.index):
            return replace(a, scale=a.scale + b.scale, shift=a.shift + b.shift)
        return _of_rows(a.dense() + b.dense(), a.shift + b.shift, shape, self.basis)

    def dense(self) -> np.ndarray:
        """The matrix (size, width); raises NotAffine where it is too large."""
        flat, scale = self.index.ravel(), self.scale.ravel()
        if flat.size * self.width > _LARGEST:
            raise NotAffine(f"makes {flat.size} values of {self.width} pooled ones, too many for a head")
        if self.rows is not None:
            in_order = len(self.rows) == flat.size and np.array_equal(flat, np.arange(flat.size))
            chosen = self.rows if in_order else self.rows[flat]
            return chosen if np.all(scale == 1) else scale[:, None] * chosen
        matrix = np.zeros((flat.size, self.width))
        matrix[np.arange(flat.size), flat] = scale
        return matrix

    def mapped(self, matrix: np.ndarray, shape: Sequence[int]) -> Linear:
        """`matrix` (out, size) applied to the elements in order; the result has the given shape."""
        if matrix.shape[1] != self.size:
            raise Unfit(f"takes {matrix.shape[1]} values where {self.size} come")
        shift = matrix @ self.shift.ravel()
        scale = self.scale.ravel()
        matrix = matrix if np.all(scale == 1) else matrix * scale
        return _of_rows(self._onto_pooled(matrix), shift, shape, self.basis)

    def summed(self, axes: Sequence[int], *, keep: bool) -> Linear:
        """The sum over some axes; raises NotAffine where it needs too large a matrix."""
        over = tuple(sorted(a % len(self.shape) for a in axes))
        kept = [a for a in range(len(self.shape)) if a not in over]
        shape = [d for a, d in enumerate(self.shape) if keep or a in kept]
        shape = [1 if keep and a in over else d for a, d in enumerate(shape)]
        count = prod(self.shape[a] for a in over)
        if count == 1:
            return self.moved(lambda y: y.reshape(shape))
        index, scale, shift = (
            y.transpose(*kept, *over).reshape(-1, count) for y in (self.index, self.scale, self.shift)
        )
        sources = self.width if self.rows is None else len(self.rows)
        if len(index) * sources > _LARGEST:
            raise NotAffine(f"sums {len(index)} times over {sources} values, too many for a head")
        matrix = np.zeros((len(index), sources))
        np.add.at(matrix, (np.arange(len(index))[:, None], index), scale)
        rows = matrix if self.rows is None else matrix @ self.rows
        return _of_rows(rows, shift.sum(axis=1), shape, self.basis)

    def _onto_pooled(self, matrix: np.ndarray) -> np.ndarray:
        """A matrix over the elements as one over the pooled values."""
        flat = self.index.ravel()
        count = self.width if self.rows is None else len(self.rows)
        if not np.array_equal(flat, np.arange(count)):
            wide = np.zeros((len(matrix), count))
            np.add.at(wide.T, flat, matrix.T)
            matrix = wide
        return matrix if self.rows is None else matrix @ self.rows


def pooled(width: int, first: int, shape: Sequence[int], factor: float = 1.0, basis: int = 0) -> Linear:
    """The values of a vector from the `first` on, as a tensor of that shape, each times `factor`."""
    count = prod(shape)
    index = np.arange(first, first + count).reshape(shape)
    return Linear(width, None, index, np.full(shape, factor), np.zeros(shape), basis)


def joined(parts: Sequence[Linear], axis: int) -> Linear:
    """Tensors put one after the other along an axis; of several matrices one is made."""
    first = parts[0]
    if any(p.basis != first.basis for p in parts):
        raise Mixed
    if any(p.rows is not first.rows for p in parts):
        matrices = [np.eye(p.width) if p.rows is None else p.rows for p in parts]
        starts = np.cumsum([0, *map(len, matrices)])
        parts = [replace(p, index=p.index + s) for p, s in zip(parts, starts, strict=False)]
        first = replace(first, rows=np.concatenate(matrices))
    index, scale, shift = (
        np.concatenate([getattr(p, name) for p in parts], axis) for name in ("index", "scale", "shift")
    )
    return replace(first, index=index, scale=scale, shift=shift)


def _of_rows(rows: np.ndarray, shift: np.ndarray, shape: Sequence[int], basis: int) -> Linear:
    """Element e is row e."""
    count = len(rows)
    return Linear(
        rows.shape[1],
        rows,
        np.arange(count).reshape(shape),
        np.ones(shape),
        np.asarray(shift, np.float64).reshape(shape),
        basis,
    )
