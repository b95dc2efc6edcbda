"""The network in ONNX Runtime's CUDA provider (or its TensorRT provider), on device pointers and our stream.

ONNX Runtime falls back to the CPU with no more than a line in its log: here that is an error. `provider="cpu"`
runs the same code on host pointers, for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError, MissingExtra
from infercam.engine.device.driver import DeviceOutOfMemory, Driver, Pointer
from infercam.engine.device.runner import ANY_NUMBER, InputType, OutputShape, Runner
from infercam.engine.method.backend import OutOfMemory, ViewRefused
from infercam.engine.runners.options import RuntimeSwitches
from infercam.engine.runners.ort_errors import problem
from infercam.engine.runners.ort_sessions import (
    MOST,
    OneSession,
    Sessions,
    SharedGraph,
    leave_arena,
    shared_arena,
)
from infercam.engine.runners.plan import Shape, graph_of
from infercam.engine.runners.response_size import ResponseSize

Provider = Literal["cuda", "tensorrt", "cpu"]

SESSIONS_SHARE = 0.2
"""Of the device's free memory that sessions may take for themselves where no budget is given."""
SESSION_BYTES = 64 << 20
"""What a session is taken to need before one is measured: handles of cuDNN and cuBLAS with their workspaces."""
NHWC_SESSIONS = 32
"""A session with convolutions in NHWC has a copy of its own of their weights: only where so many fit."""
HALF = ("fp16", "bf16")
"""Precisions that gain by NHWC: 10 to 15 % on an H100, ResNet-38 fp16."""

