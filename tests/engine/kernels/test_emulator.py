"""The emulator finds what it is there to find: kernels with one fault each, and misuse of the driver."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infercam.engine.device.driver import DeviceError, DeviceOutOfMemory
from tests.cuda_emulator import build
from tests.cuda_emulator.driver import SANITIZED, EmulatedDriver

FAULTY = Path(build.__file__).parent / "faulty.cu"
BLOCK = (64, 1, 1)
unless_sanitized = pytest.mark.skipif(SANITIZED, reason="the sanitizer has its own way to find it")


def faulty(**options: object) -> EmulatedDriver:
    if build.compiler() is None:
        pytest.skip("needs a C++ compiler (g++ or CXX) to run the kernels on the CPU")
    return EmulatedDriver(library=build.library([FAULTY], SANITIZED), **options)


def run(kernel: str, n: int, data: np.ndarray, blocks: int = 1, **options: object) -> np.ndarray:
    driver = faulty(**options)
    pointer = driver.allocate(data.nbytes)
    driver.copy_in(pointer, data.view(np.uint8))
    driver.launch(kernel, (blocks, 1, 1), BLOCK, [pointer, np.int32(n)])
    out = np.empty_like(data)
    driver.copy_out(out.view(np.uint8), pointer)
    driver.close()
    return out


def ramp(blocks: int = 1) -> np.ndarray:
    return np.arange(64 * blocks, dtype=np.int32)


@pytest.mark.parametrize("seed", [0, 1, 2, 77])
def test_what_is_right_stays_right_in_any_order(seed: int) -> None:
    expected = ramp(5).reshape(5, 64)[:, ::-1].ravel()
    np.testing.assert_array_equal(run("reverse", 64, ramp(5), 5, seed=seed), expected)
    assert run("sums", 3, np.zeros(1, np.int32), 4, seed=seed)[0] == 3 * 64 * 4


def test_a_missing_barrier_shows() -> None:
    results = {run("without_barrier", 64, ramp(2), 2, seed=seed).tobytes() for seed in range(4)}
    assert len(results) > 1 or results != {ramp(2).reshape(2, 64)[:, ::-1].tobytes()}


@pytest.mark.parametrize("kernel", ["barrier_after_return", "barrier_in_branch", "shuffle_after_return"])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_barrier_that_not_all_reach_is_an_error(kernel: str, seed: int) -> None:
    run(kernel, 64, ramp(), seed=seed)
    with pytest.raises(DeviceError, match=f"{kernel}, block .*divergent barrier"):
        run(kernel, 40, ramp(), seed=seed)
    run(kernel, 64, ramp(), seed=seed)  # nothing of it is left


@unless_sanitized
@pytest.mark.parametrize("offset", [1, -1])
def test_a_write_beside_an_allocation_is_an_error(offset: int) -> None:
    run("beyond_the_end", 0, ramp())
    with pytest.raises(DeviceError, match="written beside the 256 bytes"):
        run("beyond_the_end", offset, ramp())


@unless_sanitized
def test_shared_memory_begins_as_garbage() -> None:
    out = run("unset_shared", 60, np.zeros(64, np.float32))
    assert np.isnan(out[60:]).all() and (out[:60] == 1).all()


def test_float16_is_rounded_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32)
    values = np.concatenate([bits.view(np.float32), rng.normal(size=20_000).astype(np.float32)])
    edges = [
        0,
        -0.0,
        65504,
        65519.996,
        65520,
        1e-8,
        2.0**-25,
        2.0**-24,
        1.0004883,
        1.0014648,
        np.inf,
        -np.inf,
    ]
    values = np.concatenate([values[~np.isnan(values)], np.array(edges, np.float32)])
    driver = faulty()
    source, target = driver.allocate(values.nbytes), driver.allocate(values.nbytes // 2)
    driver.copy_in(source, values.view(np.uint8))
    driver.launch("halves", (-(-len(values) // 64), 1, 1), BLOCK, [source, target, np.int32(len(values))])
    got = np.empty(len(values), np.float16)
    driver.copy_out(got.view(np.uint8), target)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got.view(np.uint16), values.astype(np.float16).view(np.uint16))
    driver.close()


def test_misuse_is_an_error() -> None:
    driver = faulty(memory=1000)
    a, n = driver.allocate(256), np.int32(64)
    with pytest.raises(DeviceOutOfMemory):
        driver.allocate(900)
    for kernel, arguments, what in [
        ("nothing", [a, n], "no kernel nothing"),
        ("reverse", [a], "arguments of"),
        ("reverse", [a, np.int64(64)], "arguments of"),
        ("reverse", [a + 256, n], "not all in one allocation"),
        ("reverse", [12345, n], "not all in one allocation"),
    ]:
        with pytest.raises(DeviceError, match=what):
            driver.launch(kernel, (1, 1, 1), BLOCK, arguments)
    for grid, block in [((0, 1, 1), BLOCK), ((1, 65536, 1), BLOCK), ((1, 1, 1), (2048, 1, 1))]:
        with pytest.raises(DeviceError, match="is invalid"):
            driver.launch("reverse", grid, block, [a, n])
    with pytest.raises(DeviceError, match="not all in one allocation"):
        driver.copy_in(a + 1, np.zeros(256, np.uint8))
    with pytest.raises(DeviceError, match="not all in one allocation"):
        driver.zero(a, 257)
    driver.free(a)
    with pytest.raises(DeviceError, match="not allocated"):
        driver.free(a)
    with pytest.raises(DeviceError, match="not all in one allocation"):
        driver.copy_out(np.zeros(4, np.uint8), a)
    driver.close()


def test_deferred_work_shows_a_pinned_buffer_reused_too_early() -> None:
    for deferred, expected in ((False, 1), (True, 2)):
        driver = EmulatedDriver(deferred=deferred)
        pinned, out = driver.pinned(16), np.empty(16, np.uint8)
        pointer = driver.allocate(16)
        pinned[:] = 1
        driver.copy_in(pointer, pinned)
        pinned[:] = 2
        driver.copy_out(out, pointer)
        assert (out == expected).all()
        driver.close()


def test_deferred_work_is_done_when_waited_for_and_not_before() -> None:
    driver = EmulatedDriver(deferred=True)
    source, result = driver.pinned(16), driver.pinned(16)
    pointer = driver.allocate(16)
    source[:] = 3
    driver.copy_in(pointer, source)
    first = driver.record()
    driver.copy_out(result, pointer)
    assert (result == 0xFF).all() and driver.executed == 0
    first.wait()
    assert first.done() and (result == 0xFF).all()
    last = driver.record()
    assert last.done() and (result == 3).all(), "asking lets the device go on"
    driver.close()


def test_deferred_work_shows_a_pinned_buffer_let_go_of_too_early() -> None:
    driver = EmulatedDriver(deferred=True)
    pointer, pinned = driver.allocate(16), driver.pinned(16)
    driver.copy_in(pointer, pinned[4:8])
    del pinned
    with pytest.raises(DeviceError, match="let go of"):
        driver.record().wait()
    driver.close()
