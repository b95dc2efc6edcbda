"""The network as a plan of TensorRT or of TensorRT-RTX, on device pointers and the backend's stream.

An execution context for every shape, so that one that comes again needs no set-up, as far as the memory that contexts
may take goes: then the least recently used one is set up anew. All of them share one block of scratch memory, because
one stream runs them one after the other. The block grows to what the shapes at hand need rather than to what the
largest profile could. What only TensorRT-RTX has is in rtx.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError
from infercam.engine.device.driver import DeviceInfo, Driver, Pointer
from infercam.engine.device.graphs import Capture, CudaCapture, Replay
from infercam.engine.device.probe import probe
from infercam.engine.device.runner import InputType, OutputShape, Runner
from infercam.engine.method.backend import OutOfMemory
from infercam.engine.runners import rtx
from infercam.engine.runners.blocks import GrowingBlock, Memory
from infercam.engine.runners.contexts import ContextPool, Contexts, ContextSlot, PlainContexts
from infercam.engine.runners.options import RuntimeSwitches
from infercam.engine.runners.plan import (
    RUNTIMES,
    Environment,
    Plan,
    PlanError,
    Profile,
    RuntimeKind,
    Shape,
    build_command,
    describe_plan,
    find_plan,
    graph_of,
    misfit,
    pick_profile,
)
from infercam.engine.runners.response_size import ResponseSize
from infercam.engine.runners.tensorrt_api import (
    ICudaEngine,
    IExecutionContext,
    Log,
    Runtime,
    TensorRT,
    first_error,
    installed,
    is_memory,
    make_log,
    missing,
    require_lean,
    require_tensorrt,
)

CONTEXTS = 256
"""Most of them, whatever memory there is: more than a ladder has shapes."""
SHARE = 0.1
"""Of the GPU's free memory that contexts may take beside their scratch memory: weights of layers in another layout,
kernels, what a runtime keeps for a shape. It is measured as they are made."""


def environment(info: DeviceInfo) -> Environment:
    """The device, and the TensorRT packages that are installed."""
    versions = installed("tensorrt"), installed("tensorrt-lean"), installed("tensorrt-rtx")
    return Environment(info.name, info.compute_capability, *versions)


def check_runtime(runtime: RuntimeKind, gpu: str, capability: tuple[int, int]) -> None:
    """Raise BackendError where the runtime does not take that card, MissingExtra where it is not installed."""
    if runtime == "tensorrt-rtx" and (why := rtx.card_obstacle(gpu, capability)) is not None:
        raise BackendError(why)
    if installed(runtime) is None and (runtime == "tensorrt-rtx" or installed("tensorrt-lean") is None):
        raise missing(runtime, f"the {runtime} backend")


def load_runner(
    bundle: Bundle,
    driver: Driver,
    precision: str | None = None,
    cache: Path | None = None,
    runtime: RuntimeKind = "tensorrt",
) -> TensorRTRunner:
    """The bundle's best plan of that runtime for this GPU as a runner; raises PlanError (see find_plan) or
    MissingExtra."""
    info = driver.info()
    check_runtime(runtime, info.name, info.compute_capability)
    plan = find_plan(bundle, precision, environment(info), cache, runtime)
    return TensorRTRunner(plan, bundle, driver, switches=RuntimeSwitches.of())


class _Addresses(NamedTuple):
    """What a run works on."""

    image: Pointer
    scores: Pointer
    response: Pointer
    scratch: Pointer


class TensorRTRunner(Runner):
    """A plan on a device; see device/runner.py: Runner. Not thread-safe: the backend's driver thread calls it, within
    `driver.current()`.

    contexts: most of them. share: of the free memory that they may take. capture: how CUDA graphs are captured where
    `switches` ask for them. Raises PlanError where the plan does not fit the bundle, the GPU or the TensorRT that is
    installed, or is damaged; DeviceError where there is no driver; MissingExtra where the runtime is missing.
    """

    def __init__(
        self,
        plan: Plan,
        bundle: Bundle,
        driver: Driver,
        memory: Memory | None = None,
        contexts: int = CONTEXTS,
        share: float = SHARE,
        switches: RuntimeSwitches | None = None,
        capture: Capture | None = None,
    ) -> None:
        probe()  # without a driver, TensorRT would end the process
        record = plan.record
        here = environment(driver.info())
        problem = misfit(record, bundle, here)
        if problem is not None:
            build = build_command(bundle, record.precision, record.runtime, here.compute_capability)
            raise PlanError(f"{plan.folder}: {problem}; build it again: {build}")
        self.name: str = record.runtime
        self.plan = plan
        self.precision: str = record.precision
        self.input_type: InputType = record.input_type
        self._switches = switches or RuntimeSwitches()
        self._manifest = bundle.manifest
        self._profiles = record.profiles
        self._driver = driver
        portable = record.options.version_compatible
        self._trt = require_lean("this plan") if portable else require_tensorrt("this plan", record.runtime)
        self._log = make_log(self._trt)
        self._runtime = self._trt.Runtime(self._log)  # kept: the engine lives in it
        free = driver.info().free_memory
        self._engine = self._loaded()
        if record.options.stripped:
            refit(self._trt, self._log, self._engine, bundle.graph(graph_of(record.precision)))
        self._check_engine()
        self._contexts = self._context_maker(here)
        self._capture = self._capturing(capture)
        self.slots = ContextPool(driver, self._new_context, self._set_up, contexts, int(share * free))
        self._kept_at = 1  # shapes: what was compiled is kept when there are twice as many
        self._asked: ContextSlot | None = None
        self._memory = memory or driver
        self._scratch = GrowingBlock(driver, self._memory)
        self._unused, self._unread = GrowingBlock(driver, self._memory), GrowingBlock(driver, self._memory)
        self._staged = GrowingBlock(driver, self._memory), GrowingBlock(driver, self._memory)
        self._size = ResponseSize(bundle.manifest, self._ask)

    def _loaded(self) -> ICudaEngine:
        data = self.plan.read()
        if self.name == "tensorrt-rtx":
            trt, runtime = cast(rtx.TensorRTRTX, self._trt), cast(rtx.RtxRuntime, self._runtime)
            rtx.check_validity(trt, runtime, self._log, self.plan, data)
        return _deserialise(self._runtime, self._log, self.plan, data)

    def _context_maker(self, here: Environment) -> Contexts:
        if self.name == "tensorrt":
            return PlainContexts(self._trt, self._engine)
        entry = rtx.cache_entry(self.plan.record.key, here, self._driver.info().driver_version)
        trt, engine = cast(rtx.TensorRTRTX, self._trt), cast(rtx.RtxEngine, self._engine)
        return rtx.RtxContexts(trt, engine, self._switches, entry)

    def _capturing(self, capture: Capture | None) -> Capture | None:
        """TensorRT-RTX captures by itself, when its kernels for a shape are there."""
        if not self._switches.cuda_graphs or self.name == "tensorrt-rtx":
            return None
        return capture or CudaCapture(self._driver)

    # -- device/runner.py: Runner ----------------------------------------------------------------------------
    def response_shape(self, height: int, width: int) -> OutputShape:
        """Of one view; raises BackendError where no profile takes that size."""
        self._taking(height, width)
        return self._size(height, width)

    def _ask(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the response, of a context that is only asked: those that run keep their shapes."""
        self._asked = self._asked or ContextSlot(self._new_context())
        self._set_up(self._asked, (min(p.smallest[0] for p in self._taking(height, width)), height, width))
        _, _, rows, columns = tuple(self._asked.context.get_tensor_shape(self._manifest.response))
        return rows, columns

    def max_batch(self, height: int, width: int) -> int:
        """Most views of that size that a profile takes; raises BackendError where none takes any."""
        return max(p.largest[0] for p in self._taking(height, width))

    def _taking(self, height: int, width: int) -> list[Profile]:
        """The profiles that take views of that size; raises BackendError where none does."""
        fitting = [p for p in self._profiles if p.takes((p.smallest[0], height, width))]
        if not fitting:
            raise BackendError(self._outside(f"a view of {height}x{width}"))
        return fitting

    @property
    def keeps(self) -> int:
        return self.slots.keeps

    def prepare(self, batch: int, height: int, width: int) -> bool:
        """Set up a context and run it once on blank views: kernels are loaded, TensorRT-RTX's compiled."""
        shape = (batch, height, width)
        self._profile(shape)
        if self.slots.ready(shape):
            return True
        if not self.slots.has_room(shape):
            return False
        pixels, cells = self._nbytes(shape)
        with self._blank(pixels, cells) as (image, response):
            while not self.slots.ready(shape):
                self.respond(*shape, image, response)
            self._driver.record().wait()
        return True

    @contextmanager
    def _blank(self, pixels: int, cells: int) -> Iterator[tuple[Pointer, Pointer]]:
        """Room for black views and their responses, of so many bytes."""
        blocks = GrowingBlock(self._driver, self._memory), GrowingBlock(self._driver, self._memory)
        try:
            image = blocks[0].at_least(pixels)
            self._driver.zero(image, pixels)
            yield image, blocks[1].at_least(cells)
        finally:
            for block in blocks:
                block.release()

    def _nbytes(self, shape: Shape) -> tuple[int, int]:
        """Of a batch of views, and of their responses."""
        batch, height, width = shape
        pixels = batch * 3 * height * width * np.dtype(self.input_type).itemsize
        return pixels, 4 * batch * math.prod(self.response_shape(height, width))

    def respond(self, batch: int, height: int, width: int, image: Pointer, response: Pointer) -> None:
        """With CUDA graphs, over buffers that stay where they are: a graph has its addresses in it."""
        shape = (batch, height, width)
        slot = self.slots.of(shape)
        scores = self._unused.at_least(4 * batch * len(self._manifest.classes))
        scratch = self._scratch.at_least(slot.scratch)
        if not self._switches.cuda_graphs:
            self._launch(slot, shape, _Addresses(image, scores, response, scratch))
            return
        pixels, cells = self._nbytes(shape)
        inside, outside = self._staged[0].at_least(pixels), self._staged[1].at_least(cells)
        staged = _Addresses(inside, scores, outside, scratch)
        self._driver.copy(staged.image, image, pixels)
        self._launch(slot, shape, staged, slot.replay)
        self._driver.copy(response, staged.response, cells)

    def scores(self, batch: int, height: int, width: int, image: Pointer, scores: Pointer) -> None:
        shape = (batch, height, width)
        slot = self.slots.of(shape)
        response = self._unread.at_least(self._nbytes(shape)[1])
        scratch = self._scratch.at_least(slot.scratch)
        self._launch(slot, shape, _Addresses(image, scores, response, scratch))

    def describe(self) -> dict[str, Any]:
        return {
            "runner": self.name,
            "cuda_graphs": self._switches.cuda_graphs,
            **({"kernels": self._switches.kernels} if self.name == "tensorrt-rtx" else {}),
            **describe_plan(self.plan),
        }

    def close(self) -> None:
        """Wait for what is in flight, keep what was compiled, then drop contexts, scratch memory and the engine, in
        that order."""
        if self.slots:
            self._driver.record().wait()
            self._contexts.keep()
        self.slots.close()
        self._asked = None
        self._contexts = cast(Any, None)
        for block in (self._scratch, self._unused, self._unread, *self._staged):
            block.release()
        self._engine = self._runtime = cast(Any, None)  # nothing is asked of a closed runner

    # -- one run: everything that can fail for want of memory comes before the launch -----------------------------
    def _launch(self, slot: ContextSlot, shape: Shape, at: _Addresses, replay: Replay | None = None) -> None:
        def enqueue() -> None:
            context = slot.context
            context.set_device_memory(at.scratch, self._scratch.nbytes)
            m = self._manifest
            for name, pointer in ((m.input.name, at.image), (m.scores, at.scores), (m.response, at.response)):
                self._require(context.set_tensor_address(name, pointer), f"set the address of '{name}'")
            self._require(context.execute_async_v3(self._driver.stream), f"run {_words(shape)}")

        def run() -> None:
            if replay is None:
                enqueue()
            else:
                replay.run(at, enqueue)

        if slot.ran:
            run()
            return
        with self.slots.measured():
            run()
        slot.ran = replay is None or replay.settled
        self._keep_compiled()

    def _keep_compiled(self) -> None:
        """Whenever there are twice as many shapes: a process that is killed leaves half of its work at least."""
        if len(self.slots) >= self._kept_at:
            self._contexts.keep()
            self._kept_at = 2 * len(self.slots)

    def _new_context(self) -> IExecutionContext:
        self._log.errors.clear()  # older complaints are no reason of what may fail now
        context = self._contexts.make()
        if context is None:
            raise self._failure("make an execution context")
        return context

    def _set_up(self, slot: ContextSlot, shape: Shape) -> None:
        self._log.errors.clear()
        profile = self._profile(shape)
        if slot.profile != profile:
            slot.profile = -1  # until it is done: a failure leaves nothing that looks ready
            done = slot.context.set_optimization_profile_async(profile, self._driver.stream)
            self._require(done, f"take profile {profile}")
            slot.profile = profile
        batch, height, width = shape
        taken = slot.context.set_input_shape(self._manifest.input.name, (batch, 3, height, width))
        self._require(taken, f"take {_words(shape)}")
        slot.scratch = slot.context.update_device_memory_size_for_shapes()
        slot.replay = None if self._capture is None else Replay(self._capture, self._driver)

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
            return OutOfMemory(f"out of GPU memory: {self._called} cannot {what}: {first_error(self._log)}")
        return BackendError(f"{self._called} cannot {what}: {first_error(self._log)}")

    @property
    def _called(self) -> str:
        return RUNTIMES[self.plan.record.runtime]

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


def _deserialise(runtime: Runtime, log: Log, plan: Plan, data: bytes) -> ICudaEngine:
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None and is_memory(log):
        raise OutOfMemory(f"out of GPU memory: the plan cannot be loaded: {first_error(log)}")
    if engine is None:
        called = RUNTIMES[plan.record.runtime]
        raise PlanError(f"{plan.folder}: {called} refuses the plan: {first_error(log)}; build it again")
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
