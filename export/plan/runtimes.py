"""Which runtime a plan is built for, and what that one takes.

TensorRT builds on the GPU that the plan is for, and times its kernels there. TensorRT-RTX needs neither a GPU nor a
driver: it builds for compute capabilities, and compiles its kernels on the card where the plan is loaded.
"""

from __future__ import annotations

from infercam.engine.backends.choice import device_obstacle
from infercam.engine.common.errors import InfercamError, InputError, MissingExtra
from infercam.engine.runners.plan import RUNTIMES, PlanOptions, RuntimeKind
from infercam.engine.runners.tensorrt_api import installed


def choose_runtime(asked: str | None = None) -> tuple[RuntimeKind, str]:
    """The runtime asked for, or what can run on this machine; and why, in words.

    TensorRT where a GPU and the package are there, else TensorRT-RTX where that is installed. Raises InputError for
    an unknown name, and where neither can build here.
    """
    if asked is not None:
        if asked not in RUNTIMES:
            raise InputError(f"no runtime {asked!r}; there are: {', '.join(RUNTIMES)}")
        return asked, "as asked for"
    obstacle: InfercamError | None = device_obstacle()
    if obstacle is None and installed("tensorrt") is None:
        obstacle = MissingExtra("tensorrt", "gpu", "it")
    if obstacle is None:
        return "tensorrt", "it builds on this GPU"
    if installed("tensorrt-rtx") is not None:
        return "tensorrt-rtx", f"not tensorrt: {obstacle}"
    raise InputError(
        f"no plan can be built here: {obstacle}; TensorRT-RTX needs no GPU: pip install 'infercam[rtx]'"
    )


def caution(kind: RuntimeKind, precision: str) -> str | None:
    """What speaks against that precision with that runtime; None if nothing is known to."""
    if kind == "tensorrt-rtx" and precision in ("int8", "fp8"):
        return (
            f"TensorRT-RTX stores {precision} layers unpacked, once for each profile: an fp16 plan is smaller"
        )
    return None


def check_options(kind: RuntimeKind, options: PlanOptions, targets: str | None) -> None:
    """Raise InputError for an option that the runtime has not."""
    if kind == "tensorrt":
        if targets is not None:
            raise InputError(
                "--targets is for --runtime tensorrt-rtx: TensorRT builds for the GPU at hand "
                "(or, with --hardware-compatible, for all from compute 8.0 on)"
            )
        return
    for option, given, why in (
        ("--hardware-compatible", options.hardware_compatible, "--targets says for which cards"),
        ("--version-compatible", options.version_compatible, "its plans run on the version that made them"),
        ("--strip-weights", options.stripped, "it needs a GPU to build such a plan"),
        ("--refit", options.refittable, "it needs a GPU to build such a plan"),
        ("--workspace", options.workspace_mb is not None, "it chooses kernels where the plan is loaded"),
    ):
        if given:
            raise InputError(f"{option} is not for --runtime tensorrt-rtx: {why}")
