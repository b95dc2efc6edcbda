"""Which backends can run a bundle on this machine, and why the others cannot: asked before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError, InfercamError, MissingExtra
from infercam.engine.device.driver import DeviceInfo
from infercam.engine.device.probe import probe
from infercam.engine.runners.openvino import accepted, check_precision
from infercam.engine.runners.openvino import graph_of as openvino_graph
from infercam.engine.runners.ort_cpu import GPU_ONLY
from infercam.engine.runners.ort_cuda import Provider, import_onnxruntime
from infercam.engine.runners.plan import Environment, RuntimeKind, find_plan, graph_of
from infercam.engine.runners.tensorrt import check_runtime, environment

BACKENDS = ("tensorrt", "tensorrt-rtx", "ort-cuda", "ort-tensorrt", "openvino", "cpu")
PREFERENCE = ("tensorrt", "tensorrt-rtx", "ort-cuda", "openvino", "cpu")
"""What `auto` tries, best first: openvino only as `infercam precision --runtime` accepted it. ort-tensorrt, which
builds a plan at every start, only where it is asked for."""

ON_CPU = ("openvino", "cpu")
"""Those whose tiles live in host memory: only they refine by an affinity, and a new view size costs them nothing."""

Check = Callable[[Bundle | None, str | None], None]


class Choice(NamedTuple):
    """What `auto` takes, and what keeps it from each of the others."""

    name: str
    reasons: dict[str, str]
    """Backend -> why it cannot run here; empty for a backend that can."""

    def __str__(self) -> str:
        better = PREFERENCE[: PREFERENCE.index(self.name)] if self.name in PREFERENCE else ()
        passed = said({name: self.reasons[name] for name in better if name in self.reasons})
        return f"{self.name} ({passed})" if passed else self.name


def choose_backend(bundle: Bundle, precision: str | None = None) -> Choice:
    """The best backend that has all it needs here: driver, device, libraries, and a graph or a plan that fits.

    Nothing is loaded or allocated. Raises BackendError where none has, with every reason.
    """
    found = {name: why for name in BACKENDS if (why := objection(name, bundle, precision)) is not None}
    for name in PREFERENCE:
        if name not in found:
            return Choice(name, {k: str(v) for k, v in found.items()})
    raise nothing_works(found)


def nothing_works(obstacles: dict[str, InfercamError]) -> InfercamError:
    """The error where every backend has an obstacle: what to install, where that is all that the CPU lacks."""
    if isinstance(lacking := obstacles["cpu"], MissingExtra):
        return lacking
    reasons = {name: str(why) for name, why in obstacles.items()}
    return BackendError(f"no backend can run this: {said(reasons)}")


def said(reasons: dict[str, str]) -> str:
    """Reasons on one line, each once, after the names that it holds for."""
    names: dict[str, list[str]] = {}
    for name, why in reasons.items():
        names.setdefault(why, []).append(name)
    return "; ".join(f"not {', '.join(them)}: {why}" for why, them in names.items())


def obstacle(name: str, bundle: Bundle | None, precision: str | None = None) -> InfercamError | None:
    """Why that backend cannot run the bundle (None: any) here; None if nothing speaks against it."""
    return _raised(lambda: _CHECKS[name](bundle, precision))


def objection(name: str, bundle: Bundle | None, precision: str | None = None) -> InfercamError | None:
    """Why `auto` leaves that backend aside: an obstacle, or a runtime that was not accepted for the bundle."""
    if name != "openvino":
        return obstacle(name, bundle, precision)
    if bundle is None:
        return BackendError("`auto` takes it for bundles that record it")
    return _raised(lambda: accepted(bundle, precision))


def device_obstacle() -> InfercamError | None:
    """Why no GPU backend can run here; None if nothing speaks against it."""
    return _raised(_check_device)


def _raised(check: Callable[[], object]) -> InfercamError | None:
    try:
        check()
    except InfercamError as e:
        return e
    return None


def _check_cpu(bundle: Bundle | None, precision: str | None) -> None:
    if precision in GPU_ONLY:
        raise BackendError(f"has no {precision} arithmetic")
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        raise MissingExtra("onnxruntime", "cpu", "the cpu backend") from None
    if bundle is not None:
        bundle.graph(precision or "fp32")


def _check_openvino(bundle: Bundle | None, precision: str | None) -> None:
    check_precision(precision or "fp32")
    if bundle is not None:
        bundle.graph(openvino_graph(precision or "fp32"))


def _check_device() -> None:
    """What every GPU backend needs."""
    probe()
    if find_spec("pycuda") is None:
        raise MissingExtra("pycuda", "gpu", "a GPU backend")


def _check_plans(runtime: RuntimeKind) -> Check:
    def check(bundle: Bundle | None, precision: str | None) -> None:
        _check_device()
        here = plan_environment()
        check_runtime(runtime, here.gpu, here.compute_capability)
        if bundle is not None:
            find_plan(bundle, precision, here, runtime=runtime)

    return check


def plan_environment() -> Environment:
    """The first GPU and the installed TensorRT, as a plan must fit them; raises DeviceError."""
    gpu = probe().gpus[0]
    return environment(DeviceInfo(gpu.name, gpu.compute_capability, gpu.total_memory, 0, ""))


def _check_ort(provider: Provider) -> Check:
    def check(bundle: Bundle | None, precision: str | None) -> None:
        _check_device()
        import_onnxruntime(f"ort-{provider}", provider)
        if bundle is not None:
            bundle.graph(graph_of(precision or "fp32"))

    return check


_CHECKS: dict[str, Check] = {
    "cpu": _check_cpu,
    "openvino": _check_openvino,
    "tensorrt": _check_plans("tensorrt"),
    "tensorrt-rtx": _check_plans("tensorrt-rtx"),
    "ort-cuda": _check_ort("cuda"),
    "ort-tensorrt": _check_ort("tensorrt"),
}
