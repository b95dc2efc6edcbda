"""Corrupt and hostile files of every other kind that is read: bundles, graphs, plans, stores, maps, labels, masks.

Each is opened in a process of its own kind (victim.py): it must be accepted with valid content, or refused with
one line; never a traceback, a crash, a hang or memory without bound, and nothing that it names may be run.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infercam.engine.bundle import MANIFEST, file_entry
from infercam.engine.store.mapstore import INDEX, INFO
from tests.robustness.bad_graphs import hostile_graphs
from tests.robustness.bad_pictures import chunk, png
from tests.robustness.mutate import Rng, damaged, damaged_json
from tests.robustness.outcome import Outcome, Say, Size
from tests.robustness.rig import BUNDLE, CLASS_NAMES, Rig
from tests.robustness.victim import Victim

SECONDS = 20.0
PEAK_MB = 900.0
"""A graph is loaded and run, a label file of 1 GiB may be read: less would be no bound, more no proof."""

Case = tuple[str, str, dict[str, Any]]
"""What it is, the probe that opens it, and the probe's arguments. What ends in '!' must be refused, what ends in '?'
must be accepted (it is undamaged: else every refusal would prove nothing)."""


class Marker:
    """Unpickling it runs a command that leaves a file: that must never happen."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._file}",)


def corrupt_files(rig: Rig, size: Size, say: Say) -> list[Outcome]:
    """One row for each kind."""
    folder = rig.folder / "files"
    folder.mkdir(exist_ok=True)
    marker = folder / "was-run"
    outcomes = []
    with Victim(rig.folder / "victim.log") as victim:
        for name, make in _KINDS.items():
            outcome = Outcome(f"corrupt {name}")
            _try(outcome, victim, make(rig, folder / name.replace(" ", "-"), size.files, marker), say)
            if marker.exists():
                outcome.lose("a file was made to run a command")
                marker.unlink()
            outcomes.append(outcome)
    return outcomes


def _try(outcome: Outcome, victim: Victim, cases: Iterator[Case], say: Say) -> None:
    verdicts: Counter[str] = Counter()
    slowest = highest = 0.0
    for what, probe, request in cases:
        verdict = victim.ask(probe, SECONDS * 2, **request)
        verdicts[verdict.kind] += 1
        outcome.inputs += 1
        slowest, highest = max(slowest, verdict.seconds), max(highest, verdict.peak_mb)
        if verdict.kind not in ("accepted", "refused"):
            outcome.lose(f"{what}: {verdict.kind}: {verdict.text}")
        elif verdict.seconds > SECONDS or verdict.peak_mb > PEAK_MB:
            outcome.lose(f"{what}: {verdict.kind} in {verdict.seconds:.1f} s with {verdict.peak_mb:.0f} MB")
        elif what.endswith("!") and verdict.kind != "refused":
            outcome.lose(f"{what}: {verdict.kind}, should be refused")
        elif what.endswith("?") and verdict.kind != "accepted":
            outcome.lose(f"{what}: {verdict.kind}, should be accepted: {verdict.text}")
        say(f"{outcome.name}: {outcome.inputs}")
    outcome.figures = {**verdicts, "slowest_seconds": round(slowest, 2), "highest_mb": round(highest)}


# -- bundles -------------------------------------------------------------------------------------------------


def _manifests(rig: Rig, folder: Path, count: int, marker: Path) -> Iterator[Case]:
    content = json.loads((BUNDLE / MANIFEST).read_text())
    shutil.copytree(BUNDLE, folder)
    yield "manifest?", "bundle", {"path": str(folder)}
    for number in range(count):
        (folder / MANIFEST).write_bytes(damaged_json(rig.rng, content))
        yield f"manifest {number}", "bundle", {"path": str(folder)}
    outside = folder.parent / "outside.onnx"
    shutil.copy(BUNDLE / "response.onnx", outside)
    (folder / "link.onnx").symlink_to(outside)
    for name in ("../outside.onnx", str(outside), "link.onnx", "sub/../../outside.onnx", "..\\outside.onnx"):
        there = {name: file_entry(outside).model_dump()}
        changed = {**content, "graphs": {"fp32": name}, "files": there}
        (folder / MANIFEST).write_text(json.dumps(changed))
        yield f"manifest with the graph {name}!", "bundle", {"path": str(folder)}
    yield from _not_regular(folder / MANIFEST, "bundle", {"path": str(folder)})


