"""What a kernel test needs around `Ops`: arrays to and from the device, with every allocation exactly as large as
was asked for, so that a kernel that goes one byte too far is caught."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from infercam.engine.bundle import InputSpec
from infercam.engine.device.driver import Bytes, Pointer
from infercam.engine.device.ops import Ops
from tests.cuda_emulator.driver import EmulatedDriver


class Rig:
    """An emulated device and its `ops`; also the workspace and the uploads that they need."""

    def __init__(self, spec: InputSpec | None = None, seed: int = 1, **options: Any) -> None:
        self.driver = EmulatedDriver(seed=seed, **options)
        self.spec = spec or InputSpec()
        self.held: set[Pointer] = set()
        self.ops = Ops(self.driver, self.spec, self, self)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *error: object) -> None:
        self.ops.close()
        self.driver.close()

    def allocate(self, nbytes: int) -> Pointer:
        pointer = self.driver.allocate(nbytes)
        self.held.add(pointer)
        return pointer

    def free(self, pointer: Pointer) -> None:
        self.held.remove(pointer)
        self.driver.free(pointer)

    def send(self, target: Pointer, data: Bytes) -> None:
        self.driver.copy_in(target, data)

    def put(self, array: NDArray[Any]) -> Pointer:
        """A device copy, in memory of exactly that size (at least 1 byte)."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        pointer = self.driver.allocate(max(1, data.nbytes))
        if data.nbytes:
            self.driver.copy_in(pointer, data)
        return pointer

    def get(self, pointer: Pointer, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A host copy."""
        out = np.empty(shape, dtype)
        if out.nbytes:
            self.driver.copy_out(out.reshape(-1).view(np.uint8), pointer)
        return out
