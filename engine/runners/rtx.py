"""What TensorRT-RTX has and TensorRT has not: the cards that it takes, whether a plan is valid here before it is
loaded, and a configuration of its contexts, whose kernels are compiled on this machine and kept in the cache folder.

A test compares every name below with the module itself (tests/engine/runners/test_rtx_names.py).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from infercam.engine.common.cache import cache_file, cache_folder, read_entry, write_entry
from infercam.engine.common.errors import shown
from infercam.engine.method.backend import OutOfMemory
from infercam.engine.runners.options import RuntimeSwitches
from infercam.engine.runners.plan import Environment, Plan, PlanError
from infercam.engine.runners.tensorrt_api import IExecutionContext, Log, first_error

if TYPE_CHECKING:
    from typing_extensions import Buffer

CARDS = ((7, 5), (8, 0), (8, 6), (8, 9))
LATER = (12, 0)
"""Compute capabilities that TensorRT-RTX 1.7 takes: these, and all from LATER on. 9.0 it refuses."""
CUDA = (13, 0)
"""That the driver must run: the package is built for it."""
CACHE = "rtx"
"""The folder of compiled kernels, in the cache folder."""


def card_obstacle(gpu: str, capability: tuple[int, int]) -> str | None:
    """Why TensorRT-RTX does not run on that card, and what does; None where it runs."""
    if capability in CARDS or capability >= LATER:
        return None
    here = f"{gpu} (compute {capability[0]}.{capability[1]})"
    if capability < CARDS[0]:
        return f"{here} is older than 7.5, which TensorRT-RTX and every GPU backend need: use --backend cpu"
    return (
        f"TensorRT-RTX does not run on {here}; it takes 7.5, 8.0, 8.6, 8.9, 12.0 and later: use --backend tensorrt "
        "or ort-cuda"
    )


def cache_entry(plan_key: str, here: Environment, driver_version: str) -> Path:
    """Where the kernels lie that were compiled of a plan on such a machine."""
    parts = [plan_key, str(here.rtx), here.gpu, str(here.compute_capability), driver_version]
    return cache_file(CACHE, "\0".join(parts).encode(), ".kernels")


def kept_kernels() -> tuple[int, int]:
    """How many plans have compiled kernels in the cache folder, and their bytes."""
    sizes = [f.stat().st_size for f in cache_folder(CACHE).glob("*.kernels")]
    return len(sizes), sum(sizes)


# -- the API -----------------------------------------------------------------------------------------------------
class IRuntimeCache(Protocol):
    def deserialize(self, blob: Buffer) -> bool: ...
    def serialize(self) -> Buffer | None: ...


class IRuntimeConfig(Protocol):
    cuda_graph_strategy: Any
    dynamic_shapes_kernel_specialization_strategy: Any

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None: ...
    def create_runtime_cache(self) -> IRuntimeCache: ...
    def set_runtime_cache(self, cache: IRuntimeCache) -> bool: ...


class RtxEngine(Protocol):
    """ICudaEngine."""

    def create_runtime_config(self) -> IRuntimeConfig: ...
    def create_execution_context(self, *, runtime_config: IRuntimeConfig) -> IExecutionContext | None: ...


class RtxRuntime(Protocol):
    """Runtime."""

    @property
    def engine_header_size(self) -> int: ...
    def get_engine_validity(self, buffer: Buffer) -> tuple[Any, int]: ...


class TensorRTRTX(Protocol):
    """The module."""

    __version__: str
    CudaGraphStrategy: Any
    DynamicShapesKernelSpecializationStrategy: Any
    EngineInvalidityDiagnostics: Any
    EngineValidity: Any
    ExecutionContextAllocationStrategy: Any


# -- a plan, before it is loaded -----------------------------------------------------------------------------------
NO_MEMORY = "INSUFFICIENT_GPU_MEMORY"
REASONS = {
    "MALFORMED_ENGINE": "is no TensorRT-RTX plan, or a damaged one: build it again",
    "VERSION_MISMATCH": "is of another TensorRT-RTX than the one that is installed: build it again",
    "UNSUPPORTED_CC": "was not built for this GPU: build it again with this GPU among --targets",
    "OLD_CUDA_DRIVER": "needs a newer NVIDIA driver: update it",
    "OLD_CUDA_RUNTIME": "needs a newer CUDA runtime: pip install --upgrade tensorrt-rtx-cu13",
    "CUDA_ERROR": "cannot run: CUDA's driver or runtime does not work here; see: infercam doctor",
    NO_MEMORY: "does not fit into this GPU's memory",
}
"""What TensorRT-RTX may have against a plan (EngineInvalidityDiagnostics): the first of several is said."""


def check_validity(trt: TensorRTRTX, runtime: RtxRuntime, log: Log, plan: Plan, data: bytes) -> None:
    """Raise PlanError, in one line that says what to do, where the plan's header tells that it cannot run here;
    OutOfMemory where the GPU is too small for it. One that could be better is a line."""
    log.errors.clear()
    validity, found = runtime.get_engine_validity(data[: runtime.engine_header_size])
    if validity == trt.EngineValidity.SUBOPTIMAL:
        line = (
            f"note: {shown(plan.folder)}: the plan runs here, faster if built with this GPU among --targets"
        )
        print(line, file=sys.stderr)
    if validity != trt.EngineValidity.INVALID:
        return
    bits = trt.EngineInvalidityDiagnostics
    name = next((name for name in REASONS if found & int(getattr(bits, name))), None)
    why = REASONS[name] if name else f"is invalid here: {first_error(log)}"
    raise (OutOfMemory if name == NO_MEMORY else PlanError)(f"{plan.folder}: the plan {why}")


# -- contexts ------------------------------------------------------------------------------------------------------
@dataclass
class RtxContexts:
    """Makes a plan's contexts: scratch memory is ours, compiled kernels come from the cache folder and go back to it.

    One cache for all contexts, which it must outlive; a configuration for each.
    """

    trt: TensorRTRTX
    engine: RtxEngine
    switches: RuntimeSwitches
    entry: Path
    """Of the cache folder."""

    def __post_init__(self) -> None:
        self._cache = self.engine.create_runtime_config().create_runtime_cache()
        self._kept = self._load()

    def make(self) -> IExecutionContext | None:
        """A context that waits for its scratch memory; None where TensorRT-RTX refuses (its log says why)."""
        trt, config = self.trt, self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        kernels = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = getattr(kernels, self.switches.kernels.upper())
        graphs = trt.CudaGraphStrategy
        config.cuda_graph_strategy = (
            graphs.WHOLE_GRAPH_CAPTURE if self.switches.cuda_graphs else graphs.DISABLED
        )
        config.set_runtime_cache(self._cache)
        return self.engine.create_execution_context(runtime_config=config)

    def keep(self) -> None:
        """Write what was compiled since; a kill loses no more than that."""
        data = bytes(self._cache.serialize() or b"")
        if data and data != self._kept and write_entry(self.entry, data):
            self._kept = data

    def _load(self) -> bytes:
        """What the cache folder had; what is damaged, or of another driver, is thrown away with a line."""
        data = read_entry(self.entry)
        if data is not None and self._cache.deserialize(data):
            return data
        if self.entry.exists():
            why = "damaged" if data is None else "not of this TensorRT-RTX, driver or GPU"
            line = f"note: {shown(self.entry)}: compiled kernels are {why}; thrown away, to be compiled again"
            print(line, file=sys.stderr)
            self.entry.unlink(missing_ok=True)
        return b""