def _graphs(rig: Rig, folder: Path, count: int, marker: Path) -> Iterator[Case]:
    """Damaged graphs, their hash in the manifest: what the hash cannot find."""
    content = json.loads((BUNDLE / MANIFEST).read_text())
    good = (BUNDLE / "response.onnx").read_bytes()
    shutil.copytree(BUNDLE, folder)
    (folder.parent / "secret.bin").write_bytes(b"\0" * 100_000)
    (folder / "beside.bin").write_bytes(b"\0" * 100_000)
    crafted = [(f"graph {name}!", data) for name, data in hostile_graphs(good, folder.parent / "secret.bin")]
    for what, data in [
        ("graph?", good),
        *((f"graph {i}", damaged(rig.rng, good)) for i in range(count)),
        *crafted,
    ]:
        (folder / "response.onnx").write_bytes(data)
        files = {"response.onnx": file_entry(folder / "response.onnx").model_dump()}
        (folder / MANIFEST).write_text(json.dumps({**content, "files": files}))
        yield what, "bundle", {"path": str(folder)}


def _sources(rig: Rig, folder: Path, count: int, marker: Path) -> Iterator[Case]:
    """The same files as input of `infercam export`."""
    # names of its own: to be exported, a graph must not look as if it had been
    good = (BUNDLE / "response.onnx").read_bytes().replace(b"infercam/response", b"classifier/output")
    folder.mkdir()
    (folder.parent / "secret.bin").write_bytes(b"\0" * 100_000)
    crafted = [(f"source {name}!", data) for name, data in hostile_graphs(good, folder.parent / "secret.bin")]
    half = count // 3  # each takes some seconds
    for what, data in [
        ("source?", good),
        *((f"source {i}", damaged(rig.rng, good)) for i in range(half)),
        *crafted,
    ]:
        (folder / "source.onnx").write_bytes(data)
        yield what, "export", {"path": str(folder / "source.onnx"), "out": str(folder / "out")}


def _plans(rig: Rig, folder: Path, count: int, marker: Path) -> Iterator[Case]:
    plan = folder / "0123"
    plan.mkdir(parents=True)
    (plan / "plan.engine").write_bytes(b"a plan" * 100)
    record = {
        **{"precision": "fp32", "input_type": "float32", "bundle": "b", "bundle_hash": "0" * 64},
        **{"onnx_sha256": "1" * 64, "structure": None, "options": {}, "tensorrt": "10.16.0", "gpu": "GPU"},
        "profiles": [{"smallest": [1, 32, 32], "best": [4, 64, 64], "largest": [8, 512, 512]}],
        "compute_capability": [8, 0],
        "plan": file_entry(plan / "plan.engine").model_dump(),
        "schema_version": 1,
    }
    request = {"path": str(plan), "bundle": str(BUNDLE)}
    (plan / "plan.json").write_text(json.dumps(record))
    yield "plan?", "plan", request
    for number in range(count):
        (plan / "plan.json").write_bytes(damaged_json(rig.rng, record))
        yield f"plan.json {number}", "plan", request
    (plan / "plan.json").write_text(json.dumps(record))
    (plan / "plan.engine").write_bytes(b"A plan" * 100)
    yield "plan of other bytes!", "plan", request
    yield from _not_regular(plan / "plan.json", "plan", request)


# -- stores --------------------------------------------------------------------------------------------------


