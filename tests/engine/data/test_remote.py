"""Folders behind a URI: pyarrow's local and mock file systems stand in for S3 and its like (test_s3.py has S3)."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest

from infercam.engine import Engine
from infercam.engine.common.errors import InputError, MissingExtra, StoreError
from infercam.engine.data.labels import load_labels
from infercam.engine.data.remote import RemoteStorage
from infercam.engine.data.sources import folder_source, list_source, read_pixels
from infercam.engine.data.storage import LocalStorage, Storage, is_uri, open_storage
from infercam.engine.method.recipe import RECIPES
from infercam.engine.run.run import Run, Summary
from infercam.engine.run.shards import Shard
from infercam.engine.store import remote_index
from infercam.engine.store.failures import read_failures
from infercam.engine.store.mapstore import MapStore
from infercam.engine.store.remote_index import RemoteIndex
from tests.engine import tiny

fs = pytest.importorskip("pyarrow.fs", reason="pyarrow (infercam[cluster]) is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data"), 7, (24, 32))


def uri(path: Path) -> str:
    return f"file://{path}"


def mock() -> RemoteStorage:
    """A file system in memory: neither whole objects nor a local disk."""
    return RemoteStorage.open("mock:///bucket/maps")


def run(engine: Engine, images: str, data: Path, out: str | Path | Storage, shard: str = "") -> Summary:
    labels = load_labels(data / "labels.json", tiny.CLASSES)
    part = Shard.parse(shard) if shard else None
    source = folder_source(images)
    return Run(engine, source, labels, out, recipe=RECIPES["released"], mode="both", shard=part)()  # type: ignore[arg-type]


def maps_of(place: Storage) -> dict[str, bytes]:
    return {name: place.read(name) for name, _ in place.files() if name.endswith(".npz")}


# -- places ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [mock, None, "sub"])
def test_a_place_keeps_what_is_written(tmp_path: Path, make) -> None:
    if make is None:
        place: Storage = RemoteStorage.open(uri(tmp_path / "new"))
    elif make == "sub":
        place = RemoteStorage(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "new", "sub:///new")
    else:
        place = make()
    assert list(place.files()) == [] and place.size("a/b.npz") is None
    with pytest.raises(FileNotFoundError):
        place.read("a/b.npz")
    place.write("a/b.npz", b"first")
    place.write("a/b.npz", b"second")
    place.write("index.jsonl", b"")
    assert place.read("a/b.npz") == b"second" and place.size("a/b.npz") == 6
    assert sorted(place.files()) == [("a/b.npz", 6), ("index.jsonl", 0)], "no temporary file stays"
    assert list(place.files("ind")) == [("index.jsonl", 0)] and list(place.files("a")) == []
    place.remove("a/b.npz")
    place.remove("a/b.npz")
    assert place.size("a/b.npz") is None
    with pytest.raises(StoreError, match="copy it first"):
        _ = place.path


def test_local_places_answer_the_same(tmp_path: Path) -> None:
    place = LocalStorage(tmp_path / "new")
    place.write("a/b.npz", b"x")
    assert list(place.files()) == [("a/b.npz", 1)] and list(place.files("a")) == []
    assert place.size("\0") is None and place.path == tmp_path / "new"


def test_a_place_travels(tmp_path: Path) -> None:
    place = RemoteStorage.open(uri(tmp_path))
    place.write("a", b"1")
    assert pickle.loads(pickle.dumps(place)).read("a") == b"1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://b/k", True),
        ("gs://b", True),
        ("s3:/b/k", True),
        ("hdfs://h:9/x", True),
        ("file:///x", True),
        ("maps", False),
        ("/a/b", False),
        ("C:\\maps", False),
        ("C:/maps", False),
        ("a:b", False),
        ("./s3://", False),
    ],
)
def test_what_a_uri_is(text: str, expected: bool) -> None:
    assert is_uri(text) is expected


@pytest.mark.parametrize("text", ["ftp://host/x", "s3://", "nonsense:///x"])
def test_a_bad_uri_is_one_line(text: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_storage(text)
    assert text.split(":")[0] in str(caught.value) and "\n" not in str(caught.value)


def test_secrets_in_a_uri_are_not_shown(tmp_path: Path) -> None:
    place = open_storage("s3://bucket/maps?region=eu-west-1&endpoint_override=localhost%3A1&scheme=http")
    assert str(open_storage("s3://key:secret@bucket/maps?region=eu-west-1")) == "s3://bucket/maps"
    assert str(place) == "s3://bucket/maps" and place.where("a") == "s3://bucket/maps/a"


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"infercam\[cluster\]"):
        open_storage("s3://bucket/maps")


# -- sources ---------------------------------------------------------------------------------------------------


def test_a_remote_folder_is_the_same_source(data: Path, tmp_path: Path) -> None:
    near, far = folder_source(data / "images"), folder_source(uri(data / "images"))
    assert [item.id for item in far] == [item.id for item in near]
    assert far.describe() == {**near.describe(), "root": uri(data / "images")}
    for a, b in zip(near, far, strict=True):
        assert (read_pixels(near.place, a.path) == read_pixels(far.place, b.path)).all()
    assert [item.id for item in far[1::3]] == ["p001", "p004"] and far[1::3].place is far.place
    with pytest.raises(InputError, match=r"nowhere/?: no images"):
        folder_source(uri(tmp_path / "nowhere"))


def test_a_list_below_a_uri(data: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# mine\np004.png\np001.png\np004.png\n")
    source = list_source(tmp_path / "list.txt", uri(data / "images"))
    assert [item.id for item in source] == ["p004", "p001"] and "1 repeated" in source.notes[0]
    assert read_pixels(source.place, source[0].path).shape == (25, 32, 3)
    (tmp_path / "list.txt").write_text("p004\n")
    with pytest.raises(InputError, match="with its suffix"):
        list_source(tmp_path / "list.txt", uri(data / "images"))
    (tmp_path / "list.txt").write_text("../p004.png\n")
    with pytest.raises(InputError, match="leaves its folder"):
        list_source(tmp_path / "list.txt", uri(data / "images"))


def test_a_bad_remote_picture_is_one_line(data: Path, tmp_path: Path) -> None:
    place = RemoteStorage.open(uri(tmp_path))
    place.write("cut.png", (data / "images" / "p000.png").read_bytes()[:60])
    for name in ("cut.png", "none.png"):
        with pytest.raises(InputError, match=name) as caught:
            read_pixels(place, name)
        assert "\n" not in str(caught.value)


# -- stores ----------------------------------------------------------------------------------------------------


def test_a_remote_run_leaves_the_same_store(tiny_engine: Engine, data: Path, tmp_path: Path) -> None:
    images = uri(data / "images")
    assert run(tiny_engine, images, data, tmp_path / "near").done == 7
    for out in (uri(tmp_path / "far"), mock()):
        place = open_storage(out)
        assert run(tiny_engine, images, data, out).done == 7
        assert maps_of(place) == maps_of(LocalStorage(tmp_path / "near"))
        assert run(tiny_engine, images, data, out).kept == 7
        store = MapStore.open(place)
        assert sorted(store.ids()) == [f"p{n:03}" for n in range(7)]
        assert store.read("p003").classes == MapStore.open(tmp_path / "near").read("p003").classes
        assert "p003" in store and "p999" not in store
        assert [name for name, _ in place.files("index")] == ["index.jsonl"], "the parts were made one"
    assert len(MapStore.open(tmp_path / "far")) == 7, "a copy is an ordinary store"


def test_remote_shards_and_going_on(tiny_engine: Engine, data: Path, tmp_path: Path) -> None:
    images, out = str(data / "images"), uri(tmp_path / "far")
    assert run(tiny_engine, images, data, out, "1/2").done == 4
    assert run(tiny_engine, images, data, out).done == 3
    place = open_storage(out)
    place.remove("p002.npz")
    place.write("p003.npz", b"cut")
    assert run(tiny_engine, images, data, out, "1/1").done == 2, "missing and cut files are made again"
    assert run(tiny_engine, images, data, tmp_path / "far").kept == 7


def test_remote_failures(tiny_engine: Engine, data: Path, tmp_path: Path) -> None:
    place = RemoteStorage.open(uri(tmp_path / "images"))
    for item in folder_source(data / "images"):
        place.write(item.path.name, item.path.read_bytes())
    place.write("p000.png", b"no picture")
    place.write("p005.png", b"")
    out = mock()
    assert run(tiny_engine, uri(tmp_path / "images"), data, out).failed == 2
    assert read_failures(out).keys() == {"p000", "p005"}
    place.write("p000.png", (data / "images" / "p000.png").read_bytes())
    place.write("p005.png", (data / "images" / "p005.png").read_bytes())
    assert run(tiny_engine, uri(tmp_path / "images"), data, out).done == 2
    assert read_failures(out) == {} and list(out.files("failures")) == []


def test_a_corrupt_remote_map_is_named(tiny_engine: Engine, data: Path) -> None:
    out = mock()
    run(tiny_engine, str(data / "images"), data, out)
    out.write("p001.npz", b"junk")
    with pytest.raises(StoreError, match=r"mock:///bucket/maps/p001\.npz: corrupt"):
        MapStore.open(out).read("p001")
    with pytest.raises(StoreError, match=r"mock:///bucket/maps/p999\.npz: missing"):
        MapStore.open(out).read("p999")


# -- the index -------------------------------------------------------------------------------------------------


def put(place: Storage, index: RemoteIndex, ids: str) -> None:
    for id in ids:
        place.write(f"{id}.npz", b"123")
        index.append(id, "fp", 3)


def names(place: Storage) -> list[str]:
    return sorted(name for name, _ in place.files("index"))


def test_parts_of_bounded_size_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_index, "PART_LINES", 3)
    place = mock()
    index = RemoteIndex(place, "", ".npz")
    put(place, index, "abcdefgh")
    assert names(place) == ["index-0.000001.jsonl", "index-0.000002.jsonl"], "two lines still wait"
    killed = RemoteIndex(place, "", ".npz")
    assert killed.ids() == list("abcdef")
    put(place, killed, "gij")  # goes on from what the killed one left
    assert names(place)[-1] == "index-0.000003.jsonl"
    killed.close()
    assert names(place) == ["index.jsonl"]
    found = RemoteIndex(place, "1-of-2", ".npz")
    assert sorted(found.ids()) == list("abcdefgij")
    put(place, found, "k")
    found.close()
    found.close()
    assert names(place) == ["index-1-of-2.jsonl", "index.jsonl"]
    assert len(RemoteIndex(place, "", ".npz").ids()) == 10


def test_a_part_is_put_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_index, "PART_SECONDS", 0.0)
    place = mock()
    put(place, RemoteIndex(place, "", ".npz"), "a")
    assert names(place) == ["index-0.000001.jsonl"]


def test_a_copy_of_a_killed_remote_store_reads_its_parts(
    tiny_engine: Engine, data: Path, tmp_path: Path
) -> None:
    run(tiny_engine, str(data / "images"), data, tmp_path)
    (tmp_path / "index.jsonl").rename(tmp_path / "index-0.000007.jsonl")
    assert len(MapStore.open(tmp_path)) == 7
    assert run(tiny_engine, str(data / "images"), data, uri(tmp_path)).kept == 7


def test_an_index_that_cannot_be_listed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    place = mock()

    def refuse(start: str = "") -> None:
        raise OSError(13, "access denied")

    monkeypatch.setattr(place, "files", refuse)
    with pytest.raises(StoreError, match="cannot be listed: access denied"):
        RemoteIndex(place, "", ".npz").get("a")


def test_summary_of_a_remote_run_names_no_secret(tiny_engine: Engine, data: Path, tmp_path: Path) -> None:
    found = json.loads(run(tiny_engine, uri(data / "images"), data, mock()).to_json())
    assert found["settings"]["source"]["root"] == uri(data / "images")
