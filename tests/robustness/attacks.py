"""The server attacked from outside through raw sockets; afterwards it answers as before, and its memory is back."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from tests.robustness.bad_pictures import write_bad_pictures
from tests.robustness.outcome import Outcome, Say, Size, Skipped
from tests.robustness.rig import Rig
from tests.robustness.serving import Server

CUT_SECONDS = 12.0
"""The server, started with time-outs of 2 and 3 seconds, must have cut off by then who dawdles."""
MEMORY_MB = 150.0
"""Above what it took before, some seconds after everybody has gone."""

Attack = Callable[[Server, Size], "str | None"]
"""Does its worst; says what went wrong, None if nothing did."""


def attack_server(rig: Rig, size: Size, say: Say) -> list[Outcome]:
    if not Path("/proc/self/status").exists():
        raise Skipped("needs /proc")
    picture = sorted(rig.images.iterdir())[0].read_bytes()
    outcome = Outcome("attacks on the server")
    bad = Outcome("corrupt pictures to the server", rounds=1)
    with Server(rig.folder, 0, *rig.engine) as server:
        _fill_pools(server, picture)
        before = server.maps(picture)
        memory, handles = server.memory_mb(), server.handles()
        for attack in (*_ATTACKS, *_requests()):
            wrong = _attacked(server, attack, size)
            outcome.rounds += 1
            if wrong is not None:
                outcome.lose(f"{attack.__name__}: {wrong}")
            say(f"attacks: {attack.__name__}")
        _send_bad_pictures(rig, server, bad, size)
        after = _settled(server, memory, handles)
        if server.healthy() and server.maps(picture) != before:
            outcome.lose("another answer than before the attacks")
        if "Traceback" in server.said():
            outcome.lose(f"a traceback in its log: {server.said().partition('Traceback')[2][-400:]}")
        if after[0] > memory + MEMORY_MB:
            outcome.lose(f"memory {after[0]:.0f} MB, {memory:.0f} before")
        if after[1] > handles + 8:
            outcome.lose(f"{after[1]} file handles, {handles} before")
        outcome.figures = {
            "connections at once": size.connections,
            "memory_mb": {"before": round(memory), "after": round(after[0])},
            "handles": {"before": handles, "after": after[1]},
        }
    return [outcome, bad]


def _fill_pools(server: Server, picture: bytes) -> None:
    """The largest picture that is taken, several at once: what the runtimes keep for the next is not lost."""
    out = io.BytesIO()
    Image.new("RGB", (2000, 2000), "grey").save(out, "PNG")
    threads = [
        threading.Thread(target=server.maps, args=(data, "format=npz&classes=lion", 120))
        for data in (out.getvalue(), *[picture] * 20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _attacked(server: Server, attack: Attack, size: Size) -> str | None:
    try:
        wrong = attack(server, size)
    except OSError as e:  # it hung up: as good as any refusal, if it goes on to serve others
        wrong = None if isinstance(e, ConnectionError) else f"{type(e).__name__}: {e}"
    if server.child.poll() is not None:
        return f"the server died ({server.child.returncode})"
    deadline = time.monotonic() + 30
    while not server.healthy():
        if time.monotonic() > deadline:
            return "the server answers nobody any more"
        time.sleep(0.2)
    return wrong


def _settled(server: Server, memory: float, handles: int) -> tuple[float, int]:
    """Memory and handles once they are back, or after some seconds."""
    for _ in range(20):
        if server.memory_mb() <= memory + MEMORY_MB / 4 and server.handles() <= handles + 2:
            break
        time.sleep(0.5)
    return server.memory_mb(), server.handles()


# -- who dawdles, and who lies -------------------------------------------------------------------------------


def half_requests(server: Server, size: Size) -> str | None:
    """A start line, and nothing more."""
    return _dawdle(server, b"GET /info HTTP/1.1\r\nHost: x\r\n", 20)


def slow_headers(server: Server, size: Size) -> str | None:
    """A header now and then, for ever."""
    return _dawdle(server, b"GET /info HTTP/1.1\r\n", 10, drip=b"X-A: b\r\n")


def slow_bodies(server: Server, size: Size) -> str | None:
    head = b"POST /maps HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    return _dawdle(server, head, 10, drip=b"x")


def slow_chunks(server: Server, size: Size) -> str | None:
    head = b"POST /maps HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return _dawdle(server, head, 10, drip=b"1\r\nx\r\n")


def idle_connections(server: Server, size: Size) -> str | None:
    """Many connections that say nothing; whoever asks meanwhile has an answer, or after they are gone."""
    with _open(server, size.connections) as sockets:
        opened = len(sockets)
        for s in sockets[::2]:
            with contextlib.suppress(OSError):
                s.sendall(b"G")
        time.sleep(1)
    return None if opened == size.connections else f"only {opened} connections could be opened"


def readers_that_stop(server: Server, size: Size) -> str | None:
    """Ask for much, read nothing."""
    with _open(server, 20) as sockets:
        for s in sockets:
            with contextlib.suppress(OSError):
                s.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        time.sleep(3)
    return None


def pipelined(server: Server, size: Size) -> str | None:
    """A thousand requests in one go, in one connection."""
    head = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"
    found = server.raw((head + b"\r\n") * 999 + head + b"Connection: close\r\n\r\n", wait=20)
    count = found.count(b"HTTP/1.1 200")
    return None if count == 1000 else f"{count} of 1000 answers"


def endless_chunks(server: Server, size: Size) -> str | None:
    """A chunked body far over the limit."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
        s.sendall(b"POST /maps HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        block = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
        try:
            for _ in range(200):
                s.sendall(block)
        except OSError:
            return None
        return None if b"413" in s.recv(1 << 16)[:64] else "200 MB were read"


def mixed_requests(server: Server, size: Size) -> str | None:
    """Two lengths at once: what one reader takes for a body another takes for a request."""
    smuggled = b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n"
    both = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % (5 + len(smuggled))
    for head in (both, b"Content-Length: 0\r\nContent-Length: 5\r\n"):
        found = server.raw(b"POST /maps HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n0\r\n\r\n" + smuggled, wait=4)
        if b'"bundles"' in found:
            return f"answered a request inside another's body: {head!r}"
    return None


_ATTACKS: tuple[Attack, ...] = (
    *(half_requests, slow_headers, slow_bodies, slow_chunks, idle_connections, readers_that_stop),
    *(pipelined, endless_chunks, mixed_requests),
)


def _dawdle(server: Server, head: bytes, count: int, drip: bytes = b"") -> str | None:
    """Open `count` requests and send `drip` each half second: the server must cut all of them off."""
    with _open(server, count) as sockets:
        for s in sockets:
            s.sendall(head)
        open_, deadline = set(sockets), time.monotonic() + CUT_SECONDS
        while open_ and time.monotonic() < deadline:
            time.sleep(0.5)
            open_ = {s for s in open_ if _still_open(s, drip)}
        return f"{len(open_)} of {count} are still open after {CUT_SECONDS:.0f} s" if open_ else None


def _still_open(s: socket.socket, drip: bytes) -> bool:
    try:
        s.settimeout(0)
        if drip:
            s.send(drip)
        return s.recv(1 << 16) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


@contextlib.contextmanager
def _open(server: Server, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            with contextlib.suppress(OSError):
                s = socket.create_connection(("127.0.0.1", server.port), timeout=10)
                sockets.append(stack.enter_context(s))
        yield sockets


# -- one malformed request each ------------------------------------------------------------------------------


def _requests() -> Iterator[Attack]:
    """Each must be refused (4xx) or cut, and nothing of the machine's files given away."""
    for name, data in _MALFORMED.items():
        yield _refused(name, data)


def _refused(name: str, data: bytes) -> Attack:
    def attack(server: Server, size: Size) -> str | None:
        found = server.raw(data, wait=6)
        status = found[9:12]
        if b"root:" in found:
            return "gave away a file"
        if found and not status.startswith(b"4"):
            return f"answered {found[:100]!r}"
        if found and b"Traceback" in found:
            return "answered with a traceback"
        return None

    attack.__name__ = name
    return attack


def _post(path: str, body: bytes, *headers: str, kind: str = "application/json") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "Connection: close", *headers, "", ""]).encode() + body


