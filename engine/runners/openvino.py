"""OpenVINO on the CPU, one core a run: the fp32 graph computed in bf16, where the CPU has its arithmetic
(avx512_bf16, AMX), or in fp32.
"""

from __future__ import annotations

import sys
import threading
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from infercam.engine.bundle import Bundle, RuntimeReport
from infercam.engine.common.errors import BackendError, MissingExtra
from infercam.engine.method.backend import ViewRefused
from infercam.engine.runners.cpu_network import Float, check_names
from infercam.engine.runners.openvino_layers import first_in_fp32
from infercam.engine.runners.signal_stack import own_signal_stack

LOWERED = ("bf16", "int8")
"""Precisions that move the maps, and may save time."""
PRECISIONS = ("fp32", *LOWERED)
_HINT = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_SHAPES = "1000"
"""Shapes whose kernels are kept: a ladder has under a hundred, exact sizes come and go."""
_importing = threading.Lock()
_cores: list[Any] = []


class OpenvinoNetwork:
    """See cpu_network.CpuNetwork. precision: see graph_of; runs may be beside each other on `threads` threads.
    kept: how many layers stay in fp32 (RuntimeReport.kept; None: as accepted for the bundle).

    Raises MissingExtra without OpenVINO, BackendError for another precision, bf16 on a CPU without its arithmetic, or
    a graph that it cannot compile; BundleError.
    """

    def __init__(
        self, bundle: Bundle, threads: int, precision: str = "fp32", kept: int | None = None
    ) -> None:
        check_precision(precision)
        graph = bundle.graph(graph_of(precision))
        core = openvino_core()
        self.precision = precision
        self._kept = kept_of(bundle, precision) if kept is None else kept
        self._compiled = _compiled(core, graph, threads, precision, self._kept)
        self._version = core.get_versions("CPU")["CPU"].build_number
        names = [
            {n for port in ports for n in port.names}
            for ports in (self._compiled.inputs, self._compiled.outputs)
        ]
        check_names(bundle.manifest, graph, *names)
        self._input = bundle.manifest.input.name
        self._own = threading.local()

    def run(self, outputs: list[str], x: Float) -> list[NDArray[Any]]:
        request = getattr(self._own, "request", None)
        if request is None:
            request = self._own.request = self._compiled.create_infer_request()
        try:
            request.infer({self._input: np.ascontiguousarray(x)}, share_inputs=True)
            found = [np.array(request.get_tensor(name).data, np.float32) for name in outputs]
        except Exception as e:  # OpenVINO raises RuntimeError for all there is
            text = " ".join(str(e).split())
            if "bad_alloc" in text or "allocat" in text.lower():
                raise MemoryError(text[:200]) from None
            raise _refused(x, text[-300:]) from None
        if any(y.size == 0 for y in found):  # it does not raise where a layer is left without a pixel
            raise _refused(x, "nothing is left of them")
        return found

    def describe(self) -> dict[str, object]:
        return {"openvino": self._version, **({"layers in fp32": self._kept} if self._kept else {})}


def _refused(x: Float, why: str) -> ViewRefused:
    return ViewRefused(f"the network does not run on {x.shape[2]}×{x.shape[3]} pixels: {why}")


def graph_of(precision: str) -> str:
    """Which of the bundle's graphs: bf16 is the fp32 graph, computed so."""
    return "fp32" if precision == "bf16" else precision


def kept_of(bundle: Bundle, precision: str) -> int:
    """How many of the first layers stay in fp32, as it was found best when that precision was tried on the bundle."""
    return next((r.kept for r in bundle.manifest.runtimes if r.precision == precision), 0)


def accepted(bundle: Bundle, precision: str | None = None) -> RuntimeReport:
    """The quickest of what `infercam precision --runtime openvino` accepted for the bundle (in that precision, if one
    is given) that holds here: the same OpenVINO, a CPU with that arithmetic.

    Raises MissingExtra, BundleError; BackendError where there is nothing.
    """
    if find_spec("openvino") is None:
        raise MissingExtra("openvino", "openvino", "the openvino backend")
    if precision not in (None, *LOWERED):
        raise BackendError(f"`auto` takes it in {' and '.join(LOWERED)} only")
    tried = [r for r in bundle.manifest.runtimes if precision in (None, r.precision)]
    command = f"infercam precision {bundle.path} --to {precision or 'bf16'} --runtime openvino"
    if not tried:
        raise BackendError(f"{precision or 'it'} was not tried on this bundle: {command}")
    here = version("openvino")
    fit = [r for r in tried if r.version == here]
    if not fit:
        raise BackendError(f"tried with OpenVINO {tried[0].version}, and here is {here}: {command}")
    best = max(fit, key=lambda r: r.speed)
    check_precision(best.precision)
    bundle.graph(graph_of(best.precision))
    return best


def check_precision(precision: str) -> None:
    """Raises BackendError where OpenVINO has no such precision on this CPU, MissingExtra without OpenVINO."""
    if precision not in PRECISIONS:
        raise BackendError(f"the openvino backend has no {precision}; it computes in {', '.join(PRECISIONS)}")
    core = openvino_core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendError("this CPU has no bf16 arithmetic (avx512_bf16, AMX): take --precision fp32")


def cpu_name() -> str:
    """What OpenVINO calls this CPU."""
    return str(openvino_core().get_property("CPU", "FULL_DEVICE_NAME")).strip()


def openvino_core() -> Any:
    """This process's only Core, with its CPU plugin loaded; raises MissingExtra.

    Where the CPU has AMX the plugin, each time that it is loaded, gives the calling main thread an alternative signal
    stack of 20 KB (2026.4.1). Python's handlers run on it, and twice AMX's registers (11 KB, by the kernel and by the
    dynamic linker) did not fit: SIGTERM ended the process (seen with gdb). So it is loaded once, and the stack put
    back.
    """
    openvino = import_openvino()
    with _importing:
        if not _cores:
            with own_signal_stack():
                core = openvino.Core()
                core.get_property("CPU", "FULL_DEVICE_NAME")  # loads it
            _cores.append(core)
        return _cores[0]


def import_openvino() -> Any:
    """The module, safe to be used from several threads; raises MissingExtra.

    Its binding makes two tables at their first use, of NumPy's types by its own and the other way round, in static
    variables of C++ functions. Making the first one releases Python's lock and takes it again: a second thread that
    comes to the same table in between waits for the first with that lock held, and both wait for ever (2026.4.1; seen
    with gdb, in 3 of 102 starts on a busy machine). So one thread makes them here, before any other can.

    It also sends usage reports of its own, from a process that it forks. It does not where their package cannot be
    imported.
    """
    if find_spec("openvino") is None:
        raise MissingExtra("openvino", "openvino", "the openvino backend")
    with _importing:
        cast("dict[str, Any]", sys.modules).setdefault("openvino_telemetry", None)
        import openvino

        openvino.Type.f32.to_dtype()
        openvino.Type(np.dtype(np.float32))
        return openvino


def _compiled(core: Any, graph: Path, threads: int, precision: str, kept: int) -> Any:
    settings = {
        "INFERENCE_PRECISION_HINT": _HINT[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,  # each run on one core, as the backend's threads are
        "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
        "CPU_RUNTIME_CACHE_CAPACITY": _SHAPES,
    }
    try:
        model = core.read_model(str(graph))
        if kept:
            model = first_in_fp32(import_openvino(), core, model, kept)
        return core.compile_model(model, "CPU", settings)
    except Exception as e:
        text = " ".join(str(e).split())
        raise BackendError(f"{graph}: OpenVINO cannot compile it: {text[-300:]}") from None
