"""The map store: round trips, refusals, and what a kill, a full disk or another writer leaves behind."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infercam.engine.common.errors import MissingExtra, StoreError
from infercam.engine.store import mapstore
from infercam.engine.store.formats import added
from infercam.engine.store.formats.added import added_codec
from infercam.engine.store.image_index import ImageIndex
from infercam.engine.store.mapstore import MapRecord, MapStore, formats
from infercam.engine.store.open_maps import known_format
from infercam.engine.store.record import Codec, Decoded

CLASSES = [f"thing{i}" for i in range(21)]
SETTINGS = {"recipe": {"name": "released", "scales": [1.0, 0.5]}, "labels": "given", "bundle": "ab" * 32}


def record(id: str = "a", shape: tuple[int, int] = (5, 7), classes: tuple[int, ...] = (3, 1), seed: int = 0):
    maps = np.random.default_rng(seed).random((len(classes), *shape), dtype=np.float32)
    return MapRecord(id, list(classes), [CLASSES[c] for c in classes], maps, {"iterations": [2, 1]})


def create(path: Path, **options) -> MapStore:
    return MapStore.create_or_open(path, **{"classes": CLASSES, "settings": SETTINGS, **options})


@pytest.fixture(scope="module", params=["npz/uint8", "npz/float16", "psa/float32", "irn/float32"])
def any_store(request, tmp_path_factory) -> MapStore:
    fmt, dtype = request.param.split("/")
    if fmt == "irn":
        pytest.importorskip("torch")
    return create(tmp_path_factory.mktemp("store") / "s", fmt=fmt, dtype=dtype)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 33)),
    count=st.integers(0, 21),
    seed=st.integers(0, 2**31),
    peak=st.sampled_from([0.0, 1e-6, 0.3, 1.0]),
)
def test_round_trip(any_store: MapStore, shape, count, seed, peak) -> None:
    classes = tuple(np.random.default_rng(seed).permutation(21)[:count].tolist())
    written = record("folder/x", shape, classes, seed)
    written.maps *= peak
    size = any_store.write(written, "fp")
    assert size == any_store.file("folder/x").stat().st_size
    found = any_store.read("folder/x")
    assert found.classes == list(classes) and found.names == written.names
    assert found.maps.dtype == np.float32
    if any_store.info.format == "npz":
        assert found.meta == written.meta and found.settings == SETTINGS
    if any_store.info.format == "psa" and not count:
        return  # nothing in the file says how large the image was
    assert found.maps.shape == written.maps.shape
    error = np.abs(found.maps - written.maps)
    bound = {"uint8": 0.5 / 255 + 1e-6, "float16": 2**-11, "float32": 0}[any_store.info.dtype]
    small = written.maps < 0.5 / 255  # rounded up to 1/255, so that the support is exact
    assert (error[~small] <= bound).all() and (error[small] <= 1 / 255).all()
    assert np.array_equal(found.maps > 0, written.maps > 0)


def test_documented_reader_needs_only_numpy(tmp_path: Path) -> None:
    for dtype in ("uint8", "float16"):
        store = create(tmp_path / dtype, dtype=dtype)
        store.write(record(), "fp")
        f = np.load(store.file("a"))
        meta = json.loads(f["meta.json"])
        d = f["delta"]
        q = d.cumsum(1, dtype=d.dtype).cumsum(2, dtype=d.dtype)
        maps = q / np.float32(255) if meta["dtype"] == "uint8" else q.view(np.float16)
        assert np.array_equal(maps.astype(np.float32), store.read("a").maps)
        assert meta["classes"] == [3, 1] and meta["names"] == ["thing3", "thing1"]
        assert meta["settings"] == SETTINGS and meta["fingerprint"] == "fp"


def test_files_are_deterministic(tmp_path: Path) -> None:
    store = create(tmp_path)
    store.write(record(), "fp")
    first = store.file("a").read_bytes()
    store.write(record(), "fp")
    assert store.file("a").read_bytes() == first


def test_psa_files_are_what_psa_reads(tmp_path: Path) -> None:
    store = create(tmp_path, fmt="psa")
    written = record()
    store.write(written, "fp")
    found = np.load(store.file("a"), allow_pickle=True).item()
    assert list(found) == [3, 1] and all(type(k) is int for k in found)
    assert all(m.dtype == np.float32 and m.shape == (5, 7) for m in found.values())
    assert np.array_equal(found[3], written.maps[0])


@pytest.mark.parametrize("shape", [(1, 1), (4, 5), (375, 500), (33, 2)])
def test_irn_files_are_what_irn_reads(tmp_path: Path, shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    store = create(tmp_path, fmt="irn")
    written = record(shape=shape)
    store.write(written, "fp")
    found = np.load(store.file("a"), allow_pickle=True).item()
    assert isinstance(found["keys"], torch.Tensor) and found["keys"].dtype == torch.int64
    assert np.array_equal(np.pad(found["keys"] + 1, (1, 0), mode="constant"), [0, 4, 2])  # as irn does
    size = ((shape[0] - 1) // 4 + 1, (shape[1] - 1) // 4 + 1)
    assert isinstance(found["cam"], torch.Tensor) and found["cam"].shape == (2, *size)
    sampled = torch.nn.functional.interpolate(
        torch.from_numpy(written.maps)[None], size, mode="bilinear", align_corners=False
    )[0]
    assert torch.allclose(found["cam"], sampled, atol=1e-4)  # white noise: coordinates round
    assert found["high_res"].dtype == np.float32 and np.array_equal(found["high_res"], written.maps)


def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "infercam.trainer.photos.irn", raising=False)
    added_codec.cache_clear()


def test_irn_without_torch_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create(tmp_path, fmt="irn")
    without_torch(monkeypatch)
    with pytest.raises(MissingExtra, match=r"infercam\[train\]"):
        store.write(record(), "fp")
    assert store.ids() == []


class RawCodec(Codec):
    """A made-up format: the number of classes and the size, then the maps."""

    suffix = ".raw"
    dtypes = ("float32",)
    pickled = False

    def encode(self, record: MapRecord, dtype: str, envelope: dict[str, Any]) -> bytes:
        head = np.array([*record.maps.shape, *record.classes], np.int32)
        return np.int32(len(head)).tobytes() + head.tobytes() + record.maps.astype(np.float32).tobytes()

    def decode(self, file: Path) -> Decoded:
        data = file.read_bytes()
        length = int(np.frombuffer(data, np.int32, 1)[0])
        head = np.frombuffer(data, np.int32, length, 4)
        maps = np.frombuffer(data, np.float32, offset=4 + 4 * length).reshape(head[:3])
        return Decoded(classes=head[3:].tolist(), maps=maps)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Entry points as installed packages would bring them."""

    def install(**named: str) -> None:
        points = [EntryPoint(name, value, added.GROUP) for name, value in named.items()]
        monkeypatch.setattr(added, "entry_points", lambda **by: EntryPoints(points).select(**by))
        added_codec.cache_clear()

    yield install
    added_codec.cache_clear()