_NAMES = {
    "cuda": ["CUDAExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
    "cpu": ["CPUExecutionProvider"],
}
_TYPES: dict[str, InputType] = {"tensor(float)": "float32", "tensor(float16)": "float16"}
_MEMORY = (
    *(
        "Failed to allocate memory",
        "bad_alloc",
        "out of memory",
        "OUT_OF_MEMORY",
        "cudaErrorMemoryAllocation",
    ),
    *("ALLOC_FAILED", "Available memory of", "smaller than requested bytes"),
)
_NO_SYNC = "disable_synchronize_execution_providers"  # the backend waits by events


class OrtRunner(Runner):
    """A graph of the bundle in ONNX Runtime sessions, one a shape; see device/runner.py: Runner.

    precision: a graph of the bundle, or `tf32`: the fp32 graph with TF32 matrix products. memory_limit: bytes that
    the sessions' arena may take. sessions_budget: bytes that the sessions may take beside it (default:
    SESSIONS_SHARE of what is free). graphs: replay CUDA graphs, over buffers that stay where they are (default:
    RuntimeSwitches). nhwc: convolutions in NHWC (default: in half precision, where the budget has room for it).
    Raises MissingExtra without onnxruntime; BackendError where only the CPU build is installed, where the session
    falls back to the CPU, or where the graph cannot be loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        driver: Driver,
        precision: str = "fp32",
        *,
        provider: Provider = "cuda",
        device: int = 0,
        memory_limit: int | None = None,
        sessions_budget: int | None = None,
        graphs: bool | None = None,
        nhwc: bool | None = None,
        most: int = MOST,
    ) -> None:
        self.name = {"cuda": "ort-cuda", "tensorrt": "ort-tensorrt", "cpu": "ort-cpu"}[provider]
        self.precision = precision
        self.provider = provider
        self.device = device
        self.graphs = provider != "tensorrt" and (
            RuntimeSwitches.of().cuda_graphs if graphs is None else graphs
        )
        self._driver = driver
        self._manifest = bundle.manifest
        self._file = bundle.graph(graph_of(precision))
        self._ort = import_onnxruntime(self.name, provider)
        self._memory = "cpu" if provider == "cpu" else "cuda"
        self._staged: dict[Shape, _Staging] = {}
        self._run_options = {capture: self._make_run_options(capture) for capture in (False, True)}
        self._size = ResponseSize(self._manifest, self._probe)
        self.shared: SharedGraph | None = None
        self._arena = provider != "tensorrt" and shared_arena(
            self._ort, provider, device, driver.stream, memory_limit
        )
        try:
            with driver.current():
                free = driver.info().free_memory
                budget = int(free * SESSIONS_SHARE) if sessions_budget is None else sessions_budget
                room = budget >= NHWC_SESSIONS * (self._file.stat().st_size + SESSION_BYTES)
                self.nhwc = provider == "cuda" and ((precision in HALF and room) if nhwc is None else nhwc)
                self._options = provider_options(provider, device, driver.stream, precision, memory_limit)
                self.sessions = self._open(budget, most)
            self.input_type = self._input_type()
        except BaseException:
            self._forget_shared()
            raise

    # -- device/runner.py: Runner ----------------------------------------------------------------------------
    @property
    def keeps(self) -> int:
        return self.sessions.keeps

    def prepare(self, batch: int, height: int, width: int) -> bool:
        """By a run on a blank batch: cuDNN's plans are made at the first one."""
        shape = (batch, height, width)
        if shape in self.sessions:
            return True
        if self.sessions.full:
            return False
        classes, rows, columns = self.response_shape(height, width)
        image_bytes = 3 * batch * height * width * np.dtype(self.input_type).itemsize
        blocks: list[Pointer] = []
        try:
            blocks.append(self._driver.allocate(image_bytes))
            blocks.append(self._driver.allocate(4 * batch * classes * rows * columns))
            self._driver.zero(blocks[0], image_bytes)
            self.respond(batch, height, width, *blocks)
        except (OutOfMemory, DeviceOutOfMemory):
            return False
        finally:
            self._driver.record().wait()
            for block in blocks:
                self._driver.free(block)
        return True

    def response_shape(self, height: int, width: int) -> OutputShape:
        """Of one view; raises ViewRefused where the network does not take that size."""
        return self._size(height, width)

    def max_batch(self, height: int, width: int) -> int:
        return ANY_NUMBER if self._manifest.input.dynamic_batch else 1

    def respond(self, batch: int, height: int, width: int, image: Pointer, response: Pointer) -> None:
        shape, out = (batch, height, width), (batch, *self.response_shape(height, width))
        if not self.graphs:
            self._run(shape, image, self._manifest.response, out, response)
            return
        staging = self._staging(shape, out)
        self._driver.copy(staging.image, image, staging.image_bytes)
        try:
            self._run(shape, staging.image, self._manifest.response, out, staging.response, capture=True)
        except BaseException:
            if shape not in self.sessions:
                self._drop_staging(shape)
            raise
        self._driver.copy(response, staging.response, staging.response_bytes)

    def scores(self, batch: int, height: int, width: int, image: Pointer, scores: Pointer) -> None:
        out = (batch, len(self._manifest.classes))
        self._run((batch, height, width), image, self._manifest.scores, out, scores)

    def describe(self) -> dict[str, Any]:
        return {
            "runner": self.name,
            "precision": self.precision,
            "onnxruntime": self._ort.__version__,
            "providers": self.sessions.any().get_providers(),
            "cuda_graphs": self.graphs,
        }

    def close(self) -> None:
        """Wait for what is in flight, then let go of the sessions, their buffers and their weights, in that order."""
        self.sessions.close()
        for staging in self._staged.values():
            staging.free(self._driver)
        self._staged.clear()
        self._forget_shared()

    # -- the sessions ----------------------------------------------------------------------------------------
    def _open(self, budget: int, most: int) -> Sessions:
        """The first session, of shared weights where that can be, and what makes the others."""
        if self.provider == "tensorrt":
            return OneSession(self._make, budget, first=self._make())
        names = _NAMES[self.provider]
        try:
            self.shared = SharedGraph(
                self._ort, self._file, self._session_options, names, self._options, self._memory, self.device
            )
            first = self._make()
        except Exception:  # each session then reads the graph as it is, and says what is wrong with it
            if self.shared is not None:
                self.shared.close()
            self.shared = None
            first = self._make()
        return Sessions(
            self._make,
            budget,
            wait=lambda: self._driver.record().wait(),
            free=lambda: self._driver.info().free_memory,
            first=first,
            guess=self._guess(),
            most=most,
            dropped=self._drop_staging,
        )

    def _forget_shared(self) -> None:
        if self.shared is not None:
            self.shared.close()
        self.shared = None
        if self._arena:
            leave_arena(self.provider, self.device, self._driver.stream)

    def _guess(self) -> int:
        """Bytes of a session, before the first is measured."""
        if self.provider == "cpu":
            return 0
        return SESSION_BYTES + (self._file.stat().st_size if self.nhwc else 0)

    def _session_options(self) -> Any:
        options = self._ort.SessionOptions()
        options.enable_mem_pattern = False  # one arena for all sessions: a plan for each would only grow
        options.log_severity_level = 4  # what fails is reported by us
        if self._arena:
            options.add_session_config_entry("session.use_env_allocators", "1")
        return options

    def _make(self) -> Any:
        """Raises OutOfMemory or BackendError."""
        options, names, providers = self._session_options(), _NAMES[self.provider], list(self._options)
        file = self._file
        if self.shared is not None:
            self.shared.add_to(options)
            file = self.shared.file
        if self.provider == "cuda":
            extra = {"prefer_nhwc": self.nhwc, "enable_cuda_graph": self.graphs}
            providers[0] = providers[0] | {name: "1" for name, on in extra.items() if on}
        try:
            session = self._ort.InferenceSession(
                str(file), sess_options=options, providers=names, provider_options=providers
            )
        except Exception as e:  # ONNX Runtime's exceptions share no base below Exception
            raise _translated(e, f"{self._file}: {self.name} cannot load it") from None
        have = session.get_providers()
        if have[: len(names)] != names:
            lacking = next(n for n in names if n not in have)
            raise BackendError(
                f"ONNX Runtime fell back to {have[0]}: {lacking} did not start (a CUDA, cuDNN or TensorRT library "
                "of another version or missing?); see: infercam doctor"
            )
        return session

    def _input_type(self) -> InputType:
        kind = self.sessions.any().get_inputs()[0].type
        try:
            return _TYPES[kind]
        except KeyError:
            raise BackendError(f"{self._file}: its input is {kind}, not float32 or float16") from None

    # -- one run ---------------------------------------------------------------------------------------------
    def _make_run_options(self, capture: bool) -> Any:
        options = self._ort.RunOptions()
        options.add_run_config_entry(_NO_SYNC, "1")
        if self.graphs and not capture:
            options.add_run_config_entry("gpu_graph_id", "-1")  # neither captured nor replayed
        return options

    def _run(
        self,
        shape: Shape,
        image: Pointer,
        output: str,
        out_shape: tuple[int, ...],
        target: Pointer,
        capture: bool = False,
    ) -> None:
        batch, height, width = shape
        kind = np.float16 if self.input_type == "float16" else np.float32
        size = (batch, 3, height, width)

        def call(session: Any) -> None:
            binding = session.io_binding()
            binding.bind_input(self._manifest.input.name, self._memory, self.device, kind, size, image)
            binding.bind_output(output, self._memory, self.device, np.float32, out_shape, target)
            try:
                session.run_with_iobinding(binding, self._run_options[capture])
            except Exception as e:
                raise _translated(e, f"{self.name} failed on {'x'.join(map(str, size))}") from None

        self.sessions.run(shape, call)

    def _staging(self, shape: Shape, out: tuple[int, ...]) -> _Staging:
        """The buffers of that shape's captured graph."""
        if shape not in self._staged:
            batch, height, width = shape
            image_bytes = 3 * batch * height * width * np.dtype(self.input_type).itemsize
            response_bytes = 4 * int(np.prod(out))
            image = self._driver.allocate(image_bytes)
            try:
                response = self._driver.allocate(response_bytes)
            except DeviceOutOfMemory:
                self._driver.free(image)
                raise
            self._staged[shape] = _Staging(image, image_bytes, response, response_bytes)
        return self._staged[shape]

    def _drop_staging(self, shape: Shape) -> None:
        """The session of that shape has gone."""
        if shape in self._staged:
            self._staged.pop(shape).free(self._driver)

    def _probe(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the response to one blank view, by running it: ONNX Runtime infers no shape."""
        blank = np.zeros((1, 3, height, width), self.input_type)
        feeds = {self._manifest.input.name: blank}
        try:
            (response,) = self.sessions.any().run([self._manifest.response], feeds, self._run_options[False])
        except Exception as e:
            if any(word in str(e) for word in _MEMORY):
                raise _translated(e, self.name) from None
            raise ViewRefused(f"the network does not run on {height}×{width} pixels: {problem(e)}") from None
        return int(response.shape[2]), int(response.shape[3])


@dataclass(frozen=True)
class _Staging:
    """Where a captured graph reads its input and leaves its response."""

    image: Pointer
    image_bytes: int
    response: Pointer
    response_bytes: int

    def free(self, driver: Driver) -> None:
        driver.free(self.image)
        driver.free(self.response)


def provider_options(
    provider: Provider, device: int, stream: int, precision: str, memory_limit: int | None
) -> list[dict[str, str]]:
    """Options of each provider that is asked for, in their order. All values are strings."""
    if provider == "cpu":
        return [{}]
    cuda = {
        "device_id": str(device),
        "user_compute_stream": str(stream),
        "arena_extend_strategy": "kSameAsRequested",  # the rest is the backend's
        # Shapes change at every call: timing every algorithm for each (the default) would cost more than it saves.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0" if precision == "fp32" else "1",
    }
    if memory_limit is not None:
        cuda["gpu_mem_limit"] = str(memory_limit)
    if provider == "cuda":
        return [cuda]
    # ONNX Runtime builds weakly typed TensorRT networks: the types that the graph holds have to be allowed.
    allowed = {
        "fp16": ["trt_fp16_enable"],
        "bf16": ["trt_bf16_enable"],
        "int8": ["trt_int8_enable", "trt_fp16_enable"],
    }
    tensorrt = {"device_id": str(device), "user_compute_stream": str(stream)}
    tensorrt |= dict.fromkeys(allowed.get(precision, []), "1")
    return [tensorrt, cuda]


def import_onnxruntime(what: str, provider: Provider) -> Any:
    """onnxruntime with that provider built in; raises MissingExtra or BackendError saying what to install."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise MissingExtra("onnxruntime-gpu", "gpu", f"the {what} backend") from None
    if _NAMES[provider][0] not in ort.get_available_providers():
        raise BackendError(f"the {what} backend needs onnxruntime-gpu: {how_to_install()}")
    if provider != "cpu" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN from the packages that pip installed, where there are any
    return ort


def how_to_install() -> str:
    """What brings ONNX Runtime's GPU build here: both builds install the same files, so the other goes first."""
    try:
        version("onnxruntime")
    except PackageNotFoundError:
        return "pip install 'infercam[gpu]'"
    return "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'infercam[gpu]'"


def _translated(error: Exception, what: str) -> BackendError:
    """OutOfMemory where that is what it was (nothing of ours was written then), else one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or any(word in text for word in _MEMORY):
        return OutOfMemory(f"out of memory: {what}: {text[:200]}")
    return BackendError(f"{what}: {text[:300]}")
