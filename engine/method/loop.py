"""The turn that every driver of a backend repeats: admit, submit, collect, update, finish.

`Engine.stream` drives it from an iterator, `LiveEngine` from a queue that other threads fill.
"""

from __future__ import annotations

from infercam.engine.method.backend import Backend
from infercam.engine.method.graph_queue import GraphQueue
from infercam.engine.method.scheduler import Finished, Scheduler
from infercam.engine.method.task import Advance, Done, ImageTask, Infer, Work


class Loop:
    """A backend and what decides its work. One thread drives it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.scheduler = Scheduler(backend.limits, backend.sizes)
        self.graph = GraphQueue(backend.limits)
        """Requests for the bare network, beside the images."""
        self._graph_first = True

    @property
    def idle(self) -> bool:
        return self.scheduler.idle and self.graph.idle

    def wants(self) -> bool:
        """True while another image may be added."""
        return self.scheduler.wants()

    def add(self, image: ImageTask) -> None:
        self.scheduler.add(image, self.backend.estimate(image))

    def submit(self) -> None:
        """Give the backend work while it has room."""
        while self.backend.has_room() and (work := self._next()) is not None:
            self.backend.submit(work)

    def _next(self) -> Work | None:
        """Images and bare graphs take turns, so that neither waits for the end of the other."""
        queues = (self.graph.next, self.scheduler.next)
        for take in queues if self._graph_first else queues[::-1]:
            work = take()
            if work is not None:
                self._graph_first = not isinstance(work, Infer)
                return work
        return None

    def collect(self) -> list[Finished]:
        """Wait for at least one unit of work, take in what has ended; the images that have left thereby."""
        for done in self.backend.collect():
            if isinstance(done.work, Infer):
                self.graph.update(done)
                continue
            self.scheduler.update(done)
            self._trace(done)
        out = self.scheduler.finished()
        for finished in out:
            self.backend.release(finished.image)
        return out

    def _trace(self, done: Done) -> None:
        """Look at a tile between two iterations: the next is decided, and not yet submitted."""
        work = done.work
        if not isinstance(work, Advance) or (trace := work.tile.image.trace) is None:
            return
        tile = work.tile
        if done.error is not None or tile.image.failed or tile.iteration < 1:  # 0: that was a probe
            return
        if tile.iteration == 1 and done.result.centres:
            trace.centres = done.result.centres
        if tile.takes:
            trace.record(tile, done.result.erased, self.backend.inspect(tile))

    def abandon(self) -> None:
        """Leave nothing behind in the backend: wait for what is in flight, drop the rest."""
        while self.backend.collect():
            pass
        for image in self.scheduler.in_flight:
            self.backend.release(image)
