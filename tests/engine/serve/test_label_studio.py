"""Label Studio's ML backend: polygons of the engine's maps, by its own checks; pictures from one address only."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from infercam.engine.api import Engine
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import InputError
from infercam.engine.labelling.label_studio import LabelControl
from infercam.engine.labelling.regions import polygons_of, regions_of_maps
from infercam.engine.serve.bounds import Bounds
from infercam.engine.serve.hosted import Hosts
from infercam.engine.serve.label_studio_pictures import TaskPictures
from infercam.engine.serve.refusals import Refusal
from tests.engine import tiny
from tests.engine.serve.serving import Served, png, served

KEY = "old-token"
PERSONAL = "head.body.signature"
CONFIG = """<View><Image name="photo" value="$picture"/>
<PolygonLabels name="part" toName="photo" model_score_threshold="0" model_threshold="0.2" model_tolerance="0">
<Label value="cat"/><Label value="Hound" predicted_values="dog, horse"/><Label value="cow"/><Label value="sheep"/>
</PolygonLabels></View>"""
LABELS = ["cat", "Hound", "Hound", "cow", "sheep"]


@dataclass
class LabelStudio:
    """A stand-in that serves files to those with a good token, and counts who asked."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def label_studio(picture: Any) -> Iterator[LabelStudio]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            it.asked.append(self.path)
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", f"{it.address}/data/upload/a.png")
                self.end_headers()
            elif self.headers.get("Authorization") not in (f"Token {KEY}", "Bearer short"):
                self.send_error(401)
            elif self.path in it.files:
                self.give(it.files[self.path])
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert (self.path, sent) == ("/api/token/refresh/", {"refresh": PERSONAL})
            self.give(b'{"access": "short"}')

        def give(self, data: bytes) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    it = LabelStudio(f"http://127.0.0.1:{http.server_address[1]}")
    it.files = {
        "/data/upload/a.png": png(picture),
        "/data/local-files/?d=b%20c.png": png(tiny.picture(26, 34, 5)),
    }
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield it
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(scope="module")
def backend(tiny_bundle: Bundle, label_studio: LabelStudio) -> Iterator[Served]:
    hosts = Hosts.load([tiny_bundle.path], "fast", threads=2)
    with served(hosts, Bounds(), label_studio=TaskPictures(label_studio.address, KEY)) as it:
        yield it


def predict(backend: Served, *pictures: object, config: str = CONFIG) -> Any:
    tasks = [{"id": n, "data": {"picture": named}} for n, named in enumerate(pictures)]
    call = {"tasks": tasks, "label_config": config, "project": "3.1700000000", "params": {"context": None}}
    return backend.http.post("/label-studio/predict", json=call)


def test_predictions_are_the_engine_s_regions(
    backend: Served, tiny_engine: Engine, picture: np.ndarray
) -> None:
    answer = predict(backend, "/data/upload/a.png", "/data/local-files/?d=b%20c.png")
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert len(results) == 2
    for found, pixels in zip(results, (picture, tiny.picture(26, 34, 5)), strict=True):
        size = pixels.shape[:2]
        classes = list(range(5))
        regions = regions_of_maps(tiny_engine.maps(pixels, classes, "fast"), classes, 0.2)
        want = [(LABELS[p.label], p) for region in regions for p in polygons_of(region, 0)]
        assert want and len(found["result"]) == len(want)
        for result, (label, polygon) in zip(found["result"], want, strict=True):
            assert (result["from_name"], result["to_name"], result["type"]) == (
                "part",
                "photo",
                "polygonlabels",
            )
            assert (result["original_height"], result["original_width"]) == size
            assert result["value"]["polygonlabels"] == [label]
            assert result["score"] == pytest.approx(polygon.score, abs=1e-5) and 0.2 < result["score"] <= 1
            np.testing.assert_allclose(
                np.array(result["value"]["points"]) / 100 * size[::-1], polygon.points, atol=1e-3
            )
        assert found["score"] == pytest.approx(np.mean([r["score"] for r in found["result"]]))
        assert found["model_version"].startswith("tiny-") and found["model_version"].endswith("-fast")


def test_brushed_masks(backend: Served, tiny_engine: Engine, picture: np.ndarray) -> None:
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    config = CONFIG.replace("PolygonLabels", "BrushLabels")
    (found,) = predict(backend, "/data/upload/a.png", config=config).json()["results"]
    assert interface.LabelInterface(config).validate_prediction(found, return_errors=True) == []
    classes = list(range(5))
    regions = regions_of_maps(tiny_engine.maps(picture, classes, "fast"), classes, 0.2)
    assert len(found["result"]) == len(regions) > 1
    for result, region in zip(found["result"], regions, strict=True):
        assert result["value"]["brushlabels"] == [LABELS[region.label]]
        assert result["score"] == pytest.approx(region.score, abs=1e-5)
        pixels = brush.decode_rle(result["value"]["rle"]).reshape(30, 40, 4)
        assert np.array_equal(pixels[..., 3] > 0, region.inside)


def test_label_studio_s_own_checks(backend: Served) -> None:
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    objects = pytest.importorskip("label_studio_sdk.label_interface.objects")
    (found,) = predict(backend, "/data/upload/a.png").json()["results"]
    config = interface.LabelInterface(CONFIG)
    assert found["result"] and config.validate_prediction(found, return_errors=True) == []
    assert len(objects.PredictionValue.model_validate(found).result) == len(found["result"])
    assert config.validate_task({"data": {"picture": "/data/upload/a.png"}})