def test_a_format_of_another_package(tmp_path: Path, packages: Callable[..., None]) -> None:
    packages(raw=f"{__name__}:RawCodec", irn="nobody.here:Codec")
    assert formats() == ("npz", "psa", "irn", "raw") and known_format("raw", "--to") == "raw"
    store = create(tmp_path, fmt="raw", dtype="float32")
    written = record()
    store.write(written, "fp")
    assert store.file("a").suffix == ".raw"
    found = MapStore.open(tmp_path).read("a")
    assert found.classes == written.classes and np.array_equal(found.maps, written.maps)
    packages()
    with pytest.raises(StoreError, match=r"'raw' is not one of npz, psa, irn"):
        MapStore.open(tmp_path)


def test_a_package_that_brings_no_codec(tmp_path: Path, packages: Callable[..., None]) -> None:
    packages(odd="builtins:dict", lost="nobody.here:Codec")
    with pytest.raises(StoreError, match="is no Codec"):
        create(tmp_path, fmt="odd")
    with pytest.raises(StoreError, match="'lost' cannot be loaded"):
        create(tmp_path, fmt="lost")


def test_irn_is_read_but_not_written_without_its_package(
    tmp_path: Path, packages: Callable[..., None]
) -> None:
    packages()
    store = create(tmp_path, fmt="irn")
    with pytest.raises(MissingExtra, match=r"infercam\[train\]"):
        store.write(record(), "fp")


def test_done_needs_the_same_fingerprint_and_the_whole_file(tmp_path: Path) -> None:
    store = create(tmp_path)
    assert not store.done("a", "fp")
    store.write(record(), "fp")
    for opened in (store, MapStore.open(tmp_path)):
        assert opened.done("a", "fp") and not opened.done("a", "other") and not opened.done("b", "fp")
    store.write(record(), "new")
    assert store.done("a", "new") and not store.done("a", "fp")
    assert not MapStore.open(tmp_path).done("a", "fp")
    store.file("a").write_bytes(b"")  # what a power cut may leave
    assert not store.done("a", "new")
    store.file("a").unlink()
    assert not store.done("a", "new") and store.ids() == []


