"""The network as a TensorRT plan, on device pointers and the backend's stream.

Several execution contexts, so that a shape that comes again needs no set-up; all of them share one block of
scratch memory, because one stream runs them one after the other. The block grows to what the shapes at hand need
rather than to what the largest profile could.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError
from infercam.engine.device.driver import DeviceInfo, DeviceOutOfMemory, Driver, Pointer
from infercam.engine.device.probe import probe
from infercam.engine.device.runner import InputType, OutputShape, Runner
from infercam.engine.method.backend import OutOfMemory
from infercam.engine.runners.plan import (
    Environment,
    Plan,
    PlanError,
    Profile,
    Shape,
    describe_plan,
    find_plan,
    graph_of,
    misfit,
    pick_profile,
)
from infercam.engine.runners.tensorrt_api import (
    ICudaEngine,
    IExecutionContext,
    Log,
    Runtime,
    TensorRT,
    find_lean,
    find_tensorrt,
    first_error,
    is_memory,
    make_log,
    require_lean,
    require_tensorrt,
)

CONTEXTS = 4


class Memory(Protocol):
    """Where scratch memory comes from: a Driver, or a pool over one."""

    def allocate(self, nbytes: int) -> Pointer: ...
    def free(self, pointer: Pointer) -> None: ...


def environment(info: DeviceInfo) -> Environment:
    """The device, and the TensorRT packages that are installed."""
    full, lean = find_tensorrt(), find_lean()
    return Environment(
        info.name,
        info.compute_capability,
        None if full is None else full.__version__,
        None if lean is None else lean.__version__,
    )


def load_runner(
    bundle: Bundle, driver: Driver, precision: str | None = None, cache: Path | None = None
) -> TensorRTRunner:
    """The bundle's best plan for this GPU as a runner; raises PlanError (see find_plan) or MissingExtra."""
    if find_lean() is None:
        require_tensorrt("the tensorrt backend")
    return TensorRTRunner(find_plan(bundle, precision, environment(driver.info()), cache), bundle, driver)


@dataclass
class _Slot:
    """An execution context and what it is set up for."""

    context: IExecutionContext
    profile: int = -1
    shape: Shape | None = None
    scratch: int = 0
    """Bytes that it needs for `shape`."""


