"""CudaDriver against a pycuda that keeps pycuda's rules and runs on the emulated device."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from infercam.engine.api import Engine
from infercam.engine.backends.device import DeviceBackend
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import MissingExtra
from infercam.engine.device import cuda
from infercam.engine.device.driver import DeviceError, DeviceLost, DeviceOutOfMemory
from infercam.engine.device.probe import Gpu, Probe
from tests.engine import tiny
from tests.engine.device import fake_pycuda
from tests.engine.device.fake_pycuda import FakeCuda
from tests.engine.device.host_runner import HostRunner


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A machine with a driver for CUDA 13, one GPU, and pycuda."""
    return install(monkeypatch, FakeCuda())


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeCuda) -> FakeCuda:
    package = ModuleType("pycuda")
    package.driver = fake.module()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", package.driver)  # type: ignore[attr-defined]
    monkeypatch.setattr(cuda, "probe", lambda: machine())
    monkeypatch.setattr(cuda.compiler, "cubin", lambda capability: b"cubin %d%d" % capability)
    monkeypatch.setattr(cuda, "_contexts", {})
    return fake


def machine(capability: tuple[int, int] = (9, 0), cuda_version: tuple[int, int] = (13, 0)) -> Probe:
    return Probe(cuda_version, [Gpu("Fake GPU", capability, 1 << 28)])


# -- it works ------------------------------------------------------------------------------------------------------
def test_the_whole_engine_runs_over_it(fake: FakeCuda, tiny_bundle: Bundle, tiny_engine: Engine) -> None:
    driver = cuda.CudaDriver()
    runner = HostRunner(tiny_bundle, fake.emulated)
    items = [(f"p{n}", tiny.picture(24, 32 + n, n), [n, n + 1]) for n in range(3)]
    with Engine(tiny_bundle, DeviceBackend(tiny_bundle, driver, runner, 32 << 20)) as engine:
        for result in engine.stream(items, "released"):
            assert result.error is None and result.pixels is not None
            want = tiny_engine.maps(result.pixels, result.classes, "released")
            np.testing.assert_allclose(result.maps, want, atol=1e-5)
        described = engine.backend.describe()["device"]
    assert described == {
        "driver": "cuda",
        "gpu": "Fake GPU",
        "compute_capability": "9.0",
        "memory": 1 << 28,
        "driver_version": "13.0",
        "pycuda_built_for": "13.0",
    }
    assert fake.stacks_left == 0 and fake.emulated.used == 0


def test_memory_copies_and_events(fake: FakeCuda) -> None:
    driver = cuda.CudaDriver()
    with driver.current():
        pointer = driver.allocate(100)
        source, target = driver.pinned(100), driver.pinned(100)
        source[:] = np.arange(100)
        driver.copy_in(pointer, source)
        driver.zero(pointer, 10)
        driver.copy(pointer + 90, pointer + 10, 5)
        driver.copy_out(target, pointer)
        event = driver.record()
        assert not event.done()
        event.wait()
        assert event.done()
        assert target.tolist() == [0] * 10 + list(range(10, 90)) + [10, 11, 12, 13, 14] + list(range(95, 100))
        driver.free(pointer)
        assert driver.stream == 4321
        info = driver.info()
        assert (info.name, info.compute_capability, info.driver_version) == ("Fake GPU", (9, 0), "13.0")
    driver.close()


def test_kernels_are_loaded_once_and_prepared_once_per_signature(fake: FakeCuda) -> None:
    driver = cuda.CudaDriver()
    with driver.current():
        pointer = driver.allocate(64)
        for _ in range(3):
            driver.launch("mean_colours", (1, 1, 1), (32, 1, 1), [pointer, np.int32(0), pointer])
        driver.record().wait()
        with pytest.raises(DeviceError, match=r"no_such: .*named symbol not found"):
            driver.launch("no_such", (1, 1, 1), (1, 1, 1), [])
    assert fake.calls.count("module_from_buffer") == 1 and fake.calls.count("get_function") == 2
    assert fake.calls.count("launch") == 3


def test_much_shared_memory_is_announced(fake: FakeCuda) -> None:
    driver = cuda.CudaDriver()
    with driver.current(), pytest.raises(DeviceError, match="block"):  # the emulator takes none at all
        driver.launch("mean_colours", (1, 1, 1), (32, 1, 1), [0, np.int32(0), 0], 64 << 10)


