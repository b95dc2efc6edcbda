"""Files made to harm: external weights, endless headers, bombs, pipes; and sweeps beside live writers."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infercam.engine.bundle import MANIFEST, Bundle, Manifest, file_entry, read_manifest
from infercam.engine.common.atomic import TEMP_PREFIX, atomic_write, remove_abandoned
from infercam.engine.common.errors import BundleError, InputError, StoreError
from infercam.engine.data.images import read_image
from infercam.engine.data.labels import read_annotation
from infercam.engine.demo.ablation import BUNDLE
from infercam.engine.onnx_files import MAX_DEPTH, external_locations
from infercam.engine.store.mapstore import MapRecord, MapStore, sweep_stale

# -- external weights


def bundle_of(folder: Path, graph: bytes, more: dict[str, bytes] | None = None) -> Path:
    """The demo's bundle with another graph, hashes and all, and more files listed."""
    folder.mkdir(parents=True)
    manifest = json.loads((BUNDLE / MANIFEST).read_text())
    files = {"response.onnx": graph, **(more or {})}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    manifest["files"] = {name: file_entry(folder / name).model_dump() for name in files}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def with_weight(location: str) -> bytes:
    onnx = pytest.importorskip("onnx", reason="builds the graph (extra export)")
    model = onnx.load(BUNDLE / "response.onnx")
    tensor = model.graph.initializer.add(name="outside", data_type=1, dims=[4], data_location=1)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value="16")
    return model.SerializeToString()


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "w.bin", "a/../../w.bin", "", "..\\w.bin"])
def test_weights_outside_are_refused_before_a_runtime_opens_them(tmp_path: Path, location: str) -> None:
    folder = bundle_of(tmp_path / "b", with_weight(location))
    (tmp_path / "w.bin").write_bytes(bytes(16))
    (folder / "w.bin").write_bytes(bytes(16))  # there, but not listed: its hash would not be checked
    with pytest.raises(BundleError, match="no file of the bundle") as caught:
        Bundle.load(folder)
    assert "\n" not in str(caught.value)


