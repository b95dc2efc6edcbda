"""A real server on a free port, in a thread; the tests talk to it over sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import httpx

from infercam.engine.backends.cpu import CpuBackend
from infercam.engine.bundle import Bundle
from infercam.engine.method.backend import Limits
from infercam.engine.method.task import Work
from infercam.engine.serve.app import build
from infercam.engine.serve.bounds import Bounds
from infercam.engine.serve.hosted import Hosts
from infercam.engine.serve.label_studio_pictures import TaskPictures
from infercam.engine.serve.server import DrainingServer, listen, run
from infercam.engine.serve.service import Service


@dataclass
class Served:
    """A running server and what is behind it."""

    service: Service
    server: DrainingServer
    host: str
    port: int
    http: httpx.Client
    thread: threading.Thread
    failure: list[BaseException]
    """What ended the server, if it was an error."""

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def metric(self, line: str) -> float:
        """The value of one line of /metrics; 0 where it is not there."""
        for found in self.http.get("/metrics").text.splitlines():
            if found.startswith(line + " "):
                return float(found.split()[-1])
        return 0.0


@contextmanager
def served(
    hosts: Hosts, bounds: Bounds, drain: float = 5, label_studio: TaskPictures | None = None
) -> Iterator[Served]:
    service = Service(hosts, bounds)
    listening = listen("127.0.0.1", 0)
    host, port = listening.getsockname()
    server = DrainingServer(build(service, label_studio=label_studio), service, drain)
    failure: list[BaseException] = []

    def main() -> None:
        try:
            run(server, listening)
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=main)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=20) as http:
            until(lambda: server.started)
            yield Served(service, server, host, port, http, thread, failure)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


class Gate(CpuBackend):
    """A CPU backend whose work waits at a gate, and fails as it is told to."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        super().__init__(bundle, threads)
        self.open = threading.Event()
        self.open.set()
        self.fault: Callable[[Work], Exception | None] = lambda work: None
        self.deadly: BaseException | None = None

    @property
    def limits(self) -> Limits:
        """Batches as a GPU takes them."""
        return Limits(batch_pixels=100_000, batch_views=16, images=self.threads + 2)

    def collect(self) -> list[Any]:
        if self.deadly is not None:
            raise self.deadly
        return super().collect()

    def _do(self, work: Work) -> Any:
        self.open.wait(20)
        error = self.fault(work)
        if error is not None:
            raise error
        return super()._do(work)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """seconds: against hanging only, as a busy machine is slow, where the test gives none."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


def png(pixels: Any) -> bytes:
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