def test_torn_index_lines(tmp_path: Path) -> None:
    store = create(tmp_path)
    for id in "abc":
        store.write(record(id), "fp")
    index = tmp_path / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-9])  # c's line is torn
    again = MapStore.open(tmp_path)
    assert again.done("b", "fp") and not again.done("c", "fp") and again.ids() == ["a", "b"]
    again.write(record("d"), "fp")  # ends the torn line first
    assert MapStore.open(tmp_path).ids() == ["a", "b", "d"]
    with index.open("ab") as f:
        f.write(b'null\n[1]\n{"id": "x"}\n\xff\xfe\n')
    assert MapStore.open(tmp_path).ids() == ["a", "b", "d"]


def test_large_index_is_fast_and_small(tmp_path: Path) -> None:
    store = create(tmp_path)
    with (tmp_path / "index.jsonl").open("w") as f:
        for i in range(100_000):
            f.write(f'{{"id":"2007_{i:06d}","fingerprint":"{"a" * 64}","bytes":30000}}\n')
    import tracemalloc

    tracemalloc.start()
    start = time.perf_counter()
    assert not store.done("2007_000000", "b" * 64)
    seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6
    assert seconds < 60  # 0.5 s alone; a shared machine and tracemalloc are slower


def test_settings_may_change_format_dtype_and_classes_may_not(tmp_path: Path) -> None:
    store = create(tmp_path)
    store.write(record(), "fp")
    created = store.info.created
    again = create(tmp_path, settings={"recipe": "fast"})
    assert again.info.settings == {"recipe": "fast"} and again.info.created == created
    assert MapStore.open(tmp_path).info.settings == {"recipe": "fast"}
    assert again.read("a").settings == SETTINGS  # what made this one
    for options in ({"fmt": "psa"}, {"dtype": "float16"}, {"classes": ["x"]}):
        with pytest.raises(StoreError, match="another folder"):
            create(tmp_path, **options)
    for options in ({"fmt": "zip"}, {"dtype": "float64"}, {"classes": []}, {"settings": {"a": object()}}):
        with pytest.raises(StoreError):
            create(tmp_path / "new", **options)
    assert not (tmp_path / "new" / "store.json").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "not a map store"),
        ('{"schema_version": 99}', "upgrade"),
        ('{"schema_version": 1, "format": "rar", "dtype": "uint8", "classes": ["a"]}', "format"),
        ('{"schema_version": 1, "format": "npz", "dtype": "uint8", "classes": ["a"], "x": 1}', "x"),
    ],
)
def test_bad_store_json(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(StoreError, match=says) as caught:
        MapStore.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a map store"):
        MapStore.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        MapStore.open(tmp_path / "file")
    with pytest.raises(StoreError, match="file"):
        create(tmp_path / "file" / "below")


@pytest.mark.parametrize("id", ["../a", "a/../b", "/a", "", "a//b", "./a", "a\\b", "a\0b", ".tmp-a", "a/"])
def test_ids_that_leave_the_store(tmp_path: Path, id: str) -> None:
    store = create(tmp_path / "s")
    with pytest.raises(StoreError):
        store.write(record(id), "fp")
    with pytest.raises(StoreError):
        store.read(id)
    assert not store.done(id, "fp")
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == ["store.json"]


def test_records_that_do_not_fit(tmp_path: Path) -> None:
    store = create(tmp_path)
    good = record()
    bad = {
        "nan": MapRecord("a", [3], ["thing3"], np.full((1, 2, 2), np.nan, np.float32)),
        "high": MapRecord("a", [3], ["thing3"], np.full((1, 2, 2), 1.5, np.float32)),
        "low": MapRecord("a", [3], ["thing3"], np.full((1, 2, 2), -0.1, np.float32)),
        "count": MapRecord("a", [3], ["thing3"], good.maps),
        "flat": MapRecord("a", [3], ["thing3"], good.maps[0]),
        "twice": MapRecord("a", [3, 3], ["thing3", "thing3"], good.maps),
        "beyond": MapRecord("a", [21], ["x"], good.maps[:1]),
        "named": MapRecord("a", [3], ["thing4"], good.maps[:1]),
        "meta": MapRecord("a", [3], ["thing3"], good.maps[:1], {"x": np.float32(1)}),
    }
    for name, wrong in bad.items():
        with pytest.raises(StoreError, match=r"^a: "):
            store.write(wrong, "fp")
        assert not store.file("a").exists(), name
    good.maps[0, 0, 0] = 1 + 1e-6  # rounding, not a fault
    store.write(good, "fp")


def _flip(raw: bytes) -> bytes:
    at = len(raw) // 2
    return raw[:at] + bytes([raw[at] ^ 0x55]) + raw[at + 1 :]


@pytest.mark.parametrize("damage", [_flip, lambda b: b[:-20], lambda b: b"", lambda b: b"junk" * 50])
def test_corrupt_file_is_named(tmp_path: Path, damage) -> None:
    store = create(tmp_path)
    store.write(record(shape=(40, 40)), "fp")
    file = store.file("a")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(StoreError, match=r"a\.npz: .*run again") as caught:
        store.read("a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2, 5, 8]},
        {"classes": [3]},
        {"dtype": "float16"},
        {"schema_version": 99},
        {"classes": None},
        {"meta": 3},
    ],
)
def test_contradictory_metadata_is_refused(tmp_path: Path, change: dict) -> None:
    store = create(tmp_path)
    store.write(record(), "fp")
    with np.load(store.file("a")) as f:
        meta, delta = json.loads(f["meta.json"]), f["delta"]
    with zipfile.ZipFile(store.file("a"), "w") as z:
        z.writestr("meta.json", json.dumps({**meta, **change}))
        with z.open("delta.npy", "w") as f:
            np.lib.format.write_array(f, delta)
    with pytest.raises(StoreError, match=r"a\.npz"):
        store.read("a")


