"""Asking the CUDA driver itself, by ctypes: no package needed, nothing allocated, no context made.

TensorRT's runtime dies of a segmentation fault where there is no driver, so this is asked before it is touched.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, NamedTuple

from infercam.engine.device.driver import DeviceError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_MISMATCH = 803  # CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
_NO_DEVICE = 100


class Gpu(NamedTuple):
    """One device as the driver names it."""

    name: str
    compute_capability: tuple[int, int]
    total_memory: int
    """Bytes."""


class Probe(NamedTuple):
    """What the driver says: `cuda` is the newest CUDA version it runs, as (13, 0)."""

    cuda: tuple[int, int]
    gpus: list[Gpu]


def probe() -> Probe:
    """The driver and its devices, in the order that CUDA numbers them.

    Raises DeviceError, in one line that says what to do, where there is no driver or no device.
    """
    cuda = _library()
    _check(cuda, cuda.cuInit(0), "cuInit")
    version, count = ctypes.c_int(), ctypes.c_int()
    _check(cuda, cuda.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    _check(cuda, cuda.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    if not count.value:
        raise DeviceError("the CUDA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES")
    gpus = [_gpu(cuda, number) for number in range(count.value)]
    return Probe((version.value // 1000, version.value % 1000 // 10), gpus)


def _library() -> Any:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError:
        raise DeviceError(f"no NVIDIA driver on this machine ({name} cannot be loaded)") from None


def _gpu(cuda: Any, number: int) -> Gpu:
    device, total = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    _check(cuda, cuda.cuDeviceGet(ctypes.byref(device), number), "cuDeviceGet")
    _check(cuda, cuda.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    _check(cuda, cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device), "cuDeviceTotalMem")
    capability = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        _check(
            cuda, cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "cuDeviceGetAttribute"
        )
        capability.append(value.value)
    return Gpu(name.value.decode(errors="replace"), (capability[0], capability[1]), total.value)


def _check(cuda: Any, code: int, call: str) -> None:
    if not code:
        return
    if code == _NO_DEVICE:
        raise DeviceError("the CUDA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES")
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(code, ctypes.byref(text))
    said = text.value.decode(errors="replace") if text.value else "unknown error"
    hint = "; the driver and its kernel module differ: reboot" if code == _MISMATCH else ""
    raise DeviceError(f"the CUDA driver refuses: {call}: {said} (code {code}){hint}")
