"""Conversion between the formats: nothing lost, resumable, failures listed."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from infercam.engine.commands import register
from infercam.engine.common.errors import InfercamError, InputError, MissingExtra, StoreError
from infercam.engine.data import voc
from infercam.engine.data.class_names import read_classes
from infercam.engine.store import mapstore
from infercam.engine.store.convert import convert
from infercam.engine.store.formats.added import added_codec
from infercam.engine.store.mapstore import MapRecord, MapStore
from infercam.engine.store.open_maps import open_maps

CLASSES = ["cat", "dog", "cow"]


def fill(path: Path, count: int = 4, **options) -> MapStore:
    store = MapStore.create_or_open(path, classes=CLASSES, settings={"recipe": "released"}, **options)
    for i in range(count):
        rng = np.random.default_rng(i)
        classes = sorted(rng.permutation(3)[: 1 + i % 3].tolist())
        maps = rng.random((len(classes), 9 + i, 13), dtype=np.float32)
        store.write(
            MapRecord(f"sub/{i}", classes, [CLASSES[c] for c in classes], maps, {"scores": [1.5]}), "fp"
        )
    return store


def invoke(*arguments: object):
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize("middle", ["psa", "irn", "npz"])
def test_there_and_back_is_lossless(tmp_path: Path, middle: str) -> None:
    if middle == "irn":
        pytest.importorskip("torch")
    first = fill(tmp_path / "a")
    options = {"dtype": "uint8"}
    assert convert(first, tmp_path / "b", middle, **options).written == 4
    second = open_maps(tmp_path / "b", middle)
    assert second.info.settings["converted_from"]["format"] == "npz"
    assert second.info.settings["recipe"] == "released"
    assert convert(second, tmp_path / "c", "npz", **options).written == 4
    third = MapStore.open(tmp_path / "c")
    assert third.ids() == first.ids()
    for one, two in zip(first, third, strict=True):
        assert one.classes == two.classes and one.names == two.names
        assert np.array_equal(one.maps, two.maps)  # float32 holds uint8 / 255 exactly enough


def test_resumes_and_redoes_what_changed(tmp_path: Path) -> None:
    source = fill(tmp_path / "a")
    convert(source, tmp_path / "b", "psa")
    again = convert(source, tmp_path / "b", "psa")
    assert (again.written, again.skipped) == (0, 4)
    record = source.read("sub/2")
    record.maps *= 0
    source.write(record, "new")
    open_maps(tmp_path / "b", "psa").file("sub/3").unlink()
    third = convert(source, tmp_path / "b", "psa")
    assert (third.written, third.skipped) == (2, 2)
    assert open_maps(tmp_path / "b", "psa").read("sub/2").maps.max() == 0


def test_failures_are_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    source = fill(tmp_path / "a")
    source.file("sub/1").write_bytes(b"junk")
    report = tmp_path / "r.json"
    ran = invoke("convert", tmp_path / "a", tmp_path / "b", "--from", "npz", "--to", "psa", "--json", report)
    assert ran.exit_code == 1
    assert "1.npz: corrupt" in ran.output and "3 written" in ran.output and "1 failed" in ran.output
    found = json.loads(report.read_text())
    assert found["written"] == 3 and [f["id"] for f in found["failures"]] == ["sub/1"]
    assert open_maps(tmp_path / "b", "psa").ids() == ["sub/0", "sub/2", "sub/3"]
    fill(tmp_path / "a")
    ran = invoke("convert", tmp_path / "a", tmp_path / "b", "--from", "npz", "--to", "psa")
    assert ran.exit_code == 0 and "4 written" in ran.output  # all were written anew


def test_folder_of_another_tool(tmp_path: Path) -> None:
    src = tmp_path / "psa"
    src.mkdir()
    np.save(src / "2007_000032.npy", np.array({0: np.full((2, 3), 0.5), 14: np.ones((2, 3))}, dtype=object))
    ran = invoke("convert", src, tmp_path / "out", "--from", "psa", "--to", "npz", "--dtype", "float16")
    assert ran.exit_code == 0, ran.output
    store = MapStore.open(tmp_path / "out")
    assert store.info.classes == voc.CLASSES and store.info.dtype == "float16"
    found = store.read("2007_000032")
    assert found.names == ["aeroplane", "person"] and found.maps[0, 0, 0] == 0.5
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"n{i}" for i in range(15)))
    convert(open_maps(src, "psa", names), tmp_path / "named", "npz")
    assert MapStore.open(tmp_path / "named").read("2007_000032").names == ["n0", "n14"]
    names.write_text('["a", "b"]')
    failed = convert(open_maps(src, "psa", names), tmp_path / "few", "npz")
    assert len(failed.failures) == 1 and "beyond" in failed.failures[0][1]


def test_malicious_source_is_listed_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "PWNED"), "w")

    src = tmp_path / "psa"
    src.mkdir()
    np.save(src / "a.npy", np.array({0: Evil()}, dtype=object), allow_pickle=True)
    ran = invoke("convert", src, tmp_path / "out", "--from", "psa", "--to", "npz")
    assert ran.exit_code == 1 and "refused" in ran.output
    assert not (tmp_path / "PWNED").exists()


def test_full_disk_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(tmp_path / "a")

    real = Path.replace

    def full(self, target):
        if str(target).endswith(".npy"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match="disk full"):
        convert(source, tmp_path / "b", "psa")


def test_irn_without_torch_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "infercam.trainer.photos.irn", raising=False)
    added_codec.cache_clear()
    with pytest.raises(MissingExtra, match="torch"):
        convert(source, tmp_path / "b", "irn")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{a}", "{b}", "--from", "rar", "--to", "npz"], "--from"),
        (["{a}", "{b}", "--from", "npz", "--to", "rar"], "--to"),
        (["{a}", "{a}", "--from", "npz", "--to", "npz"], "source itself"),
        (["{a}", "{b}", "--from", "psa", "--to", "npz"], "npz maps, not psa"),
        (["{a}", "{b}", "--from", "npz", "--to", "npz", "--dtype", "int4"], "uint8, float16"),
        (["{b}/none", "{b}", "--from", "psa", "--to", "npz"], "no such folder"),
        (["{b}/none", "{b}", "--from", "npz", "--to", "npz"], "not a map store"),
        (["{a}", "{b}", "--from", "npz", "--to", "psa", "--classes", "x"], "--classes"),
        (["{empty}", "{b}", "--from", "psa", "--to", "npz"], "no psa maps"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, arguments: list[str], says: str) -> None:
    fill(tmp_path / "a", 1)
    (tmp_path / "empty").mkdir()
    places = {name: tmp_path / name for name in ("a", "b", "empty")}
    ran = invoke("convert", *(a.format(**places) for a in arguments))
    assert isinstance(ran.exception, InfercamError), ran.output
    assert says in str(ran.exception) and "\n" not in str(ran.exception)


def test_class_files(tmp_path: Path) -> None:
    file = tmp_path / "c"
    file.write_text("cat\n\n dog \n")
    assert read_classes(file) == ["cat", "dog"]
    for bad in ("", "[1]", '["a", "a"]', "[", "a\na"):
        file.write_text(bad)
        with pytest.raises(InputError, match=r"no class names|JSON list|'a' twice|not valid JSON"):
            read_classes(file)
    with pytest.raises(InputError):
        read_classes(tmp_path / "missing")


def test_memory_is_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record is let go before the next is read."""
    import weakref

    source = fill(tmp_path / "a")
    alive: list[weakref.ref] = []
    real = mapstore.MapStore.read

    def read(self, id):
        assert not [r for r in alive if r() is not None]
        record = real(self, id)
        alive.append(weakref.ref(record.maps))
        return record

    monkeypatch.setattr(mapstore.MapStore, "read", read)
    assert convert(source, tmp_path / "b", "psa").written == 4 and len(alive) == 4
