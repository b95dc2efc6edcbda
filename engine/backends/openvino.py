"""The CPU backend with OpenVINO as its network runtime."""

from __future__ import annotations

from infercam.engine.backends.cpu import CpuBackend
from infercam.engine.bundle import Bundle
from infercam.engine.common.cores import available_cores
from infercam.engine.common.errors import BackendError
from infercam.engine.runners.openvino import OpenvinoNetwork, accepted


class OpenvinoBackend(CpuBackend):
    """See CpuBackend; precision: see OpenvinoNetwork. None: what was accepted for the bundle, else fp32."""

    name = "openvino"

    def __init__(self, bundle: Bundle, threads: int | None = None, precision: str | None = None) -> None:
        threads = threads or available_cores()
        precision = precision or _accepted(bundle)
        super().__init__(bundle, threads, precision, OpenvinoNetwork(bundle, threads, precision))


def _accepted(bundle: Bundle) -> str:
    try:
        return accepted(bundle).precision
    except BackendError:
        return "fp32"
