"""How a network is run on a GPU, beside what it computes: switches of its runtimes, read from the environment, so
that shards, child processes and servers have the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from infercam.engine.common.errors import BackendError

CUDA_GRAPHS = "INFERCAM_CUDA_GRAPHS"
RTX_KERNELS = "INFERCAM_RTX_KERNELS"

Kernels = Literal["lazy", "eager", "none"]
_SWITCH = {"": False, "0": False, "off": False, "1": True, "on": True}


@dataclass(frozen=True)
class RuntimeSwitches:
    """Neither was measured on a GPU: the defaults are the runtimes' own."""

    cuda_graphs: bool = False
    """Launch a batch as one CUDA graph where its shape was run before."""
    kernels: Kernels = "lazy"
    """TensorRT-RTX's kernels for a shape: compiled in the background while general ones run (lazy), before its first
    run (eager: which kernels make a map does not depend on timing), or general ones always (none)."""

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> RuntimeSwitches:
        """As the environment says; raises BackendError for what it cannot say."""
        graphs, kernels = environment.get(CUDA_GRAPHS, ""), environment.get(RTX_KERNELS, "") or cls.kernels
        if graphs not in _SWITCH:
            raise BackendError(f"{CUDA_GRAPHS}={graphs}: takes on (1) or off (0)")
        if kernels not in get_args(Kernels):
            raise BackendError(f"{RTX_KERNELS}={kernels}: takes {', '.join(get_args(Kernels))}")
        return cls(_SWITCH[graphs], cast(Kernels, kernels))
