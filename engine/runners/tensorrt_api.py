"""The part of TensorRT's Python API that is used here: what 10.16, 11 and TensorRT-RTX have in common, with types.

TensorRT is found when it is used, never imported at the top. A test compares every name, parameter and enum member
below, and every use of them, with the listings of both versions, so that neither is needed to stay right.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

from infercam.engine.common.errors import MissingExtra
from infercam.engine.runners.plan import RuntimeKind

if TYPE_CHECKING:
    from typing_extensions import Buffer

Dims = Sequence[int]


class IExecutionContext(Protocol):
    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def get_tensor_shape(self, name: str) -> Dims: ...
    def update_device_memory_size_for_shapes(self) -> int: ...
    def set_device_memory(self, memory: int, size: int) -> None: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class ICudaEngine(Protocol):
    @property
    def num_io_tensors(self) -> int: ...
    @property
    def num_optimization_profiles(self) -> int: ...
    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_dtype(self, name: str) -> Any: ...
    def create_execution_context(self, strategy: Any) -> IExecutionContext | None: ...
    def serialize(self) -> Buffer: ...


class Runtime(Protocol):
    def deserialize_cuda_engine(self, serialized_engine: Buffer) -> ICudaEngine | None: ...


class Refitter(Protocol):
    def refit_cuda_engine(self) -> bool: ...
    def get_missing_weights(self) -> list[str]: ...


class OnnxParserRefitter(Protocol):
    def refit_from_file(self, model: str) -> bool: ...


class ITensor(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def shape(self) -> Dims: ...


class INetworkDefinition(Protocol):
    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    def get_input(self, index: int) -> ITensor: ...
    def get_output(self, index: int) -> ITensor: ...
    def unmark_output(self, tensor: ITensor) -> None: ...


class IOptimizationProfile(Protocol):
    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None: ...


class ITimingCache(Protocol):
    def serialize(self) -> Buffer: ...


class IBuilderConfig(Protocol):
    hardware_compatibility_level: Any
    progress_monitor: Any

    def set_flag(self, flag: Any) -> None: ...
    def clear_flag(self, flag: Any) -> None: ...
    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None: ...
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...
    def create_timing_cache(self, serialized_timing_cache: Buffer) -> ITimingCache: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> ITimingCache | None: ...


class Builder(Protocol):
    def create_network(self, flags: int) -> INetworkDefinition: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> Buffer | None: ...


class OnnxParser(Protocol):
    @property
    def num_errors(self) -> int: ...
    def parse_from_file(self, model: str) -> bool: ...
    def get_error(self, index: int) -> object: ...


_Runtime: TypeAlias = Runtime  # inside the class below these names are the module's
_Refitter: TypeAlias = Refitter
_OnnxParserRefitter: TypeAlias = OnnxParserRefitter
_Builder: TypeAlias = Builder
_OnnxParser: TypeAlias = OnnxParser


class TensorRT(Protocol):
    """The module itself; `tensorrt_lean` has the runtime's half of it."""

    __version__: str
    Runtime: Callable[[Any], _Runtime]
    Refitter: Callable[[ICudaEngine, Any], _Refitter]
    OnnxParserRefitter: Callable[[_Refitter, Any], _OnnxParserRefitter]
    Builder: Callable[[Any], _Builder]
    OnnxParser: Callable[[INetworkDefinition, Any], _OnnxParser]
    ILogger: Any
    IProgressMonitor: Any
    BuilderFlag: Any
    DataType: Any
    ExecutionContextAllocationStrategy: Any
    HardwareCompatibilityLevel: Any
    MemoryPoolType: Any
    NetworkDefinitionCreationFlag: Any


_PACKAGES: dict[RuntimeKind, tuple[str, str, str]] = {
    "tensorrt": ("tensorrt", "tensorrt", "gpu"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx-cu13", "rtx"),
}
"""Module, package and extra of each runtime."""


def find_tensorrt(kind: RuntimeKind = "tensorrt") -> TensorRT | None:
    """The runtime's full package, or None; never touches the driver."""
    return cast(TensorRT | None, _module(_PACKAGES[kind][0]))


def find_lean() -> TensorRT | None:
    """The lean runtime, or None."""
    return cast(TensorRT | None, _module("tensorrt_lean"))


def installed(kind: RuntimeKind | Literal["tensorrt-lean"]) -> str | None:
    """The version of a runtime's package, or None. It is not imported: two of them in one process would register the
    same C++ types, and only what runs a plan needs to be there."""
    module, package = ("tensorrt_lean", kind) if kind == "tensorrt-lean" else _PACKAGES[kind][:2]
    if module in sys.modules:
        return getattr(sys.modules[module], "__version__", None)
    try:
        return version(package) if find_spec(module) else None
    except PackageNotFoundError:
        return None


def require_tensorrt(what: str, kind: RuntimeKind = "tensorrt") -> TensorRT:
    """The runtime's full package; raises MissingExtra, naming the extra that brings it."""
    found = find_tensorrt(kind)
    if found is None:
        raise missing(kind, what)
    return found


def missing(kind: RuntimeKind, what: str) -> MissingExtra:
    """The error where a runtime is not there, naming the extra that brings it."""
    _, package, extra = _PACKAGES[kind]
    return MissingExtra(package, extra, what)


def require_lean(what: str) -> TensorRT:
    """The lean runtime; raises MissingExtra."""
    found = find_lean()
    if found is None:
        raise MissingExtra("tensorrt-lean", "lean", what)
    return found


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:  # not installed, or its libraries are not
        return None


class Log(Protocol):
    """A trt.ILogger that keeps the errors, for messages of one line."""

    errors: list[str]


_KEPT = 20
_MEMORY = re.compile(r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|bad_alloc", re.IGNORECASE)
_PREFIX = re.compile(r"^(\s*\[[^\]]*\]\s*)*(IRuntime|IBuilder|IExecutionContext|ICudaEngine)::\w+: ?")
_WHERE = re.compile(r"\s*\(?(In|at) \S+ (at )?\S+:\d+\)?|\[\S+\.(cpp|h):\d+: \w+\] ?")


def make_log(trt: TensorRT) -> Log:
    """A logger for TensorRT's objects; silent, its errors are raised by those who know what they mean."""

    base: Any = trt.ILogger  # a class found at run time

    class Collecting(base):
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 asks for this very call
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (base.ERROR, base.INTERNAL_ERROR):
                self.errors = [*self.errors, msg][-_KEPT:]

    return Collecting()


def first_error(log: Log, otherwise: str = "TensorRT does not say why") -> str:
    """The first error logged since the last call, on one line and without source locations."""
    errors, log.errors = log.errors, []
    if not errors:
        return otherwise
    text = _WHERE.sub("", _PREFIX.sub("", " ".join(errors[0].split())))[:300]
    return text + ")" if text.count("(") > text.count(")") else text  # its end went with the place


def is_memory(log: Log) -> bool:
    """Whether an error logged since `first_error` is about memory."""
    return any(_MEMORY.search(text) for text in log.errors)
