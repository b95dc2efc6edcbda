"""Contexts by shape: against a plain model of what is kept, over any order of shapes, failures among them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from infercam.engine.method.backend import OutOfMemory
from infercam.engine.runners.contexts import ContextPool, ContextSlot
from infercam.engine.runners.plan import Shape
from tests.host_driver import HostDriver

EACH = 1000


class World:
    """Contexts of EACH bytes; those of `bad` shapes cannot be set up."""

    def __init__(self, most: int, budget: int, memory: int) -> None:
        self.driver = HostDriver(budget=memory)
        self.bad: set[Shape] = set()
        self.set_up: list[Shape] = []
        self.made = 0
        self.pool = ContextPool(self.driver, self._make, self._set_up, most, budget)

    def _make(self) -> Any:
        if self.driver.held + EACH > self.driver.budget:
            raise OutOfMemory("none left")
        self.driver.allocate(EACH)
        self.made += 1
        return object()

    def _set_up(self, slot: ContextSlot, shape: Shape) -> None:
        assert not slot.ran, "of another shape"
        if shape in self.bad:
            raise RuntimeError("bad shape")
        self.set_up.append(shape)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=40),
    st.integers(1, 5),
    st.integers(0, 7),
    st.integers(1, 7),
    st.sets(st.integers(1, 6), max_size=1),
)
def test_what_is_kept_is_what_was_used_last(steps, most, affordable, fitting, bad) -> None:
    """most, affordable: contexts by number and by budget; fitting: by the device's memory."""
    world = World(most, affordable * EACH, fitting * EACH)
    world.bad = {(1, n, n) for n in bad}
    room = max(1, min(most, affordable, fitting))
    kept: list[Shape] = []  # the model: least recently used first
    with world.driver.current():
        for n, runs in steps:
            shape = (1, n, n)
            if shape in world.bad:
                before = world.made
                try:
                    world.pool.of(shape)
                except RuntimeError:
                    assert world.made <= before + 1
                else:
                    raise AssertionError("set up a bad shape")
                if world.made == before and len(kept) == room:
                    kept.pop(0)  # it gave its context, which now waits for a shape
                continue
            known = shape in kept
            count = len(world.set_up)
            slot = world.pool.of(shape)
            assert len(world.set_up) == count + (not known)
            slot.ran = slot.ran or runs
            kept = [s for s in kept if s != shape] + [shape]
            kept = kept[-room:]
            assert list(world.pool._slots) == kept[-len(world.pool) :]
            assert world.pool.has_room(shape) and world.made <= room
            assert world.pool.ready(shape) == slot.ran


@given(st.integers(1, 5), st.integers(1, 7))
def test_it_says_how_many_it_keeps(most: int, affordable: int) -> None:
    world = World(most, affordable * EACH, 100 * EACH)
    assert world.pool.keeps == most, "not known yet"
    with world.driver.current():
        for n in range(1, 10):
            world.pool.of((1, n, n))
            assert world.pool.keeps == min(most, affordable)
            assert len(world.pool) == min(n, most, affordable)
            assert world.pool.has_room((1, 99, 99)) == (n < min(most, affordable))
