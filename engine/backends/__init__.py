"""Backends: where tiles live and the network runs. `load_backend` picks one."""

from __future__ import annotations

from infercam.engine.backends.choice import (
    BACKENDS,
    ON_CPU,
    PREFERENCE,
    Choice,
    choose_backend,
    nothing_works,
    objection,
)
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError, InfercamError, MissingExtra
from infercam.engine.device.driver import Driver
from infercam.engine.device.runner import Runner
from infercam.engine.method.backend import Backend
from infercam.engine.runners.plan import RUNTIMES


def load_backend(
    name: str, bundle: Bundle, threads: int | None = None, precision: str | None = None
) -> Backend:
    """The backend of that name; `auto` takes the best that works here.

    precision: a graph of the bundle (see `infercam precision`), or for tensorrt and tensorrt-rtx a plan of that
    precision. None: the fp32 graph, for those two the newest plan that fits, for openvino what was accepted (see
    `infercam precision --runtime`). threads: of the cpu and openvino backends.
    Raises BackendError for an unknown name or what does not work here, MissingExtra for a missing library,
    BundleError where the bundle has no such graph.
    """
    return load_chosen(name, bundle, threads, precision)[0]


def load_chosen(
    name: str, bundle: Bundle, threads: int | None = None, precision: str | None = None
) -> tuple[Backend, Choice]:
    """`load_backend`, and why `auto` took this one rather than a better one."""
    if name != "auto":
        if name not in BACKENDS:
            raise BackendError(f"no backend {name!r}; there are: auto, {', '.join(BACKENDS)}")
        return _load(name, bundle, threads, precision), Choice(name, {})
    passed: dict[str, InfercamError] = {}
    for one in PREFERENCE:
        why = objection(one, bundle, precision)
        if why is None:
            try:
                loaded = _load(one, bundle, threads, precision)
                return loaded, Choice(one, {name: str(e) for name, e in passed.items()})
            except (BackendError, MissingExtra) as e:  # it has all it needs and yet does not start
                why = e
        passed[one] = why
    raise nothing_works(passed)


def _load(name: str, bundle: Bundle, threads: int | None, precision: str | None) -> Backend:
    if name == "cpu":
        from infercam.engine.backends.cpu import CpuBackend

        return CpuBackend(bundle, threads, precision or "fp32")
    if name == "openvino":
        from infercam.engine.backends.openvino import OpenvinoBackend

        return OpenvinoBackend(bundle, threads, precision)
    from infercam.engine.backends.device import DeviceBackend
    from infercam.engine.device.cuda import CudaDriver

    driver = CudaDriver()
    try:
        return DeviceBackend(bundle, driver, _runner(name, bundle, driver, precision))
    except BaseException:
        driver.close()
        raise


def _runner(name: str, bundle: Bundle, driver: Driver, precision: str | None) -> Runner:
    if name in RUNTIMES:
        from infercam.engine.runners.tensorrt import load_runner

        with driver.current():
            return load_runner(bundle, driver, precision, runtime=name)
    from infercam.engine.runners.ort_cuda import OrtRunner

    return OrtRunner(
        bundle, driver, precision or "fp32", provider="cuda" if name == "ort-cuda" else "tensorrt"
    )


__all__ = ["BACKENDS", "ON_CPU", "Backend", "Choice", "choose_backend", "load_backend", "load_chosen"]