class TensorRTRunner(Runner):
    """A plan on a device; see device/runner.py: Runner. Not thread-safe: the backend's driver thread calls it, within
    `driver.current()`.

    Raises PlanError where the plan does not fit the bundle, the GPU or the TensorRT that is installed, or is
    damaged; DeviceError where there is no driver; MissingExtra where TensorRT is missing.
    """

    name = "tensorrt"

    def __init__(
        self,
        plan: Plan,
        bundle: Bundle,
        driver: Driver,
        memory: Memory | None = None,
        contexts: int = CONTEXTS,
    ) -> None:
        probe()  # without a driver, TensorRT would end the process
        problem = misfit(plan.record, bundle, environment(driver.info()))
        if problem is not None:
            raise PlanError(f"{plan.folder}: {problem}; build it again: infercam build {bundle.path}")
        self.plan = plan
        self.precision: str = plan.record.precision
        self.input_type: InputType = plan.record.input_type
        self._manifest = bundle.manifest
        self._profiles = plan.record.profiles
        self._driver = driver
        portable = plan.record.options.version_compatible
        self._trt = require_lean("this plan") if portable else require_tensorrt("this plan")
        self._log = make_log(self._trt)
        self._runtime = self._trt.Runtime(self._log)  # kept: the engine lives in it
        self._engine = _deserialise(self._runtime, self._log, plan)
        if plan.record.options.stripped:
            refit(self._trt, self._log, self._engine, bundle.graph(graph_of(plan.record.precision)))
        self._check_engine()
        self._limit = contexts
        self._slots: list[_Slot] = []  # least recently used first
        self._asked: _Slot | None = None
        self._scratch = _Block(driver, memory or driver)
        self._unused = _Block(driver, memory or driver)
        self._shapes: dict[tuple[int, int], OutputShape] = {}

    # -- device/runner.py: Runner ----------------------------------------------------------------------------
    def response_shape(self, height: int, width: int) -> OutputShape:
        """Of one view; raises BackendError where no profile takes that size."""
        found = self._shapes.get((height, width))
        if found is None:
            batch = min(p.smallest[0] for p in self._taking(height, width))
            shape = (batch, height, width)
            self._asked = self._asked or self._new_slot()  # its own, so that those that run keep their shapes
            self._set_up(self._asked, self._profile(shape), shape)
            _, classes, rows, columns = tuple(self._asked.context.get_tensor_shape(self._manifest.response))
            found = self._shapes[height, width] = OutputShape(classes, rows, columns)
        return found

    def max_batch(self, height: int, width: int) -> int:
        """Most views of that size that a profile takes; raises BackendError where none takes any."""
        return max(p.largest[0] for p in self._taking(height, width))

    def _taking(self, height: int, width: int) -> list[Profile]:
        """The profiles that take views of that size; raises BackendError where none does."""
        fitting = [p for p in self._profiles if p.takes((p.smallest[0], height, width))]
        if not fitting:
            raise BackendError(self._outside(f"a view of {height}x{width}"))
        return fitting

    def respond(self, batch: int, height: int, width: int, image: Pointer, response: Pointer) -> None:
        scores = self._unused.at_least(4 * batch * len(self._manifest.classes))
        self._enqueue((batch, height, width), image, scores=scores, response=response)

    def scores(self, batch: int, height: int, width: int, image: Pointer, scores: Pointer) -> None:
        classes, rows, columns = self.response_shape(height, width)
        response = self._unused.at_least(4 * batch * classes * rows * columns)
        self._enqueue((batch, height, width), image, scores=scores, response=response)

    def describe(self) -> dict[str, Any]:
        return {"runner": self.name, "contexts": len(self._slots), **describe_plan(self.plan)}

    def close(self) -> None:
        """Wait for what is in flight, then drop contexts, scratch memory and the engine, in that order."""
        if self._slots:
            self._driver.record().wait()
        self._slots.clear()
        self._asked = None
        self._scratch.release()
        self._unused.release()
        self._engine = self._runtime = cast(Any, None)  # nothing is asked of a closed runner

    # -- one run ---------------------------------------------------------------------------------------------
    def _enqueue(self, shape: Shape, image: Pointer, *, scores: Pointer, response: Pointer) -> None:
        """Everything that can fail for want of memory comes before the launch."""
        slot = self._slot(shape)
        context = slot.context
        context.set_device_memory(self._scratch.at_least(slot.scratch), self._scratch.nbytes)
        m = self._manifest
        for name, pointer in ((m.input.name, image), (m.scores, scores), (m.response, response)):
            self._require(context.set_tensor_address(name, pointer), f"set the address of '{name}'")
        self._require(context.execute_async_v3(self._driver.stream), f"run {_words(shape)}")

    def _slot(self, shape: Shape) -> _Slot:
        """A context set up for the shape: the one that has it, else one of its profile, else a new or the
        longest unused one."""
        profile = self._profile(shape)
        slot = (
            next((s for s in self._slots if s.shape == shape and s.profile == profile), None)
            or self._spare(profile)
            or self._new_slot()
        )
        if slot in self._slots:
            self._slots.remove(slot)
        self._slots.append(slot)
        if slot.shape != shape or slot.profile != profile:
            self._set_up(slot, profile, shape)
        return slot

    def _spare(self, profile: int) -> _Slot | None:
        """A context to give another shape, once there are as many as there may be: least recently used first,
        and rather one whose profile can stay."""
        if len(self._slots) < self._limit:
            return None
        return next((s for s in self._slots if s.profile == profile), self._slots[0])

    def _new_slot(self) -> _Slot:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise self._failure("make an execution context")
        return _Slot(context)

    def _set_up(self, slot: _Slot, profile: int, shape: Shape) -> None:
        self._log.errors.clear()  # older complaints are no reason of what may fail now
        slot.shape = None  # until it is done: a failure leaves nothing that looks ready
        if slot.profile != profile:
            slot.profile = -1
            done = slot.context.set_optimization_profile_async(profile, self._driver.stream)
            self._require(done, f"take profile {profile}")
            slot.profile = profile
        batch, height, width = shape
        taken = slot.context.set_input_shape(self._manifest.input.name, (batch, 3, height, width))
        self._require(taken, f"take {_words(shape)}")
        slot.scratch = slot.context.update_device_memory_size_for_shapes()
        slot.shape = shape

    def _profile(self, shape: Shape) -> int:
        profile = pick_profile(self._profiles, shape)
        if profile is None:
            raise BackendError(self._outside(_words(shape)))
        return profile

    def _outside(self, what: str) -> str:
        profiles = "; ".join(map(str, self._profiles))
        return (
            f"{what} is outside the plan's profiles ({profiles}): build a plan from images of such sizes "
            f"(infercam build … --images DIR), or make the image smaller"
        )

    # -- errors ----------------------------------------------------------------------------------------------
    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise self._failure(what)

    def _failure(self, what: str) -> BackendError:
        if is_memory(self._log):
            return OutOfMemory(f"out of GPU memory: TensorRT cannot {what}: {first_error(self._log)}")
        return BackendError(f"TensorRT cannot {what}: {first_error(self._log)}")

    def _check_engine(self) -> None:
        """What the record says must be what the plan is."""
        engine, m, trt = self._engine, self._manifest, self._trt
        have = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        types = {
            m.input.name: trt.DataType.HALF if self.input_type == "float16" else trt.DataType.FLOAT,
            m.scores: trt.DataType.FLOAT,
            m.response: trt.DataType.FLOAT,
        }
        for name, dtype in types.items():
            if name not in have:
                raise PlanError(f"{self.plan.folder}: the plan has no tensor '{name}'; build it again")
            if engine.get_tensor_dtype(name) != dtype:
                raise PlanError(f"{self.plan.folder}: '{name}' is not of the recorded type; build it again")
        if engine.num_optimization_profiles != len(self._profiles):
            raise PlanError(f"{self.plan.folder}: the plan has not the recorded profiles; build it again")


