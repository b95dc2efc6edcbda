"""`infercam serve` as a process: start, signals, draining, death and resurrection."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from infercam.engine.bundle import Bundle
from infercam.engine.cli import main
from tests.engine import tiny
from tests.engine.serve.serving import png


class Process:
    """A server in a process of its own."""

    def __init__(self, *arguments: object, port: int = 0) -> None:
        command = [
            sys.executable,
            "-m",
            "infercam.engine.cli",
            "serve",
            *map(str, arguments),
            "--port",
            str(port),
        ]
        self.child = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"}
        )
        self.lines: list[str] = []
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self.lines.append(line.rstrip())
            found = re.match(r"serving at (http://\S+)", line)
            if found:
                self.url = found[1]
                break
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        assert self.child.stderr is not None
        self.lines += [line.rstrip() for line in self.child.stderr]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.child.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.child.wait(120)  # against hanging only
        self._reader.join(10)
        return code


@pytest.fixture
def start() -> Iterator[type[Process]]:
    begun: list[Process] = []

    class Tracked(Process):
        def __init__(self, *arguments: object, port: int = 0) -> None:
            super().__init__(*arguments, port=port)
            begun.append(self)

    yield Tracked
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            process.child.kill()
        process.child.wait()


def busy(server: Process, least: int) -> None:
    """Returns when so many requests are open."""
    end = time.monotonic() + 20
    while True:
        text = httpx.get(server.url + "/metrics").text
        if float(re.findall(r"^infercam_queue_depth (\S+)", text, re.MULTILINE)[0]) >= least:
            return
        assert time.monotonic() < end


def test_sigterm_finishes_what_was_accepted(start: type[Process], tiny_bundle: Bundle) -> None:
    server = start(tiny_bundle.path, "--threads", 1, "--drain", 100, "--timeout", 100)
    query = server.url + "/maps?classes=0,1&recipe=paper&format=npz"

    def ask(n: int) -> int | None:
        try:
            return httpx.post(query, content=png(tiny.picture(150, 200 + n, n)), timeout=120).status_code
        except httpx.TransportError:  # was not accepted any more
            return None

    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, n) for n in range(16)]
        busy(server, 8)
        assert server.end() == 0
        answers = [future.result() for future in asked]
    answered = answers.count(200)
    assert answered >= 8 and set(answers) <= {200, None}
    assert "stopping: " in server.lines[-2]
    assert server.lines[-1] == f"accepted {answered}, answered {answered}, clients gone 0, dropped 0"
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url + "/v2/health/ready")


def test_drain_has_an_end(start: type[Process], tiny_bundle: Bundle) -> None:
    """What is not done in time is dropped; its clients and the exit code are told."""
    server = start(tiny_bundle.path, "--threads", 1, "--drain", 1)
    query, body = server.url + "/maps?classes=0,1,2&recipe=paper", png(tiny.picture(600, 800))
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(httpx.post, query, content=body, timeout=60) for _ in range(8)]
        busy(server, 8)
        began = time.monotonic()
        assert server.end() == 1
        assert time.monotonic() - began < 15
        statuses = [future.result().status_code for future in asked]
    assert 503 in statuses and set(statuses) <= {200, 503}
    assert server.lines[-1].endswith(f"dropped {statuses.count(503)}")


def test_sigint_is_as_good(start: type[Process], tiny_bundle: Bundle) -> None:
    server = start(tiny_bundle.path, "--access-log")
    assert httpx.get(server.url + "/v2/health/ready").json() == {"ready": True}
    assert server.end(signal.SIGINT) == 0
    assert any(
        re.match(r"127\.0\.0\.1 GET /v2/health/ready 200 \d+ B [\d.]+ s", line) for line in server.lines
    )


def test_killed_and_started_again_it_answers_the_same(start: type[Process], tiny_bundle: Bundle) -> None:
    body, query = png(tiny.picture(60, 80)), "/maps?classes=0,1&recipe=released&format=npz&id=a"
    server = start(tiny_bundle.path)
    want = httpx.post(server.url + query, content=body).content
    port = int(server.url.rpartition(":")[2])
    with ThreadPoolExecutor(4) as pool:
        doomed = [pool.submit(httpx.post, server.url + query, content=body) for _ in range(32)]
        time.sleep(0.1)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        outcomes = [future.exception() or future.result().content for future in doomed]
    for one in outcomes:
        assert isinstance(one, httpx.HTTPError) or one == want, "an answer is whole, or there is none"
    server = start(tiny_bundle.path, port=port)
    assert httpx.post(server.url + query, content=body).content == want


# -- refusals, in this process -------------------------------------------------------------------------------
Refusal = Callable[..., str]


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """`refusal(arguments…)`: the one line that `infercam serve` ends with."""
    monkeypatch.setenv("COLUMNS", "500")

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["infercam", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        text = capsys.readouterr().err
        assert ended.value.code == 1 and len(text.strip().splitlines()) == 1, text
        return text

    return run


def test_it_says_what_it_cannot_do(refusal: Refusal, tiny_bundle: Bundle, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen" in refusal(tiny_bundle.path, "--port", taken.getsockname()[1])
    assert "cannot listen" in refusal(tiny_bundle.path, "--port", 0, "--host", "no.such.host.invalid")
    assert "not a bundle" in refusal(tmp_path, "--port", 0)
    assert "two bundles" in refusal(tiny_bundle.path, tiny_bundle.path, "--port", 0)
    assert "no recipe" in refusal(tiny_bundle.path, "--port", 0, "--recipe", "bestest")
    assert "no backend" in refusal(tiny_bundle.path, "--port", 0, "--backend", "quantum")


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client", "python_multipart"])
def test_a_missing_package_names_the_extra(
    refusal: Refusal, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert "infercam[serve]" in refusal(tiny_bundle.path)


def test_help_says_that_there_is_no_authentication() -> None:
    command = [sys.executable, "-m", "infercam.engine.cli", "serve", "--help"]
    text = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "300"}
    )
    assert "no authentication" in text.stdout and "127.0.0.1" in text.stdout
    assert np.all([word in text.stdout for word in ("429", "413", "504", "408")])


def test_few_arenas_of_the_c_library() -> None:
    """In a process of its own: it holds for all of it, and for good."""
    code = "from infercam.engine.common.memory import few_arenas; raise SystemExit(not few_arenas())"
    libc = platform.libc_ver()[0]
    assert subprocess.run([sys.executable, "-c", code]).returncode == (0 if libc == "glibc" else 1)
