"""The Open Inference Protocol, with NVIDIA's own client as the judge, and by hand where that is too polite."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import httpx
import numpy as np
import pytest

from infercam.engine.api import Engine
from infercam.engine.bundle import Bundle
from infercam.engine.serve.bounds import Bounds
from infercam.engine.serve.hosted import Hosts, model_name
from tests.engine import tiny
from tests.engine.serve.serving import Served, png, served

triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient (extra dev)")
from tritonclient.utils import InferenceServerException

MAPS = "/v2/models/tiny-4_maps/infer"
GRAPH = "/v2/models/tiny-4/infer"


@pytest.fixture
def client(server: Served) -> Any:
    with triton.InferenceServerClient(server.address) as it:
        yield it


def tensor(name: str, array: np.ndarray, kind: str, binary: bool = True) -> Any:
    it = triton.InferInput(name, list(array.shape), kind)
    it.set_data_from_numpy(array, binary_data=binary)
    return it


def wanted(*names: str, binary: bool = True) -> list[Any]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


# -- health and metadata -------------------------------------------------------------------------------------
def test_health_and_metadata(client: Any, server: Served) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("tiny-4") and client.is_model_ready("tiny-4_maps", "1")
    assert not client.is_model_ready("tiny-4", "2") and not client.is_model_ready("none")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    graph, maps = client.get_model_metadata("tiny-4"), client.get_model_metadata("tiny-4_maps", "1")
    assert graph["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, -1, -1]}]
    assert {o["name"]: o["shape"] for o in graph["outputs"]} == {
        "response": [-1, 5, -1, -1],
        "scores": [-1, 5],
    }
    assert maps["versions"] == ["1"] and [i["name"] for i in maps["inputs"]] == ["image", "classes"]
    kinds = {o["name"]: o["datatype"] for o in maps["outputs"]}
    assert kinds == {"maps": "FP32", "classes": "INT32", "scores": "FP32"}
    with pytest.raises(InferenceServerException, match="no model 'none'"):
        client.get_model_metadata("none")


# -- the bare network ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_the_bare_network(client: Any, tiny_bundle: Bundle, binary_in: bool, binary_out: bool) -> None:
    x = np.random.default_rng(0).normal(size=(3, 3, 14, 18)).astype(np.float32)
    outputs = wanted("scores", "response", binary=binary_out)
    found = client.infer("tiny-4", [tensor("image", x, "FP32", binary_in)], outputs=outputs, request_id="r1")
    want = tiny.network(tiny_bundle)(x)
    np.testing.assert_allclose(found.as_numpy("response"), want, atol=1e-5)
    bias = np.asarray(tiny_bundle.manifest.bias, np.float32)
    np.testing.assert_allclose(found.as_numpy("scores"), want.mean(axis=(2, 3)) + bias, atol=1e-5)
    answer = found.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("r1", "tiny-4", "1")
    assert [o["name"] for o in answer["outputs"]] == ["scores", "response"]


def test_outputs_may_be_left_out(client: Any, server: Served) -> None:
    x = np.zeros((1, 3, 8, 8), np.float32)
    both = client.infer("tiny-4", [tensor("image", x, "FP32")])  # binary_data_output
    assert both.as_numpy("response").shape == (1, 5, 2, 2) and both.as_numpy("scores").shape == (1, 5)
    one = client.infer("tiny-4", [tensor("image", x, "FP32")], outputs=wanted("scores"))
    assert one.as_numpy("response") is None


def test_many_at_once(client: Any, tiny_bundle: Bundle) -> None:
    """Also that answers are not mixed up."""
    network = tiny.network(tiny_bundle)
    inputs = [np.full((1 + n % 3, 3, 8 + n % 2, 8), n / 10, np.float32) for n in range(30)]
    asked = [client.async_infer("tiny-4", [tensor("image", x, "FP32")]) for x in inputs]
    for x, one in zip(inputs, asked, strict=True):
        np.testing.assert_allclose(one.get_result().as_numpy("response"), network(x), atol=1e-5)


# -- the whole method ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("given", ["encoded", "pixels"])
def test_maps(client: Any, tiny_engine: Engine, picture: np.ndarray, given: str, binary_out: bool) -> None:
    if given == "encoded":
        image = tensor("image", np.array([png(picture)], np.object_), "BYTES")
    else:
        image = tensor("image", picture, "UINT8")
    classes = tensor("classes", np.array([b"horse", b"1"], np.object_), "BYTES")
    found = client.infer(
        "tiny-4_maps",
        [image, classes],
        outputs=wanted("maps", "classes", "scores", binary=binary_out),
        parameters={"recipe": "released", "mode": "split"},
    )
    want = tiny_engine.maps(picture, [2, 1], "released", "split")
    np.testing.assert_allclose(found.as_numpy("maps"), want, atol=1e-6)
    assert found.as_numpy("classes").tolist() == [2, 1]
    np.testing.assert_allclose(found.as_numpy("scores"), tiny_engine.scores(picture), atol=1e-5)


def test_maps_of_predicted_classes(client: Any, tiny_engine: Engine, picture: np.ndarray) -> None:
    image = tensor("image", np.array([png(picture)], np.object_), "BYTES")
    for threshold in (0.0, 0.5, 1.0):
        found = client.infer("tiny-4_maps", [image], parameters={"score_threshold": threshold})
        classes = tiny_engine.predict(picture, threshold)
        assert found.as_numpy("classes").tolist() == classes
        assert found.as_numpy("maps").shape == (len(classes), 30, 40)


def test_maps_as_json(server: Served, tiny_engine: Engine, picture: np.ndarray) -> None:
    for image in (
        {
            "name": "image",
            "datatype": "BYTES",
            "shape": [1],
            "data": [base64.b64encode(png(picture)).decode()],
        },
        {"name": "image", "datatype": "UINT8", "shape": [30, 40, 3], "data": picture.tolist()},
        {"name": "image", "datatype": "UINT8", "shape": [30, 40, 3], "data": picture.ravel().tolist()},
    ):
        classes = {"name": "classes", "datatype": "BYTES", "shape": [1], "data": ["cat"]}
        answer = server.http.post(MAPS, json={"inputs": [image, classes], "outputs": [{"name": "maps"}]})
        (output,) = answer.json()["outputs"]
        assert output["shape"] == [1, 30, 40] and output["datatype"] == "FP32"
        found = np.asarray(output["data"], np.float32).reshape(1, 30, 40)
        np.testing.assert_allclose(found, tiny_engine.maps(picture, ["cat"], "fast"), atol=1e-6)


def test_errors_reach_the_client(client: Any, picture: np.ndarray) -> None:
    image = tensor("image", np.array([png(picture)], np.object_), "BYTES")
    for parameters, words in (
        ({"recipe": "bestest"}, "no recipe 'bestest'"),
        ({"mode": "all"}, "no mode 'all'"),
        ({"score_threshold": 3}, "score_threshold"),
    ):
        with pytest.raises(InferenceServerException, match=words):
            client.infer("tiny-4_maps", [image], parameters=parameters)
    with pytest.raises(InferenceServerException, match="unicorn"):
        client.infer("tiny-4_maps", [image, tensor("classes", np.array([b"unicorn"], np.object_), "BYTES")])
    with pytest.raises(InferenceServerException, match="no output 'masks'"):
        client.infer("tiny-4_maps", [image], outputs=wanted("masks"))
    with pytest.raises(InferenceServerException, match="has no version '7'"):
        client.infer("tiny-4_maps", [image], model_version="7")


# -- malformed requests, by hand -----------------------------------------------------------------------------
def one(**changes: Any) -> dict[str, Any]:
    given = {"name": "image", "datatype": "FP32", "shape": [1, 3, 2, 2], "data": [0.0] * 12} | changes
    return {"inputs": [{k: v for k, v in given.items() if v is not None}]}


BAD = {
    "not JSON": b"{",
    "not UTF-8": b'{"inputs": "\xff"}',
    "no object": b"[]",
    "no inputs": {},
    "empty inputs": {"inputs": []},
    "deep": b'{"inputs":' + b"[" * 100_000,
    "twice": {"inputs": [*one()["inputs"], *one()["inputs"]]},
    "unknown input": one(name="photo"),
    "unknown type": one(datatype="FP7"),
    "another type": one(datatype="FP64"),
    "too few": one(data=[0.0] * 11),
    "too many": one(data=[0.0] * 13),
    "ragged": one(data=[[0.0], [0.0, 1.0]]),
    "words": one(data=["a"] * 12),
    "no data": one(data=None),
    "an object": one(data={"a": 1}),
    "negative": one(shape=[1, 3, -2, 2]),
    "huge": one(shape=[1 << 40, 3, 1 << 40, 2]),
    "fractions": one(shape=[1.5, 3, 2, 2]),
    "another rank": one(shape=[12]),
    "no pixels": one(shape=[1, 3, 0, 2], data=[]),
    "nine ranks": one(shape=[1] * 9, data=[0.0]),
    "bytes": one(datatype="BYTES", shape=[1], data=["x"]),
    "binary without": one(data=None, parameters={"binary_data_size": 48}),
    "binary negative": one(data=None, parameters={"binary_data_size": -1}),
    "binary of another kind": one(data=None, parameters={"binary_data_size": True}),
    "both": one(parameters={"binary_data_size": 0}),
    "unknown output": one() | {"outputs": [{"name": "masks"}]},
}


@pytest.mark.parametrize("name", BAD)
def test_malformed(server: Served, name: str) -> None:
    body = BAD[name]
    answer = server.http.post(GRAPH, content=body if isinstance(body, bytes) else json.dumps(body))
    refused(answer)


def refused(answer: httpx.Response, status: int = 400) -> None:
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"} and "\n" not in answer.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "99999", "1e3", "٣", ""])
def test_malformed_header_lengths(server: Served, length: str) -> None:
    body = json.dumps(one()).encode()
    headers = {"Inference-Header-Content-Length": length.encode()}
    refused(server.http.post(GRAPH, content=body, headers=headers))


@pytest.mark.parametrize("blob", [b"", b"\0" * 47, b"\0" * 49, b"\0" * 480])
def test_binary_data_of_another_length(server: Served, blob: bytes) -> None:
    head = json.dumps(one(data=None, parameters={"binary_data_size": 48})).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    refused(server.http.post(GRAPH, content=head + blob, headers=headers))


@pytest.mark.parametrize(
    "blob", [b"", b"\5", struct.pack("<I", 99) + b"abc", struct.pack("<I", 0) * 2, b"\xff" * 9]
)
def test_malformed_strings(server: Served, blob: bytes) -> None:
    given = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": len(blob)},
    }
    head = json.dumps({"inputs": [given]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    refused(server.http.post(MAPS, content=head + blob, headers=headers))


def test_pictures_over_the_limit(server: Served) -> None:
    large = np.zeros((400, 500, 3), np.uint8)
    for image in (large, np.array([png(large)], np.object_)):
        given = {
            "name": "image",
            "datatype": "UINT8" if image is large else "BYTES",
            "shape": list(image.shape),
        }
        blob = large.tobytes() if image is large else struct.pack("<I", len(png(large))) + png(large)
        head = json.dumps({"inputs": [given | {"parameters": {"binary_data_size": len(blob)}}]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        refused(server.http.post(MAPS, content=head + blob, headers=headers), 413)
    x = np.zeros((1, 3, 400, 500), np.float32)
    head = json.dumps(one(data=None, shape=list(x.shape), parameters={"binary_data_size": x.nbytes})).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    refused(server.http.post(GRAPH, content=head + x.tobytes(), headers=headers), 413)


# -- several bundles -----------------------------------------------------------------------------------------
def test_two_bundles(tiny_bundle: Bundle, tmp_path: Any, picture: np.ndarray) -> None:
    other = tiny.build(tmp_path / "b", stride=8, fixed=(24, 32), batch=False)
    with served(Hosts.load([tiny_bundle.path, other.path], "fast", threads=1), Bounds()) as it:
        names = [bundle["name"] for bundle in it.http.get("/info").json()["bundles"]]
        assert names == ["tiny-4", "tiny-8"]
        with triton.InferenceServerClient(it.address) as client:
            assert client.get_model_metadata("tiny-8")["inputs"][0]["shape"] == [-1, 3, 24, 32]
            x = np.zeros((2, 3, 24, 32), np.float32)
            assert client.infer("tiny-8", [tensor("image", x, "FP32")]).as_numpy("response").shape == (
                2,
                5,
                3,
                4,
            )
            with pytest.raises(InferenceServerException, match="24×32"):
                client.infer("tiny-8", [tensor("image", x[..., :8], "FP32")])
        for name in (None, *names):
            answer = it.http.post("/maps", params={"bundle": name} if name else {}, content=png(picture))
            assert answer.json()["bundle"] == (name or "tiny-4")


def test_names_become_parts_of_urls() -> None:
    assert model_name("ResNet 38/VOC, ü") == "ResNet_38_VOC___"
    assert model_name("") == "bundle" and model_name("a.b-c_1") == "a.b-c_1"
