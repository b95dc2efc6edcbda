"""Reading a bundle: whatever was changed, left out or made up is refused, with the file's name, in one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infercam.engine.bundle import SCHEMA_VERSION, Bundle, InputSpec, Manifest, file_entry, read_manifest
from infercam.engine.common.errors import BundleError


def manifest(root: Path, **changes) -> dict:
    return {
        "schema_version": 1,
        "name": "toy",
        "classes": ["cat", "dog"],
        "stride": 8,
        "bias": [0.0, 0.5],
        "graphs": {"fp32": "response.onnx"},
        "files": {
            name: file_entry(root / name).model_dump()
            for name in ("response.onnx", "plans/a.plan")
            if (root / name).exists()
        },
        **changes,
    }


@pytest.fixture
def bundle(tmp_path):
    """A bundle whose graph is any bytes: reading does not look inside."""
    root = tmp_path / "toy"
    (root / "plans").mkdir(parents=True)
    (root / "response.onnx").write_bytes(b"graph" * 100)
    (root / "plans" / "a.plan").write_bytes(b"plan")
    rewrite(root)
    return root


def rewrite(root: Path, **changes) -> None:
    (root / "manifest.json").write_text(json.dumps(manifest(root, **changes)), encoding="utf-8")


def refusal(root: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.load(root)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_good_bundle_loads(bundle):
    loaded = Bundle.load(str(bundle))
    assert loaded.graph() == bundle / "response.onnx"
    assert loaded.manifest.classes == ["cat", "dog"]
    assert loaded.manifest.class_index("dog") == loaded.manifest.class_index(1) == 1
    for unknown in ("cow", 2, -1, True):
        with pytest.raises(KeyError):
            loaded.manifest.class_index(unknown)
    with pytest.raises(BundleError, match=r"no fp16 graph \(has: fp32\)"):
        loaded.graph("fp16")


def test_the_hash_follows_what_decides_the_maps(bundle):
    before = Bundle.load(bundle).hash
    rewrite(bundle, name="renamed", created="yesterday", tools={"onnx": "2"})
    assert Bundle.load(bundle).hash == before
    rewrite(bundle, classes=["dog", "cat"])
    assert Bundle.load(bundle).hash != before
    rewrite(bundle, bias=[0.0, 0.6])
    assert Bundle.load(bundle).hash != before
    rewrite(bundle, input={"mean": [0, 0, 0]})
    assert Bundle.load(bundle).hash != before
    (bundle / "response.onnx").write_bytes(b"other")
    rewrite(bundle)
    assert Bundle.load(bundle).hash != before


# --- changed, missing, escaping ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["response.onnx", "plans/a.plan"])
def test_changed_file(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[2] ^= 1  # one bit, the size stays
    (bundle / name).write_bytes(data)
    text = refusal(bundle)
    assert str(bundle / name) in text and "changed since export" in text


def test_truncated_and_grown_file(bundle):
    data = (bundle / "response.onnx").read_bytes()
    for other in (data[:-1], data + b"x", b""):
        (bundle / "response.onnx").write_bytes(other)
        assert "response.onnx" in refusal(bundle)


def test_missing_file(bundle):
    (bundle / "response.onnx").unlink()
    text = refusal(bundle)
    assert "response.onnx" in text and "missing" in text


def test_folder_in_place_of_a_file(bundle):
    (bundle / "response.onnx").unlink()
    (bundle / "response.onnx").mkdir()
    assert "response.onnx" in refusal(bundle)


@pytest.mark.parametrize(
    "name", ["../outside.onnx", "/etc/passwd", "plans/../../outside.onnx", "..\\outside.onnx"]
)
@pytest.mark.parametrize("place", ["files", "graphs"])
def test_path_that_leaves_the_bundle(bundle, name, place):
    (bundle.parent / "outside.onnx").write_bytes(b"secret")
    entry = file_entry(bundle.parent / "outside.onnx").model_dump()
    files = manifest(bundle)["files"] | {name: entry}
    graphs = {"fp32": name if place == "graphs" else "response.onnx"}
    rewrite(bundle, files=files, graphs=graphs)
    assert "leaves the bundle" in refusal(bundle)


def test_link_that_leaves_the_bundle(bundle):
    outside = bundle.parent / "outside.onnx"
    outside.write_bytes((bundle / "response.onnx").read_bytes())
    (bundle / "response.onnx").unlink()
    (bundle / "response.onnx").symlink_to(outside)
    assert "leaves the bundle" in refusal(bundle)


def test_graph_that_is_not_among_the_files(bundle):
    (bundle / "extra.onnx").write_bytes(b"not hashed")
    rewrite(bundle, graphs={"fp32": "response.onnx", "fp16": "extra.onnx"})
    assert "extra.onnx" in refusal(bundle)


# --- the manifest --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 99])
def test_newer_schema_says_to_upgrade(bundle, version):
    """Whatever else a newer manifest holds, the version is what is reported."""
    rewrite(bundle, schema_version=version, invented={"a": 1})
    text = refusal(bundle)
    assert f"schema {version} is newer" in text and "upgrade" in text


@pytest.mark.parametrize("version", [None, "1", [], {}])
def test_no_schema_version(bundle, version):
    rewrite(bundle, schema_version=version)
    assert "schema_version" in refusal(bundle)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"null", b"[]", b"3", b'"text"', b"\xff\xfe\x00", b"{}", b'{"a": NaN}']
)
def test_malformed_json(bundle, data):
    (bundle / "manifest.json").write_bytes(data)
    assert "manifest.json" in refusal(bundle)


def test_deeply_nested_json(bundle):
    (bundle / "manifest.json").write_text("[" * 100_000)
    assert "manifest.json" in refusal(bundle)


def test_no_manifest_and_no_folder(tmp_path):
    assert "not a bundle" in refusal(tmp_path)
    assert "not a bundle" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "file" in refusal(tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": []}, "classes"),
        ({"classes": ["cat", "cat"]}, "class names repeat"),
        ({"per_image_bias": True}, "depends on the image"),
        ({"decomposition": "none"}, "'cam' does not go with decomposition 'none'"),
        ({"method": "patch-tokens"}, "does not go with decomposition 'mean'"),
        (
            {"decomposition": "none", "method": "patch-tokens", "per_image_bias": True, "bias": [0, 0]},
            "needs a decomp",
        ),
        ({"bias": [0.0]}, "1 biases for 2 classes"),
        ({"stride": 0}, "stride"),
        ({"stride": -8}, "stride"),
        ({"graphs": {}}, "fp32"),
        ({"extra": 1}, "extra"),
        ({"input": {"std": [1, 0, 1]}}, "std must be positive"),
        ({"input": {"scale": 0}}, "scale"),
        ({"input": {"mean": [1, 2]}}, "mean"),
        ({"input": {"height": 32}}, "height and width"),
        ({"input": {"layout": "NHWC"}}, "layout"),
        ({"files": {"response.onnx": {"sha256": "short", "size": 1}}}, "sha256"),
        ({"files": {"response.onnx": {"sha256": "A" * 64, "size": 1}}}, "sha256"),
        ({"files": {"response.onnx": {"sha256": "0" * 64, "size": -1}}}, "size"),
    ],
)
def test_field_that_is_wrong_is_named(bundle, changes, words):
    rewrite(bundle, **changes)
    text = refusal(bundle)
    assert words in text and "manifest.json" in text


def test_manifest_and_input_are_frozen(bundle):
    m = read_manifest(bundle)
    with pytest.raises(ValidationError):
        m.stride = 4
    with pytest.raises(ValidationError):
        InputSpec().height = 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def paths(value, prefix=()):
    """Every place in a JSON value."""
    yield prefix
    if isinstance(value, dict | list):
        for k, v in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(v, (*prefix, k))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_fuzzed_manifest_is_read_or_refused_never_a_traceback(bundle, data):
    """Any value anywhere in the manifest replaced or removed."""
    good = manifest(bundle)
    raw = copy.deepcopy(good)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.sampled_from(sorted(paths(raw), key=str)))
        if not where:
            raw = data.draw(JSON)
        else:
            holder = raw
            for key in where[:-1]:
                holder = holder[key]
            if data.draw(st.booleans()):
                holder[where[-1]] = data.draw(JSON)
            else:
                del holder[where[-1]]
        if not isinstance(raw, dict):
            break
    (bundle / "manifest.json").write_text(json.dumps(raw), encoding="utf-8")
    try:
        loaded = Bundle.load(bundle)
    except BundleError as e:
        assert "\n" not in str(e)
        return
    assert Manifest.model_validate(raw) == loaded.manifest
    assert len(loaded.manifest.bias) == len(loaded.manifest.classes) > 0
    assert loaded.graph().is_relative_to(bundle)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60), at=st.integers(0, 400), cut=st.integers(0, 60))
def test_damaged_bytes_of_the_manifest(bundle, data, at, cut):
    rewrite(bundle)
    whole = (bundle / "manifest.json").read_bytes()
    (bundle / "manifest.json").write_bytes(whole[:at] + data + whole[at + cut :])
    try:
        Bundle.load(bundle)
    except BundleError as e:
        assert "\n" not in str(e)


# --- the response's size -------------------------------------------------------------------------------------


CELLS = {"step": 2, "rows": [0, 1, 1, 1], "columns": [0, 0, 1, 1], "checked": 9}


def test_cells_are_arithmetic(bundle):
    rewrite(bundle, schema_version=3, cells=CELLS, input={"smallest": 8, "multiple": 2})
    found = read_manifest(bundle).cells
    assert (
        found.size(16, 16, 8) == (2, 2)
        and found.size(18, 18, 8) == (3, 2)
        and found.size(22, 22, 8) == (3, 3)
    )
    rewrite(bundle)
    assert read_manifest(bundle).cells is None, "older bundles: the runtime is asked"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": 3}, "does not divide the stride 8"),
        ({"rows": [0]}, "1 rows and 4 columns, not 4 each"),
        ({"rows": [-1, 1, 1, 1]}, "no response at 8x8"),
        ({"columns": [0, 0, 0, 99]}, "columns"),
        ({"checked": 0}, "checked"),
        ({"formula": "h / 8"}, "formula"),
    ],
)
def test_cells_that_cannot_be(bundle, change, said):
    rewrite(bundle, cells=CELLS | change, input={"smallest": 8, "multiple": 2})
    assert said in refusal(bundle)
