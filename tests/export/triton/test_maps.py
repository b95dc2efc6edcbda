"""The whole method as Triton's Python backend runs it: the packaged model.py under a stand-in for the backend.

The stand-in (tests/fake_triton.py) follows the documented interface; test_server.py asks a real server.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infercam.engine.api import Engine
from infercam.engine.backends.cpu import CpuBackend
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError
from infercam.engine.method.backend import Limits
from infercam.export.triton.config import Serving
from infercam.export.triton.repository import PackageRequest, package
from tests import fake_triton
from tests.engine import tiny
from tests.fake_triton import Refused, Server, TritonError

CASES = [
    ("fast", "both", ["cat"]),
    ("released", "both", ["cat", "dog"]),
    ("released", "baseline", ["sheep"]),
    ("paper", "both", ["cow", "cat", "horse"]),
    ("best", "both", ["horse"]),
    ("corrected", "erase", ["dog", "sheep"]),
]


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def strings(*values: bytes | str) -> np.ndarray:
    return np.array([v.encode() if isinstance(v, str) else v for v in values], np.object_)


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_triton)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundles") / "tiny")


def packaged(bundle: Bundle, root: Path, **serving: Any) -> Path:
    package(PackageRequest(bundle, root, Serving(**({"device": "cpu"} | serving)), only=["maps"]))
    return root / f"{bundle.manifest.name}_maps"


@pytest.fixture
def server(bundle: Bundle, tmp_path: Path) -> Iterator[Server]:
    with Server(packaged(bundle, tmp_path)) as running:
        yield running


def expected(bundle: Bundle, pictures: list[np.ndarray], cases: list[Any]) -> list[np.ndarray]:
    with Engine.load(bundle, "cpu") as engine:
        return [engine.maps(p, c, r, m) for p, (r, m, c) in zip(pictures, cases, strict=True)]


def test_maps_are_the_engine_s(server: Server, bundle: Bundle) -> None:
    picture = tiny.picture(61, 83)
    (want,) = expected(bundle, [picture], [("fast", "both", ["dog", "cat"])])
    got = server.infer({"image": strings(png(picture)), "classes": strings("dog", "cat")})
    assert got["maps"].shape == (2, 61, 83)
    np.testing.assert_allclose(got["maps"], want, atol=1e-5)
    assert got["classes"].tolist() == [1, 0]
    with Engine.load(bundle, "cpu") as engine:
        np.testing.assert_allclose(got["scores"], engine.scores(picture, ladder=True), atol=1e-5)


def test_many_requests_at_once_with_mixed_recipes(server: Server, bundle: Bundle) -> None:
    """Each gets its own maps, whatever else is in flight; and `execute` has returned before they are done."""
    cases = CASES * 3
    pictures = [tiny.picture(40 + 3 * i, 50 + 5 * (i % 4), i) for i in range(len(cases))]
    want = expected(bundle, pictures, cases)

    def ask(i: int) -> dict[str, np.ndarray]:
        recipe, mode, classes = cases[i]
        return server.infer(
            {"image": strings(png(pictures[i])), "classes": strings(*classes)},
            parameters={"recipe": recipe, "mode": mode},
            request_id=f"r{i}",
        )

    with ThreadPoolExecutor(len(cases)) as clients:
        answers = list(clients.map(ask, range(len(cases))))
    for i, (got, maps) in enumerate(zip(answers, want, strict=True)):
        np.testing.assert_allclose(got["maps"], maps, atol=1e-5, err_msg=str(cases[i]))
        assert got["classes"].tolist() == [tiny.CLASSES.index(c) for c in cases[i][2]]


def test_requests_share_batches(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton hands requests over one by one; pictures of one size meet in the scheduler's batches all the same."""
    batches = Limits(batch_pixels=1 << 20, batch_views=64, images=16)  # as a GPU takes them
    monkeypatch.setattr(CpuBackend, "limits", property(lambda self: batches))
    picture = png(tiny.picture(64, 64))
    with Server(packaged(bundle, tmp_path)) as server:
        asked = [
            server.ask({"image": strings(picture), "classes": strings("cat")}, outputs=["maps"])
            for _ in range(24)
        ]
        for request in asked:
            request.future.result(timeout=60)
        alone = _views_of_one(bundle)
        sizes = server.model._live.stats.batch_sizes
    assert max(sizes) > alone, "some batch holds views of several requests"


def _views_of_one(bundle: Bundle) -> int:
    """Views in the largest batch that one such picture makes alone."""
    with Engine.load(bundle, "cpu") as engine:
        list(engine.stream([("a", tiny.picture(64, 64), ["cat"])], "fast"))
        assert engine.scheduler is not None
        return max(engine.scheduler.stats.batch_sizes)


