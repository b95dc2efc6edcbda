"""Any ONNX file in ONNX Runtime, on arrays of the host: for networks that are no classifiers and have no bundle.

The graph of a bundle runs elsewhere (backends/cpu.py, ort_cuda.py); this one is only asked for its input and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.cores import available_cores
from infercam.engine.common.errors import BackendError, InputError, MissingExtra, shown
from infercam.engine.device.driver import DeviceError
from infercam.engine.device.probe import probe
from infercam.engine.onnx_files import external_locations
from infercam.engine.runners.ort_cuda import import_onnxruntime
from infercam.engine.runners.ort_errors import problem

Accelerator = Literal["auto", "cpu", "cuda"]
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
CUDA = "CUDAExecutionProvider"


class GraphValue(NamedTuple):
    """An input or output of a graph, as it declares it."""

    name: str
    shape: tuple[int | None, ...]
    """None: any size (a name, or 0, as some exporters write it)."""


class HostSession:
    """A loaded ONNX file with one picture as its input.

    accelerator: cpu; cuda (ONNX Runtime's CUDA provider; falling back to the CPU is an error); auto: cuda where the
    driver and ONNX Runtime's GPU build are there. threads: of the CPU; None: all cores.
    Raises InputError for a file that is no such graph, MissingExtra without ONNX Runtime, BackendError without CUDA.
    """

    def __init__(self, file: Path, accelerator: Accelerator = "auto", threads: int | None = None) -> None:
        _check_weights(file)
        ort = _onnxruntime(accelerator)
        self.providers = _providers(ort, accelerator)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        options.log_severity_level = 4  # what fails is reported by us
        try:
            self._session = ort.InferenceSession(str(file), options, providers=self.providers)
        except Exception as e:  # ONNX Runtime's exceptions share no base below Exception
            raise InputError(f"{shown(file)}: ONNX Runtime cannot load it: {problem(e)}") from None
        if self._session.get_providers()[0] != self.providers[0]:
            raise BackendError(
                f"ONNX Runtime fell back to the CPU: {CUDA} did not start; see: infercam doctor"
            )
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _TYPES or len(inputs[0].shape) != 4:
            found = ", ".join(f"{v.name} {v.type}" for v in inputs)
            raise InputError(f"{shown(file)}: takes {found or 'nothing'}, not one picture N×3×H×W of floats")
        self._type = _TYPES[inputs[0].type]
        self.input = _value(inputs[0])
        self.outputs = [_value(v) for v in self._session.get_outputs()]

    def run(self, x: NDArray[np.float32], outputs: Sequence[str]) -> list[NDArray[np.float32]]:
        """The outputs of those names, float32, for a batch x; raises BackendError with what ONNX Runtime says."""
        fed = {self.input.name: np.ascontiguousarray(x, self._type)}
        try:
            found: list[Any] = self._session.run(list(outputs), fed)
        except Exception as e:
            raise BackendError(
                f"the network does not run on {'×'.join(map(str, x.shape))}: {problem(e)}"
            ) from None
        return [np.asarray(y, np.float32) for y in found]


def _value(found: Any) -> GraphValue:
    shape = tuple(n if isinstance(n, int) and n > 0 else None for n in found.shape)
    return GraphValue(found.name, shape)


def _check_weights(file: Path) -> None:
    """A graph may have weights beside it, but may not have another file read."""
    if not file.is_file():
        raise InputError(f"{shown(file)}: no such file")
    for location in external_locations(file):
        if not location or PurePosixPath(location).name != location or "\\" in location:
            raise InputError(
                f"{shown(file)}: keeps weights in {shown(repr(location))[:120]}, outside its folder"
            )


def _onnxruntime(accelerator: Accelerator) -> Any:
    if accelerator == "cuda":
        return import_onnxruntime("cuda", "cuda")
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnxruntime", "cpu", "running a network from an ONNX file") from None
    return onnxruntime


def _providers(ort: Any, accelerator: Accelerator) -> list[str]:
    if accelerator == "cpu" or (
        accelerator == "auto" and not (CUDA in ort.get_available_providers() and _gpu())
    ):
        return ["CPUExecutionProvider"]
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    return [CUDA, "CPUExecutionProvider"]


def _gpu() -> bool:
    try:
        return bool(probe().gpus)
    except DeviceError:
        return False