def test_no_pickle_in_an_npz_is_followed(tmp_path: Path) -> None:
    store = create(tmp_path)
    store.write(record(), "fp")
    np.savez(store.file("a"), delta=np.array([{"x": 1}], dtype=object), **{"meta.json": np.zeros(1)})
    with pytest.raises(StoreError, match="corrupt"):
        store.read("a")


def test_pickled_formats_are_read_only_by_name(tmp_path: Path) -> None:
    create(tmp_path, fmt="psa").write(record(), "fp")
    with pytest.raises(StoreError, match="--format psa"):
        MapStore.open(tmp_path)
    with pytest.raises(StoreError, match="not irn"):
        MapStore.open(tmp_path, "irn")
    assert MapStore.open(tmp_path, "psa").read("a").classes == [3, 1]


def test_malicious_psa_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/PWNED",)

    for fmt in ("psa", "irn"):
        store = create(tmp_path / fmt, fmt=fmt)
        np.save(store.file("a"), np.array({3: Evil()}, dtype=object), allow_pickle=True)
        with pytest.raises(StoreError, match=r"a\.npy: refused"):
            store.read("a")
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    "content",
    [
        {3: [1, 2]},
        {"cat": np.zeros((2, 2))},
        {-1: np.zeros((2, 2))},
        {99: np.zeros((2, 2))},
        {1: np.zeros((2, 2)), 2: np.zeros((3, 2))},
        {1: np.zeros(3)},
        {1: np.zeros((2, 2), int)},
    ],
)
def test_dictionaries_that_are_no_maps(tmp_path: Path, content: dict) -> None:
    for fmt in ("psa", "irn"):
        store = create(tmp_path / fmt, fmt=fmt)
        np.save(store.file("a"), np.array(content, dtype=object), allow_pickle=True)
        with pytest.raises(StoreError, match=r"a\.npy: "):
            store.read("a")


def test_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for id in ("b", "sub/a"):
        np.save(tmp_path / f"{id}.npy", np.array({0: np.ones((2, 3), np.float64)}, dtype=object))
    (tmp_path / ".tmp-x.npy").write_bytes(b"")
    store = MapStore.open_foreign(tmp_path, "psa", ["cat"])
    assert store.ids() == ["b", "sub/a"] and "b" in store and "c" not in store
    assert [r.names for r in store] == [["cat"], ["cat"]]
    assert not store.done("b", "fp")
    with pytest.raises(StoreError, match="only reads"):
        store.write(MapRecord("c", [0], ["cat"], np.ones((1, 2, 3), np.float32)), "fp")
    with pytest.raises(StoreError, match="no such folder"):
        MapStore.open_foreign(tmp_path / "nowhere", "psa", ["cat"])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    store = create(tmp_path)
    store.write(record(), "old")
    before = store.file("a").read_bytes()

    def fail(self, target):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(StoreError, match=r"a\.npz: ") as caught:
            store.write(record(seed=1), "new")
    assert ("disk full" in str(caught.value)) == (code != errno.EIO)
    assert store.file("a").read_bytes() == before and store.done("a", "old")
    assert not list(tmp_path.glob(".tmp-*"))


