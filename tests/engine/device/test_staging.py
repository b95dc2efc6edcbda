"""Page-locked buffers: nothing is overwritten before the (deferred) device has read it."""

from __future__ import annotations

import numpy as np
import pytest

from infercam.engine.device.staging import ALIGNMENT, Downloads, Uploads
from tests.cuda_emulator.driver import EmulatedDriver

SEGMENT = 1 << 10


def numbered(nbytes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("limit", [2 * SEGMENT, 8 * SEGMENT])
def test_what_is_sent_arrives(deferred: bool, limit: int) -> None:
    driver = EmulatedDriver(deferred=deferred)
    uploads = Uploads(driver, SEGMENT, limit)
    sizes = [1, 3, 64, 1000, 1024, 1025, 5000, 7, 2048, 0, 20_000, 63]
    expected = []
    for seed, size in enumerate(sizes):
        data = numbered(size, seed)
        pointer = driver.allocate(max(1, size))
        uploads.send(pointer, data)
        expected.append((pointer, data.copy()))
        data[:] = 0  # the caller may reuse it
    driver.synchronise()
    for pointer, data in expected:
        assert np.array_equal(driver.view(pointer, max(1, data.size))[: data.size], data)
    assert uploads.nbytes == sum(sizes)


def test_sending_waits_only_when_the_limit_is_reached() -> None:
    driver = EmulatedDriver(deferred=True)
    uploads = Uploads(driver, SEGMENT, 4 * SEGMENT)
    pointer = driver.allocate(SEGMENT)
    before = driver.executed
    for _ in range(4):
        uploads.send(pointer, numbered(SEGMENT, 0))
    polled = driver.executed - before  # each question whether a segment is free does one piece of work
    assert polled <= 3
    uploads.send(pointer, numbered(2 * ALIGNMENT, 1))
    assert driver.executed - before <= polled + 2


def test_structured_arrays_may_be_sent() -> None:
    driver = EmulatedDriver()
    data = np.arange(6, dtype=np.float64).reshape(2, 3)
    pointer = driver.allocate(data.nbytes)
    Uploads(driver, SEGMENT).send(pointer, data)  # type: ignore[arg-type]
    assert np.array_equal(driver.view(pointer, data.nbytes).view(np.float64).reshape(2, 3), data)


def test_fetched_buffers_are_reused_only_once_given_back() -> None:
    driver = EmulatedDriver(deferred=True)
    downloads = Downloads(driver)
    source = driver.allocate(1000)
    driver.copy_in(source, numbered(1000, 1))
    first, second = downloads.reserve(1000), downloads.reserve(1000)
    downloads.fetch(first, source)
    assert not np.shares_memory(first.buffer, second.buffer)
    driver.record().wait()
    assert np.array_equal(first.data, numbered(1000, 1))
    downloads.give_back(first)
    third = downloads.reserve(990)
    assert np.shares_memory(first.buffer, third.buffer) and third.data.size == 990
    assert downloads.nbytes == 1000


def test_more_than_the_limit_is_not_page_locked_but_arrives() -> None:
    driver = EmulatedDriver(deferred=True)
    downloads = Downloads(driver, limit=2048)
    source = driver.allocate(5000)
    driver.copy_in(source, numbered(5000, 2))
    landing = downloads.reserve(5000)
    assert not driver._pinned
    downloads.fetch(landing, source)
    assert np.array_equal(landing.data, numbered(5000, 2))
    downloads.give_back(landing)
    assert not np.shares_memory(downloads.reserve(5000).buffer, landing.buffer)


def test_kept_buffers_are_bounded() -> None:
    driver = EmulatedDriver()
    downloads = Downloads(driver, limit=4096)
    for landing in [downloads.reserve(2048) for _ in range(5)]:
        downloads.give_back(landing)
    del landing
    assert sum(size for size, _ in driver._pinned.values()) <= 4096
