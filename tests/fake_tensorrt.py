"""A stand-in for the `tensorrt` package, which does not run without a GPU: the names that both real versions have (a
test compares them with the listings).

Parsing and building are TensorRT-RTX's, which needs no GPU: its parser, network, profiles, builder and progress are
the real ones. `Builder` only notes what it was given, and leaves out what needs a GPU (_NOT_HERE, timing caches).
Without that package nothing is built, and the tests that build are skipped. Running is ours: the network on host
pointers by ONNX Runtime, with the real package's strictness where it matters:

- a plan is taken only by the version that made it;
- a context needs a profile, a shape within it, every address and enough scratch memory, or it refuses;
- without a driver, deserialising ends the process (here: an AssertionError).

`state` injects failures. Put it in place with `monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from infercam.engine.device.driver import DeviceOutOfMemory

try:
    import tensorrt_rtx as rtx
except ImportError:
    rtx = None

__version__ = "11.4.0.106"
_MAGIC = b"FAKEPLAN"


@dataclass
class State:
    """What goes wrong, and what was seen."""

    driver: Any = None
    """A HostDriver, or an EmulatedDriver: then runs wait their turn in its stream."""
    distort: float = 0.0
    """Error of the responses, relative to their largest."""
    build_error: str | None = None
    deserialise_error: str | None = None
    run_error: str | None = None
    on_step: Callable[[str, int], None] | None = None
    builds: int = 0
    refits: int = 0
    contexts: int = 0
    context_bytes: int = 0
    """Of device memory, that a context takes beside its scratch memory."""
    captured: list[Callable[[], None]] | None = None
    """While a CUDA graph is captured: what would have run."""
    compiled: list[tuple[int, ...]] = field(default_factory=list)
    """Shapes that TensorRT-RTX compiled kernels for."""
    invalid: tuple[int, str] | None = None
    """What it says of a plan's header: diagnostics, and a line of its log."""
    suboptimal: bool = False
    shapes_set: int = 0
    profiles_set: int = 0
    runs: list[tuple[int, ...]] = field(default_factory=list)
    timings_read: list[bytes] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    """Of the last build."""
    parsed: list[tuple[Any, str]] = field(default_factory=list)
    """Networks, and the files that they were read from."""


state = State()


ExecutionContextAllocationStrategy = Enum(
    "ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"
)
if rtx is not None:
    ILogger, DataType = rtx.ILogger, rtx.DataType
else:
    DataType = Enum("DataType", "FLOAT HALF BF16 INT8 INT32 INT64 BOOL UINT8 FP8 INT4 FP4 E8M0")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def log(self, severity: int, msg: str) -> None:
            raise NotImplementedError


def _error(logger: Any, text: str) -> None:
    logger.log(ILogger.ERROR, text)