class _Block:
    """One piece of device memory that grows; only the stream's work uses it."""

    def __init__(self, driver: Driver, memory: Memory) -> None:
        self._driver, self._memory = driver, memory
        self._pointer: Pointer | None = None
        self.nbytes = 0

    def at_least(self, nbytes: int) -> Pointer:
        """Its address, after it has grown where needed; raises OutOfMemory and is empty then."""
        if self._pointer is None or nbytes > self.nbytes:
            if self._pointer is not None:
                self._driver.record().wait()  # work in flight may still use it; growing is rare
                self.release()
            try:
                self._pointer = self._memory.allocate(max(nbytes, 256))
            except DeviceOutOfMemory as e:
                raise OutOfMemory(str(e)) from None
            self.nbytes = max(nbytes, 256)
        return self._pointer

    def release(self) -> None:
        if self._pointer is not None:
            self._memory.free(self._pointer)
        self._pointer, self.nbytes = None, 0


def _deserialise(runtime: Runtime, log: Log, plan: Plan) -> ICudaEngine:
    engine = runtime.deserialize_cuda_engine(plan.read())
    if engine is None and is_memory(log):
        raise OutOfMemory(f"out of GPU memory: the plan cannot be loaded: {first_error(log)}")
    if engine is None:
        raise PlanError(f"{plan.folder}: TensorRT refuses the plan: {first_error(log)}; build it again")
    return engine


def refit(trt: TensorRT, log: Log, engine: ICudaEngine, graph: Path) -> None:
    """Put the weights of an ONNX file into an engine built of the same graph; raises PlanError."""
    refitter = trt.Refitter(engine, log)
    parsed = trt.OnnxParserRefitter(refitter, log).refit_from_file(str(graph))
    if not parsed or refitter.get_missing_weights() or not refitter.refit_cuda_engine():
        why = first_error(log, "some weights are missing")
        raise PlanError(f"{graph}: its weights cannot be put into the plan: {why}; build the plan again")


def _words(shape: Shape) -> str:
    return f"{shape[0]} view{'s' if shape[0] > 1 else ''} of {shape[1]}x{shape[2]}"