def test_any_thread_may_use_it_and_none_keeps_the_context(fake: FakeCuda) -> None:
    driver = cuda.CudaDriver()
    errors: list[Exception] = []

    def work() -> None:
        try:
            with driver.current(), driver.current():
                driver.free(driver.allocate(10))
            driver.allocate(10)
        except DeviceError as e:
            errors.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [str(e) for e in errors] == ["allocating 0 MiB: mem_alloc failed: invalid device context"]
    assert fake.stacks_left == 0


def test_the_primary_context_is_retained_once_for_all_drivers(fake: FakeCuda) -> None:
    first = cuda.CudaDriver()
    context = fake.primary
    first.close()
    cuda.CudaDriver()
    assert fake.primary is context


# -- what goes wrong is one line -----------------------------------------------------------------------------------
def failing(monkeypatch: pytest.MonkeyPatch, **options: object) -> Callable[[], cuda.CudaDriver]:
    monkeypatch.setattr(cuda, "probe", lambda: machine(**options))  # type: ignore[arg-type]
    return cuda.CudaDriver


def test_no_driver_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real probe, of this machine, where it has none."""
    try:
        cuda.probe()
    except DeviceError as e:
        with pytest.raises(DeviceError) as caught:
            cuda.CudaDriver()
        assert str(caught.value) == str(e) and "\n" not in str(e)
    else:
        pytest.skip("this machine has a GPU")


def test_another_gpu_than_there_is(fake: FakeCuda) -> None:
    for number in (1, -1):
        with pytest.raises(DeviceError, match=f"no GPU {number}: there are 1, counted from 0"):
            cuda.CudaDriver(number)


def test_an_old_gpu(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"\(Fake GPU\) has compute capability 6.1; 7.5 or later"):
        failing(monkeypatch, capability=(6, 1))()


def test_an_old_driver(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"too old: it runs CUDA 12.4, pycuda was built for 13.0; update"):
        failing(monkeypatch, cuda_version=(12, 4))()


def test_without_pycuda(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pycuda.driver")
    with pytest.raises(MissingExtra, match=r"needs pycuda: pip install 'infercam\[gpu\]'"):
        cuda.CudaDriver()


def test_a_pycuda_that_cannot_be_loaded(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name, path, target=None):
            if name == "pycuda.driver":
                raise ImportError("libcurand.so.10: cannot open shared object file\nand more")

    monkeypatch.delitem(sys.modules, "pycuda.driver")
    sys.modules["pycuda"].__path__ = []  # type: ignore[attr-defined]
    monkeypatch.delattr(sys.modules["pycuda"], "driver")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(
        DeviceError, match=r"\(libcurand.so.10: cannot open shared object file\); build it again"
    ):
        cuda.CudaDriver()


@pytest.mark.parametrize(
    "error",
    [
        fake_pycuda.LogicError(
            "cuDevicePrimaryCtxRetain failed: CUDA-capable device(s) is/are busy or unavailable"
        ),
        fake_pycuda.MemoryError("cuDevicePrimaryCtxRetain failed: out of memory"),
    ],
)
def test_a_gpu_that_another_process_holds(fake: FakeCuda, error: Exception) -> None:
    fake.fail["retain_primary_context"] = error
    with pytest.raises(DeviceError, match=r"GPU 0 \(Fake GPU\) cannot be used: .*nvidia-smi") as caught:
        cuda.CudaDriver()
    assert "\n" not in str(caught.value)


def test_out_of_memory(fake: FakeCuda) -> None:
    driver = cuda.CudaDriver()
    with driver.current(), pytest.raises(DeviceOutOfMemory, match="allocating 1024 MiB: no memory of that"):
        driver.allocate(1 << 30)


def test_a_fault_on_the_device_loses_it(fake: FakeCuda) -> None:
    driver = cuda.CudaDriver()
    with driver.current():
        event = driver.record()
        fake.fail["synchronize"] = fake_pycuda.LogicError(
            "cuEventSynchronize failed: an illegal memory access was encountered"
        )
        with pytest.raises(DeviceLost, match=r"the GPU failed .*illegal memory access"):
            event.wait()
        fake.fail["record"] = fake_pycuda.LogicError("cuEventRecord failed: invalid resource handle")
        with pytest.raises(DeviceError, match="recording an event: cuEventRecord failed: invalid resource"):
            driver.record()
