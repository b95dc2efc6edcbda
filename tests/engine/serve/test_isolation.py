"""A picture that ends the server's process: the next server knows it, and answers 422."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import httpx
import numpy as np
import pytest

from infercam.engine.bundle import Bundle
from tests.engine import tiny
from tests.engine.serve.serving import png
from tests.engine.serve.test_process import Process

KILLER = """
import os, signal
from infercam.engine.live import LiveEngine
submit = LiveEngine.submit
def deadly(self, id, pixels, *rest):
    if getattr(pixels, "shape", None) == (31, 33, 3):
        os.kill(os.getpid(), signal.SIGSEGV)
    return submit(self, id, pixels, *rest)
LiveEngine.submit = deadly
"""


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of 31×33 pixels end every process that infers them."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(KILLER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _post(server: Process, picture: np.ndarray) -> httpx.Response:
    return httpx.post(
        f"{server.url}/maps", params={"classes": "1"}, files={"image": png(picture)}, timeout=60
    )


def test_a_picture_that_kills_the_server_is_refused_by_the_next(
    deadly: None, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    killer, other = tiny.picture(31, 33), tiny.picture(30, 40)
    first = Process(tiny_bundle.path, "--threads", 1, port=port)
    assert _post(first, other).status_code == 200
    with pytest.raises(httpx.TransportError):
        _post(first, killer)
    assert first.child.wait(30) == -signal.SIGSEGV
    second = Process(tiny_bundle.path, "--threads", 1, port=port)
    try:
        assert _post(second, other).status_code == 200
        for _ in range(2):
            refused = _post(second, killer)
            assert refused.status_code == 422 and "SIGSEGV" in refused.json()["error"]
        assert _post(second, other).status_code == 200
    finally:
        assert second.end() == 0
    assert len(list((tmp_path / "cache/infercam/serve").iterdir())) == 1, "the killer stays listed"


def test_a_suspect_that_kills_nothing_is_answered(
    deadly: None, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first = Process(tiny_bundle.path, "--threads", 1, port=port)
    with pytest.raises(httpx.TransportError):
        _post(first, tiny.picture(31, 33))
    first.child.wait(30)
    monkeypatch.delenv("PYTHONPATH")
    second = Process(tiny_bundle.path, "--threads", 1, port=port)
    try:
        answers = [_post(second, tiny.picture(31, 33)) for _ in range(2)]  # alone, then among others
        assert [a.status_code for a in answers] == [200, 200]
        assert answers[0].json()["maps"] == answers[1].json()["maps"]
    finally:
        assert second.end() == 0
    assert not list((tmp_path / "cache/infercam/serve").iterdir())
