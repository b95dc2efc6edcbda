"""The real command over bad input: one line for each thing that is wrong, the rest done, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infercam.engine.bundle import MANIFEST, Manifest, file_entry
from infercam.engine.cli import main
from infercam.engine.store.mapstore import MapStore

onnx = pytest.importorskip("onnx", reason="the test's own bundle is built with onnx (extra export)")

CLASSES = ["cat", "dog"]
COMMAND = [sys.executable, "-m", "infercam.engine.cli"]


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one error line; fails where stderr holds a traceback or says nothing."""
        lines = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, self.err
        return lines[0]


def infercam(*arguments: object) -> Outcome:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*COMMAND, *map(os.fspath, map(str, arguments))],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
        env=environment,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Outcome(done.returncode, done.stdout, done.stderr)


# --- a bundle of our own: one strided convolution, ReLU, a 1x1 convolution, pooling


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    onnx.save(_tiny_graph(), folder / "response.onnx")
    manifest = Manifest(
        name="tiny",
        classes=CLASSES,
        stride=8,
        bias=[0.0, 0.0],
        graphs={"fp32": "response.onnx"},
        files={"response.onnx": file_entry(folder / "response.onnx")},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return folder


def _tiny_graph() -> onnx.ModelProto:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {
        "k": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "w": rng.normal(size=(len(CLASSES), 8, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["f"], strides=[8, 8], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("Conv", ["g", "w"], ["response"]),
        helper.make_node("GlobalAveragePool", ["response"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", len(CLASSES)]),
            helper.make_tensor_value_info("response", TensorProto.FLOAT, ["n", len(CLASSES), "y", "x"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# --- a folder with everything wrong


def picture(seed: int, height: int = 30, width: int = 50) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


GOOD = {
    "plain": (30, 50),
    "sub/plain": (30, 50),
    "one_pixel": (1, 1),
    "cmyk": (30, 50),
    "palette": (30, 50),
    "sixteen_bit": (30, 50),
    "exif_turned": (50, 30),
}
BAD = {
    "truncated": "truncated",
    "huge": "20000×20000 = 400 MP is over the limit of 4 MP; shrink it or raise --max-pixels",
    "zero_bytes": "empty file (0 bytes)",
    "text": "not a picture",
    "gone": "no such file",
    "unlabelled": "no labels in",
    "empty_labels": "label list",
    "outside": "label 'zebra' is not one of the bundle's 2 classes (cat, dog)",
    "out_of_range": "label 7, outside the bundle's 2 classes",
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder of images, label file)."""
    root = tmp_path_factory.mktemp("mixed")
    images = root / "images"
    (images / "sub").mkdir(parents=True)
    _write_good(images)
    _write_bad(images)
    labels: dict[str, list[object]] = {i: ["cat"] for i in [*GOOD, *BAD] if i != "unlabelled"}
    labels |= {"plain": ["cat", "dog"], "empty_labels": [], "outside": ["zebra"], "out_of_range": [7]}
    (root / "labels.json").write_text(json.dumps({"labels": labels}))
    return images, root / "labels.json"


def _write_good(images: Path) -> None:
    picture(1).save(images / "plain.jpg")
    picture(2).save(images / "sub/plain.png")
    picture(3, 1, 1).save(images / "one_pixel.png")
    picture(4).convert("CMYK").save(images / "cmyk.jpg")
    picture(5).convert("P").save(images / "palette.png")
    Image.fromarray(np.asarray(picture(6))[:, :, 0].astype(np.uint16) * 257).save(images / "sixteen_bit.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(7).save(images / "exif_turned.jpg", exif=exif)


def _write_bad(images: Path) -> None:
    for name in ("unlabelled", "empty_labels", "outside", "out_of_range"):
        picture(8).save(images / f"{name}.jpg")
    picture(9).save(images / "truncated.jpg")
    whole = (images / "truncated.jpg").read_bytes()
    (images / "truncated.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    Image.new("1", (20_000, 20_000)).save(images / "huge.png")
    (images / "zero_bytes.jpg").touch()
    (images / "text.jpg").write_text("this is not a picture\n" * 20)
    (images / "gone.jpg").symlink_to(images / "nowhere.jpg")


def failures(out: Path) -> dict[str, str]:
    lines = (out / "failures.jsonl").read_text().splitlines()
    found = {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


def test_bad_images_fail_alone_with_their_reasons(
    bundle: Path, mixed: tuple[Path, Path], tmp_path: Path
) -> None:
    images, labels = mixed
    out = tmp_path / "out"
    command = (
        "run",
        bundle,
        "--images",
        images,
        "--labels",
        labels,
        "-o",
        out,
        "--json",
        tmp_path / "j.json",
    )
    first = infercam(*command)
    assert first.code == 1
    assert f"{len(BAD)} images failed" in first.err and "failures.jsonl" in first.err

    found = failures(out)
    assert found.keys() == BAD.keys()
    for name, reason in BAD.items():
        assert reason in found[name]
        assert name in found[name]
        assert "\n" not in found[name]

    store = MapStore.open(out)
    for name, size in GOOD.items():
        record = store.read(name)
        assert record.maps.shape[1:] == size
        assert record.names == (["cat", "dog"] if name == "plain" else ["cat"])
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.npz")) == sorted(
        f"{i}.npz" for i in GOOD
    )

    summary = json.loads((tmp_path / "j.json").read_text())
    assert (summary["images"], summary["done"], summary["failed"]) == (
        len(GOOD) + len(BAD),
        len(GOOD),
        len(BAD),
    )

    again = infercam(*command)  # the failures are tried again and listed once, the rest is kept
    assert again.code == 1
    assert failures(out) == found
    assert json.loads((tmp_path / "j.json").read_text())["kept"] == len(GOOD)


def test_the_limit_can_be_raised(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    picture(0, 40, 50).save(tmp_path / "images/a.png")
    command = ("run", bundle, "--images", tmp_path / "images", "--labels", "predict", "--score-threshold", 0)
    low = infercam(*command, "-o", tmp_path / "low", "--max-pixels", 1999)
    assert low.code == 1
    assert "over the limit" in failures(tmp_path / "low")["a"]
    assert infercam(*command, "-o", tmp_path / "high", "--max-pixels", 2000).code == 0
    assert not (tmp_path / "high/failures.jsonl").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_a_name_that_is_not_utf8_does_not_stop_the_run(bundle: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    picture(0).save(images / "good.jpg")
    for name in (b"good\xff.jpg", b"bad\xff.jpg"):
        shutil.copy(os.fsencode(images / "good.jpg"), os.fsencode(images) + b"/" + name)
    Path(os.fsdecode(os.fsencode(images) + b"/bad\xff.jpg")).write_text("no picture")
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"good": ["cat"], "good%ff": ["dog"], "bad%ff": ["cat"]}))
    outcome = infercam("run", bundle, "--images", images, "--labels", labels, "-o", tmp_path / "out")
    assert outcome.code == 1
    store = MapStore.open(tmp_path / "out")
    assert store.read("good").names == ["cat"]
    assert store.read("good%ff").names == ["dog"]
    assert "not a picture" in failures(tmp_path / "out")["bad%ff"]


def _all_cats(images: Path) -> Path:
    file = images.parent / "labels.json"
    ids = [p.relative_to(images).with_suffix("").as_posix() for p in images.rglob("*") if p.is_file()]
    file.write_text(json.dumps({i: ["cat"] for i in ids}))
    return file


# --- what is wrong with the whole run: one line, exit code 1, before any work


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(arguments…)`: the one error line that `infercam` ends with. In this process: nothing is begun that
    would need its own, and a start takes two seconds."""
    monkeypatch.setenv("COLUMNS", "500")

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["infercam", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == 1
        return Outcome(1, said.out, said.err).error

    return run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder of one good image, label file)."""
    images = tmp_path_factory.mktemp("good") / "images"
    images.mkdir()
    picture(0).save(images / "a.jpg")
    return images, _all_cats(images)


def test_sources_and_labels_that_cannot_be_used(
    refused: Callable[..., str], bundle: Path, good: tuple[Path, Path], tmp_path: Path
) -> None:
    images, labels = good
    run = ("run", bundle, "-o", tmp_path / "out")
    absent = tmp_path / "absent"
    for arguments, expected in [
        (("--images", absent, "--labels", labels), f"{absent}: no such folder"),
        (("--images", images, "--labels", absent.with_suffix(".json")), "absent.json: no such file"),
        (("--list", absent, "--labels", labels), f"{absent}: no such file"),
        (("--voc", images, "--split", "train", "--labels", labels), "no VOC tree"),
        (("--images", images), "--labels"),
        (("--labels", labels), "one source"),
    ]:
        assert expected in refused(*run, *arguments)
        assert not (tmp_path / "out").exists()


def test_bundles_that_cannot_be_used(
    refused: Callable[..., str], bundle: Path, good: tuple[Path, Path], tmp_path: Path
) -> None:
    images, labels = good
    newer, changed = tmp_path / "newer", tmp_path / "changed"
    shutil.copytree(bundle, newer)
    raw = json.loads((newer / MANIFEST).read_text())
    (newer / MANIFEST).write_text(json.dumps(raw | {"schema_version": 99, "novelty": 1}))
    shutil.copytree(bundle, changed)
    with (changed / "response.onnx").open("r+b") as f:
        f.write(b"\0")
    for path, expected in [
        (newer, "schema 99 is newer"),
        (changed, "response.onnx: changed since export"),
        (tmp_path / "absent", "not a bundle"),
    ]:
        arguments = ("run", path, "--images", images, "--labels", labels, "-o", tmp_path / "out")
        assert expected in refused(*arguments)


def test_an_output_folder_that_cannot_be_made(
    refused: Callable[..., str], bundle: Path, good: tuple[Path, Path], tmp_path: Path
) -> None:
    images, labels = good
    run = ("run", bundle, "--images", images, "--labels", labels, "-o")
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/below"):
        assert str(out) in refused(*run, out)
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "ermission denied" in refused(*run, tmp_path / "locked/out")


# --- a full or read-only disk, in a mount namespace of its own, so that nothing stays mounted


def in_namespace(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "-rm", "sh", "-ec", script], capture_output=True, text=True, timeout=180
    )


@pytest.fixture(scope="module")
def can_mount() -> None:
    if shutil.which("unshare") is None or in_namespace("mount -t tmpfs -o size=64k tmpfs /mnt").returncode:
        pytest.skip("mounting a small tmpfs is not permitted here, so no disk could be filled")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder of 60 images, label file)."""
    images = tmp_path_factory.mktemp("many") / "images"
    images.mkdir()
    for i in range(60):
        picture(i, 120, 160).save(images / f"{i:03d}.jpg")
    return images, _all_cats(images)


def test_a_full_disk(can_mount: None, bundle: Path, many: tuple[Path, Path], tmp_path: Path) -> None:
    """The run ends with one line; nothing half-written stays; with room again the same command finishes."""
    images, labels = many
    disk = tmp_path / "disk"
    disk.mkdir()
    run = f"{' '.join(COMMAND)} run {bundle} --images {images} --labels {labels} -o {disk}/out"
    copy = tmp_path / "copy"
    done = in_namespace(
        f"mount -t tmpfs -o size=96k tmpfs {disk}\n"
        f"{run} 2> {tmp_path}/full.err && exit 99 || echo $?\n"
        f"cp -r {disk}/out {copy}\n"
        f"mount -o remount,size=64m {disk}\n"
        f"{run} 2> {tmp_path}/room.err\n"
        f"find {disk}/out -name '*.npz' | wc -l"
    )
    assert done.returncode == 0, (done, (tmp_path / "full.err").read_text())
    assert done.stdout.split() == ["1", "60"]
    err = (tmp_path / "full.err").read_text()
    assert "Traceback" not in err
    line = next(line for line in err.splitlines() if line.startswith("error:"))
    assert "disk full" in line and "same command again" in line
    store = MapStore.open(copy)
    whole = [store.read(p.stem) for p in copy.glob("*.npz")]
    assert 0 < len(whole) < 60
    assert list(copy.glob(".tmp-*")) == []
    assert f", {len(whole)} kept" in (tmp_path / "room.err").read_text()


def test_a_read_only_disk(can_mount: None, bundle: Path, good: tuple[Path, Path], tmp_path: Path) -> None:
    images, labels = good
    disk = tmp_path / "disk"
    disk.mkdir()
    done = in_namespace(
        f"mount -t tmpfs -o ro tmpfs {disk}\n"
        f"{' '.join(COMMAND)} run {bundle} --images {images} --labels {labels} -o {disk}/out || echo $?"
    )
    assert done.stdout.split() == ["1"]
    assert "Traceback" not in done.stderr
    assert f"error: {disk}/out/" in done.stderr and "ead-only file system" in done.stderr


# --- signals


def start_and_wait(command: list[str], out: Path) -> subprocess.Popen[str]:
    """Start a run and return once it has written something."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    index = out / "index.jsonl"
    deadline = time.monotonic() + 60
    while not (index.exists() and index.stat().st_size) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.fixture
def slow_run(bundle: Path, tmp_path: Path) -> tuple[list[str], Path]:
    """A command that takes some seconds (links to one larger image), and its output folder."""
    images = tmp_path / "images"
    images.mkdir()
    picture(0, 500, 700).save(tmp_path / "one.jpg")
    for i in range(60):
        (images / f"{i:03d}.jpg").symlink_to(tmp_path / "one.jpg")
    out = tmp_path / "out"
    command = ["run", bundle, "--images", images, "--labels", _all_cats(images), "-o", out, "--threads", 1]
    return [*COMMAND, *map(str, command)], out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_in_order(slow_run: tuple[list[str], Path], number: signal.Signals) -> None:
    command, out = slow_run
    process = start_and_wait(command, out)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert "same command again" in err
    written = sorted(p.stem for p in out.glob("*.npz"))
    assert 0 < len(written) < 60
    assert list(out.glob(".tmp-*")) == []
    store = MapStore.open(out)
    for name in written:
        assert store.read(name).maps.shape == (1, 500, 700)


def test_kill_9_loses_only_what_was_in_flight(slow_run: tuple[list[str], Path]) -> None:
    command, out = slow_run
    process = start_and_wait(command, out)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    store = MapStore.open(out)
    written = [p.stem for p in out.glob("*.npz")]
    assert 0 < len(written) < 60
    for name in written:  # never half a file under its final name
        assert store.read(name).maps.shape == (1, 500, 700)

    again = infercam(*command[len(COMMAND) :], "--limit", len(written) + 3)
    assert again.code == 0, again.err
    kept = int(again.err.split(" kept")[0].rpartition(" ")[2])
    assert (
        len(written) - 1 <= kept <= len(written)
    )  # a file whose index line was not yet written is made again
