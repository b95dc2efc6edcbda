"""Running a graph at sizes that it may not survive, in a process of its own: ONNX Runtime's pooling divides by the
cells of its output, and where there are none the process ends (SIGFPE) instead of raising anything."""

from __future__ import annotations

import atexit
import tempfile
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from uuid import uuid4

import numpy as np
from onnx import ModelProto

from infercam.engine.common.child import Child, ChildDied
from infercam.export.runtime import (
    IN_MEMORY,
    GraphSession,
    RunError,
    save,
    threads_for,
    weights_folder,
    weights_of,
    with_weights,
)

Size = tuple[int, int]

LARGE_STEP = 96
"""Where only multiples of so many pixels run, few sizes are tried, and small ones: each picture costs a multiple."""
_REMEMBERED = 1 << 26
"""Bytes of outputs kept of one graph."""

_child = Child("infercam.export.graph.trials:attempt")  # starting it takes half a second: one for all graphs


@atexit.register
def close() -> None:
    """End the process of the trials; the next one starts another."""
    _child.close()


@lru_cache(maxsize=1)
def _session(file: str, threads: int) -> GraphSession:
    """The child's, of the graph that it was asked for last."""
    return GraphSession(Path(file), threads)


def attempt(file: str | None, threads: int = 1, pictures: np.ndarray | None = None) -> list[np.ndarray]:
    """In the child: the graph's outputs for these pictures; raises RunError. No file: forget the graph."""
    if file is None or pictures is None:
        _session.cache_clear()
        return []
    return _session(file, threads).run(pictures)


def noise(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A batch of pictures as networks see them, float32 N×3×H×W."""
    return np.random.default_rng(seed).standard_normal((n, 3, height, width), dtype=np.float32)


class _Loaded:
    """A graph in a file, which the child has loaded or will load, and what it gave so far."""

    def __init__(self, key: bytes, model: ModelProto, data: bytes | None) -> None:
        self.key = key
        self.users = 0
        self.threads = threads_for(weights_of(model))
        self.seen: dict[Size, Size] = {}
        self.outputs: dict[bytes, list[np.ndarray]] = {}
        self.room = _REMEMBERED
        self._folder = tempfile.TemporaryDirectory(prefix="infercam-")
        self.file = Path(weights_folder(model) or self._folder.name) / f"{uuid4().hex}.onnx"
        if data is None:
            save(model, self.file)
        else:
            self.file.write_bytes(data)

    def discard(self) -> None:
        with suppress(ChildDied):
            _child.ask(None)
        self.file.unlink(missing_ok=True)
        self._folder.cleanup()

    def remember(self, pictures: np.ndarray, outputs: list[np.ndarray]) -> None:
        size = sum(y.nbytes for y in outputs)
        if size <= self.room:
            self.room -= size
            self.outputs[_digest(pictures)] = outputs


def _digest(pictures: np.ndarray) -> bytes:
    found = blake2b(f"{pictures.shape} {pictures.dtype}".encode())
    found.update(np.ascontiguousarray(pictures).data)
    return found.digest()


_one = Lock()
_last: _Loaded | None = None


def _loaded(model: ModelProto) -> _Loaded:
    """That of a graph; the last one where it is the same graph, whatever object it is: loading takes seconds."""
    global _last
    large = weights_folder(model) is None and weights_of(model) >= IN_MEMORY
    data = None if large else with_weights(model, model.graph.initializer).SerializeToString()
    key = uuid4().bytes if data is None else blake2b(data).digest()
    with _one:
        if _last is None or _last.key != key:
            if _last is not None and not _last.users:
                _last.discard()
            _last = _Loaded(key, model, data)
        _last.users += 1
        return _last


def forget() -> None:
    """Let go of the last graph and what it gave, if nobody tries it."""
    global _last
    with _one:
        if _last is not None and not _last.users:
            _last.discard()
            _last = None


class Trials:
    """A graph and what became of it at the sizes tried. Use as a context manager.

    It stays loaded until another graph is tried or `forget` is called, and what it gave for pictures is remembered:
    whoever tries the same graph next, verification for one, has both.
    """

    def __init__(self, model: ModelProto, n: int = 1) -> None:
        self._n = n
        self._found: dict[Size, str | None] = {}
        self._graph = _loaded(model)

    @property
    def seen(self) -> dict[Size, Size]:
        """Height and width of the pictures run so far, and of the second output for them."""
        return self._graph.seen

    def run(self, pictures: np.ndarray, *, again: bool = False) -> list[np.ndarray]:
        """The graph's outputs, those remembered unless `again`; raises RunError, also where the process ended."""
        graph = self._graph
        known = None if again else graph.outputs.get(_digest(pictures))
        if known is not None:
            return list(known)
        try:
            outputs: list[np.ndarray] = _child.ask(str(graph.file), graph.threads, pictures)
        except ChildDied as e:
            raise RunError(f"it ends ONNX Runtime's process ({e.how})") from None
        graph.remember(pictures, outputs)
        if len(outputs) > 1 and outputs[1].ndim == pictures.ndim == 4:
            (h, w), (rows, columns) = pictures.shape[2:], outputs[1].shape[2:]
            graph.seen[h, w] = rows, columns
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
        with _one:
            self._graph.users -= 1
            if self._graph is not _last and not self._graph.users:
                self._graph.discard()


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
