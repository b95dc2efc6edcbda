"""The application: all routes around one Service."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from infercam.engine.common.errors import InfercamError
from infercam.engine.serve import label_studio_routes, maps_routes, v2_routes
from infercam.engine.serve.gate import Gate
from infercam.engine.serve.label_studio_pictures import TaskPictures
from infercam.engine.serve.refusals import Refusal, on_refusal, on_surprise
from infercam.engine.serve.service import Service

PAGE = Path(__file__).parent / "page"


def build(
    service: Service, access_log: TextIO | None = None, label_studio: TaskPictures | None = None
) -> ASGIApp:
    """The ASGI application. It does not close the service.

    label_studio: where its tasks' pictures come from; None: no routes for it.
    """
    # no interactive documentation: its page loads scripts from elsewhere
    app = FastAPI(title="infercam", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(v2_routes.router(service))
    app.include_router(maps_routes.router(service))
    if label_studio is not None:
        app.include_router(label_studio_routes.router(service, label_studio))

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/static", StaticFiles(directory=PAGE, check_dir=False))
    for kind in (Refusal, InfercamError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, on_refusal)
    app.add_exception_handler(Exception, on_surprise)
    return Gate(app, service, access_log)
