"""Backends: where tiles live and the network runs. `load_backend` picks one."""

from __future__ import annotations

from ..bundle import Bundle
from ..errors import BackendError
from .protocol import Backend

BACKENDS = ("cpu",)


def load_backend(name: str, bundle: Bundle, threads: int | None = None) -> Backend:
    """The backend of that name; `auto` takes the best that works here.

    Raises BackendError for an unknown name, MissingExtra for a missing library.
    """
    if name not in ("auto", *BACKENDS):
        raise BackendError(f"no backend {name!r}; there are: auto, {', '.join(BACKENDS)}")
    from .cpu import CpuBackend

    return CpuBackend(bundle, threads)


__all__ = ["BACKENDS", "Backend", "load_backend"]