def test_setup_and_health(backend: Served) -> None:
    call = {
        "project": "3.17",
        "schema": CONFIG,
        "hostname": "http://x",
        "access_token": "y",
        "extra_params": None,
    }
    version = backend.http.post("/label-studio/setup", json=call).json()["model_version"]
    assert version == predict(backend, "/data/upload/a.png").json()["results"][0]["model_version"]
    for path in ("/label-studio", "/label-studio/", "/label-studio/health"):
        assert backend.http.get(path).json()["status"] == "UP"
    assert backend.http.post("/label-studio/webhook", json={"action": "START_TRAINING"}).status_code == 200


def test_a_data_uri_needs_nobody(backend: Served, label_studio: LabelStudio, picture: np.ndarray) -> None:
    before = len(label_studio.asked)
    uri = "data:image/png;base64," + base64.b64encode(png(picture)).decode()
    (found,) = predict(backend, uri).json()["results"]
    assert found == predict(backend, "/data/upload/a.png").json()["results"][0]
    assert len(label_studio.asked) == before + 1


def test_only_its_own_pictures_are_fetched(backend: Served, label_studio: LabelStudio) -> None:
    before = len(label_studio.asked)
    other = label_studio.address.replace("127.0.0.1", "localhost")
    for named in (
        f"{other}/data/upload/a.png",
        "file:///etc/passwd",
        "//localhost/x",
        "s3://bucket/a.png",
        "",
        5,
    ):
        answer = predict(backend, named)
        assert answer.status_code in (400, 502) and answer.json().keys() == {"error"}, (named, answer.text)
    assert all("etc/passwd" not in path and "upload" not in path for path in label_studio.asked[before:])
    answer = predict(backend, "/away")
    assert answer.status_code == 502 and "302" in answer.json()["error"]
    assert label_studio.asked[-1] == "/away"  # and no further


def test_one_bad_picture_of_several(backend: Served) -> None:
    good, bad = predict(backend, "/data/upload/a.png", "/data/none.png").json()["results"]
    assert good["result"] and "error" not in good
    assert bad["result"] == [] and "404" in bad["error"]
    alone = predict(backend, "/data/none.png")
    assert alone.status_code == 502 and "404" in alone.json()["error"]


def test_without_the_option_there_is_none(server: Served) -> None:
    assert server.http.get("/label-studio/health").status_code == 404


@pytest.mark.parametrize(
    ("config", "status", "words"),
    [
        ("<View", 400, "not XML"),
        ('<View><Image name="photo" value="$picture"/></View>', 400, "<PolygonLabels"),
        (CONFIG.replace('"$picture"', '"picture"'), 400, 'value="$image"'),
        (CONFIG.replace('model_threshold="0.2"', 'model_threshold="2"'), 400, "no number of 0 to 1"),
        (CONFIG.replace('model_tolerance="0"', 'model_tolerance="nan"'), 400, "no number"),
        (CONFIG.replace('model_tolerance="0"', 'model_bundle="other"'), 404, "there are: tiny"),
        (CONFIG.replace("cat", "Katze").replace("dog, horse", "").replace("cow", "Kuh").replace("sheep", "Schaf"),
         400, "predicted_values"),
    ],
)  # fmt: skip
def test_labelling_interfaces_that_cannot_be_used(
    backend: Served, config: str, status: int, words: str
) -> None:
    for answer in (
        backend.http.post("/label-studio/setup", json={"schema": config}),
        predict(backend, "/data/upload/a.png", config=config),
    ):
        assert answer.status_code == status and words in answer.json()["error"], answer.text
    assert backend.http.post("/label-studio/predict", json={"tasks": 3}).status_code == 400


def test_tokens_and_limits(label_studio: LabelStudio) -> None:
    want = label_studio.files["/data/upload/a.png"]
    for address in (label_studio.address, label_studio.address + "/"):
        assert TaskPictures(address, PERSONAL).read("/data/upload/a.png") == want
        assert TaskPictures(address, KEY).read(f"{label_studio.address}/data/upload/a.png") == want
    for key in (None, "wrong"):
        with pytest.raises(Refusal, match="401; is LABEL_STUDIO_API_KEY set"):
            TaskPictures(label_studio.address, key).read("/data/upload/a.png")
    with pytest.raises(Refusal, match="over") as refused:
        TaskPictures(label_studio.address, KEY, limit=100).read("/data/upload/a.png")
    assert refused.value.status == 413
    with pytest.raises(Refusal):
        TaskPictures("http://127.0.0.1:1").read("/data/upload/a.png")
    for uri in ("data:image/png,abc", "data:image/png;base64,%%"):
        with pytest.raises(InputError, match="base64"):
            TaskPictures(label_studio.address).read(uri)
    for address in ("localhost:8080", "ftp://x", ""):
        with pytest.raises(InputError, match="--label-studio is"):
            TaskPictures(address)


def test_defaults_of_a_plain_interface() -> None:
    control = LabelControl.of(
        '<View><Image name="i" value="$image"/><PolygonLabels name="l" toName="i"><Label value="cat"/>'
        "</PolygonLabels></View>"
    )
    assert (control.score_threshold, control.threshold, control.tolerance, control.bundle) == (
        0.5,
        0.3,
        1.0,
        None,
    )
    assert (control.value, dict(control.labels)) == ("image", {"cat": "cat"})
