"""Bounded look-ahead: order, exceptions in their place, never more than the depth begun, clean early end."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercam.engine.common.prefetch import prefetch


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4), st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_results_come_in_order_whatever_each_takes(delays: list[int], threads: int, depth: int) -> None:
    def work(at: int) -> int:
        time.sleep(delays[at] / 5000)
        return at * at

    assert list(prefetch(work, range(len(delays)), threads, depth)) == [n * n for n in range(len(delays))]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_never_more_than_the_depth_is_begun_ahead(depth: int) -> None:
    drawn = 0

    def items():
        nonlocal drawn
        for n in range(30):
            drawn += 1
            yield n

    for asked, result in enumerate(prefetch(lambda n: n, items(), depth=depth), 1):
        assert result == asked - 1
        assert drawn <= asked + depth - 1
    assert drawn == 30


def test_it_really_works_ahead_on_threads() -> None:
    both = threading.Barrier(2, timeout=10)
    names = set()

    def work(n: int) -> int:
        both.wait()  # passes only where two are at work at once
        names.add(threading.current_thread().name)
        return n

    assert list(prefetch(work, range(8), threads=2, depth=4)) == list(range(8))
    assert threading.current_thread().name not in names


def test_an_exception_comes_where_its_result_would_have() -> None:
    def work(n: int) -> int:
        if n == 3:
            raise ValueError("three")
        return n

    results = prefetch(work, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_an_exception_of_the_items_is_raised() -> None:
    def items():
        yield 1
        raise OSError("list gone")

    with pytest.raises(OSError, match="list gone"):
        list(prefetch(lambda n: n, items()))


def test_closing_early_waits_for_what_runs_and_starts_nothing_more() -> None:
    begun, ended, may_end = [], [], threading.Event()

    def work(n: int) -> int:
        begun.append(n)
        assert n == 0 or may_end.wait(10)
        ended.append(n)
        return n

    results = prefetch(work, range(1000), threads=2, depth=8)
    assert next(results) == 0
    threading.Timer(0.5, may_end.set).start()
    results.close()
    assert sorted(begun) == sorted(ended)
    assert len(begun) <= 3, "of the eight that were waiting, those not begun are cancelled"
    time.sleep(0.05)
    assert len(begun) == len(ended)
    assert not [t for t in threading.enumerate() if t.name.startswith("infercam-read")]
