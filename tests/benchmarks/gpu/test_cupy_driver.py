"""CupyDriver against a stand-in for CuPy over the emulated device, with CuPy's names and argument orders
(cupy/cuda/function.pyx, stream.pyx; cupy_backends/cuda/api/runtime.pyx)."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infercam.benchmarks.gpu import cupy_driver
from infercam.engine.api import Engine
from infercam.engine.backends.device import DeviceBackend
from infercam.engine.common.errors import BackendError
from infercam.engine.device.driver import DeviceError, DeviceLost, DeviceOutOfMemory
from tests.cuda_emulator.driver import EmulatedDriver
from tests.engine import tiny
from tests.engine.device.host_runner import HostRunner


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"cudaErrorNumber{status}: what it says\nmore")
        self.status = status


class CUDADriverError(RuntimeError):
    pass


def fake_cupy(emulated: EmulatedDriver) -> ModuleType:
    def malloc(size: int) -> int:
        try:
            return emulated.allocate(size)
        except DeviceOutOfMemory:
            raise CUDARuntimeError(2) from None

    def host(address: int, size: int) -> np.ndarray:
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def copy(dst: int, src: int, size: int, kind: int, stream: int) -> None:
        assert stream == 99
        if kind == 1:
            emulated.copy_in(dst, host(src, size))
        else:
            assert kind == 2
            emulated.copy_out(host(dst, size), src)

    class Device:
        compute_capability = "120"

        def __init__(self, number: int) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    class Event:
        def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
            self._event: Any = None

        def record(self, stream: Any = None) -> None:
            assert stream.ptr == 99
            self._event = emulated.record()

        @property
        def done(self) -> bool:
            return self._event.done()

        def synchronize(self) -> None:
            self._event.wait()

    class Module:
        def load(self, cubin: bytes) -> None:
            assert cubin == b"cubin for 12.0"

        def get_function(self, name: str):
            if emulated._lib.emulator_arguments(name.encode(), None, 0) < 0:
                raise CUDADriverError("CUDA_ERROR_NOT_FOUND: named symbol not found")

            def call(grid: tuple, block: tuple, args: list, shared_mem: int = 0, stream: Any = None) -> None:
                assert stream.ptr == 99 and all(isinstance(a, np.generic) for a in args)
                pointers = [int(a) if a.dtype == np.uint64 else a for a in args]
                emulated.launch(name, grid, block, pointers, shared_mem)

            return call

    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        malloc=malloc,
        free=emulated.free,
        memcpyHostToDevice=1,
        memcpyDeviceToHost=2,
        memcpyAsync=copy,
        memsetAsync=lambda ptr, value, size, stream: emulated.zero(ptr, size),
        memGetInfo=lambda: (emulated.info().free_memory, emulated.info().total_memory),
        getDeviceProperties=lambda number: {"name": b"Fake GPU"},
        driverGetVersion=lambda: 12080,
    )
    cupy = ModuleType("cupy")
    cupy.__version__ = "14"  # type: ignore[attr-defined]
    cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        runtime=runtime,
        driver=SimpleNamespace(CUDADriverError=CUDADriverError),
        function=SimpleNamespace(Module=Module),
        Device=Device,
        Event=Event,
        Stream=lambda non_blocking=False: SimpleNamespace(ptr=99),
        alloc_pinned_memory=lambda size: memoryview(bytearray(emulated.pinned(size))),
    )
    return cupy


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> EmulatedDriver:
    device = EmulatedDriver(memory=1 << 28)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(device))
    monkeypatch.setattr(cupy_driver.compiler, "cubin", lambda capability: b"cubin for %d.%d" % capability)
    return device


def test_the_engine_runs_over_it(emulated: EmulatedDriver, tmp_path: Path) -> None:
    bundle, driver = tiny.build(tmp_path / "tiny"), cupy_driver.CupyDriver()
    pixels = tiny.picture(18, 24)
    with Engine.load(bundle, "cpu", threads=1) as cpu:
        want = cpu.maps(pixels, [1, 2], "released")
    with Engine(bundle, DeviceBackend(bundle, driver, HostRunner(bundle, emulated), 32 << 20)) as engine:
        np.testing.assert_allclose(engine.maps(pixels, [1, 2], "released"), want, atol=1e-5)
    assert emulated.used == 0
    info = driver.info()
    assert (info.name, info.compute_capability, info.driver_version) == ("Fake GPU", (12, 0), "12.8")
    assert driver.describe()["cupy"] == "14" and driver.stream == 99


def test_errors_are_the_protocol_s(emulated: EmulatedDriver) -> None:
    driver = cupy_driver.CupyDriver()
    with pytest.raises(DeviceOutOfMemory, match="allocating 1024 MiB"):
        driver.allocate(1 << 30)
    with pytest.raises(DeviceError, match="no_such: CUDA_ERROR_NOT_FOUND"):
        driver.launch("no_such", (1, 1, 1), (1, 1, 1), [])

    def fault() -> None:
        raise CUDARuntimeError(700)

    with pytest.raises(DeviceLost) as caught:
        driver.call("waiting", fault)
    assert str(caught.value) == "waiting: cudaErrorNumber700: what it says"


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match="needs CuPy"):
        cupy_driver.CupyDriver()
