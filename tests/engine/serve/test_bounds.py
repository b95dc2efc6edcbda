"""Too much, too slow, gone, broken: each costs its own request and nothing else."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from infercam.engine.common.errors import BackendError
from infercam.engine.method.backend import OutOfMemory
from infercam.engine.method.task import Respond, Work
from tests.engine.serve.serving import Gate, Served, png, until

MakeGated = Callable[..., tuple[Served, Gate]]


def connect(served: Served) -> socket.socket:
    return socket.create_connection((served.host, served.port), timeout=10)


def closed_after(connection: socket.socket) -> float:
    """Seconds until the server closes the connection."""
    began = time.monotonic()
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - began


# -- too much ------------------------------------------------------------------------------------------------
def test_a_full_queue_refuses_at_once_and_recovers(gated: MakeGated, picture: np.ndarray) -> None:
    served, backend = gated(queue=3)
    backend.open.clear()
    with ThreadPoolExecutor(3) as pool:
        first = [pool.submit(served.http.post, "/maps?classes=0", content=png(picture)) for _ in range(3)]
        until(lambda: served.service.open == 3)
        for _ in range(5):
            answer = served.http.post("/maps?classes=0", content=png(picture))
            assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
            assert "try again" in answer.json()["error"]
        assert served.http.get("/v2/health/ready").status_code == 200, "health is asked past the queue"
        assert served.metric("infercam_queue_depth") == 3
        backend.open.set()
        assert [future.result().status_code for future in first] == [200] * 3
    assert served.http.post("/maps?classes=0", content=png(picture)).status_code == 200
    assert served.service.accepted == served.service.answered == 4


def test_a_body_over_the_limit_is_refused_by_its_header(gated: MakeGated) -> None:
    served, _ = gated(request_bytes=1000)
    with connect(served) as connection:
        connection.sendall(b"POST /maps HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413"), "before a byte of the body was sent"
    assert served.http.post("/maps", content=b"x" * 1001).status_code == 413
    assert served.http.post("/maps", content=b"x" * 1000).status_code == 400
    assert served.http.post("/v2/models/tiny-4/infer", content=b"x" * 2000).status_code == 413


def test_a_body_over_the_limit_is_refused_while_it_comes(gated: MakeGated) -> None:
    served, _ = gated(request_bytes=1000)

    def endless() -> Any:
        for _ in range(200):
            yield b"x" * 100

    answer = served.http.post("/maps", content=endless())  # chunked: no length is announced
    assert answer.status_code == 413 and "--max-request-mb" in answer.json()["error"]
    assert served.http.get("/info").status_code == 200


def test_headers_without_end(gated: MakeGated) -> None:
    served, _ = gated()
    with connect(served) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + b"X-A: y\r\n" * 20_000)
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")


def test_more_connections_than_may_be(gated: MakeGated) -> None:
    served, _ = gated(connections=4)
    served.http.get("/info")
    held = [connect(served) for _ in range(3)]
    until(lambda: len(served.server.server_state.connections) == 4, 5)  # with the tests' own client
    with connect(served) as surplus:
        assert closed_after(surplus) < 2
    for connection in held:
        connection.close()
    until(lambda: len(served.server.server_state.connections) <= 1)
    with connect(served) as again:
        again.sendall(b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n")
        assert again.recv(4096).startswith(b"HTTP/1.1 200")


# -- too slow ------------------------------------------------------------------------------------------------
def test_slow_headers_are_cut_off(gated: MakeGated) -> None:
    served, _ = gated(header_timeout=0.4)
    silent = connect(served)
    dribbling = connect(served)
    dribbling.sendall(b"GET /info HT")
    stop = threading.Event()

    def dribble() -> None:
        while not stop.wait(0.05):
            try:
                dribbling.sendall(b"x")
            except OSError:
                return

    thread = threading.Thread(target=dribble)
    thread.start()
    assert closed_after(silent) < 3 and closed_after(dribbling) < 3
    stop.set()
    thread.join()
    assert served.http.get("/info").status_code == 200


def test_slow_bodies_are_cut_off_and_give_their_place_back(gated: MakeGated) -> None:
    served, _ = gated(body_timeout=0.3, queue=1)
    with connect(served) as connection:
        connection.sendall(b"POST /maps HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        until(lambda: served.service.open == 1)
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        assert served.service.open == 0
        assert closed_after(connection) < 5, "also where it goes on dribbling"


def test_a_connection_may_rest_between_requests(gated: MakeGated) -> None:
    served, _ = gated(header_timeout=0.3, body_timeout=0.3)
    connection = http.client.HTTPConnection(served.host, served.port, timeout=10)
    for _ in range(3):
        connection.request("POST", "/v2/models/tiny-4/infer", b"{}")
        assert connection.getresponse().read()
        time.sleep(0.5)
    connection.close()


def test_readers_that_stall_are_cut_off(gated: MakeGated) -> None:
    served, _ = gated(header_timeout=0.5)
    pixels = bytes(800 * 800 * 3)
    image = {"name": "image", "datatype": "UINT8", "shape": [800, 800, 3]}
    image["parameters"] = {"binary_data_size": len(pixels)}
    request = json.dumps(
        {"inputs": [image], "parameters": {"score_threshold": 0, "mode": "baseline", "recipe": "fast"}}
    ).encode()
    head = "POST /v2/models/tiny-4_maps/infer HTTP/1.1\r\nHost: x\r\n"
    head += f"Content-Length: {len(request) + len(pixels)}\r\n"
    head += f"Inference-Header-Content-Length: {len(request)}\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect((served.host, served.port))
        connection.sendall(head.encode() + request + pixels)
        until(lambda: served.service.answered == 1, 90)  # 13 MB are on their way, and nobody reads them
        assert served.server.server_state.connections
        until(lambda: not served.server.server_state.connections, 5)
    assert served.http.get("/info").status_code == 200


def test_a_request_that_takes_too_long_is_answered_and_dropped(gated: MakeGated, picture: np.ndarray) -> None:
    served, backend = gated(timeout=0.3)
    live = served.service.hosts.get(None).live  # type: ignore[union-attr]
    backend.open.clear()
    answer = served.http.post("/maps?classes=0&recipe=released&scores=false", content=png(picture))
    assert answer.status_code == 504 and "0.3 s" in answer.json()["error"]
    backend.open.set()
    until(lambda: live.in_flight == 0)
    assert live.stats.images == 0, "its work was dropped"
    answer = served.http.post("/maps?classes=0", content=png(picture))
    assert answer.status_code == 200


# -- gone ----------------------------------------------------------------------------------------------------
def test_the_work_of_a_client_that_leaves_is_dropped(gated: MakeGated, picture: np.ndarray) -> None:
    served, backend = gated()
    live = served.service.hosts.get(None).live  # type: ignore[union-attr]
    backend.open.clear()
    body = png(picture)
    leavers = [connect(served) for _ in range(3)]
    for connection in leavers:
        head = f"POST /maps?classes=0&scores=false HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
    until(lambda: live.in_flight + live.waiting == 3)
    for connection in leavers:
        connection.close()
    until(lambda: served.service.gone == 3)
    assert served.service.open == 0
    backend.open.set()
    until(lambda: live.in_flight + live.waiting == 0)
    assert live.stats.images == 0
    assert served.metric('infercam_requests_total{route="/maps",status="499"}') == 3


def test_a_client_that_leaves_in_mid_body(gated: MakeGated) -> None:
    served, _ = gated()
    with connect(served) as connection:
        connection.sendall(b"POST /maps HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        until(lambda: served.service.open == 1)
    until(lambda: served.service.open == 0)
    assert served.service.gone == 1


# -- broken --------------------------------------------------------------------------------------------------
def test_out_of_memory_halves_and_never_kills(gated: MakeGated, picture: np.ndarray) -> None:
    served, backend = gated()
    backend.fault = lambda work: OutOfMemory("full") if len(getattr(work, "views", ())) > 1 else None
    ask = lambda n: served.http.post("/maps?classes=0,1&recipe=corrected", content=png(picture))  # noqa: E731
    with ThreadPoolExecutor(4) as pool:
        assert {answer.status_code for answer in pool.map(ask, range(8))} == {200}
    assert served.metric('infercam_out_of_memory_total{bundle="tiny-4"}') > 0


def test_an_image_that_never_fits_fails_alone(gated: MakeGated, picture: np.ndarray) -> None:
    served, backend = gated()

    def fault(work: Work) -> Exception | None:
        views = work.views if isinstance(work, Respond) else []
        return OutOfMemory("it does not fit") if any(v.tile.image.id == "bad" for v in views) else None

    backend.fault = fault
    answer = served.http.post("/maps?classes=0&id=bad", content=png(picture))
    assert answer.status_code == 500 and answer.json() == {"error": "it does not fit"}
    assert served.http.post("/maps?classes=0", content=png(picture)).status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_engine_ends_the_server(gated: MakeGated, picture: np.ndarray) -> None:
    served, backend = gated()
    backend.deadly = RuntimeError("the device fell off the bus")
    answer = served.http.post("/maps?classes=0&scores=false", content=png(picture))
    assert answer.status_code == 500 and "fell off the bus" in answer.json()["error"]
    served.thread.join(10)
    assert not served.thread.is_alive()
    (error,) = served.failure
    assert isinstance(error, BackendError) and "fell off the bus" in str(error)


def test_readiness_goes_with_the_engine(gated: MakeGated) -> None:
    served, _ = gated()
    assert served.service.ready
    served.service.hosts.get(None).live.error = RuntimeError("x")  # type: ignore[union-attr]
    assert not served.service.ready
    served.thread.join(10)
    assert not served.thread.is_alive()


# -- the event loop ------------------------------------------------------------------------------------------
def test_health_answers_while_everything_is_busy(gated: MakeGated, picture: np.ndarray) -> None:
    served, backend = gated()
    backend.open.clear()

    async def main() -> list[float]:
        async with httpx.AsyncClient(base_url=f"http://{served.address}", timeout=20) as http:
            busy = [
                asyncio.create_task(http.post("/maps?classes=0", content=png(picture))) for _ in range(20)
            ]
            await asyncio.sleep(0.3)
            seconds = []
            for _ in range(20):
                began = time.monotonic()
                assert (await http.get("/v2/health/live")).status_code == 200
                seconds.append(time.monotonic() - began)
            backend.open.set()
            assert {answer.status_code for answer in await asyncio.gather(*busy)} == {200}
            return seconds

    assert float(np.median(asyncio.run(main()))) < 0.2