# -- building: the real one, watched ---------------------------------------------------------------------------
if rtx is not None:
    from tensorrt_rtx import (
        BuilderFlag,
        HardwareCompatibilityLevel,
        IProgressMonitor,
        MemoryPoolType,
        NetworkDefinitionCreationFlag,
    )

    _NOT_HERE = {"REFIT", "REFIT_IDENTICAL", "STRIP_PLAN", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}
    """Flags that TensorRT-RTX takes on a machine with a GPU, or not at all."""

    class OnnxParser(rtx.OnnxParser):
        def __init__(self, network: Any, logger: Any) -> None:
            super().__init__(network, logger)
            self._network = network

        def parse_from_file(self, model: str) -> bool:
            state.parsed.append((self._network, model))
            return super().parse_from_file(model)

    class _Relay(IProgressMonitor):
        """Tells `state.on_step` of each step before the builder's own monitor hears of it."""

        def __init__(self, monitor: Any) -> None:
            super().__init__()
            self._monitor = monitor

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            self._monitor.phase_start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if state.on_step is not None:
                state.on_step(phase_name, step)
            return self._monitor.step_complete(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            self._monitor.phase_finish(phase_name)


class ITimingCache:
    """TensorRT's; TensorRT-RTX times nothing."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> bytes:
        return b"TIMINGS" + str(state.builds).encode()


class IOptimizationProfile:
    def __init__(self, real: Any) -> None:
        self._real = real
        self._shapes: list[list[int]] = []

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._real.set_shape(input, min, opt, max)
        self._shapes = [list(min), list(opt), list(max)]


class IBuilderConfig:
    def __init__(self, real: Any) -> None:
        self._real = real
        self._flags = {BuilderFlag.TF32}  # as in the real one
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.progress_monitor: Any = None

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)
        if flag.name not in _NOT_HERE:
            self._real.set_flag(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)
        self._real.clear_flag(flag)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        assert pool is MemoryPoolType.WORKSPACE and pool_size > 0

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return self._real.add_optimization_profile(profile._real)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._data and not cache._data.startswith(b"TIMINGS"):
            return False
        self._cache = cache
        state.timings_read.append(cache._data)
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._real = rtx.Builder(logger)

    def create_network(self, flags: int = 0) -> Any:
        assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return self._real.create_network(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._real.create_builder_config())

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile(self._real.create_optimization_profile())

    def build_serialized_network(self, network: Any, config: IBuilderConfig) -> bytes | None:
        """A plan that the stand-in runs, once the real builder has made one."""
        state.builds += 1
        state.flags = sorted(f.name for f in config._flags)
        if state.build_error is not None:
            _error(self._logger, state.build_error)
            return None
        if config.progress_monitor is not None:
            config._real.progress_monitor = _Relay(config.progress_monitor)
        if self._real.build_serialized_network(network, config._real) is None:
            return None
        head = {
            "version": __version__,
            "profiles": [p._shapes for p in config._profiles],
            "stripped": BuilderFlag.STRIP_PLAN in config._flags,
            "refittable": bool({BuilderFlag.REFIT, BuilderFlag.REFIT_IDENTICAL} & config._flags),
        }
        return _pack(head, _parsed(network))


def _parsed(network: Any) -> onnx.ModelProto:
    """The graph that a network was read from, with the outputs that the network has now."""
    model = onnx.load(next(file for one, file in reversed(state.parsed) if one is network))
    kept = {network.get_output(i).name for i in range(network.num_outputs)}
    outputs = [o for o in model.graph.output if o.name in kept]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return model


# -- running: ours ---------------------------------------------------------------------------------------------
_TYPES = {TensorProto.FLOAT: DataType.FLOAT, TensorProto.FLOAT16: DataType.HALF}


@dataclass
class ITensor:
    name: str
    dtype: Any
    shape: tuple[int, ...]


def _tensor(info: onnx.ValueInfoProto) -> ITensor:
    kind = info.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return ITensor(info.name, _TYPES.get(kind.elem_type), dims)


def _pack(head: dict[str, Any], model: onnx.ModelProto) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if head["stripped"]:
        for weights in copy.graph.initializer:
            weights.ClearField("raw_data")
    text = json.dumps(head).encode()
    return _MAGIC + len(text).to_bytes(4, "little") + text + copy.SerializeToString()


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        return self._deserialised(bytes(serialized_engine), ICudaEngine, __version__)

    def _deserialised(self, data: bytes, kind: type[ICudaEngine], version: str) -> ICudaEngine | None:
        assert state.driver is not None, "no driver: the real one dies of a segmentation fault"
        if state.deserialise_error is not None:
            _error(self._logger, state.deserialise_error)
            return None
        if not data.startswith(_MAGIC):
            _error(self._logger, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag)")
            return None
        size = int.from_bytes(data[8:12], "little")
        head = json.loads(data[12 : 12 + size])
        if head["version"] != version:
            _error(self._logger, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (version tag)")
            return None
        return kind(head, onnx.load_model_from_string(data[12 + size :]), self._logger)


class ICudaEngine:
    _contexts: Callable[[ICudaEngine], IExecutionContext]

    def __init__(self, head: dict[str, Any], model: onnx.ModelProto, logger: Any) -> None:
        self._head, self._model, self._logger = head, model, logger
        tensors = [_tensor(t) for t in [*model.graph.input, *model.graph.output]]
        self._tensors = {t.name: t for t in tensors}
        self._inputs = {t.name for t in model.graph.input}
        static = [1 if d < 0 else d for d in tensors[0].shape]
        self._profiles = head["profiles"] or [[static, static, static]]

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name].dtype

    def serialize(self) -> bytes:
        return _pack(self._head, self._model)

    def create_execution_context(self, strategy: Any = None) -> IExecutionContext | None:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return self._context()

    def _context(self) -> IExecutionContext | None:
        assert all(w.raw_data for w in self._model.graph.initializer), "stripped weights were not put back"
        try:
            made = self._contexts(self)
        except DeviceOutOfMemory:
            _error(self._logger, "IExecutionContext::IExecutionContext: Error Code 2: OutOfMemory")
            return None
        state.contexts += 1
        return made


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._logger = engine._logger
        self._driver = state.driver
        self._block = state.driver.allocate(state.context_bytes) if state.context_bytes else None
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(
            engine._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._profile: int | None = None
        self._shape: tuple[int, ...] | None = None
        self._memory = (0, 0)
        self._addresses: dict[str, int] = {}

    def __del__(self) -> None:
        if getattr(self, "_block", None) is not None:
            self._driver.free(self._block)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert state.driver is not None and stream_handle == state.driver.stream
        state.profiles_set += 1
        self._profile, self._shape = profile_index, None
        return 0 <= profile_index < len(self._engine._profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name in self._engine._inputs and self._profile is not None
        low, _, high = self._engine._profiles[self._profile]
        if not all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
            _error(
                self._logger, f"IExecutionContext::setInputShape: Error Code 3: {shape} outside the profile"
            )
            return False
        state.shapes_set += 1
        self._shape = tuple(shape)
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        assert self._shape is not None
        return 16 * int(np.prod(self._shape))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self._shape is not None
        return self._run(np.zeros(self._shape, np.float32))[name].shape

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in self._engine._tensors and memory != 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        driver, shape = state.driver, self._shape
        assert driver is not None and stream_handle == driver.stream and shape is not None
        if state.run_error is not None:
            _error(self._logger, state.run_error)
            return False
        needed = self.update_device_memory_size_for_shapes()
        scratch, addresses = self._memory, dict(self._addresses)
        assert scratch[1] >= needed

        def work() -> None:
            driver.view(scratch[0], needed).fill(0x5A)  # scratch is written to
            self._infer(shape, addresses)

        state.runs.append(shape)
        if state.captured is not None:
            state.captured.append(work)
        else:
            getattr(driver, "enqueue", lambda now: now())(work)
        return True

    def _infer(self, shape: tuple[int, ...], addresses: dict[str, int]) -> None:
        assert state.driver is not None
        (name,) = self._engine._inputs
        dtype = np.dtype(np.float16 if self._engine._tensors[name].dtype is DataType.HALF else np.float32)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        image = state.driver.view(addresses[name], nbytes).view(dtype).reshape(shape)
        for output, values in self._run(image).items():
            values = values + np.float32(state.distort) * np.abs(values).max() * (output == "response")
            flat = np.ascontiguousarray(values, np.float32).view(np.uint8).ravel()
            state.driver.view(addresses[output], flat.nbytes)[:] = flat

    def _run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        (name,) = self._engine._inputs
        dtype = np.float16 if self._engine._tensors[name].dtype is DataType.HALF else np.float32
        names = [o.name for o in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, {name: image.astype(dtype)}), strict=True))


ICudaEngine._contexts = IExecutionContext


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: Any) -> None:
        assert engine._head["refittable"]
        self._engine = engine
        self._new: onnx.ModelProto | None = None

    def get_missing_weights(self) -> list[str]:
        return [] if self._new is not None else ["everything"]

    def refit_cuda_engine(self) -> bool:
        assert self._new is not None
        state.refits += 1
        self._engine._model = self._new
        return True


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self._refitter, self._logger = refitter, logger

    def refit_from_file(self, model: str) -> bool:
        loaded = onnx.load(model)
        have = [(w.name, list(w.dims)) for w in self._refitter._engine._model.graph.initializer]
        if have != [(w.name, list(w.dims)) for w in loaded.graph.initializer]:
            _error(self._logger, "weights do not fit")
            return False
        self._refitter._new = loaded
        return True