def _get(path: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def _tensor(shape: object, data: object, **more: object) -> bytes:
    return json.dumps(
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": shape, "data": data, **more}]}
    ).encode()


_INFER = "/v2/models/infercam%20demo%20classifier/infer"
_FORM = "multipart/form-data; boundary=x"
_PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="../../x"\r\n\r\n'
_UP = [b"../" * 8, b"..%2f" * 8, b"%2e%2e/" * 8, b"%2e%2e%2f" * 8, b"..\\" * 8, b"..%5c" * 8, b"..%c0%af" * 8]

_MALFORMED: dict[str, bytes] = {
    **{f"path traversal {i}": _get(b"/static/" + up + b"etc/passwd") for i, up in enumerate(_UP)},
    "absolute path": _get(b"/static//etc/passwd"),
    "path with a null": _get(b"/static/index.html%00.png"),
    "path without end": _get(b"/" + b"a" * 500_000),
    "header without end": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 2_000_000 + b"\r\n\r\n",
    "headers without number": b"GET /x HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 100_000 + b"\r\n",
    "noise": bytes(range(256)) * 64,
    "a TLS hello": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"\0" * 500,
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 64,
    "no such method": b"BREW /maps HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "a web socket": b"GET /maps HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "length 10 GB": b"POST /maps HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\nx",
    "length -1": b"POST /maps HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\nx",
    "length of letters": b"POST /maps HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\nx",
    "chunk of letters": b"POST /maps HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nx",
    "chunk of 16 EiB": b"POST /maps HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\nx",
    "a compressed body": _post(
        "/maps", b"\x1f\x8b" + b"\0" * 100, "Content-Encoding: gzip", kind="image/png"
    ),
    "form without boundary": _post("/maps", b"x", kind="multipart/form-data"),
    "form without end": _post("/maps", _PART + b"x" * 1000, kind=_FORM),
    "form of 100 000 parts": _post("/maps", _PART * 100_000 + b"--x--", kind=_FORM),
    "form with a long name": _post("/maps", _PART.replace(b"image", b"i" * 1_000_000) + b"--x--", kind=_FORM),
    "no picture": _post("/maps", b"this is no picture", kind="image/png"),
    "an empty body": _post("/maps", b"", kind="image/png"),
    "a query of 10 000 classes": _post("/maps?" + "&".join(["classes=lion"] * 3_000) + "&classes=x", b"x"),
    "an unknown field": _post("/maps?recipe=../../x", b"x"),
    "JSON without end": _post(_INFER, b"[" * 1_000_000),
    "JSON digits": _post(_INFER, b'{"inputs": ' + b"9" * 1_000_000 + b"}"),
    "not JSON": _post(_INFER, b"\xff\xfe{"),
    "a tensor of a terabyte": _post(_INFER, _tensor([1, 3, 300_000, 300_000], [0.0])),
    "a tensor of negative size": _post(_INFER, _tensor([1, 3, -32, -32], [0.0])),
    "a tensor of letters": _post(_INFER, _tensor("x", "y")),
    "a tensor of objects": _post(_INFER, _tensor([1, 3, 8, 8], [{}] * 192)),
    "a tensor of infinities": _post(_INFER, _tensor([1, 3, 8, 8], [1e39] * 192)),
    "binary data that lies": _post(
        _INFER,
        _tensor([1, 3, 8, 8], None, parameters={"binary_data_size": 2**62}),
        "Inference-Header-Content-Length: 99999999",
    ),
    "no such model": _post("/v2/models/..%2f..%2fetc/infer", b"{}"),
}


def _send_bad_pictures(rig: Rig, server: Server, outcome: Outcome, size: Size) -> None:
    folder = rig.folder / "bad-uploads"
    good = sorted(rig.images.iterdir())[:4]
    statuses: dict[int, int] = {}
    for name in write_bad_pictures(folder, size.images, good, rig.rng):
        file = folder / name
        if file.is_symlink() or not file.is_file() or file.stat().st_size > 15 << 20:
            continue
        outcome.inputs += 1
        try:
            status, body = server.maps(file.read_bytes(), "format=npz&classes=lion")
        except (OSError, http.client.HTTPException) as e:
            outcome.lose(f"{name}: {type(e).__name__}: {e}")
            continue
        statuses[status] = statuses.get(status, 0) + 1
        if status not in (200, 400, 413, 415, 422) or b"Traceback" in body:
            outcome.lose(f"{name}: {status} {body[:200]!r}")
    outcome.figures = {"answers": statuses}