def test_weights_that_are_listed_are_read(tmp_path: Path) -> None:
    folder = bundle_of(tmp_path / "b", with_weight("./w.bin"), {"w.bin": bytes(16)})
    assert external_locations(Bundle.load(folder).graph()) == ["./w.bin"]
    (folder / "w.bin").unlink()
    (tmp_path / "w.bin").write_bytes(bytes(16))
    (folder / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(BundleError, match="leaves the bundle folder"):
        Bundle.load(folder)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_walked_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.onnx"
    for content in (
        data + b"location",
        b"location" + data,
        b"\x3a" + bytes([len(data) % 128]) + data + b"location",
    ):
        file.write_bytes(content)
        try:
            assert all(isinstance(x, str) for x in external_locations(file))
        except BundleError as e:
            assert "not an ONNX file" in str(e)


def test_depth_is_bounded(tmp_path: Path) -> None:
    def field(number: int, data: bytes) -> bytes:
        length = bytes([len(data) & 0x7F | 0x80, len(data) >> 7 & 0x7F | 0x80, len(data) >> 14])
        return bytes([number << 3 | 2]) + length + data

    def nested(depth: int) -> bytes:
        graph = field(5, field(13, field(1, b"location") + field(2, b"deep")))  # initializer.external_data
        for _ in range(depth):
            graph = field(1, field(5, field(6, graph)))  # node.attribute.g
        return field(7, graph)

    file = tmp_path / "m.onnx"
    file.write_bytes(nested(20))
    assert external_locations(file) == ["deep"]
    file.write_bytes(nested(MAX_DEPTH // 3 + 1))
    with pytest.raises(BundleError, match="nested too deeply"):
        external_locations(file)


# -- manifests, pipes


def test_numbers_that_are_none_are_no_preprocessing(tmp_path: Path) -> None:
    content = json.loads((BUNDLE / MANIFEST).read_text())
    for value in (float("nan"), float("inf")):
        content["input"]["mean"] = [value, 0, 0]
        (tmp_path / MANIFEST).write_text(json.dumps(content))
        with pytest.raises(BundleError, match=r"input\.mean"):
            read_manifest(tmp_path)
    assert Manifest.model_validate(json.loads((BUNDLE / MANIFEST).read_text()))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_in_a_files_place_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(BundleError, match="not a regular file"):
        read_manifest(tmp_path)
    os.mkfifo(tmp_path / "store.json")
    with pytest.raises(StoreError, match="not a regular file"):
        MapStore.open(tmp_path)


# -- pictures and annotations


def test_scans_and_segments_of_a_jpeg_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    Image.new("RGB", (64, 64)).save(file, progressive=True)
    whole = file.read_bytes()
    assert read_image(file).shape == (64, 64, 3)
    last = whole.rindex(b"\xff\xda")
    file.write_bytes(whole[:last] + whole[last:-2] * 250 + b"\xff\xd9")
    with pytest.raises(InputError, match="scans"):
        read_image(file)
    file.write_bytes(b"\xff\xd8" + b"\xff\xe0\0\2" * 100_000 + whole[2:])
    with pytest.raises(InputError, match="segments"):
        read_image(file)


def test_the_header_of_a_ppm_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "a.ppm"
    file.write_bytes(b"P6 # by hand\n 2\t1 # size\n255\n" + bytes(6))
    assert read_image(file).shape == (1, 2, 3)
    file.write_bytes(b"P6 #" + b"x" * 100_000 + b"\n2 1 255\n" + bytes(6))
    with pytest.raises(InputError, match="no size"):
        read_image(file)


@pytest.mark.parametrize(
    ("inside", "reason"),
    [("<object><name>" + "\n" * 100_000 + "</name></object>", "characters"), ("<a>" * 100_000, "deeply")],
)
def test_annotations_are_bounded(tmp_path: Path, inside: str, reason: str) -> None:
    (tmp_path / "a.xml").write_text(f"<annotation>{inside}</annotation>")
    with pytest.raises(InputError, match=reason):
        read_annotation(tmp_path / "a.xml")


# -- maps


def test_a_map_that_unpacks_to_more_than_its_shape_is_not_unpacked(tmp_path: Path) -> None:
    store = MapStore.create_or_open(tmp_path, classes=["cat"], settings={})
    store.write(MapRecord("a", [0], ["cat"], np.zeros((1, 4, 4), np.float32)), "x")
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", members["meta.json"])
        archive.writestr("delta.npy", members["delta.npy"] + bytes(1 << 20))
    with pytest.raises(StoreError, match="unpacks to"):
        store.read("a")


@pytest.mark.parametrize("change", [{"classes": [-1]}, {"classes": ["0"]}, {"shape": [1, 10**6, 10**6]}])
def test_metadata_that_lies_is_refused(tmp_path: Path, change: dict) -> None:
    store = MapStore.create_or_open(tmp_path, classes=["cat"], settings={})
    store.write(MapRecord("a", [0], ["cat"], np.zeros((1, 4, 4), np.float32)), "x")
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    meta = json.loads(members["meta.json"]) | change
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("meta.json", json.dumps(meta))
        archive.writestr("delta.npy", members["delta.npy"])
    with pytest.raises(StoreError, match="corrupt"):
        store.read("a")


# -- temporary files


def test_a_live_temporary_file_is_not_swept_however_old_it_looks(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as f:
        f.write(b"content")
        (live,) = tmp_path.glob(f"{TEMP_PREFIX}*")
        os.utime(live, (0, 0))
        assert sweep_stale(tmp_path) == 0
        assert not remove_abandoned(live)
    assert (tmp_path / "a").read_bytes() == b"content"
    dead = tmp_path / f"{TEMP_PREFIX}dead"
    dead.touch()
    os.utime(dead, (0, 0))
    assert sweep_stale(tmp_path) == 1
    assert not dead.exists()


def test_writers_beside_a_sweep_that_takes_everything_for_stale(tmp_path: Path) -> None:
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            sweep_stale(tmp_path, older_than=-1e9)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for i in range(300):
            with atomic_write(tmp_path / f"f{i}") as f:
                f.write(b"%d" % i)
    finally:
        done.set()
        sweeper.join()
    assert [(tmp_path / f"f{i}").read_bytes() for i in range(300)] == [b"%d" % i for i in range(300)]
    assert not list(tmp_path.glob(f"{TEMP_PREFIX}*"))