def test_full_disk_tearing_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create(tmp_path)
    store.write(record("a"), "fp")
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(mapstore.os, "write", lambda fd, data: real(fd, data[:11]))
        with pytest.raises(StoreError, match=r"index\.jsonl: disk full"):
            store.write(record("b"), "fp")
    assert not store.done("b", "fp")
    store.write(record("c"), "fp")
    assert MapStore.open(tmp_path).ids() == ["a", "c"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_index_on_a_really_full_device(tmp_path: Path) -> None:
    (tmp_path / "index.jsonl").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="disk full"):
        ImageIndex(tmp_path / "index.jsonl").append("a", "fp", 1)
    with pytest.raises(StoreError, match="not a regular file"):  # reading it would never end
        create(tmp_path).write(record(), "fp")


def test_sweeps_only_what_has_lost_its_writer(tmp_path: Path) -> None:
    create(tmp_path).write(record("sub/a"), "fp")
    old, live = tmp_path / "sub" / ".tmp-old", tmp_path / ".tmp-live"
    for file in (old, live):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    create(tmp_path)
    assert not old.exists() and live.exists()


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = create(tmp_path)

    def work(n: int) -> None:
        for i in range(20):
            store.write(record(f"t{n}/{i}", seed=n * 100 + i), "fp")
            store.write(record("same", seed=n * 100 + i), f"fp{n}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    again = MapStore.open(tmp_path)
    assert len(again) == 81
    for n in range(4):
        for i in range(20):
            written = record(f"t{n}/{i}", seed=n * 100 + i)
            assert np.abs(again.read(written.id).maps - written.maps).max() <= 1 / 255
    assert sum(again.done("same", f"fp{n}") for n in range(4)) == 1
    again.read("same")


WRITER = """
import sys
import numpy as np
from infercam.engine.store.mapstore import MapRecord, MapStore
path, name = sys.argv[1:]
store = MapStore.create_or_open(path, classes=["x"], settings={})
rng = np.random.default_rng(0)
print("ready", flush=True)
i = 0
while True:
    store.write(MapRecord(f"{name}/{i}", [0], ["x"], rng.random((1, 300, 300), dtype=np.float32)), "fp")
    i += 1
"""


def test_kill_at_any_time_leaves_no_half_file(tmp_path: Path) -> None:
    """Two writers of one store at once, killed with SIGKILL in mid-write, three times over."""
    for attempt in range(3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), f"w{attempt}{n}"], stdout=subprocess.PIPE
            )
            for n in range(2)
        ]
        for w in writers:
            assert w.stdout is not None and w.stdout.readline() == b"ready\n"
        time.sleep(0.3 + 0.07 * attempt)
        for w in writers:
            w.send_signal(signal.SIGKILL)
            w.wait()
            w.stdout.close()
    store = MapStore.open(tmp_path)
    ids = store.ids()
    assert len(ids) > 6
    assert all(store.done(id, "fp") for id in ids)
    for file in tmp_path.rglob("*.npz"):  # also those whose index line was not reached
        assert store.read(file.relative_to(tmp_path).with_suffix("").as_posix()).maps.shape == (1, 300, 300)
    files = len(list(tmp_path.rglob("*.npz")))
    assert files - len(ids) <= 6  # one per killed writer at most
    assert mapstore.sweep_stale(tmp_path, older_than=-1) <= 6


def test_store_travels_to_other_processes(tmp_path: Path) -> None:
    store = create(tmp_path)
    store.write(record(), "fp")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.info == store.info and copy.done("a", "fp") and copy.read("a").classes == [3, 1]


def smooth_maps(shape: tuple[int, int], count: int, seed: int) -> np.ndarray:
    """What a CAM looks like: a coarse random grid, ReLU, bilinearly upsampled, peak 1."""
    import cv2

    rng = np.random.default_rng(seed)
    grids = np.maximum(rng.normal(size=(count, shape[0] // 16, shape[1] // 16)), 0).astype(np.float32)
    maps = np.stack([cv2.resize(g, shape[::-1], interpolation=cv2.INTER_LINEAR) for g in grids])
    return maps / (maps.max(axis=(1, 2), keepdims=True) + 1e-5)


def test_size_of_voc_sized_maps(tmp_path: Path) -> None:
    """Under 60 KB an image on average; noise-grid CAMs are rougher than real ones (28 KB on VOC val)."""
    store = create(tmp_path)
    sizes = [
        store.write(MapRecord(f"{i}", [0], ["thing0"], smooth_maps((375, 500), 1, i)), "fp") for i in range(5)
    ]
    assert np.mean(sizes) < 60_000
