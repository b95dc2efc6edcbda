"""The pool: budget, reuse, statistics; and that blocks handed out never overlap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercam.engine.device.driver import DeviceOutOfMemory
from infercam.engine.device.pool import SHARE, Pool, size_class
from tests.cuda_emulator.driver import EmulatedDriver


class PlainDriver:
    """Hands out numbers for memory and counts; `memory` bytes of it."""

    def __init__(self, memory: int = 1 << 40) -> None:
        self.memory = memory
        self.blocks: dict[int, int] = {}
        self.next = 256

    def info(self):
        from infercam.engine.device.driver import DeviceInfo

        return DeviceInfo("plain", (9, 0), self.memory, self.memory - sum(self.blocks.values()), "0")

    def allocate(self, nbytes: int) -> int:
        if nbytes > self.memory - sum(self.blocks.values()):
            raise DeviceOutOfMemory("the device is full")
        self.blocks[self.next] = nbytes
        self.next += -(-nbytes // 256) * 256
        return self.next - -(-nbytes // 256) * 256

    def free(self, pointer: int) -> None:
        del self.blocks[pointer]


@given(st.integers(1, 1 << 40))
def test_size_classes(nbytes: int) -> None:
    size = size_class(nbytes)
    assert size >= nbytes and size % 256 == 0 and size_class(size) == size
    assert size <= max(512, nbytes * 9 / 8 + 256)


@given(st.integers(1, 1 << 30), st.integers(1, 1 << 30))
def test_size_classes_keep_the_order(a: int, b: int) -> None:
    assert (size_class(a) <= size_class(b)) or a > b


def test_size_classes_are_few() -> None:
    assert len({size_class(n) for n in range(1 << 20, 1 << 21, 97)}) <= 9


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 5000), st.integers(0, 30)), max_size=80),
    st.integers(2_000, 30_000),
)
def test_blocks_never_overlap_and_the_budget_holds(steps: list, budget: int) -> None:
    driver = PlainDriver()
    pool = Pool(driver, budget)  # type: ignore[arg-type]
    held: list[tuple[int, int]] = []
    for allocates, nbytes, which in steps:
        if allocates:
            try:
                pointer = pool.allocate(nbytes)
            except DeviceOutOfMemory:
                used = sum(size_class(n) for _, n in held)
                assert pool.stats.used + size_class(nbytes) > budget and pool.stats.used >= used
                continue
            assert pointer % 256 == 0 and driver.blocks[pointer] >= nbytes
            assert all(pointer != other for other, _ in held)
            held.append((pointer, nbytes))
        elif held:
            pool.free(held.pop(which % len(held))[0])
        assert sum(driver.blocks.values()) == pool.stats.held <= budget
        assert pool.stats.peak >= pool.stats.held and pool.stats.peak_used >= pool.stats.used
    for pointer, _ in held:
        pool.free(pointer)
    assert pool.stats.used == 0
    pool.close()
    assert not driver.blocks


def test_a_freed_block_is_reused_at_once_and_without_the_driver() -> None:
    pool = Pool(PlainDriver(), 1 << 20)  # type: ignore[arg-type]
    first = pool.allocate(10_000)
    pool.free(first)
    assert pool.allocate(9_900) == first
    assert (pool.stats.allocations, pool.stats.reuses) == (1, 1)
    pool.free(first)
    assert pool.allocate(1_000) != first, "a block many times too large is kept for its own kind"


def test_cached_blocks_make_room_before_the_budget_is_passed() -> None:
    driver = PlainDriver()
    pool = Pool(driver, 100 << 10)  # type: ignore[arg-type]
    for pointer in [pool.allocate(20 << 10) for _ in range(4)]:
        pool.free(pointer)
    big = pool.allocate(90 << 10)
    assert pool.stats.trims == 1 and driver.blocks.keys() == {big}
    with pytest.raises(DeviceOutOfMemory, match="0 MiB more would pass the budget of 0 MiB"):
        pool.allocate(20 << 10)
    pool.free(big)
    assert pool.allocate(20 << 10)


def test_a_full_device_is_tried_again_without_the_cached_blocks() -> None:
    driver = PlainDriver(memory=64 << 10)
    pool = Pool(driver, 1 << 30)  # type: ignore[arg-type]
    pool.free(pool.allocate(40 << 10))
    pool.allocate(50 << 10)
    assert pool.stats.trims == 1
    with pytest.raises(DeviceOutOfMemory, match="the device is full"):
        pool.allocate(50 << 10)


def test_scratch_is_all_or_nothing() -> None:
    pool = Pool(PlainDriver(), 64 << 10)  # type: ignore[arg-type]
    with pool.scratch(1000, 2000) as (a, b):
        assert a != b and pool.stats.used >= 3000
    with pytest.raises(DeviceOutOfMemory), pool.scratch(40 << 10, 40 << 10):
        raise AssertionError("not reached")
    with pytest.raises(ValueError), pool.scratch(1000):
        raise ValueError
    assert pool.stats.used == 0


def test_freeing_twice_is_caught() -> None:
    pool = Pool(PlainDriver(), 1 << 20)  # type: ignore[arg-type]
    pointer = pool.allocate(1)
    pool.free(pointer)
    with pytest.raises(KeyError):
        pool.free(pointer)


def test_the_budget_is_a_share_of_what_is_free() -> None:
    driver = EmulatedDriver(memory=10 << 20)
    driver.allocate(2 << 20)
    assert Pool(driver).budget == int(SHARE * (8 << 20))
