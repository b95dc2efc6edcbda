"""`infercam serve`: options, start and end. What it does is in app.py and server.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from infercam.engine.common.errors import MissingExtra

if TYPE_CHECKING:
    from infercam.engine.method.backend import Preparing

console = Console(stderr=True, highlight=False, markup=False)


def register(app: typer.Typer) -> None:
    app.command("serve")(serve)


def serve(
    bundles: Annotated[
        list[Path], typer.Argument(help="Bundles made by `infercam export`; several at once.")
    ],
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. There is no authentication: anything but loopback belongs behind a proxy."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    recipe: Annotated[str, typer.Option(help="Where a request names none.")] = "fast",
    backend: Annotated[
        str,
        typer.Option(
            help="auto (the best that works here), tensorrt, tensorrt-rtx, ort-cuda, ort-tensorrt, openvino "
            "or cpu."
        ),
    ] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="Which graph or plan of the bundle: fp32, tf32, fp16, bf16, int8, fp8.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Worker threads of the cpu backend (default: all cores).")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Requests at once; the next is refused with 429.")] = 64,
    max_request_mb: Annotated[float, typer.Option(min=0.001, help="Largest request; 413.")] = 16,
    max_pixels: Annotated[int, typer.Option(min=1, help="Largest picture; 413.")] = 4_000_000,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for one request; 504.")] = 30,
    body_timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds to send a request's body; 408.")
    ] = 20,
    header_timeout: Annotated[
        float,
        typer.Option(min=0.001, help="Seconds to send a header, or to go on reading an answer; then cut."),
    ] = 10,
    drain: Annotated[
        float, typer.Option(min=1, help="Seconds to finish what is in flight after SIGTERM or SIGINT.")
    ] = 30,
    label_studio: Annotated[
        str | None,
        typer.Option(
            help="Label Studio's address: be its ML backend at /label-studio. Pictures are fetched from there, with "
            "the token in LABEL_STUDIO_API_KEY."
        ),
    ] = None,
    access_log: Annotated[bool, typer.Option("--access-log", help="One line per request on stderr.")] = False,
) -> None:
    """Serve maps over HTTP: /maps for picture uploads, the Open Inference Protocol below /v2, /metrics, a page at /.

    Requests of all clients are batched together, whatever their recipes and modes. SIGTERM: no new connections,
    what was accepted is finished, exit code 0.
    """
    _require()
    from infercam.engine.common.memory import few_arenas
    from infercam.engine.serve.app import build
    from infercam.engine.serve.bounds import Bounds
    from infercam.engine.serve.hosted import Hosts
    from infercam.engine.serve.isolation import ServiceIsolation, in_flight_file
    from infercam.engine.serve.label_studio_pictures import TaskPictures
    from infercam.engine.serve.server import DrainingServer, listen, run
    from infercam.engine.serve.service import Service

    few_arenas()
    bounds = Bounds(
        queue=queue,
        request_bytes=round(max_request_mb * (1 << 20)),
        pixels=max_pixels,
        timeout=timeout,
        body_timeout=body_timeout,
        header_timeout=header_timeout,
    )
    pictures = label_studio and TaskPictures(
        label_studio, os.environ.get("LABEL_STUDIO_API_KEY"), timeout, bounds.request_bytes
    )
    listening = listen(host, port)
    hosts = Hosts.load(bundles, recipe, backend, precision, threads, _say_preparing)
    isolation = ServiceIsolation(in_flight_file(bundles, listening.getsockname()[1]))
    service = Service(hosts, bounds, recipe, isolation)
    server = DrainingServer(
        build(service, sys.stderr if access_log else None, pictures or None), service, drain
    )
    for hosted in hosts:
        engine = hosted.engine
        console.print(f"{hosted.name}: {engine.backend.precision} on {engine.choice}", soft_wrap=True)
    address = listening.getsockname()
    shown_host = f"[{address[0]}]" if ":" in address[0] else address[0]
    console.print(f"serving at http://{shown_host}:{address[1]}", soft_wrap=True)
    server.on_drain = lambda: console.print(f"stopping: {service.open} requests in flight")
    complete = run(server, listening)
    console.print(
        f"accepted {service.accepted}, answered {service.answered}, clients gone {service.gone}, "
        f"dropped {service.dropped}",
        soft_wrap=True,
    )
    if not complete:
        raise typer.Exit(1)


def _say_preparing(name: str, step: Preparing) -> None:
    if step.done in (0, step.total) or step.done % 10 == 0:
        what = f"shape {step.done + 1} of {step.total}"
        if step.done == step.total:
            what = f"{step.total} shapes are ready"
        console.print(f"{name}: preparing: {what}", soft_wrap=True)


def _require() -> None:
    """Raises MissingExtra for whatever the extra `serve` brings and is not here."""
    for module, package in (
        ("fastapi", "fastapi"),
        ("uvicorn", "uvicorn"),
        ("prometheus_client", "prometheus-client"),
        ("python_multipart", "python-multipart"),
    ):
        try:
            __import__(module)
        except ImportError:
            raise MissingExtra(package, "serve", "the server") from None
