"""Execution contexts by the shape that they are set up for: one for each, as far as the memory that they may take
goes; then the least recently used one is set up anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from infercam.engine.device.driver import Driver
from infercam.engine.device.graphs import Replay
from infercam.engine.method.backend import OutOfMemory
from infercam.engine.runners.plan import Shape
from infercam.engine.runners.tensorrt_api import ICudaEngine, IExecutionContext, TensorRT


class Contexts(Protocol):
    """How a runtime makes the contexts of an engine; their scratch memory is the runner's."""

    def make(self) -> IExecutionContext | None:
        """None where it refuses: its log says why."""
        ...

    def keep(self) -> None:
        """Keep on disk what was compiled for them, where that is done at all."""
        ...


@dataclass(frozen=True)
class PlainContexts:
    """TensorRT's: compiled to the end when the plan was built."""

    trt: TensorRT
    engine: ICudaEngine

    def make(self) -> IExecutionContext | None:
        return self.engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def keep(self) -> None:
        pass


@dataclass
class ContextSlot:
    """An execution context and what it is set up for."""

    context: IExecutionContext
    profile: int = -1
    scratch: int = 0
    """Bytes that it needs for its shape."""
    ran: bool = False
    """Whether it ran its shape, so that nothing is loaded, compiled or captured any more."""
    replay: Replay | None = None
    """Its CUDA graph, where that is asked for."""


class ContextPool:
    """Slots by shape.

    make: a new context; raises OutOfMemory. set_up: gives a slot a shape. most: slots. budget: bytes of device memory
    that they may take together, beside scratch memory, as measured when they are made and first run.
    """

    def __init__(
        self,
        driver: Driver,
        make: Callable[[], IExecutionContext],
        set_up: Callable[[ContextSlot, Shape], None],
        most: int,
        budget: int,
    ) -> None:
        self._driver, self._make, self._set_up = driver, make, set_up
        self._most, self._budget = most, budget
        self._slots: dict[Shape, ContextSlot] = {}  # the least recently used first
        self._idle: list[ContextSlot] = []  # of no shape: a set-up failed
        self._taken = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def keeps(self) -> int:
        """How many shapes there is room for, by what those that are there took."""
        if not self._taken or not self._slots:
            return self._most
        return max(1, min(self._most, int(self._budget * len(self._slots) / self._taken)))

    def ready(self, shape: Shape) -> bool:
        """Whether a batch of that shape takes what every later one does."""
        return shape in self._slots and self._slots[shape].ran

    def has_room(self, shape: Shape) -> bool:
        """Whether that shape can have a context without taking another one's."""
        free = len(self._slots) < self._most and self._taken < self._budget
        return shape in self._slots or bool(self._idle) or free

    def of(self, shape: Shape) -> ContextSlot:
        """The slot that is set up for the shape: the one that was, a new one, or the least recently used one.

        Raises what making and setting up do; the others stay as they are then.
        """
        slot = self._slots.pop(shape, None)
        if slot is None:
            slot = self._free(shape)
            try:
                with self.measured():
                    self._set_up(slot, shape)
            except BaseException:
                self._idle.append(slot)
                raise
        self._slots[shape] = slot
        return slot

    def _free(self, shape: Shape) -> ContextSlot:
        if self._idle:
            return self._idle.pop()
        if not self._slots or self.has_room(shape):
            try:
                with self.measured():
                    return ContextSlot(self._make())
            except OutOfMemory:
                if not self._slots:
                    raise
        slot = self._slots.pop(next(iter(self._slots)))
        if slot.replay is not None:
            slot.replay.close()
        slot.replay, slot.ran = None, False
        return slot

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count the device memory that is gone after the block as the contexts'."""
        before = self._driver.info().free_memory
        yield
        self._taken += max(0, before - self._driver.info().free_memory)

    def close(self) -> None:
        """Drop all of them; none may run any more."""
        for slot in self._slots.values():
            if slot.replay is not None:
                slot.replay.close()
        self._slots.clear()
        self._idle.clear()
