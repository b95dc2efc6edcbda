"""The network in ONNX Runtime's CUDA provider (or its TensorRT provider), on device pointers and our stream.

ONNX Runtime falls back to the CPU with no more than a line in its log: here that is an error. `provider="cpu"`
runs the same code on host pointers, for tests.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError, MissingExtra
from infercam.engine.device.driver import Driver, Pointer
from infercam.engine.device.runner import ANY_NUMBER, InputType, OutputShape, Runner
from infercam.engine.method.backend import OutOfMemory, ViewRefused
from infercam.engine.runners.ort_errors import problem
from infercam.engine.runners.plan import graph_of
from infercam.engine.runners.response_size import ResponseSize

Provider = Literal["cuda", "tensorrt", "cpu"]

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
    """A graph of the bundle in an ONNX Runtime session; see device/runner.py: Runner.

    precision: a graph of the bundle, or `tf32`: the fp32 graph with TF32 matrix products. memory_limit: bytes that
    the session may take for itself. Raises MissingExtra without onnxruntime; BackendError where only the CPU build
    is installed, where the session falls back to the CPU, or where the graph cannot be loaded.
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
    ) -> None:
        self.name = {"cuda": "ort-cuda", "tensorrt": "ort-tensorrt", "cpu": "ort-cpu"}[provider]
        self.precision = precision
        self.provider = provider
        self.device = device
        self._bundle = bundle
        self._manifest = bundle.manifest
        self._ort = import_onnxruntime(self.name, provider)
        with driver.current():
            self._session = self._load(
                provider_options(provider, device, driver.stream, precision, memory_limit)
            )
        self.input_type = self._input_type()
        self._memory = "cpu" if provider == "cpu" else "cuda"
        self._options = self._ort.RunOptions()
        self._options.add_run_config_entry(_NO_SYNC, "1")
        self._size = ResponseSize(self._manifest, self._probe)

    # -- device/runner.py: Runner ----------------------------------------------------------------------------
    def response_shape(self, height: int, width: int) -> OutputShape:
        """Of one view; raises ViewRefused where the network does not take that size."""
        return self._size(height, width)

    def max_batch(self, height: int, width: int) -> int:
        return ANY_NUMBER if self._manifest.input.dynamic_batch else 1

    def respond(self, batch: int, height: int, width: int, image: Pointer, response: Pointer) -> None:
        shape = (batch, *self.response_shape(height, width))
        self._run((batch, 3, height, width), image, self._manifest.response, shape, response)

    def scores(self, batch: int, height: int, width: int, image: Pointer, scores: Pointer) -> None:
        shape = (batch, len(self._manifest.classes))
        self._run((batch, 3, height, width), image, self._manifest.scores, shape, scores)

    def describe(self) -> dict[str, Any]:
        return {
            "runner": self.name,
            "precision": self.precision,
            "onnxruntime": self._ort.__version__,
            "providers": self._session.get_providers(),
        }

    def close(self) -> None:
        del self._session

    # -- the session -----------------------------------------------------------------------------------------
    def _load(self, options: list[dict[str, str]]) -> Any:
        ort, file = self._ort, self._bundle.graph(graph_of(self.precision))
        session_options = ort.SessionOptions()
        session_options.enable_mem_pattern = (
            False  # every call has another shape: a plan for each would only grow
        )
        session_options.log_severity_level = 4  # what fails is reported by us
        names = _NAMES[self.provider]
        try:
            session = ort.InferenceSession(
                str(file), sess_options=session_options, providers=names, provider_options=options
            )
        except Exception as e:  # ONNX Runtime's exceptions share no base below Exception
            raise _translated(e, f"{file}: {self.name} cannot load it") from None
        have = session.get_providers()
        if have[: len(names)] != names:
            lacking = next(n for n in names if n not in have)
            raise BackendError(
                f"ONNX Runtime fell back to {have[0]}: {lacking} did not start (a CUDA, cuDNN or TensorRT library "
                "of another version or missing?); see: infercam doctor"
            )
        return session

    def _input_type(self) -> InputType:
        kind = self._session.get_inputs()[0].type
        try:
            return _TYPES[kind]
        except KeyError:
            raise BackendError(
                f"{self._bundle.graph(graph_of(self.precision))}: its input is {kind}, not float32 or float16"
            ) from None

    def _run(
        self, shape: tuple[int, ...], image: Pointer, output: str, out_shape: tuple[int, ...], target: Pointer
    ) -> None:
        binding = self._session.io_binding()
        kind = np.float16 if self.input_type == "float16" else np.float32
        binding.bind_input(self._manifest.input.name, self._memory, self.device, kind, shape, image)
        binding.bind_output(output, self._memory, self.device, np.float32, out_shape, target)
        try:
            self._session.run_with_iobinding(binding, self._options)
        except Exception as e:
            raise _translated(e, f"{self.name} failed on {'x'.join(map(str, shape))}") from None

    def _probe(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the response to one blank view, by running it: ONNX Runtime infers no shape."""
        blank = np.zeros((1, 3, height, width), self.input_type)
        try:
            (response,) = self._session.run([self._manifest.response], {self._manifest.input.name: blank})
        except Exception as e:
            if any(word in str(e) for word in _MEMORY):
                raise _translated(e, self.name) from None
            raise ViewRefused(f"the network does not run on {height}×{width} pixels: {problem(e)}") from None
        return int(response.shape[2]), int(response.shape[3])


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
