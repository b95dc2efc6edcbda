"""What TensorRT-RTX's builder has and TensorRT's has not: compute capabilities to build for.

The only module of the builder that uses names of TensorRT-RTX alone; a test compares them with the package itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infercam.engine.common.errors import InputError
from infercam.engine.runners.plan import Maker
from infercam.engine.runners.tensorrt_api import require_tensorrt


def rtx_maker(targets: str | None) -> Maker:
    """TensorRT-RTX as it is installed, for cards named as in `sm86,sm120` (None: all from compute 8.0 on).

    Raises MissingExtra, or InputError for a target that it does not know.
    """
    rtx: Any = require_tensorrt("infercam build", "tensorrt-rtx")
    known = [name.lower() for name in rtx.ComputeCapability.__members__ if name.startswith("SM")]
    wanted = [t.strip().lower() for t in (targets or "").split(",") if t.strip()]
    for target in wanted:
        if target not in known:
            raise InputError(
                f"--targets {target}: TensorRT-RTX {rtx.__version__} builds for {', '.join(known)}"
            )
    return Maker("tensorrt-rtx", rtx.__version__, targets=tuple(t for t in known if t in wanted))


def set_targets(rtx: Any, config: Any, targets: Sequence[str]) -> None:
    """Tell the builder the cards; without any it builds for compute 8.0, 8.6, 8.9, 12.0 and what comes later."""
    if targets:
        config.num_compute_capabilities = len(targets)
    for i, target in enumerate(targets):
        taken = config.set_compute_capability(rtx.ComputeCapability.__members__[target.upper()], i)
        if not taken:
            raise InputError(f"TensorRT-RTX refuses the target {target}")
