"""From an ONNX graph to a serialised plan of TensorRT or TensorRT-RTX: strongly typed (the graph says the precision),
one profile per size, TensorRT's timing cache kept between builds. What is done with the plan is in build.py.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from infercam.engine.bundle import Manifest
from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.cache import cache_folder
from infercam.engine.common.errors import BackendError, ExportError
from infercam.engine.device.runner import InputType
from infercam.engine.runners.plan import RUNTIMES, Maker, PlanOptions, Precision, Profile, Shape
from infercam.engine.runners.tensorrt import refit
from infercam.engine.runners.tensorrt_api import (
    IBuilderConfig,
    INetworkDefinition,
    ITensor,
    Log,
    OnnxParser,
    TensorRT,
    first_error,
    is_memory,
    make_log,
)
from infercam.export.plan.rtx import set_targets

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SHOWN_ERRORS = 3


class BuildCancelled(ExportError):
    """The user stopped the build; nothing was installed."""


class BuildProgress(Protocol):
    """Told how far the build is: the phase's name, steps done, steps in all."""

    def __call__(self, phase: str, done: int, total: int) -> None: ...


class ParsedNetwork(NamedTuple):
    """What the parser found out about the graph."""

    definition: INetworkDefinition
    parser: OnnxParser  # the weights live in it until the plan is built
    input_type: InputType
    dynamic: bool
    """Takes more than one shape: only then there are profiles."""
    fixed: Shape
    """The only shape of a graph that is not dynamic; -1 where it is free."""


