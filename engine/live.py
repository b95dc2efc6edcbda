"""An engine for requests that arrive at any time, from any thread: one scheduler batches them all together.

    with Engine.load(bundle) as engine, LiveEngine(engine) as live:
        future = live.submit("a", pixels, ["cat", "dog"], recipe="fast")
        maps = future.result().maps

One thread drives the backend. Requests of different recipes and modes are in flight together; each gets the maps
that it would get alone. While there is nothing to do the thread sleeps.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercam.engine.api import Engine, Label, Picture, Result, result_of, without_classes
from infercam.engine.common.errors import BackendError, InfercamError, InputError
from infercam.engine.data.images import decode_image
from infercam.engine.method.host_ops import Resized, normalise_table
from infercam.engine.method.loop import Loop
from infercam.engine.method.recipe import Mode, Recipe
from infercam.engine.method.scheduler import Cancelled, Finished, Stats
from infercam.engine.method.task import ImageTask, Inferred
from infercam.engine.method.trace import Trace

Float = NDArray[np.float32]


class Closed(BackendError):
    """The live engine takes no more requests, or gave this one up."""


@dataclass(eq=False)
class _Request:
    """An image that somebody waits for."""

    task: ImageTask
    future: Future[Result]
    arrived: float = field(default_factory=time.perf_counter)
    queued: float = 0.0


class LiveEngine:
    """Drives `engine` from a thread of its own until it is closed; the engine takes no streams meanwhile.

    Use as a context manager, or call `close`; the engine itself stays open. All methods may be called from any
    thread. What goes wrong with a request is raised by its own future and touches no other; cancelling a future
    drops its work, also what has begun.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.error: BaseException | None = None
        """What ended the driver thread, if it died: nothing can be asked any more."""
        self._table = normalise_table(engine.manifest.input)
        self._driving = engine.driving()
        self._loop: Loop = self._driving.__enter__()
        self._changed = threading.Condition()
        # Guarded by it: what other threads hand to the driver.
        self._waiting: deque[_Request] = deque()
        self._graphs: deque[tuple[Float, Future[Inferred]]] = deque()
        self._cancelled: deque[_Request] = deque()
        self._closing = False
        self._abandoning = False
        # The driver's own.
        self._flying: dict[ImageTask, _Request] = {}
        self._thread = threading.Thread(target=self._drive, name="infercam-live", daemon=True)
        self._thread.start()

    # -- requests ------------------------------------------------------------------------------------------
    def submit(
        self,
        id: str,
        image: Picture | bytes,
        classes: Iterable[Label],
        recipe: str | Recipe = "fast",
        mode: Mode = "both",
        trace: bool = False,
    ) -> Future[Result]:
        """Ask for the refined response maps of one picture.

        image: H×W×3 uint8 RGB, a path, or the bytes of a picture file (the latter two are decoded here, in the
        calling thread). trace: note every step in `Result.trace`; takes memory, see trace.py. The future raises
        InputError for a bad picture, class, recipe or mode, BackendError for what failed in the backend. Raises
        Closed at once where the engine takes no requests.
        """
        future: Future[Result] = Future()
        try:
            pixels = decode_image(image, id) if isinstance(image, bytes) else image
            task = self.engine.task(id, pixels, classes, recipe, mode)
        except InfercamError as e:
            future.set_exception(e)
            return future
        task.trace = Trace() if trace else None
        if not task.classes:
            future.set_result(without_classes(task))
            return future
        request = _Request(task, future)
        self._hand(self._waiting, request)
        # Weakly: a future keeps its callbacks, and in a cycle pixels and maps would wait for the garbage collector.
        known = weakref.ref(request)
        future.add_done_callback(lambda f: self._forget(known()) if f.cancelled() else None)
        return future

    def infer(self, x: Float) -> Future[Inferred]:
        """The bare network on N×3×H×W float32, normalised as the manifest says: (response N×C×h×w, scores N×C).

        Inputs of equal size that wait together go into one batch. The future raises InputError or BackendError.
        """
        future: Future[Inferred] = Future()
        try:
            checked = self._checked(x)
        except InputError as e:
            future.set_exception(e)
            return future
        self._hand(self._graphs, (checked, future))
        return future

    def scores(self, image: Picture | bytes, ladder: bool = False) -> Future[Float]:
        """The classifier's logits (C,) of one picture; see Engine.scores and Engine.probabilities."""
        out: Future[Float] = Future()
        try:
            pixels = self.engine.task("image", self._decoded(image), ()).pixels
        except InputError as e:
            out.set_exception(e)
            return out
        shape = self.engine.backend.sizes.of(pixels.shape[0], pixels.shape[1], ladder=ladder)
        x = np.empty((1, 3, *shape), np.float32)
        resized = Resized(np.ascontiguousarray(pixels), shape, self._table, self.engine.manifest.input.colour)
        resized.write(x[0], mirrored=False, erased=None)
        asked = self.infer(x)

        def pass_on(done: Future[Inferred]) -> None:
            if not done.cancelled() and out.set_running_or_notify_cancel():
                error = done.exception()
                out.set_exception(error) if error else out.set_result(done.result().scores[0])

        asked.add_done_callback(pass_on)
        out.add_done_callback(lambda f: asked.cancel() if f.cancelled() else None)
        return out

    @staticmethod
    def _decoded(image: Picture | bytes) -> Picture:
        return decode_image(image, "image") if isinstance(image, bytes) else image

    def _checked(self, x: Float) -> Float:
        sizes = self.engine.backend.sizes
        if (
            not isinstance(x, np.ndarray)
            or x.dtype != np.float32
            or x.ndim != 4
            or x.shape[1] != 3
            or 0 in x.shape
        ):
            what = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
            raise InputError(f"the network takes N×3×H×W float32, not {what}")
        if sizes.of(*x.shape[2:]) != x.shape[2:]:
            raise InputError(f"the network takes {sizes}, not {x.shape[2]}×{x.shape[3]}")
        return x

    def _hand(self, queue: deque[Any], item: Any) -> None:
        with self._changed:
            if self._closing or self.error is not None:
                raise Closed(f"the engine died: {self.error}" if self.error else "the engine is closed")
            queue.append(item)
            self._changed.notify()

    def _forget(self, request: _Request | None) -> None:
        if request is None:  # it has ended
            return
        with self._changed:
            self._cancelled.append(request)
            self._changed.notify()

    # -- what others may look at ---------------------------------------------------------------------------
    @property
    def alive(self) -> bool:
        """Whether requests are taken and answered."""
        return self.error is None and not self._closing

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Images that have begun and not ended."""
        return len(self._flying)

    @property
    def stats(self) -> Stats:
        """What the scheduler has done so far (a copy)."""
        stats = self._loop.scheduler.stats
        return replace(stats, batch_sizes=Counter(stats.batch_sizes))

    # -- the driver's thread -------------------------------------------------------------------------------
    def _drive(self) -> None:
        try:
            while self._take():
                self._loop.submit()
                for finished in self._loop.collect():
                    self._deliver(finished)
        except BaseException as e:  # whatever it was, nobody may wait for ever
            self.error = e
        finally:
            self._end(self.error or Closed("the engine was closed before this was done"))

    def _take(self) -> bool:
        """Take in what others have handed over; sleep while there is nothing to do. False: it is time to end."""
        with self._changed:
            while self._nothing_to_do() and not self._closing:
                self._changed.wait()
            if self._abandoning or (self._closing and self._nothing_to_do()):
                return False
            while self._cancelled:
                self._drop(self._cancelled.popleft())
            while self._graphs:
                self._loop.graph.add(*self._graphs.popleft())
            while self._waiting and self._loop.wants():
                self._begin(self._waiting.popleft())
        return True

    def _nothing_to_do(self) -> bool:
        return self._loop.idle and not (self._waiting or self._graphs or self._cancelled)

    def _begin(self, request: _Request) -> None:
        request.queued = time.perf_counter() - request.arrived
        self._flying[request.task] = request
        self._loop.add(request.task)

    def _drop(self, request: _Request) -> None:
        """Nobody waits for it any more."""
        if request.task in self._flying:
            self._loop.scheduler.cancel(request.task)
        else:
            with suppress(ValueError):  # it had ended, or never begun
                self._waiting.remove(request)

    def _deliver(self, finished: Finished) -> None:
        request = self._flying.pop(finished.image)
        if isinstance(finished.error, Cancelled) or not request.future.set_running_or_notify_cancel():
            return
        if finished.error is not None:
            request.future.set_exception(finished.error)
        else:
            request.future.set_result(replace(result_of(finished), queued=request.queued))

    def _end(self, reason: BaseException) -> None:
        """Give up whatever is left, and the engine."""
        with suppress(BaseException):  # a backend that died may die again
            self._driving.__exit__(None, None, None)
        with self._changed:
            self._closing = True
            left: list[Future[Any]] = [r.future for r in (*self._flying.values(), *self._waiting)]
            left += [future for _, future in self._graphs]
            self._flying.clear()
            self._waiting.clear()
            self._graphs.clear()
        error = reason if isinstance(reason, InfercamError) else BackendError(f"the engine died: {reason!r}")
        self._loop.graph.fail_all(error)
        for future in left:
            if not future.done() and future.set_running_or_notify_cancel():
                future.set_exception(error)

    # -- closing -------------------------------------------------------------------------------------------
    def close(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Take no more requests. drain: finish those there are, for at most `timeout` seconds; then, or without
        drain, the rest is given up: those futures raise Closed. Returns whether all was finished."""
        with self._changed:
            self._closing = True
            self._abandoning = self._abandoning or not drain
            self._changed.notify()
        self._thread.join(timeout)
        finished = not self._thread.is_alive()
        if not finished:
            return self.close(drain=False)
        return finished and not self._abandoning and self.error is None

    def __enter__(self) -> LiveEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)