def test_execute_returns_while_requests_are_under_way(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(packaged(bundle, tmp_path)) as server:
        gate = threading.Event()
        submit = server.model._live.submit
        monkeypatch.setattr(server.model._live, "submit", lambda *a, **k: (gate.wait(30), submit(*a, **k))[1])
        image = {"image": strings(png(tiny.picture(40, 40))), "classes": strings("cat")}
        asked = [server.ask(image) for _ in range(5)]
        for _ in asked:
            server.returned.get(timeout=30)
        assert not any(request.future.done() for request in asked)
        gate.set()
        shapes = {request.future.result(timeout=60)["maps"].shape for request in asked}
        assert shapes == {(1, 40, 40)}


def test_a_corrupt_picture_fails_alone(server: Server, bundle: Bundle) -> None:
    good = tiny.picture(48, 60)
    (want,) = expected(bundle, [good], [("fast", "both", ["cat"])])
    broken = png(good)[:-200]
    asked = [
        server.ask({"image": strings(data), "classes": strings("cat")})
        for data in (png(good), broken, b"hello", b"", png(good))
    ]
    for i in (0, 4):
        np.testing.assert_allclose(asked[i].future.result(timeout=60)["maps"], want, atol=1e-5)
    for i in (1, 2, 3):
        with pytest.raises(Refused) as caught:
            asked[i].future.result(timeout=60)
        assert caught.value.code == TritonError.INVALID_ARG
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "parameters", "says"),
    [
        ({"classes": strings("unicorn")}, {}, "unicorn"),
        ({"classes": strings("17")}, {}, "17"),
        ({"classes": strings(b"\xff\xfe")}, {}, "not UTF-8"),
        ({}, {"recipe": "fats"}, "fats"),
        ({}, {"recipe": 3}, "3"),
        ({}, {"mode": "all"}, "no mode 'all'"),
        ({}, {"score_threshold": 2}, "score_threshold"),
        ({}, {"score_threshold": "high"}, "score_threshold"),
        ({}, {"score_threshold": "nan"}, "score_threshold"),
    ],
)
def test_bad_requests(server: Server, inputs: dict[str, Any], parameters: dict[str, Any], says: str) -> None:
    image = {"image": strings(png(tiny.picture(40, 40)))}
    with pytest.raises(Refused, match=says) as caught:
        server.infer(image | inputs, parameters=parameters)
    assert caught.value.code == TritonError.INVALID_ARG
    assert server.infer(image | {"classes": strings("cat")})["maps"].shape == (1, 40, 40)


def test_a_request_without_a_picture(server: Server) -> None:
    with pytest.raises(Refused, match="'image' is one encoded picture"):
        server.infer({"classes": strings("cat")})


def test_too_many_pixels(bundle: Bundle, tmp_path: Path) -> None:
    with Server(packaged(bundle, tmp_path, max_pixels=1000)) as server:
        with pytest.raises(Refused, match="over the limit") as caught:
            server.infer({"image": strings(png(tiny.picture(40, 40))), "classes": strings("cat")})
        assert caught.value.code == TritonError.INVALID_ARG
        small = strings(png(tiny.picture(30, 33)))
        assert server.infer({"image": small, "classes": strings("cat")})["maps"].shape == (1, 30, 33)


def test_classes_by_index(server: Server) -> None:
    got = server.infer({"image": strings(png(tiny.picture(40, 40))), "classes": strings("3", "cat")})
    assert got["classes"].tolist() == [3, 0]


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_without_classes_they_are_predicted(server: Server, bundle: Bundle, threshold: float) -> None:
    picture = tiny.picture(44, 50, 3)
    with Engine.load(bundle, "cpu") as engine:
        want = engine.predict(picture, threshold)
    got = server.infer({"image": strings(png(picture))}, parameters={"score_threshold": threshold})
    assert got["classes"].tolist() == want
    assert got["maps"].shape == (len(want), 44, 50)
    assert got["scores"].shape == (5,)