class PlanBuilder:
    """One build. `stopped` may be set from a signal handler or another thread: `build` then raises BuildCancelled."""

    def __init__(
        self,
        trt: TensorRT,
        manifest: Manifest,
        maker: Maker,
        progress: BuildProgress | None = None,
        stopped: threading.Event | None = None,
    ) -> None:
        self._trt = trt
        self._manifest = manifest
        self._maker = maker
        self._runtime = RUNTIMES[maker.runtime]
        self._log = make_log(trt)
        self._builder = trt.Builder(self._log)
        self._stopped = stopped or threading.Event()
        self._monitor = _make_monitor(trt, self._stopped, progress)

    def parse(self, graph: Path) -> ParsedNetwork:
        """Read the graph; raises ExportError naming the node that TensorRT does not take, or an output whose type
        the engine does not take."""
        trt, m = self._trt, self._manifest
        network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._log)
        if not parser.parse_from_file(str(graph)):
            raise ExportError(
                f"{graph}: {self._runtime} cannot take this graph: {_parser_errors(parser, self._log)}"
            )
        tensors = _tensors(network)
        for name in (m.input.name, m.scores, m.response):
            if name not in tensors:
                raise ExportError(f"{graph}: no input or output '{name}', which the manifest names")
        for name in (m.scores, m.response):
            if tensors[name].dtype != trt.DataType.FLOAT:
                raise ExportError(
                    f"{graph}: output '{name}' is not float32; make the graph with infercam precision"
                )
        _leave_out(network, [m.scores, m.response])
        image = tensors[m.input.name]
        types: dict[Any, InputType] = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16"}
        if image.dtype not in types:
            raise ExportError(f"{graph}: input '{image.name}' is neither float32 nor float16")
        batch, _, height, width = tuple(image.shape)
        fixed = (batch, height, width)
        return ParsedNetwork(network, parser, types[image.dtype], min(fixed) < 0, fixed)

    def build(
        self,
        network: ParsedNetwork,
        precision: Precision,
        profiles: Sequence[Profile],
        options: PlanOptions,
        timing_cache: Path | None = None,
    ) -> Buffer:
        """The serialised plan; TensorRT takes minutes, TensorRT-RTX seconds.

        Raises ExportError, BackendError out of memory, or BuildCancelled.
        """
        config = self._config(precision, options)
        if self._maker.runtime == "tensorrt-rtx":
            set_targets(self._trt, config, self._maker.targets)
        if network.dynamic:
            self._add_profiles(config, profiles)
        if timing_cache is not None:
            self._load_timings(config, timing_cache)
        plan = self._builder.build_serialized_network(network.definition, config)
        if timing_cache is not None:  # also of a build that was stopped: what was timed stays timed
            self._save_timings(config, timing_cache)
        if self._stopped.is_set():
            raise BuildCancelled(
                "stopped; nothing was installed, and the next build goes on from the timings made"
            )
        if plan is None and is_memory(self._log):
            raise BackendError(
                f"out of GPU memory while building: {first_error(self._log)}; give less with --workspace MB or "
                "--batch-pixels N, or free the GPU"
            )
        if plan is None:
            raise ExportError(f"{self._runtime} cannot build the plan: {first_error(self._log)}")
        return plan

    def refit(self, plan: bytes, graph: Path) -> Buffer:
        """A refittable plan of the same structure with this graph's weights; raises BackendError."""
        runtime = self._trt.Runtime(self._log)  # outlives the engine
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(f"TensorRT refuses the plan to refit: {first_error(self._log)}")
        refit(self._trt, self._log, engine, graph)
        return engine.serialize()

    def _config(self, precision: Precision, options: PlanOptions) -> IBuilderConfig:
        trt, config = self._trt, self._builder.create_builder_config()
        flags = trt.BuilderFlag
        if precision == "tf32":
            config.set_flag(flags.TF32)
        else:
            config.clear_flag(flags.TF32)  # it is on by default; fp32 means fp32
        if options.version_compatible:
            config.set_flag(flags.VERSION_COMPATIBLE)
            # Else the plan would carry a runtime of its own, native code to run on loading it.
            config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.stripped:
            config.set_flag(flags.STRIP_PLAN)
        if options.refittable:
            config.set_flag(flags.REFIT)
        elif options.stripped:
            config.set_flag(
                flags.REFIT_IDENTICAL
            )  # the same weights come back: optimised as if they were there
        if options.workspace_mb is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
        config.progress_monitor = self._monitor
        return config

    def _add_profiles(self, config: IBuilderConfig, profiles: Sequence[Profile]) -> None:
        for p in profiles:
            profile = self._builder.create_optimization_profile()
            shapes = [(n, 3, h, w) for n, h, w in (p.smallest, p.best, p.largest)]
            profile.set_shape(self._manifest.input.name, shapes[0], shapes[1], shapes[2])
            if config.add_optimization_profile(profile) < 0:
                raise ExportError(f"{self._runtime} refuses the profile of {p}: {first_error(self._log)}")

    def _load_timings(self, config: IBuilderConfig, file: Path) -> None:
        """Start from the timings of earlier builds; an absent, damaged or foreign file counts as empty."""
        try:
            data = file.read_bytes()
        except OSError:
            data = b""
        if not config.set_timing_cache(config.create_timing_cache(data), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
        first_error(self._log)  # what it said about the cache is no reason of a later failure

    @staticmethod
    def _save_timings(config: IBuilderConfig, file: Path) -> None:
        cache = config.get_timing_cache()
        if cache is None:
            return
        try:
            with atomic_write(file) as f:
                f.write(cache.serialize())
        except OSError:  # an unwritable cache folder costs time at the next build, nothing else
            return


def timing_cache_file(tensorrt: str, gpu: str) -> Path:
    """Where timings are kept: per TensorRT version and GPU, shared by all bundles."""
    tag = hashlib.sha256(f"{tensorrt}\n{gpu}".encode()).hexdigest()[:16]
    return cache_folder("tensorrt") / f"timing-{tag}.cache"


def _tensors(network: INetworkDefinition) -> dict[str, ITensor]:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return {tensor.name: tensor for tensor in [*inputs, *outputs]}


def _leave_out(network: INetworkDefinition, wanted: Sequence[str]) -> None:
    """Unmark the other outputs: a bias of each image, which nobody reads from a plan."""
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for tensor in outputs:
        if tensor.name not in wanted:
            network.unmark_output(tensor)


def _parser_errors(parser: OnnxParser, log: Log) -> str:
    """The first errors, on one line; without any, what the log has."""
    texts = [" ".join(str(parser.get_error(i)).split()) for i in range(parser.num_errors)]
    log_says = first_error(log, "no reason given")
    plain = [re.sub(r"\S+\.(cpp|h|hpp):\d+:? ?|: (false|true)$", "", t) for t in texts[:_SHOWN_ERRORS]]
    more = f" (and {len(texts) - _SHOWN_ERRORS} more)" if len(texts) > _SHOWN_ERRORS else ""
    return "; ".join(plain) + more if plain else log_says


def _make_monitor(trt: TensorRT, stopped: threading.Event, progress: BuildProgress | None) -> Any:
    """A trt.IProgressMonitor that passes on the innermost phase, and cancels the build once `stopped` is set."""
    base: Any = trt.IProgressMonitor

    class Monitor(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            self.totals[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if progress is not None:
                progress(phase_name, step + 1, self.totals.get(phase_name, 0))
            return not stopped.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self.totals.pop(phase_name, None)

    return Monitor()
