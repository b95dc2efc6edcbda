"""Around every request: time and status for the metrics and the access log, headers for the browser's safety."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infercam.engine.common.errors import shown
from infercam.engine.serve.refusals import CLIENT_GONE
from infercam.engine.serve.service import Service

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Gate:
    """ASGI middleware. access_log: one line per request goes there; None: no log."""

    def __init__(self, app: ASGIApp, service: Service, access_log: TextIO | None = None) -> None:
        self.app = app
        self.service = service
        self.access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, sent, whole = time.perf_counter(), 500, 0, False
        # A body of two lengths may hide another request (RFC 9112, 6.1): nothing behind it is read.
        two_lengths = {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}

        async def passed_on(message: Message) -> None:
            nonlocal status, sent, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if two_lengths:
                    headers["Connection"] = "close"
            await send(message)
            if message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
                whole = not message.get("more_body", False)

        try:
            await self.app(scope, receive, passed_on)
        except Exception as e:  # the client was answered with 500 (app.py)
            sys.stderr.write(f"error: {shown(scope['path'])}: {type(e).__name__}: {shown(e)}\n")
        finally:
            self._ended(scope, status, sent, whole, time.perf_counter() - began)

    def _ended(self, scope: Scope, status: int, sent: int, whole: bool, seconds: float) -> None:
        if scope.get("infercam.accepted"):
            self.service.gone += status == CLIENT_GONE
            self.service.answered += whole and status not in (CLIENT_GONE, 503)
        route = getattr(scope.get("route"), "path", "other")
        self.service.metrics.count(route, status, seconds)
        if self.access_log is not None:
            client = scope.get("client") or ("-",)
            path = shown(scope["path"])
            line = f"{client[0]} {scope['method']} {path} {status} {sent} B {seconds:.3f} s\n"
            self.access_log.write(line)
            self.access_log.flush()