def test_only_what_is_asked_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores cost a forward pass: without them, and with classes given, there is none."""
    monkeypatch.setattr(server.model._live, "scores", lambda _: pytest.fail("scores were not asked for"))
    image = {"image": strings(png(tiny.picture(40, 40))), "classes": strings("cat")}
    assert set(server.infer(image, outputs=["maps", "classes"])) == {"maps", "classes"}


def test_requests_beyond_the_queue_are_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(packaged(bundle, tmp_path, queue=2)) as server:
        gate = threading.Event()
        submit = server.model._live.submit
        monkeypatch.setattr(server.model._live, "submit", lambda *a, **k: (gate.wait(30), submit(*a, **k))[1])
        image = {"image": strings(png(tiny.picture(40, 40))), "classes": strings("cat")}
        first = [server.ask(image), server.ask(image)]
        for _ in first:
            server.returned.get(timeout=30)
        with pytest.raises(Refused, match="2 requests are in flight") as caught:
            server.infer(image)
        assert caught.value.code == TritonError.UNAVAILABLE
        gate.set()
        assert all(request.future.result(timeout=60) for request in first)
        assert server.infer(image)["maps"].shape == (1, 40, 40)


def test_a_cancelled_request_is_not_computed(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(packaged(bundle, tmp_path)) as server:
        monkeypatch.setattr(server.model._live, "submit", lambda *_: pytest.fail("computed"))
        image = {"image": strings(png(tiny.picture(40, 40))), "classes": strings("cat")}
        real, ready = server.model._go_on, threading.Event()

        def late(*args: Any) -> None:
            ready.wait(30)
            real(*args)

        monkeypatch.setattr(server.model, "_go_on", late)
        request = server.ask(image)
        request.cancelled.set()
        ready.set()
        with pytest.raises(Refused) as caught:
            request.future.result(timeout=60)
        assert caught.value.code == TritonError.CANCELLED


def test_finalize_answers_what_is_under_way(bundle: Bundle, tmp_path: Path) -> None:
    server = Server(packaged(bundle, tmp_path))
    image = {"image": strings(png(tiny.picture(90, 120))), "classes": strings("cat", "dog")}
    asked = [server.ask(image, parameters={"recipe": "released"}) for _ in range(8)]
    server.close()
    assert all(request.future.done() for request in asked)
    assert {request.future.result()["maps"].shape for request in asked} == {(2, 90, 120)}


def test_an_engine_that_has_died_answers_with_an_error(server: Server) -> None:
    server.model._live.close(drain=False)
    with pytest.raises(Refused) as caught:
        server.infer({"image": strings(png(tiny.picture(40, 40))), "classes": strings("cat")})
    assert caught.value.code == TritonError.INTERNAL


def test_a_client_that_is_gone_is_nobody_s_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    image = {"image": strings(png(tiny.picture(40, 40))), "classes": strings("cat")}
    monkeypatch.setattr(fake_triton.InferenceRequest, "answered", lambda *_: 1 / 0)
    server.ask(image)
    server.returned.get(timeout=30)
    with server.model._changed:
        assert server.model._changed.wait_for(lambda: server.model._open == 0, timeout=60)
    monkeypatch.undo()
    sys.modules["triton_python_backend_utils"] = fake_triton
    assert server.infer(image)["maps"].shape == (1, 40, 40)
    assert any("could not be sent" in line for line in fake_triton.Logger.lines)


def test_gpu_where_there_is_none(bundle: Bundle, tmp_path: Path) -> None:
    folder = packaged(bundle, tmp_path, device="gpu")
    with pytest.raises(BackendError, match="--gpu"):
        Server(folder)


def test_a_graph_of_one_size(tmp_path: Path) -> None:
    fixed = tiny.build(tmp_path / "b", fixed=(48, 64))
    picture = tiny.picture(55, 71)
    (want,) = expected(fixed, [picture], [("released", "both", ["cow"])])
    with Server(packaged(fixed, tmp_path / "repo")) as server:
        got = server.infer(
            {"image": strings(png(picture)), "classes": strings("cow")}, parameters={"recipe": "released"}
        )
    np.testing.assert_allclose(got["maps"], want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.shared
def test_mobilenetv2_on_real_photos(tmp_path: Path, shared: Path) -> None:
    from infercam.export import export_onnx

    bundle = export_onnx(shared / "models/mobilenetv2_voc.onnx", tmp_path / "bundle")
    photos = sorted((shared / "voc").rglob("*.jpg"))[:6]
    classes = bundle.manifest.classes
    chosen = [[classes[i % 20], classes[(i * 7 + 3) % 20]] for i in range(6)]
    with Engine.load(bundle, "cpu") as engine:
        want = [engine.maps(p, c, "fast") for p, c in zip(photos, chosen, strict=True)]
    with Server(packaged(bundle, tmp_path / "repo")) as server:
        asked = [
            server.ask({"image": strings(p.read_bytes()), "classes": strings(*c)})
            for p, c in zip(photos, chosen, strict=True)
        ]
        for request, maps in zip(asked, want, strict=True):
            np.testing.assert_allclose(request.future.result(timeout=300)["maps"], maps, atol=1e-5)
