"""What the machine multiplies at best, through the runtime that the engine uses: what shares are shares of.

On the CPU: as many threads as the engine has workers, each with an ONNX Runtime session of its own of one thread,
multiply square float32 matrices side by side: just so the engine runs its network. On a GPU: one session of ONNX
Runtime's CUDA provider, matrices and product bound to the device. The best of several short bursts counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from infercam.benchmarks.bench.job import NotMeasured
from infercam.engine.common.cores import available_cores
from infercam.engine.common.errors import MissingExtra

SIDE_CPU, SIDE_GPU = 768, 8192
"""Three float32 matrices of side 768 are 7 MB: they stay in the caches, where a convolution's tiles are, too."""
BURSTS, CALLS = 8, 4


def cpu_rate(threads: int | None = None, side: int = SIDE_CPU, bursts: int = BURSTS) -> float:
    """Floating-point operations a second (2 for each multiply-add); raises MissingExtra."""
    threads = threads or available_cores()
    calls = [_call(side, "CPUExecutionProvider", np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def burst() -> None:
            list(pool.map(lambda call: [call() for _ in range(CALLS)], calls))

        return threads * CALLS * 2 * side**3 / _best(burst, bursts)


def gpu_rate(
    precision: str = "fp32", side: int = SIDE_GPU, bursts: int = BURSTS, device: str = "cuda"
) -> float:
    """The same on the GPU, in half precision for a graph in fp16; raises MissingExtra or NotMeasured."""
    half = precision in ("fp16", "bf16", "fp8", "int8")
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    call = _call(side, provider, np.float16 if half else np.float32, device)
    return CALLS * 2 * side**3 / _best(lambda: [call() for _ in range(CALLS)], bursts)


def _best(work: Callable[[], Any], bursts: int) -> float:
    best = float("inf")
    for _ in range(bursts + 1):  # the first warms up, and never is the best
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def _call(side: int, provider: str, dtype: Any, device: str = "cpu") -> Callable[[], Any]:
    """A product of two square matrices that lie on the device, as a call that ends when the product is there."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise MissingExtra("onnxruntime", "cpu", "measuring the matrix rate") from None
    if provider not in ort.get_available_providers():
        raise NotMeasured(f"ONNX Runtime has no {provider} here")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(_graph(side, dtype), options, providers=[provider])
    if provider not in session.get_providers():  # it falls back without a word
        raise NotMeasured(f"ONNX Runtime's {provider} does not start here")
    rng = np.random.default_rng(0)
    binding = session.io_binding()
    for name in ("a", "b"):
        matrix = rng.standard_normal((side, side), np.float32).astype(dtype)
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(matrix, device, 0))
    binding.bind_output("c", device)

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def _graph(side: int, dtype: Any) -> bytes:
    try:
        from onnx import TensorProto, helper
    except ImportError:
        raise MissingExtra("onnx", "export", "measuring the matrix rate") from None
    kind = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
    a, b, c = (helper.make_tensor_value_info(name, kind, [side, side]) for name in "abc")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
