"""Running the application: listening, signals, draining, and the end of a broken engine."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from infercam.engine.common.errors import BackendError, InputError
from infercam.engine.serve.bounds import Bounds
from infercam.engine.serve.connections import timed_protocol
from infercam.engine.serve.service import Service

_BACKLOG = 512
_FAREWELL = 5
"""Seconds to tell those whose requests were dropped when draining took too long (2 were too few at a load of 11)."""


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which on SIGTERM or SIGINT stops accepting and finishes what it has; a second signal ends it
    at once. It ends too when an engine has died."""

    def __init__(self, app: ASGIApp, service: Service, drain: float) -> None:
        bounds: Bounds = service.bounds
        config = uvicorn.Config(
            app,
            http=timed_protocol(bounds),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=bounds.idle_timeout,
            timeout_graceful_shutdown=math.ceil(drain) + _FAREWELL,
        )
        super().__init__(config)
        self._drain = drain
        self.service = service
        self.on_drain: Callable[[], None] = lambda: None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal is not raised again in the end: a drained server exits with 0."""
        if threading.current_thread() is not threading.main_thread():  # where no signals come
            yield
            return
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            raise SystemExit(128 + sig)
        self.service.draining = True
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self.service.hosts.error is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.draining = True
        self.on_drain()
        asyncio.get_running_loop().call_later(self._drain, self.service.give_up)
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: any that is free. Raises InputError where it cannot be had."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as e:
        reason = getattr(e, "strerror", None) or e
        raise InputError(
            f"cannot listen on {host}:{port}: {reason}; choose another --host or --port"
        ) from None


def run(server: DrainingServer, listening: socket.socket) -> bool:
    """Serve until a signal comes; returns whether nothing that was accepted had to be dropped. Raises
    BackendError where an engine died."""
    service = server.service
    try:
        server.run(sockets=[listening])
    finally:
        error = service.hosts.error
        service.close(1.0 if server.should_exit else 0)
    if error is not None:
        raise BackendError(f"the engine died: {error}")
    return not service.dropped
