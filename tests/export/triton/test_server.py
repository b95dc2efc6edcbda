"""The packaged maps model in a real Triton server, where one is at hand.

`INFERCAM_TRITONSERVER` is the command that starts it, for example `tritonserver`, or `tritonserver
--backend-directory=DIR`; its Python backend must find infercam. Skipped where it is not set.
"""

from __future__ import annotations

import io
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from PIL import Image
from tritonclient.utils import InferenceServerException

from infercam.engine.api import Engine
from infercam.engine.bundle import Bundle
from infercam.export.triton.config import Serving
from infercam.export.triton.repository import PackageRequest, package
from tests.engine import tiny

pytestmark = pytest.mark.slow

NAME = "tiny-4_maps"
CASES = [("fast", "both"), ("released", "both"), ("paper", "erase"), ("released", "baseline")] * 3


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def ports(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """HTTP and gRPC port of a server with the model; it must end by itself on SIGTERM."""
    command = os.environ.get("INFERCAM_TRITONSERVER")
    if command is None:
        pytest.skip("INFERCAM_TRITONSERVER is not set: no Triton server at hand")
    root = tmp_path_factory.mktemp("triton")
    package(PackageRequest(bundle, root / "repo", Serving(device="cpu"), only=["maps"]))
    found = (free_port(), free_port())
    options = ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--allow-metrics=false"]
    options += [f"--http-port={found[0]}", f"--grpc-port={found[1]}", f"--model-repository={root / 'repo'}"]
    log = root / "log"
    with log.open("wb") as out:
        server = subprocess.Popen([*shlex.split(command), *options], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 180
        while "Started HTTPService" not in log.read_text(errors="replace"):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[
                -3000:
            ]
            time.sleep(0.5)
        yield found
        server.terminate()
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()
        server.wait()


def ask(
    client: object,
    module: object,
    picture: np.ndarray | bytes,
    classes: list[str] | None = None,
    **parameters: str,
) -> object:
    """One request with either client."""
    data = picture if isinstance(picture, bytes) else png(picture)
    image = module.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([data], np.object_))
    inputs = [image]
    if classes is not None:
        given = module.InferInput("classes", [len(classes)], "BYTES")
        given.set_data_from_numpy(np.array([c.encode() for c in classes], np.object_))
        inputs.append(given)
    return client.infer(NAME, inputs, parameters=parameters)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_clients_at_once(ports: tuple[int, int], bundle: Bundle) -> None:
    """HTTP and gRPC, recipes and modes mixed: each answer is the engine's."""
    pictures = [tiny.picture(40 + 5 * i, 60 + 3 * i, i) for i in range(len(CASES))]
    with Engine.load(bundle, "cpu") as engine:
        want = [engine.maps(p, ["dog", "cat"], r, m) for p, (r, m) in zip(pictures, CASES, strict=True)]

    def one(i: int) -> np.ndarray:
        module, port = ((http, ports[0]), (grpc, ports[1]))[i % 2]
        with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            recipe, mode = CASES[i]
            return ask(client, module, pictures[i], ["dog", "cat"], recipe=recipe, mode=mode).as_numpy("maps")

    with ThreadPoolExecutor(len(CASES)) as clients:
        for got, maps in zip(clients.map(one, range(len(CASES))), want, strict=True):
            np.testing.assert_allclose(got, maps, atol=1e-5)


def test_predicted_classes_and_their_names(ports: tuple[int, int], bundle: Bundle) -> None:
    picture = tiny.picture(50, 60)
    with Engine.load(bundle, "cpu") as engine:
        want = engine.predict(picture)
    with http.InferenceServerClient(f"127.0.0.1:{ports[0]}") as client:
        found = ask(client, http, picture)
        assert found.as_numpy("classes").tolist() == want
        assert found.as_numpy("maps").shape == (len(want), 50, 60)
        none = ask(client, http, picture, score_threshold="1")
        assert none.as_numpy("maps").shape == (0, 50, 60)
        image = http.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([png(picture)], np.object_))
        best = http.InferRequestedOutput("scores", class_count=5)
        names = [
            n.split(b":")[2].decode() for n in client.infer(NAME, [image], outputs=[best]).as_numpy("scores")
        ]
        assert sorted(names) == sorted(tiny.CLASSES)


def test_errors_are_the_request_s_own(ports: tuple[int, int]) -> None:
    picture = tiny.picture(40, 40)
    with grpc.InferenceServerClient(f"127.0.0.1:{ports[1]}") as client:
        for wrong in (
            lambda: ask(client, grpc, b"hello", ["cat"]),
            lambda: ask(client, grpc, png(picture)[:-50], ["cat"]),
            lambda: ask(client, grpc, picture, ["unicorn"]),
            lambda: ask(client, grpc, picture, ["cat"], recipe="fats"),
        ):
            with pytest.raises(InferenceServerException) as caught:
                wrong()
            assert "INVALID_ARGUMENT" in str(caught.value.status())
        assert ask(client, grpc, picture, ["cat"]).as_numpy("maps").shape == (1, 40, 40)
