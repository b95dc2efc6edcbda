"""A stand-in for running plans with `tensorrt_rtx`: the other one's (tests/fake_tensorrt.py), and what only this has.

- a plan's header says whether it is valid here before it is loaded; a plan for other cards is not;
- contexts are made by a configuration; kernels are compiled as shapes are run, and their cache is taken only by the
  version, driver and card that made it.

A test compares every name with the real module (tests/engine/runners/test_rtx_names.py).
"""

from __future__ import annotations

import json
from enum import Enum, IntEnum
from typing import Any

from tests import fake_tensorrt
from tests.fake_tensorrt import (
    DataType,
    ExecutionContextAllocationStrategy,
    ILogger,
    OnnxParserRefitter,
    Refitter,
    _error,
    _pack,
)

__all__ = ["DataType", "ILogger", "OnnxParserRefitter", "Refitter", "_pack"]
__version__ = "1.7.1.116"
HEADER = 64

CudaGraphStrategy = Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
DynamicShapesKernelSpecializationStrategy = Enum(
    "DynamicShapesKernelSpecializationStrategy", "LAZY EAGER NONE"
)
EngineValidity = Enum("EngineValidity", "VALID SUBOPTIMAL INVALID")


class EngineInvalidityDiagnostics(IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


def __getattr__(name: str) -> Any:
    if name == "state":  # one for both, set anew for each test
        return fake_tensorrt.state
    raise AttributeError(name)


class Runtime(fake_tensorrt.Runtime):
    @property
    def engine_header_size(self) -> int:
        return HEADER

    def get_engine_validity(self, buffer: Any) -> tuple[Any, int]:
        assert fake_tensorrt.state.driver is not None
        if fake_tensorrt.state.invalid is not None:
            found, line = fake_tensorrt.state.invalid
            _error(self._logger, line)
            return EngineValidity.INVALID, found
        if not bytes(buffer[:HEADER]).startswith(fake_tensorrt._MAGIC):
            return EngineValidity.INVALID, int(EngineInvalidityDiagnostics.MALFORMED_ENGINE)
        return EngineValidity.SUBOPTIMAL if fake_tensorrt.state.suboptimal else EngineValidity.VALID, 0

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        made = self._deserialised(bytes(serialized_engine), ICudaEngine, __version__)
        assert made is None or isinstance(made, ICudaEngine)
        return made


class IRuntimeCache:
    def __init__(self) -> None:
        self._shapes: set[tuple[int, ...]] = set()

    def deserialize(self, blob: Any) -> bool:
        found = json.loads(bytes(blob))
        if found["of"] != _here():
            return False
        self._shapes = set(map(tuple, found["shapes"]))
        return True

    def serialize(self) -> bytes:
        if not self._shapes:
            return b""
        return json.dumps({"of": _here(), "shapes": sorted(self._shapes)}).encode()


def _here() -> list[Any]:
    driver = fake_tensorrt.state.driver
    assert driver is not None
    return [__version__, driver.info().name, driver.info().driver_version]


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy: Any = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy: Any = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )
        self._strategy: Any = ExecutionContextAllocationStrategy.STATIC
        self._cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class IExecutionContext(fake_tensorrt.IExecutionContext):
    _config: IRuntimeConfig

    def execute_async_v3(self, stream_handle: int) -> bool:
        shape, cache = self._shape, self._config._cache
        assert shape is not None and cache is not None
        if shape not in cache._shapes:
            cache._shapes.add(shape)
            fake_tensorrt.state.compiled.append(shape)
        return super().execute_async_v3(stream_handle)


class ICudaEngine(fake_tensorrt.ICudaEngine):
    _contexts = IExecutionContext

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: Any = None) -> IExecutionContext | None:
        assert runtime_config._strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        made = self._context()
        assert made is None or isinstance(made, IExecutionContext)
        if made is not None:
            made._config = runtime_config
        return made
