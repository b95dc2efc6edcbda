"""POST /maps: the maps that the engine gives, in every form of request and answer; refusals in one line."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image

from infercam.engine.api import Engine
from infercam.engine.method.recipe import MODES, RECIPES
from infercam.engine.store.formats.npz import NpzCodec, quantise
from tests.engine import tiny
from tests.engine.serve.serving import Served, png


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def close(levels: np.ndarray, maps: np.ndarray) -> None:
    assert levels.shape == maps.shape
    np.testing.assert_array_equal(levels.astype(int), quantise(maps, "uint8"))


def refused(answer: httpx.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body.keys() == {"error"} and "\n" not in body["error"]
    assert all(word in body["error"] for word in words), body["error"]


def test_maps_of_an_upload(server: Served, tiny_engine: Engine, picture: np.ndarray) -> None:
    want = tiny_engine.maps(picture, ["horse", "cat"], "fast")
    query = {"classes": "horse,cat", "id": "p1"}
    for answer in (
        server.http.post("/maps", params=query, files={"image": png(picture)}),
        server.http.post("/maps", data=query, files={"image": png(picture)}),
        server.http.post("/maps", params=query, content=png(picture)),
        server.http.post("/maps", params={"classes": ["2", "0"], "id": "p1"}, content=png(picture)),
    ):
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert {k: body[k] for k in ("id", "width", "height", "recipe", "mode")} == {
            "id": "p1", "width": 40, "height": 30, "recipe": "fast", "mode": "both",
        }  # fmt: skip
        assert [(m["index"], m["name"]) for m in body["maps"]] == [(2, "horse"), (0, "cat")]
        close(np.stack([decoded(m["png"]) for m in body["maps"]]), want)
        assert 0 <= body["seconds"]["queued"] <= body["seconds"]["total"] < 20
        assert "steps" not in body
        scores = tiny_engine.scores(picture, ladder=True)  # as its recipe has it
        assert [s["index"] for s in body["scores"]] == np.argsort(-scores).tolist()
        best = body["scores"][0]
        assert best["name"] == tiny.CLASSES[best["index"]]
        assert best["logit"] == pytest.approx(float(scores.max()), abs=1e-5)
        assert best["probability"] == pytest.approx(1 / (1 + np.exp(-float(scores.max()))), abs=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_classes_are_predicted_where_none_are_given(
    server: Served, tiny_engine: Engine, picture: np.ndarray, threshold: float
) -> None:
    query = {"score_threshold": threshold, "scores": "false"}
    body = server.http.post("/maps", params=query, content=png(picture)).json()
    assert [m["index"] for m in body["maps"]] == tiny_engine.predict(picture, threshold, ladder=True)


def test_npz_is_a_map_store_s_file(
    server: Served, tiny_engine: Engine, picture: np.ndarray, tmp_path: Path
) -> None:
    query = {"classes": "1,3", "format": "npz", "recipe": "released", "mode": "erase", "id": "x"}
    answer = server.http.post("/maps", params=query, content=png(picture))
    (tmp_path / "x.npz").write_bytes(answer.content)
    found = NpzCodec().decode(tmp_path / "x.npz")
    assert found.classes == [1, 3] and found.names == ["dog", "cow"]
    assert found.settings["recipe"] == "released" and found.settings["mode"] == "erase"
    close(found.maps, tiny_engine.maps(picture, [1, 3], "released", "erase"))
    assert "scores" not in found.meta
    with_scores = server.http.post("/maps", params={**query, "scores": "true"}, content=png(picture))
    assert len(json.loads(np.load(io.BytesIO(with_scores.content))["meta.json"])["meta"]["scores"]) == 5


def test_steps(server: Served, tiny_engine: Engine, picture: np.ndarray) -> None:
    query = {"classes": "3,1", "steps": "true", "recipe": "released"}
    body = server.http.post("/maps", params=query, content=png(picture)).json()
    steps = body["steps"]
    assert len(steps["centres"]) == 2 and all(0 <= y < 30 and 0 <= x < 40 for y, x in steps["centres"])
    united = np.zeros((2, 30, 40), np.uint8)
    for tile in steps["tiles"]:
        y0, x0, y1, x1 = tile["box"]
        assert sorted(tile["takes"]) == [1, 3] and not tile["whole"]
        erased = 0.0
        for step in tile["iterations"]:
            mask = decoded(step["mask"])
            assert mask.shape == (y1 - y0, x1 - x0) and mask.dtype == bool
            assert mask.mean() == pytest.approx(erased + step["erased_share"])
            erased = mask.mean()
            assert len(step["maps"]) == 2
        last = np.stack([decoded(m) for m in tile["iterations"][-1]["maps"]])
        part = united[:, y0:y1, x0:x1]
        np.maximum(part, last, out=part)
    maps = tiny_engine.maps(picture, [3, 1], "released")
    np.testing.assert_array_equal(united.astype(int), np.rint(maps * 255))


def test_mixed_requests_at_once_get_the_maps_that_they_get_alone(server: Served, tiny_engine: Engine) -> None:
    jobs: list[dict[str, Any]] = []
    for n in range(40):
        pixels = tiny.picture(20 + n % 7, 30 + n % 5, n)
        classes = [n % 5, (n + 2) % 5][: 1 + n % 2]
        jobs.append(
            {"pixels": pixels, "classes": classes, "recipe": list(RECIPES)[n % 5], "mode": MODES[n % 4]}
        )

    def ask(job: dict[str, Any]) -> np.ndarray:
        query = {"classes": ",".join(map(str, job["classes"])), "recipe": job["recipe"], "mode": job["mode"]}
        answer = server.http.post("/maps", params=query, content=png(job["pixels"]))
        assert answer.status_code == 200, answer.text
        return np.stack([decoded(m["png"]) for m in answer.json()["maps"]])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, jobs))
    for job, levels in zip(jobs, found, strict=True):
        close(levels, tiny_engine.maps(job["pixels"], job["classes"], job["recipe"], job["mode"]))


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"classes": "unicorn"}, ["unicorn", "5 classes"]),
        ({"classes": "7"}, ["7"]),
        ({"classes": "-1"}, ["-1"]),
        ({"recipe": "bestest"}, ["bestest", "released"]),
        ({"mode": "all"}, ["mode"]),
        ({"score_threshold": "2"}, ["score_threshold"]),
        ({"score_threshold": "nan"}, ["score_threshold"]),
        ({"format": "gif"}, ["format"]),
        ({"steps": "perhaps"}, ["steps"]),
        ({"colour": "red"}, ["colour"]),
        ({"id": "x" * 300}, ["id"]),
    ],
)
def test_bad_queries(server: Served, picture: np.ndarray, query: dict[str, str], words: list[str]) -> None:
    refused(server.http.post("/maps", params=query, content=png(picture)), 400, *words)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0 not really", b"\x89PNG\r\n\x1a\n"])
def test_bad_pictures(server: Served, content: bytes) -> None:
    refused(server.http.post("/maps", content=content), 400, "image")


def test_bad_forms(server: Served, picture: np.ndarray) -> None:
    post, form = server.http.post, {"content-type": "multipart/form-data; boundary=x"}
    refused(post("/maps", content=b"nothing of the kind", headers=form), 400, "multipart")
    refused(post("/maps", content=b"", headers={"content-type": "multipart/form-data"}), 400, "multipart")
    refused(post("/maps", files={"photo": png(picture)}), 400, "'image'")
    refused(post("/maps", files={"image": (None, "text")}), 400, "'image'")
    two = [("image", png(picture)), ("image", png(picture))]
    refused(post("/maps", files=two), 400, "multipart")
    refused(post("/maps", files={"image": png(picture)}, data={"id": "x" * 20_000}), 400, "multipart")
    refused(post("/maps", content=png(picture), headers={"content-encoding": "gzip"}), 415, "compressed")


def test_a_picture_over_the_pixel_limit_is_not_decoded(server: Served) -> None:
    ok, bomb = cv2.imencode(".png", np.zeros((9_000, 9_000), np.uint8))
    assert ok
    refused(server.http.post("/maps", content=bomb.tobytes()), 413, "81 MP", "--max-pixels")


def test_too_many_maps_of_a_large_picture(server: Served) -> None:
    large = png(tiny.picture(250, 390))
    query = {"classes": "0,1,2,3", "steps": "true"}
    refused(server.http.post("/maps", params=query, content=large), 413, "steps", "fewer")


def test_unknown_names_and_methods(server: Served, picture: np.ndarray) -> None:
    refused(server.http.post("/maps", params={"bundle": "none"}, content=png(picture)), 404, "tiny-4")
    refused(server.http.get("/nothing"), 404, "/nothing")
    refused(server.http.get("/maps"), 405)
    refused(server.http.get("/static/nothing.js"), 404)
    refused(server.http.get("/static/..%2f..%2fapi.py"), 404)


def test_info(server: Served) -> None:
    (bundle,) = server.http.get("/info").json()["bundles"]
    assert bundle == {
        "name": "tiny-4",
        "classes": tiny.CLASSES,
        "recipes": list(RECIPES),
        "modes": list(MODES),
        "default_recipe": "fast",
    }


def test_metrics_count(server: Served, picture: np.ndarray) -> None:
    line = 'infercam_requests_total{route="/maps",status="200"}'
    images = 'infercam_images_total{bundle="tiny-4"}'
    before = server.metric(line), server.metric(images), server.metric('infercam_errors_total{status="400"}')
    server.http.post("/maps", params={"classes": "0"}, content=png(picture))
    server.http.post("/maps", params={"classes": "unicorn"}, content=png(picture))
    assert server.metric(line) == before[0] + 1
    assert server.metric(images) == before[1] + 1
    assert server.metric('infercam_errors_total{status="400"}') == before[2] + 1
    assert server.metric("infercam_queue_depth") == 0
    assert server.metric('infercam_network_pixels_total{bundle="tiny-4"}') > 0
    assert server.metric('infercam_batch_views_bucket{bundle="tiny-4",le="+Inf"}') > 0


def test_every_answer_is_safe_for_a_browser(server: Served) -> None:
    for path in ("/info", "/nothing", "/metrics"):
        headers = server.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "server" not in headers
