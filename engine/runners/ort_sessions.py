"""ONNX Runtime sessions, one for each (views, height, width): a session remembers cuDNN's plans of its last shape
alone, and makes them anew, 120 ms of them, whenever another one was run in between.

They share what they can. `SharedGraph`: one copy of the weights on the device, handed to every session, and a graph
that was simplified once. `shared_arena`: one arena for what a run needs beside them, so that many sessions need no
more than the hungriest. What a session has for itself (handles, plans, convolution weights in another layout) is
measured, and the least recently used session goes where that passes the budget.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infercam.engine.device.runner import ANY_NUMBER
from infercam.engine.method.backend import OutOfMemory
from infercam.engine.onnx_files import external_weights
from infercam.engine.runners.plan import Shape

MOST = 256
"""Sessions kept, whatever they take: a ladder makes some 150 shapes."""
_INLINE = 1024
"""Bytes of a weight that is not worth sharing."""
_SHARED_ARENAS: dict[tuple[str, int], int] = {}
"""Provider and device -> the stream whose sessions may use the process's shared arena. It is in the order of one
stream only: memory that is freed there while the device still reads it must not go to another one."""


@dataclass
class _Kept:
    session: Any
    nbytes: int = 0
    """Of the device's memory that were gone once it had run."""


class Sessions:
    """Least recently used out. make: a new session; raises OutOfMemory where there is no memory for one. budget:
    bytes that all may take together. wait: waits for the device, for nothing that runs may lose its memory. free:
    bytes that the device has left. first: a session that was made already. guess: bytes that one will take, until
    it is measured. dropped: gets the shape of one that goes."""

    def __init__(
        self,
        make: Callable[[], Any],
        budget: int,
        *,
        wait: Callable[[], None] = lambda: None,
        free: Callable[[], int] = lambda: 0,
        first: Any = None,
        guess: int = 0,
        most: int = MOST,
        dropped: Callable[[Shape], None] = lambda shape: None,
    ) -> None:
        self._make, self._wait, self._free, self._dropped = make, wait, free, dropped
        self.budget, self.most = budget, most
        self._spare, self._guess = first, guess
        self._kept: OrderedDict[Shape, _Kept] = OrderedDict()
        self._sum = 0
        self.made = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, shape: Shape) -> bool:
        return shape in self._kept

    @property
    def keeps(self) -> int:
        """How many there is room for, by what those at hand take."""
        each = self._sum // len(self._kept) if self._sum else self._guess
        return max(1, min(self.most, self.budget // each)) if each else self.most

    @property
    def full(self) -> bool:
        """Whether another one would take the place of one that is kept."""
        return len(self._kept) >= self.keeps

    def run(self, shape: Shape, call: Callable[[Any], None]) -> None:
        """`call` with the session of that shape; made where there is none.

        Where memory is short, in making or in the call, all others go first and it is tried once more; raises
        OutOfMemory where that does not help.
        """
        try:
            self._run(shape, call)
        except OutOfMemory:
            if not self._evict_others(shape):
                raise
            self._run(shape, call)

    def _run(self, shape: Shape, call: Callable[[Any], None]) -> None:
        kept = self._kept.get(shape)
        if kept is not None:
            self._kept.move_to_end(shape)
            call(kept.session)
            return
        while self._kept and self.full:
            self._evict(next(iter(self._kept)))
        self._wait()  # its weights may get memory that a run under way was done with, on the host
        before = self._free()
        session, self._spare = self._spare or self._make(), None
        self.made += 1
        try:
            call(session)
        except BaseException:
            self._spare = session  # it has run nothing: as good as new
            raise
        kept = _Kept(session, max(0, before - self._free()))
        self._kept[shape] = kept
        self._sum += kept.nbytes

    def _evict_others(self, shape: Shape) -> bool:
        """Drop every session but that shape's; False where there was none."""
        others = [other for other in self._kept if other != shape]
        for other in others:
            self._evict(other)
        return bool(others)

    def _evict(self, shape: Shape) -> None:
        self._wait()
        self._sum -= self._kept.pop(shape).nbytes
        self.evicted += 1
        self._dropped(shape)

    def any(self) -> Any:
        """One of them, to ask what holds of all."""
        return self._spare or next(iter(self._kept.values())).session

    def close(self) -> None:
        self._wait()
        self._kept.clear()
        self._spare = None
        self._sum = 0


class OneSession(Sessions):
    """One for all shapes: where the provider keeps them apart by itself (TensorRT)."""

    @property
    def keeps(self) -> int:
        return ANY_NUMBER

    def run(self, shape: Shape, call: Callable[[Any], None]) -> None:
        call(self.any())


class SharedGraph:
    """A graph simplified once, with its weights in one copy that every session uses.

    file: an ONNX file. options: a new SessionOptions. providers, provider_options: of the sessions to come; they
    decide which form the graph is kept in. memory: `cpu` or `cuda`, where the weights go. Raises whatever ONNX
    Runtime raises; who cannot have this loads `file` itself.
    """

    def __init__(
        self,
        ort: Any,
        file: Path,
        options: Callable[[], Any],
        providers: list[str],
        provider_options: list[dict[str, str]],
        memory: str,
        device: int,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="infercam-")
        try:
            self.file = Path(self._folder.name) / "graph.onnx"
            simplify = options()
            simplify.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            simplify.optimized_model_filepath = str(self.file)
            entry = "session.optimized_model_external_initializers_"
            simplify.add_session_config_entry(entry + "file_name", "weights.bin")
            simplify.add_session_config_entry(entry + "min_size_in_bytes", str(_INLINE))
            ort.InferenceSession(str(file), simplify, providers=providers, provider_options=provider_options)
            self._weights = self._shared(ort, memory, device)
        except BaseException:
            self.close()
            raise

    def _shared(self, ort: Any, memory: str, device: int) -> dict[str, Any]:
        """Name -> the weight on the device, which lives as long as this."""
        found = external_weights(self.file)
        if not found:
            return {}
        data = np.memmap(self.file.with_name("weights.bin"), np.uint8, "r")
        return {
            w.name: ort.OrtValue.ortvalue_from_numpy(
                np.array(data[w.offset : w.offset + w.nbytes]).view(w.dtype).reshape(w.shape), memory, device
            )
            for w in found
        }

    @property
    def nbytes(self) -> int:
        """Of the weights that are shared."""
        return sum(int(value.tensor_size_in_bytes()) for value in self._weights.values())

    def add_to(self, options: Any) -> None:
        """Let a session with those options use the weights."""
        for name, value in self._weights.items():
            options.add_initializer(name, value)

    def close(self) -> None:
        """The sessions must be gone."""
        self._weights = {}
        self._folder.cleanup()


def shared_arena(ort: Any, provider: str, device: int, stream: int, limit: int | None) -> bool:
    """Make this process's arena on that device, once; whether sessions on that stream may use it.

    limit: bytes that it may take. False: another stream uses it (a second engine), or ONNX Runtime has none to share.
    """
    kind = {"cpu": ("CPUExecutionProvider", "Cpu"), "cuda": ("CUDAExecutionProvider", "Cuda")}[provider]
    owner = _SHARED_ARENAS.get((provider, device))
    if owner not in (None, 0, stream):
        return False
    try:
        if owner is None:
            _register_arena(ort, *kind, device, limit or 0)
    except Exception:  # ONNX Runtime's exceptions share no base below Exception
        return False
    _SHARED_ARENAS[provider, device] = stream
    return True


def _register_arena(ort: Any, provider: str, memory: str, device: int, limit: int) -> None:
    info = ort.OrtMemoryInfo(memory, ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, device, ort.OrtMemType.DEFAULT)
    # 1: kSameAsRequested, as the sessions' own; the rest of the memory is the backend's
    arena = ort.OrtArenaCfg({"max_mem": limit, "arena_extend_strategy": 1})
    ort.create_and_register_allocator_v2(provider, info, {}, arena)


def leave_arena(provider: str, device: int, stream: int) -> None:
    """The device is done with all that those sessions ran: the arena may be another stream's from now on."""
    if _SHARED_ARENAS.get((provider, device)) == stream:
        _SHARED_ARENAS[provider, device] = 0
