"""The CPU backend with OpenVINO as its network runtime."""

from __future__ import annotations

from infercam.engine.backends.cpu import CpuBackend
from infercam.engine.bundle import Bundle
from infercam.engine.common.cores import available_cores
from infercam.engine.runners.openvino import OpenvinoNetwork


class OpenvinoBackend(CpuBackend):
    """See CpuBackend; precision: fp32, or bf16 where the CPU has its arithmetic."""

    name = "openvino"

    def __init__(self, bundle: Bundle, threads: int | None = None, precision: str = "fp32") -> None:
        threads = threads or available_cores()
        super().__init__(bundle, threads, precision, OpenvinoNetwork(bundle, threads, precision))
