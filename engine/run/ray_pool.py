"""A Ray cluster to work on: one that is running, or one of this machine's own for as long as the run lasts."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infercam.engine.common.cores import available_cores
from infercam.engine.common.errors import BackendError, InputError, MissingExtra

OBJECT_STORE = 160 << 20
"""Bytes of shared memory for a cluster of this machine's own: only names, classes and sizes pass through it."""
CONNECT_SECONDS = 5.0
_SOCKET_ROOM = 45  # Ray puts sockets some 60 characters below its folder, and a socket's path ends at 107


@dataclass(frozen=True)
class PoolOptions:
    """What `--workers` and its neighbours ask for; None: as the cluster offers."""

    workers: int | None = None
    cpus: int | None = None
    gpus: float | None = None
    address: str | None = None


@dataclass(frozen=True)
class WorkerPool:
    """The workers of a started cluster: how many, and what each may use."""

    workers: int
    cpus: int
    gpus: float


@contextmanager
def started(options: PoolOptions) -> Iterator[WorkerPool]:
    """Join the cluster, or begin one here; left, or ended, with the block.

    Raises MissingExtra without Ray, BackendError where the cluster cannot be reached or is too small.
    """
    _quiet_environment(options.address is None)
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtra("ray", "cluster", "--cluster ray") from None
    with ExitStack() as ends:  # the last is called first
        folder = None
        if options.address is None:
            folder = _temporary_folder()
            ends.callback(shutil.rmtree, folder, ignore_errors=True)
        ends.enter_context(_backend_silenced())
        ends.enter_context(_no_worker_logs())
        ends.callback(ray.shutdown)
        try:
            _check_reachable(options.address)
            ray.init(**_init_options(options, folder))
        except Exception as e:  # Ray raises plain Exceptions too, where a part of it does not start in time
            where = options.address or "this machine"
            raise BackendError(f"Ray on {where} cannot be reached or started: {first_line(e)}") from None
        quieten()
        yield _sized(options, [n["Resources"] for n in _nodes(ray) if n["Alive"]])


def _check_reachable(address: str | None) -> None:
    """Raises OSError where nobody listens: Ray would try for minutes, and say so every second."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _init_options(options: PoolOptions, folder: Path | None) -> dict[str, Any]:
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.CRITICAL,
        "configure_logging": True,
    }
    if folder is None:
        return {**common, "address": options.address}
    return {
        **common,
        "address": "local",
        "num_cpus": max(available_cores(), (options.workers or 1) * (options.cpus or 1)),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE,
        "_temp_dir": str(folder),
    }


def _quiet_environment(local: bool) -> None:
    """No usage statistics, no noise, and for a cluster of our own a token that is never written to a disk."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if local and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:  # it looks when imported
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextmanager
def _backend_silenced() -> Iterator[None]:
    """Ray's C++ parts, here and in the processes begun here, write to descriptor 2, whatever they are told (they
    have their files as well): Python's own standard error moves to another, and 2 leads nowhere."""
    before = sys.stderr
    try:
        ours = before.fileno() == 2
    except (OSError, ValueError, AttributeError):  # replaced, by a test or a notebook
        ours = False
    if not ours:
        yield
        return
    before.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    with open(kept, "w", buffering=1, encoding=before.encoding, errors=before.errors, closefd=False) as moved:
        sys.stderr = moved
        try:
            yield
        finally:
            moved.flush()
            sys.stderr = before
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def _no_worker_logs() -> Iterator[None]:
    """Ray prints the death of every worker, to standard output; there is no public switch for it (2.60)."""
    from ray._private import worker

    before = getattr(worker, "_worker_logs_enabled", True)
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = before


def quieten() -> None:
    """Ray's own log lines and warnings stay in its files: what the user is to know is said by the run."""
    for name in ("ray", "ray.data", "ray._private", "ray.train"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False
    warnings.filterwarnings("ignore", module=r"ray\..*")


def _temporary_folder() -> Path:
    base = tempfile.gettempdir()
    return Path(
        tempfile.mkdtemp(prefix="infercam-ray-", dir=base if len(base) < _SOCKET_ROOM - 22 else "/tmp")
    )


def _sized(options: PoolOptions, nodes: list[dict[str, float]]) -> WorkerPool:
    """How many workers of what size, spread over nodes of different sizes."""
    total = int(sum(n.get("CPU", 0) for n in nodes))
    total_gpus = sum(n.get("GPU", 0) for n in nodes)
    gpus = options.gpus if options.gpus is not None else float(total_gpus > 0)
    workers = options.workers
    if workers is None:
        by_gpu = int(total_gpus / gpus) if gpus else 0
        workers = by_gpu or (total // options.cpus if options.cpus else max(1, total // 4))
    cpus = options.cpus or max(
        (m for m in range(1, max(total // max(workers, 1), 1) + 1) if _room(nodes, m, gpus) >= workers),
        default=1,
    )
    if workers < 1 or _room(nodes, cpus, gpus) < workers:
        raise InputError(
            f"the cluster has room for {_room(nodes, cpus, gpus)} workers of {cpus} cores and {gpus:g} GPUs "
            f"({total} cores, {total_gpus:g} GPUs on {len(nodes)} hosts), not for {workers or 'one'}; "
            "lower --workers, --cpus-per-worker or --gpus-per-worker"
        )
    return WorkerPool(workers, cpus, gpus)


def _room(nodes: list[dict[str, float]], cpus: int, gpus: float) -> int:
    """Workers of that size which fit on the nodes."""
    return sum(
        min(int(n.get("CPU", 0) // cpus), int(n.get("GPU", 0) / gpus) if gpus else 1 << 30) for n in nodes
    )


def first_line(error: BaseException) -> str:
    """An error of Ray, which may be pages long, as one line: its last, where tracebacks say what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _nodes(ray: Any) -> list[dict[str, Any]]:
    return list(ray.nodes())