def _stores(rig: Rig, folder: Path, count: int, marker: Path) -> Iterator[Case]:
    """store.json and index.jsonl, in turn."""
    info, index = _small_store(rig, folder)
    request = {"path": str(folder)}
    yield "store?", "store", request
    for number in range(count):
        if number % 2:
            (folder / INFO).write_bytes(damaged_json(rig.rng, json.loads(info)))
        else:
            lines = [json.loads(line) for line in index.splitlines()]
            which = int(rig.rng.integers(len(lines)))
            hurt = [json.dumps(x).encode() for x in lines]
            hurt[which] = damaged_json(rig.rng, lines[which])
            (folder / INDEX).write_bytes(b"\n".join(hurt) + b"\n")
        yield f"store {number}", "store", request
        (folder / INFO).write_bytes(info)
        (folder / INDEX).write_bytes(index)
    for id in ("../outside", "/etc/passwd", "a/../../outside", "..\\outside", "a\0b"):
        line = json.dumps({"id": id, "fingerprint": "x", "bytes": 1}).encode()
        (folder / INDEX).write_bytes(index + line + b"\n")
        yield f"store with the id {id!r}!", "store", request
    (folder / INDEX).write_bytes(index)
    yield from _not_regular(folder / INDEX, "store", request)
    (folder / INDEX).write_bytes(index)
    yield from _not_regular(folder / INFO, "store", request)


def _maps(rig: Rig, folder: Path, count: int, marker: Path) -> Iterator[Case]:
    _small_store(rig, folder)
    request = {"path": str(folder)}
    file = next(iter(sorted(folder.glob("*.npz"))))
    good = file.read_bytes()
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        meta, delta = json.loads(archive.read("meta.json")), archive.read("delta.npy")
    for number in range(count):
        if number % 2:
            file.write_bytes(damaged(rig.rng, good))
        else:
            file.write_bytes(_npz(damaged_json(rig.rng, meta), damaged(rig.rng, delta)))
        yield f"map {number}", "store", request
    for what, data in _crafted_maps(rig.rng, meta, delta, marker):
        file.write_bytes(data)
        yield f"map {what}!", "store", request


