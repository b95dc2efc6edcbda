"""What a client is told: a status and one line, in the Open Inference Protocol's shape `{"error": …}`."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from infercam.engine.common.errors import InfercamError, InputError, shown
from infercam.engine.data.images import TooManyPixels
from infercam.engine.live import Closed


class Refusal(Exception):
    """A request that is answered with an error; status: of HTTP."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


CLIENT_GONE = 499
"""Nobody reads the answer; the number (nginx's) is for the metrics and the access log."""


def error_response(status: int, message: object, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": shown(message)}, status, dict(headers or {}))


def status_of(error: InfercamError) -> int:
    """400: the request's own fault; 413: a picture over the limit; 503: the server goes down; 500: anything else."""
    if isinstance(error, TooManyPixels):
        return 413
    if isinstance(error, InputError):
        return 400
    return 503 if isinstance(error, Closed) else 500


async def on_refusal(request: Request, error: Exception) -> JSONResponse:
    """Exception handler of the application for what is raised on purpose."""
    if isinstance(error, Refusal):
        return error_response(error.status, error, error.headers)
    if isinstance(error, HTTPException):  # no such path, no such method
        return error_response(error.status_code, f"{error.detail}: {request.url.path}", error.headers)
    assert isinstance(error, InfercamError)
    return error_response(status_of(error), error)


async def on_surprise(request: Request, error: Exception) -> JSONResponse:
    """Exception handler for what nobody foresaw: the log has it, the client learns only its kind."""
    return error_response(500, f"{type(error).__name__} in the server: its log says more")
