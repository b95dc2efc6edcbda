"""Running a graph at sizes that it may not survive, in a process of its own: ONNX Runtime's pooling divides by the
cells of its output, and where there are none the process ends (SIGFPE) instead of raising anything."""

from __future__ import annotations

import atexit
import tempfile
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

import numpy as np
from onnx import ModelProto

from infercam.engine.common.child import Child, ChildDied
from infercam.export.runtime import GraphSession, RunError, save, weights_folder

LARGE_STEP = 96
"""Where only multiples of so many pixels run, few sizes are tried, and small ones: each picture costs a multiple."""

_child = Child("infercam.export.graph.trials:attempt")  # starting it takes half a second: one for all graphs


@atexit.register
def close() -> None:
    """End the process of the trials; the next one starts another."""
    _child.close()


@lru_cache(maxsize=1)
def _session(file: str) -> GraphSession:
    """The child's, of the graph that it was asked for last."""
    return GraphSession(Path(file), threads=1)


def attempt(file: str | None, pictures: np.ndarray | None = None) -> list[np.ndarray]:
    """In the child: the graph's outputs for these pictures; raises RunError. No file: forget the graph."""
    if file is None or pictures is None:
        _session.cache_clear()
        return []
    return _session(file).run(pictures)


def noise(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A batch of pictures as networks see them, float32 N×3×H×W."""
    return np.random.default_rng(seed).standard_normal((n, 3, height, width), dtype=np.float32)


class Trials:
    """A graph and what became of it at the sizes tried. Use as a context manager."""

    def __init__(self, model: ModelProto, n: int = 1) -> None:
        self._n = n
        self._found: dict[tuple[int, int], str | None] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="infercam-")
        self._file = Path(weights_folder(model) or self._folder.name) / f"{uuid4().hex}.onnx"
        save(model, self._file)

    def run(self, pictures: np.ndarray) -> list[np.ndarray]:
        """The graph's outputs; raises RunError, also where the process ended."""
        try:
            outputs: list[np.ndarray] = _child.ask(str(self._file), pictures)
        except ChildDied as e:
            raise RunError(f"it ends ONNX Runtime's process ({e.how})") from None
        return outputs

    def problem(self, height: int, width: int) -> str | None:
        """Why the graph does not run on noise of that size; None if it does."""
        size = (height, width)
        if size not in self._found:
            self._found[size] = self._problem(noise(self._n, *size))
        return self._found[size]

    def _problem(self, pictures: np.ndarray) -> str | None:
        try:
            outputs = self.run(pictures)
        except RunError as e:
            return str(e)
        if any(y.size == 0 or not np.isfinite(y).all() for y in outputs):
            return "its outputs are empty or not finite"
        return None

    def runs(self, height: int, width: int) -> bool:
        return self.problem(height, width) is None

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *exception: object) -> None:
        _child.ask(None)
        self._file.unlink()
        self._folder.cleanup()


def smallest_side(trials: Trials, runs_at: int, multiple: int = 1) -> int:
    """The least side, a multiple of `multiple`, from which on the graph runs; `runs_at`: a side at which it does.

    Found by bisection on squares, then tried on oblong and odd sizes near it.
    """
    low, high = 0, runs_at // multiple  # in multiples; the answer is above low, and at most high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if trials.runs(middle * multiple, middle * multiple) else (middle, high)
    side = high * multiple
    while side < runs_at and not _runs_from(trials, side, multiple):
        side += multiple
    return side


def _runs_from(trials: Trials, side: int, step: int) -> bool:
    more, longer = (4, 4) if step < LARGE_STEP else (2, 2)
    near = [side + i * step for i in range(more)]
    oblong = [(side, longer * side), (longer * side, side), (side, near[1]), (near[1], side)]
    return all(trials.runs(s, s) for s in near) and all(trials.runs(*size) for size in oblong)