def _crafted_maps(rng: Rng, meta: dict[str, Any], delta: bytes, marker: Path) -> Iterator[tuple[str, bytes]]:
    plain = json.dumps(meta).encode()
    pickled = io.BytesIO()
    np.save(pickled, np.array([Marker(marker)], dtype=object), allow_pickle=True)
    yield "with a pickled array", _npz(plain, pickled.getvalue())
    yield "that is a pickle", pickle.dumps(Marker(marker))
    yield "that is a pickled array", pickled.getvalue()
    yield "that unpacks to 1.5 GiB", _npz(plain, delta, pad=3 << 29)
    huge = {**meta, "shape": [1, 1_000_000, 1_000_000]}
    yield "of a terapixel", _npz(json.dumps(huge).encode(), delta)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 4000000000, 1), }"
    yield "whose array says 4 GB", _npz(plain, b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
    yield "of class -1", _npz(json.dumps({**meta, "classes": [-1] * len(meta["classes"])}).encode(), delta)
    yield "of a class too far", _npz(json.dumps({**meta, "classes": [10**9]}).encode(), delta)
    size = meta["shape"]
    bits = np.full(size, np.float16(np.nan), np.float16).view(np.uint16)
    array = io.BytesIO()
    np.save(array, np.diff(np.diff(bits, axis=1, prepend=np.uint16(0)), axis=2, prepend=np.uint16(0)))
    yield "of NaN", _npz(json.dumps({**meta, "dtype": "float16"}).encode(), array.getvalue())
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"packed by method {method}", _npz(plain, delta, method=method)
    yield "with names only outside", _npz(plain, delta, names=("../meta.json", "/delta.npy"))


def _npz(
    meta: bytes,
    delta: bytes,
    method: int = zipfile.ZIP_DEFLATED,
    names: tuple[str, str] = ("meta.json", "delta.npy"),
    pad: int = 0,
) -> bytes:
    """A map file; `pad`: so many zeros behind its array, which deflate well."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method, compresslevel=1) as archive:
        archive.writestr(names[0], meta)
        with archive.open(names[1], "w", force_zip64=True) as f:
            f.write(delta)
            for _ in range(pad >> 24):
                f.write(bytes(1 << 24))
    return out.getvalue()


def _small_store(rig: Rig, folder: Path) -> tuple[bytes, bytes]:
    """Three images of the undisturbed run; returns store.json and index.jsonl."""
    reference = rig.reference[0]
    folder.mkdir()
    index = b"".join((reference / INDEX).read_bytes().splitlines(keepends=True)[:3])
    for line in index.splitlines():
        shutil.copy(reference / f"{json.loads(line)['id']}.npz", folder)
    (folder / INDEX).write_bytes(index)
    shutil.copy(reference / INFO, folder)
    return (folder / INFO).read_bytes(), index


def _foreign(rig: Rig, folder: Path, count: int, marker: Path) -> Iterator[Case]:
    """Maps of psa, which are pickles: read, where the format is named, by an unpickler of plain arrays."""
    info, index = _small_store(rig, folder)
    (folder / INFO).write_text(json.dumps({**json.loads(info), "format": "psa", "dtype": "float32"}))
    line = json.loads(index.splitlines()[0])
    (folder / INDEX).write_text(json.dumps(line) + "\n")
    file = folder / f"{line['id']}.npy"
    good = _pickled({0: np.random.default_rng(0).random((20, 30), np.float32)})
    request = {"path": str(folder), "fmt": "psa"}
    file.write_bytes(good)
    yield "psa map?", "store", request
    for number in range(count):
        file.write_bytes(damaged(rig.rng, good))
        yield f"psa map {number}", "store", request
    crafted: dict[str, Any] = {"that runs a command": Marker(marker), "of NaN": {0: np.full((2, 2), np.nan)}}
    crafted["with a class that runs a command"] = {0: Marker(marker)}
    for what, value in crafted.items():
        file.write_bytes(_pickled(value))
        yield f"psa map {what}!", "store", request
    for what, body in {"that doubles": _doubling(), "of huge memo": b"\x80\4r\xff\xff\xff\x7f."}.items():
        file.write_bytes(good[: good.index(b"\n") + 1] + body)
        yield f"psa map {what}!", "store", request
    file.write_bytes(good)
    yield "psa maps whose format is not named!", "store", {"path": str(folder)}


def _pickled(value: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(value, dtype=object), allow_pickle=True)
    return out.getvalue()


def _doubling() -> bytes:
    """A list of two of a list of two of …: 2^60 items in 200 bytes."""
    value: list[Any] = []
    for _ in range(60):
        value = [value, value]
    return pickle.dumps({0: value}, 2)


# -- labels and masks ----------------------------------------------------------------------------------------


def _labels(rig: Rig, folder: Path, count: int, marker: Path) -> Iterator[Case]:
    folder.mkdir()
    ids = [f"{i:05d}" for i in range(5)]
    table = {"classes": list(CLASS_NAMES), "labels": {id: [CLASS_NAMES[i]] for i, id in enumerate(ids)}}
    rows = "image,labels\n" + "".join(f"{id}.png,{CLASS_NAMES[i]};1\n" for i, id in enumerate(ids))
    one_hot = _pickled({id: np.eye(8, dtype=np.float32)[i] for i, id in enumerate(ids)})
    makers: list[tuple[str, Callable[[], bytes]]] = [
        (".json", lambda: damaged_json(rig.rng, table)),
        (".csv", lambda: damaged(rig.rng, rows.encode())),
        (".npy", lambda: damaged(rig.rng, one_hot)),
    ]
    for suffix, data in ((".json", json.dumps(table).encode()), (".csv", rows.encode()), (".npy", one_hot)):
        (folder / f"labels{suffix}").write_bytes(data)
        yield f"labels{suffix}?", "labels", _labels_request(folder / f"labels{suffix}", ids)
    for number in range(count):
        suffix, make = makers[number % 3]
        file = folder / f"labels{suffix}"
        file.write_bytes(make())
        yield f"labels{suffix} {number}", "labels", _labels_request(file, ids)
    crafted = {
        **{"runs.npy": _pickled(Marker(marker)), "runs2.npy": _pickled({"00000": Marker(marker)})},
        **{"wide.csv": b"image," + b"x," * 300_000, "quote.csv": b'image,labels\na,"' + b"x" * 500_000},
        "deep.json": b'{"labels": ' + b"[" * 200_000,
        "digits.json": b'{"00000": [' + b"9" * 100_000 + b"]}",
        "long.json": json.dumps({"00000": ["x" * 10_000_000]}).encode(),
    }
    for name, data in crafted.items():
        (folder / name).write_bytes(data)
        yield f"labels {name}!", "labels", _labels_request(folder / name, ids)
    yield from _not_regular(folder / "labels.json", "labels", _labels_request(folder / "labels.json", ids))


def _labels_request(file: Path, ids: list[str]) -> dict[str, Any]:
    return {"path": str(file), "classes": list(CLASS_NAMES), "ids": ids}


def _annotations(rig: Rig, folder: Path, count: int, marker: Path) -> Iterator[Case]:
    """VOC XML: damaged, with entities, with links that lead out."""
    folder.mkdir()
    request = _labels_request(folder, ["a"])
    good = _named(CLASS_NAMES[0]).encode()
    (folder / "a.xml").write_bytes(good)
    yield "annotation?", "labels", request
    for number in range(count):
        (folder / "a.xml").write_bytes(damaged(rig.rng, good))
        yield f"annotation {number}", "labels", request
    nested = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(12))
    crafted = {
        "entity bomb": f'<!DOCTYPE a [<!ENTITY a0 "x">{nested}]>{_named("&a12;")}',
        "external entity": f'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>{_named("&x;")}',
        "external definition": '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x"><annotation/>',
        "lines without end": _named("\n" * 8_000_000),
        "depth without end": "<annotation>" + "<a>" * 1_000_000,
    }
    for what, text in crafted.items():
        (folder / "a.xml").write_text(text)
        yield f"annotation {what}!", "labels", request
    yield "annotation of an id that leaves the folder!", "labels", {**request, "ids": ["../../a"]}
    yield from _not_regular(folder / "a.xml", "labels", request)


def _named(name: str) -> str:
    return f"<annotation><object><name>{name}</name></object></annotation>"


def _masks(rig: Rig, folder: Path, count: int, marker: Path) -> Iterator[Case]:
    folder.mkdir()
    file = folder / "mask.png"
    out = io.BytesIO()
    Image.fromarray(rig.rng.integers(0, 9, (40, 50), np.uint8)).save(out, "PNG")
    file.write_bytes(out.getvalue())
    yield "mask?", "mask", {"path": str(file)}
    for number in range(count):
        file.write_bytes(damaged(rig.rng, out.getvalue()))
        yield f"mask {number}", "mask", {"path": str(file)}
    crafted = {
        "of 60 000 pixels a side": png(60_000, 60_000, zlib.compress(b"\0" * 9)),
        "in colour": png(10, 10, zlib.compress(b"\0" * 310)),
        "with a text bomb": png(
            10, 10, b"", before=chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * (64 << 20)))
        ),
    }
    for what, data in crafted.items():
        file.write_bytes(data)
        yield f"mask {what}!", "mask", {"path": str(file)}
    yield from _not_regular(file, "mask", {"path": str(file)})


def _lists(rig: Rig, folder: Path, count: int, marker: Path) -> Iterator[Case]:
    """Lists of images."""
    folder.mkdir()
    file = folder / "list.txt"
    request = {"path": str(file), "root": str(rig.images)}
    good = "".join(f"{p.name}\n" for p in sorted(rig.images.iterdir())[:20]).encode()
    file.write_bytes(good)
    yield "list?", "list", request
    for number in range(count):
        file.write_bytes(damaged(rig.rng, good))
        yield f"list {number}", "list", request
    for line in ("../../etc/passwd.png", "a/../../b.png", "a\0b.png", "..\\b.png", "/JPEGImages/../../x.jpg"):
        file.write_text(f"{line}\n")
        yield f"list with {line!r}!", "list", request
    yield from _not_regular(file, "list", request)


def _not_regular(file: Path, probe: str, request: dict[str, Any]) -> Iterator[Case]:
    """In the file's place a pipe, which would wait for ever, and a folder."""
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    yield f"{file.name} is a pipe!", probe, request
    file.unlink()
    file.mkdir()
    yield f"{file.name} is a folder!", probe, request
    file.rmdir()


_KINDS: dict[str, Callable[[Rig, Path, int, Path], Iterator[Case]]] = {
    "manifests": _manifests,
    "graphs": _graphs,
    "sources of an export": _sources,
    "plans": _plans,
    "stores and indexes": _stores,
    "map files": _maps,
    "pickled map files": _foreign,
    "label files": _labels,
    "annotations": _annotations,
    "label PNGs": _masks,
    "lists of images": _lists,
}
