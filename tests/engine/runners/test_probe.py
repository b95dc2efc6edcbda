"""The driver asked by ctypes, against a stand-in for libcuda."""

from __future__ import annotations

import ctypes

import pytest

from infercam.engine.device import probe as module
from infercam.engine.device.driver import DeviceError
from infercam.engine.device.probe import Gpu, probe


class Libcuda:
    """Two GPUs; `fails`: call -> CUDA error code."""

    def __init__(self, count: int = 2, **fails: int) -> None:
        self.count, self.fails = count, fails

    def __getattr__(self, name: str):
        def call(*args):
            if name in self.fails:
                return self.fails[name]
            return vars(type(self)).get(f"_{name}", lambda *_: 0)(self, *args)

        return call

    def _cuDriverGetVersion(self, out) -> int:
        out._obj.value = 13010
        return 0

    def _cuDeviceGetCount(self, out) -> int:
        out._obj.value = self.count
        return 0

    def _cuDeviceGet(self, out, number) -> int:
        out._obj.value = number
        return 0

    def _cuDeviceGetName(self, buffer, size, device) -> int:
        buffer.value = f"GPU {device.value}".encode()
        assert size == 256
        return 0

    def _cuDeviceTotalMem_v2(self, out, device) -> int:
        out._obj.value = 80 << 30  # more than 32 bits hold
        return 0

    def _cuDeviceGetAttribute(self, out, attribute, device) -> int:
        out._obj.value = {75: 9, 76: 0}[attribute]
        return 0

    def _cuGetErrorString(self, code, out) -> int:
        out._obj.value = b"system driver mismatch"
        return 0


@pytest.fixture
def libcuda(monkeypatch):
    def load(library) -> None:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: library)

    return load


def test_every_gpu_is_listed(libcuda):
    libcuda(Libcuda())
    found = probe()
    assert found.cuda == (13, 1)
    assert found.gpus == [Gpu("GPU 0", (9, 0), 80 << 30), Gpu("GPU 1", (9, 0), 80 << 30)]


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (Libcuda(count=0), "sees no GPU"),
        (Libcuda(cuInit=100), "sees no GPU"),
        (Libcuda(cuInit=803), "cuInit: system driver mismatch (code 803); the driver and its kernel"),
        (Libcuda(cuDeviceGetName=1), "cuDeviceGetName"),
    ],
)
def test_what_the_driver_refuses_is_one_line(libcuda, library, words):
    libcuda(library)
    with pytest.raises(DeviceError) as e:
        probe()
    assert words in str(e.value) and "\n" not in str(e.value)


def test_no_driver_is_one_line(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(module.ctypes, "CDLL", missing)
    with pytest.raises(DeviceError, match="no NVIDIA driver on this machine"):
        probe()
