"""Connections that are cut when the client dawdles: uvicorn itself waits for ever for a header, a body, a reader."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from infercam.engine.serve.bounds import Bounds


def timed_protocol(bounds: Bounds) -> type[asyncio.Protocol]:
    """uvicorn's HTTP/1.1 protocol with the bounds' time-outs and number of connections."""

    class Timed(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        """Of what is being read: a header, or a body."""
        _reading: object = None
        _stalled: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > bounds.connections:
                transport.close()
            else:
                self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop(self._deadline)
            self._stop(self._stalled)
            super().connection_lost(exc)

        def _watch(self) -> None:
            """One deadline for each header and each body; none between requests (uvicorn has one for that) nor
            while the server works."""
            state: object = self.conn.their_state
            if state is h11.IDLE and not self.conn.trailing_data[0] and self.cycle is not None:
                state = None  # between two requests
            if state is self._reading:
                return
            self._stop(self._deadline)
            self._reading, self._deadline = state, None
            if state is h11.IDLE:
                self._deadline = self.loop.call_later(bounds.header_timeout, self.transport.abort)
            elif state is h11.SEND_BODY:  # the application's own time-out, a second before, says why
                self._deadline = self.loop.call_later(bounds.body_timeout + 1, self.transport.abort)

        def pause_writing(self) -> None:
            self._stalled = self.loop.call_later(bounds.header_timeout, self.transport.abort)
            super().pause_writing()

        def resume_writing(self) -> None:
            self._stop(self._stalled)
            super().resume_writing()

        @staticmethod
        def _stop(timer: asyncio.TimerHandle | None) -> None:
            if timer is not None:
                timer.cancel()

    return Timed
