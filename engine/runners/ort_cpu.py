"""ONNX Runtime on the CPU, one core a run."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError, MissingExtra
from infercam.engine.method.backend import ViewRefused
from infercam.engine.runners.cpu_network import Float, check_names
from infercam.engine.runners.ort_errors import out_of_memory, problem

GPU_ONLY = ("tf32", "bf16", "fp8")
"""Precisions that ONNX Runtime's CPU provider cannot compute in."""
SHRINK_EVERY = 64
"""Network runs. ONNX Runtime keeps what it has once allocated, and with ever new shapes that falls to pieces: a
server grew by 60 MB a minute for minutes. Giving back what is free now and then costs next to nothing."""


class OrtCpuNetwork:
    """See cpu_network.CpuNetwork. precision: which of the bundle's graphs: fp32; fp16, computed in fp32 here; or
    int8, slower than fp32 here: its scales are those that GPUs take, and ONNX Runtime does not fuse them on the CPU.

    Raises BackendError for a precision that it has not or a graph that it cannot load, MissingExtra, BundleError.
    """

    def __init__(self, bundle: Bundle, precision: str = "fp32") -> None:
        self._session = _session(bundle, precision)
        self._input = bundle.manifest.input.name
        self._half_input = self._session.get_inputs()[0].type == "tensor(float16)"
        self._shrinking = _shrinking()
        self._runs = itertools.count(1)

    def run(self, outputs: list[str], x: Float) -> list[NDArray[Any]]:
        fed = x.astype(np.float16) if self._half_input else x
        options = self._shrinking if next(self._runs) % SHRINK_EVERY == 0 else None
        try:
            found: list[NDArray[Any]] = self._session.run(outputs, {self._input: fed}, options)
        except Exception as e:  # ONNX Runtime's exceptions share no base below Exception
            if out_of_memory(e) or isinstance(e, MemoryError):
                raise
            size = f"{x.shape[2]}×{x.shape[3]}"
            raise ViewRefused(f"the network does not run on {size} pixels: {problem(e)}") from None
        return found

    def describe(self) -> dict[str, object]:
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__, "providers": self._session.get_providers()}


def _shrinking() -> Any:
    """Options of a run that gives unused memory back when it ends."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _session(bundle: Bundle, precision: str) -> Any:
    if precision in GPU_ONLY:
        raise BackendError(
            f"the cpu backend has no {precision} arithmetic; it runs fp32, fp16 and int8 graphs"
        )
    graph = bundle.graph(precision)
    try:
        import onnxruntime as ort
    except ImportError:
        raise MissingExtra("onnxruntime", "cpu", "the cpu backend") from None
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # Shapes change at every call: a memory plan per shape would only grow.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # what fails is reported by us
    try:
        session = ort.InferenceSession(str(graph), sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as e:
        raise BackendError(f"{graph}: ONNX Runtime cannot load it: {str(e).splitlines()[0]}") from None
    names = ([node.name for node in nodes] for nodes in (session.get_inputs(), session.get_outputs()))
    check_names(bundle.manifest, graph, *names)
    return session
