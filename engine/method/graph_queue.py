"""Requests for the bare network, N×3×H×W -> (response, scores): views of equal shape from different requests go
into one batch, as the scheduler's do."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infercam.engine.method.backend import Limits, OutOfMemory
from infercam.engine.method.task import Done, Infer, Inferred

Float = NDArray[np.float32]


@dataclass(eq=False)
class _Request:
    x: Float
    future: Future[Inferred]
    left: int
    """Views without a result."""
    response: Float | None = None
    scores: Float | None = None

    def put(self, at: int, response: Float, scores: Float) -> None:
        """One view's outcome; the last one completes the request."""
        if self.response is None or self.scores is None:
            self.response = np.empty((len(self.x), *response.shape), np.float32)
            self.scores = np.empty((len(self.x), *scores.shape), np.float32)
        self.response[at], self.scores[at] = response, scores
        self.left -= 1
        if not self.left and self.future.set_running_or_notify_cancel():
            self.future.set_result(Inferred(self.response, self.scores))

    def fail(self, error: Exception) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


_View = tuple[_Request, int]


class GraphQueue:
    """Not thread-safe: the driver of the loop calls it. Shapes are served by the age of their oldest view."""

    def __init__(self, limits: Limits) -> None:
        self._batch_pixels = limits.batch_pixels
        self._batch_views = limits.batch_views
        self._waiting: dict[tuple[int, int], deque[_View]] = {}
        self._alone: deque[_View] = deque()
        """Views of a batch that failed: each is tried by itself, so that one does not take the others with it."""
        self._flying: dict[Infer, list[_View]] = {}

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._alone or self._flying)

    def add(self, x: Float, future: Future[Inferred]) -> None:
        """Queue one request; N of at least 1."""
        request = _Request(x, future, len(x))
        queue = self._waiting.setdefault((x.shape[2], x.shape[3]), deque())
        queue.extend((request, at) for at in range(len(x)))

    def next(self) -> Infer | None:
        """The next batch; views that nobody waits for any more are dropped."""
        while self._alone:
            request, at = self._alone.popleft()
            if not request.future.done():
                return self._hand_out([(request, at)])
        while self._waiting:
            shape, queue = next(
                iter(self._waiting.items())
            )  # of all shapes, the one that began to wait first
            fit = max(1, min(self._batch_views, self._batch_pixels // (shape[0] * shape[1])))
            views: list[_View] = []
            while queue and len(views) < fit:
                request, at = queue.popleft()
                if not request.future.done():
                    views.append((request, at))
            del self._waiting[shape]
            if queue:  # behind the others
                self._waiting[shape] = queue
            if views:
                return self._hand_out(views)
        return None

    def _hand_out(self, views: list[_View]) -> Infer:
        work = Infer(np.stack([request.x[at] for request, at in views]))
        self._flying[work] = views
        return work

    def update(self, done: Done) -> None:
        """Take in the outcome of a batch."""
        assert isinstance(done.work, Infer)
        views = self._flying.pop(done.work)
        if done.error is None:
            for (request, at), response, scores in zip(views, *done.result, strict=True):
                request.put(at, response, scores)
        elif len(views) > 1:
            if isinstance(done.error, OutOfMemory):
                self._batch_views = min(self._batch_views, max(1, len(views) // 2))
            self._alone.extend(views)
        else:
            views[0][0].fail(done.error)

    def fail_all(self, error: Exception) -> None:
        """End every request: the backend is gone."""
        waiting = [view for queue in self._waiting.values() for view in queue]
        flying = [view for views in self._flying.values() for view in views]
        for request, _ in [*waiting, *self._alone, *flying]:
            request.fail(error)
        self._waiting.clear()
        self._alone.clear()
        self._flying.clear()
