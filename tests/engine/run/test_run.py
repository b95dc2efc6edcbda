"""`infercam run`: the store it leaves, resuming, failures, kills and signals, options and summaries."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from infercam.engine import Bundle, Engine, cli
from infercam.engine.commands import run as run_cli
from infercam.engine.common.atomic import TEMP_PREFIX
from infercam.engine.common.errors import StoreError
from infercam.engine.data.labels import load_labels
from infercam.engine.data.sources import folder_source
from infercam.engine.method.recipe import RECIPES
from infercam.engine.run.run import Predicted, Run
from infercam.engine.run.writes import WRITES_WAITING, Writes
from infercam.engine.store.mapstore import MapStore
from tests.engine import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data"), 7)


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def error(self) -> str:
        """The one line that a refusal is."""
        assert self.code == 1 and self.err.startswith("error:") and self.err.count("\n") == 1, vars(self)
        return self.err


@pytest.fixture
def infercam(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The command line in this process."""

    def call(*args: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["infercam", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = int(e.code or 0)
        return Outcome(code, *capsys.readouterr())

    return call


def arguments(bundle: Bundle, data: Path, out: Path, *more: object) -> list[object]:
    return [
        *("run", bundle.path, "--images", data / "images", "--labels", data / "labels.json", "-o", out),
        *("--threads", 2, *more),
    ]


def summary(infercam, bundle: Bundle, data: Path, out: Path, *more: object, code: int = 0) -> dict:
    outcome = infercam(*arguments(bundle, data, out, "--json", "-", *more))
    assert outcome.code == code, vars(outcome)
    return json.loads(outcome.out)


def maps_of(out: Path) -> dict[str, bytes]:
    return {f.relative_to(out).as_posix(): f.read_bytes() for f in out.rglob("*.npz")}


def failures(out: Path) -> dict[str, str]:
    lines = (out / "failures.jsonl").read_text().splitlines()
    found = {row["id"]: row["reason"] for row in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


# -- what it writes --------------------------------------------------------------------------------------------


def test_a_run_writes_the_engine_s_maps(
    infercam, tiny_bundle: Bundle, tiny_engine: Engine, data: Path, tmp_path: Path
) -> None:
    found = summary(infercam, tiny_bundle, data, tmp_path / "out", "--dtype", "float16")
    assert (found["images"], found["done"], found["kept"], found["failed"], found["left"]) == (7, 7, 0, 0, 0)
    store = MapStore.open(tmp_path / "out")
    labels = load_labels(data / "labels.json", tiny.CLASSES)
    assert sorted(store.ids()) == [f"p{n:03}" for n in range(7)]
    for record in store:
        classes = labels.lookup(record.id)
        assert record.classes == classes and record.names == [tiny.CLASSES[c] for c in classes]
        want = tiny_engine.maps(data / "images" / f"{record.id}.png", classes)
        np.testing.assert_allclose(record.maps, want, atol=1e-3)
        assert record.settings["recipe"] == tiny_engine.recipe("released").model_dump(mode="json")
        assert record.settings["mode"] == "both"
        assert record.settings["bundle"] == {"name": "tiny-4", "hash": tiny_bundle.hash}
        assert record.settings["labels"]["kind"] == "json"
        assert len(record.meta["iterations"]) == (1 if len(classes) > 2 else 4)
    assert not (tmp_path / "out" / "failures.jsonl").exists()


SUMMARY = {
    **dict.fromkeys(("images", "done", "kept", "failed", "left", "tiles", "network_pixels", "views"), int),
    **dict.fromkeys(("batches", "prepared", "to_prepare", "enlarged", "map_bytes"), int),
    **dict.fromkeys(("seconds", "images_per_second", "mean_iterations"), float),
    **{"reasons": list, "gave_up": str, "settings": dict},
}


def test_the_json_summary(infercam, tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    found = summary(infercam, tiny_bundle, data, tmp_path / "out", "--recipe", "paper", "--mode", "split")
    assert {key: type(value) for key, value in found.items()} == SUMMARY
    assert found["map_bytes"] == sum(map(len, maps_of(tmp_path / "out").values()))
    assert found["seconds"] > 0 and found["images_per_second"] > 0
    assert found["mean_iterations"] == 1.0, "split is one iteration"
    assert found["views"] >= found["batches"] > 0 and found["network_pixels"] > 7 * 40 * 52
    assert found["settings"]["recipe"]["name"] == "paper" and found["settings"]["mode"] == "split"
    assert found["settings"]["source"]["count"] == 7
    assert found["settings"]["backend"]["threads"] == 2
    file = tmp_path / "deep" / "summary.json"
    outcome = infercam(*arguments(tiny_bundle, data, tmp_path / "out", "--json", file))
    assert outcome.code == 0 and outcome.out == ""
    assert json.loads(file.read_text()).keys() == SUMMARY.keys()


def test_quiet_where_nobody_watches(infercam, tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    outcome = infercam(*arguments(tiny_bundle, data, tmp_path / "out"))
    backend, summary = outcome.err.splitlines()
    assert backend.startswith("backend: fp32 on cpu") and outcome.out == ""
    assert summary.startswith("7 done, 0 kept, 0 failed of 7 images") and "\x1b" not in outcome.err


def test_a_terminal_sees_progress(
    infercam, tiny_bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=160)
    monkeypatch.setattr(run_cli, "console", screen)
    assert infercam(*arguments(tiny_bundle, data, tmp_path / "out")).code == 0
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    for word in ("maps", "images/s", "tiles in flight", "iterations", "7/7"):
        assert word in shown, word


def test_the_constants_of_the_recipe_are_options_and_recorded(
    infercam, tiny_bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    found = summary(
        *(infercam, tiny_bundle, data, tmp_path / "out", "--recipe", "corrected", "--mode", "erase"),
        *("--scales", "1,0.5", "--no-mirror", "--threshold", 0.6, "--stop-share", 0.05, "--iterations", 3),
        *("--buffer", "7,9", "--accumulate", "sum", "--set", "whole=max", "--set", "snap=8"),
        *("--set", 'later_views={"scales":[0.5],"mirror":false}', "--limit", 2),
    )
    recipe = found["settings"]["recipe"]
    assert recipe["views"] == {"scales": [1.0, 0.5], "mirror": False}
    assert (recipe["threshold"], recipe["stop_share"], recipe["iterations"]) == (0.6, 0.05, 3)
    assert (recipe["buffer_one"], recipe["buffer_two"], recipe["accumulate"]) == (7, 9, "sum")
    assert (recipe["whole"], recipe["snap"]) == ("max", 8)
    assert recipe["later_views"] == {"scales": [0.5], "mirror": False}
    assert found["images"] == found["done"] == 2
    assert MapStore.open(tmp_path / "out").info.settings["recipe"] == recipe
    assert sorted(maps_of(tmp_path / "out")) == ["p000.npz", "p001.npz"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--recipe", "fastest"], "fastest"),
        (["--mode", "all"], "all"),
        (["--threshold", "2"], "threshold"),
        (["--scales", "1,big"], "--scales"),
        (["--scales", "0"], "views.scales"),
        (["--buffer", "ten"], "--buffer"),
        (["--buffer", "1.5"], "buffer_one"),
        (["--set", "threshold"], "NAME=VALUE"),
        (["--set", "speed=9"], "speed"),
        (["--set", "views=3"], "views"),
        (["--accumulate", "median"], "accumulate"),
        (["--backend", "quantum"], "quantum"),
        (["--format", "zip"], "zip"),
        (["--dtype", "uint4"], "uint4"),
        (["--voc", "somewhere", "--split", "val"], "one source"),
        (["--labels", "none.json"], "none.json"),
        (["--shard", "9/8"], "I/N"),
        (["--workers", "2"], "--cluster ray"),
        (["--cluster", "spark"], "there is: ray"),
    ],
)
def test_a_bad_option_is_one_line(
    infercam, tiny_bundle: Bundle, data: Path, tmp_path: Path, options: list, named: str
) -> None:
    assert named in infercam(*arguments(tiny_bundle, data, tmp_path / "out", *options)).error
    assert not maps_of(tmp_path)


def test_no_source_and_no_labels(infercam, tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    run = ["run", tiny_bundle.path, "-o", tmp_path / "out"]
    assert "--images" in infercam(*run, "--labels", data / "labels.json").error
    assert "--labels predict" in infercam(*run, "--images", data / "images").error
    assert "no such folder" in infercam(*run, "--images", tmp_path / "none", "--labels", "predict").error


def test_out_that_is_a_file(infercam, tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert "out" in infercam(*arguments(tiny_bundle, data, tmp_path / "out")).error
    assert (tmp_path / "out").read_text() == "mine"


# -- predicted labels ------------------------------------------------------------------------------------------


def test_predicted_labels(
    infercam, tiny_bundle: Bundle, tiny_engine: Engine, data: Path, tmp_path: Path
) -> None:
    for threshold in (0.5, 0.999):
        out = tmp_path / str(threshold)
        options = ["--labels", "predict", "--score-threshold", threshold]
        found = summary(infercam, tiny_bundle, data, out, *options)
        assert found["settings"]["labels"] == {"kind": "predict", "threshold": threshold}
        for record in MapStore.open(out):
            pixels = data / "images" / f"{record.id}.png"
            assert record.classes == tiny_engine.predict(pixels, threshold)
            assert record.maps.shape[0] == len(record.classes)
    assert summary(infercam, tiny_bundle, data, tmp_path / "0.5", "--labels", "predict")["kept"] == 7
    again = summary(
        infercam, tiny_bundle, data, tmp_path / "0.5", "--labels", "predict", "--score-threshold", 0.4
    )
    assert again["done"] == 7, "another threshold may give other classes"
    out = tmp_path / "ladder"
    options = ["--labels", "predict", "--recipe", "fast", "--mode", "baseline"]
    summary(infercam, tiny_bundle, data, out, *options)
    for record in MapStore.open(out):
        pixels = data / "images" / f"{record.id}.png"
        assert record.classes == tiny_engine.predict(pixels, ladder=True)


# -- resuming --------------------------------------------------------------------------------------------------


def test_running_again_keeps_what_is_there(infercam, tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert summary(infercam, tiny_bundle, data, out, "--limit", 3)["done"] == 3
    before = {f: f.stat().st_mtime_ns for f in out.glob("*.npz")}
    found = summary(infercam, tiny_bundle, data, out)
    assert (found["done"], found["kept"]) == (4, 3)
    assert {f: f.stat().st_mtime_ns for f in before} == before, "kept files are not written again"
    (out / "p002.npz").unlink()
    (out / "p004.npz").write_bytes(b"cut")
    found = summary(infercam, tiny_bundle, data, out, "--threads", 1)
    assert (found["done"], found["kept"]) == (2, 5), "missing and cut files are made again"


def test_other_settings_make_maps_anew(infercam, tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    def again(*options: object) -> tuple[int, int]:
        found = summary(infercam, tiny_bundle, data, tmp_path / "out", *options)
        return found["done"], found["kept"]

    assert again() == (7, 0)
    assert again("--threshold", 0.6) == (7, 0)
    assert again("--threshold", 0.6) == (0, 7)
    assert again("--threshold", 0.6, "--mode", "split") == (7, 0)
    assert again("--recipe", "corrected") == (7, 0)
    assert again("--recipe", "corrected", "--set", "name=mine") == (0, 7), "a name changes no map"
    raw = json.loads((data / "labels.json").read_text())
    raw["labels"]["p003"] = ["sheep"]
    (tmp_path / "other.json").write_text(json.dumps(raw))
    assert again("--recipe", "corrected", "--labels", tmp_path / "other.json") == (1, 6)
    assert MapStore.open(tmp_path / "out").read("p003").names == ["sheep"]


def test_another_bundle_makes_maps_anew(infercam, tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    other = tiny.build(tmp_path / "other", stride=8)
    assert summary(infercam, tiny_bundle, data, tmp_path / "out")["done"] == 7
    assert summary(infercam, other, data, tmp_path / "out")["done"] == 7
    shutil.copytree(other.path, tmp_path / "moved")
    moved = Bundle.load(tmp_path / "moved")
    assert summary(infercam, moved, data, tmp_path / "out")["kept"] == 7, "its contents count, not its place"


def test_a_store_of_another_format_is_not_mixed(
    infercam, tiny_bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    assert summary(infercam, tiny_bundle, data, tmp_path / "out", "--limit", 1)["done"] == 1
    outcome = infercam(*arguments(tiny_bundle, data, tmp_path / "out", "--format", "psa"))
    assert "npz" in outcome.error and "psa" in outcome.error


# -- failures --------------------------------------------------------------------------------------------------


def test_bad_images_are_listed_and_the_rest_goes_on(infercam, tiny_bundle: Bundle, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path / "data", 6)
    images = data / "images"
    whole = (images / "p001.png").read_bytes()
    (images / "p001.png").write_bytes(whole[: len(whole) // 2])
    raw = json.loads((data / "labels.json").read_text())
    del raw["labels"]["p002"]
    raw["labels"]["p003"] = ["unicorn"]
    raw["labels"]["p004"] = []
    (data / "labels.json").write_text(json.dumps(raw))
    out = tmp_path / "out"
    found = summary(infercam, tiny_bundle, data, out, code=1)
    assert (found["images"], found["done"], found["failed"], found["left"]) == (6, 2, 4, 0)
    assert sorted(maps_of(out)) == ["p000.npz", "p005.npz"]
    reasons = failures(out)
    assert reasons.keys() == {"p001", "p002", "p003", "p004"}
    assert "p001.png" in reasons["p001"]
    assert "no labels" in reasons["p002"] and "unicorn" in reasons["p003"] and "empty" in reasons["p004"]
    outcome = infercam(*arguments(tiny_bundle, data, out))
    assert outcome.code == 1 and "4 images failed" in outcome.err and "failures.jsonl" in outcome.err

    tiny.write_dataset(data, 6)  # mended
    found = summary(infercam, tiny_bundle, data, out)
    assert (found["done"], found["kept"], found["failed"]) == (4, 2, 0)
    assert not (out / "failures.jsonl").exists(), "the list is that of the latest run"


def test_a_limit_on_pixels(infercam, tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    found = summary(infercam, tiny_bundle, data, tmp_path / "out", "--max-pixels", 41 * 52, code=1)
    assert found["failed"] == 3 and found["done"] == 4
    assert all("--max-pixels" in reason for reason in failures(tmp_path / "out").values())


def test_an_unexpected_error_fails_its_image_and_is_named(
    infercam, tiny_bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infercam.engine.backends.cpu import CpuBackend

    unite = CpuBackend._unite

    def broken(self, image):
        if image.id == "p005":
            raise ZeroDivisionError("by nothing")
        return unite(self, image)

    monkeypatch.setattr(CpuBackend, "_unite", broken)
    assert summary(infercam, tiny_bundle, data, tmp_path / "out", code=1)["done"] == 6
    assert failures(tmp_path / "out") == {"p005": "ZeroDivisionError: by nothing"}


def test_a_full_disk_ends_the_run_and_says_what_is_saved(
    infercam, tiny_bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = MapStore.write, []

    def full(self, record, fingerprint):
        if len(written) == 3:
            raise StoreError("out/x.npz: disk full")
        written.append(record.id)
        return write(self, record, fingerprint)

    monkeypatch.setattr(MapStore, "write", full)
    outcome = infercam(*arguments(tiny_bundle, data, tmp_path / "out"))
    last = outcome.err.splitlines()[-1]
    assert outcome.code == 1 and "disk full" in last and "3 of 7 images done" in last
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", [])
    assert sorted(maps_of(tmp_path / "out")) == sorted(f"{name}.npz" for name in written)


# -- bounds ----------------------------------------------------------------------------------------------------


def test_the_writer_queue_is_bounded_and_its_error_comes_back() -> None:
    gate, taken = threading.Event(), []

    def write(result) -> None:
        gate.wait(10)
        taken.append(result)
        if result == 3:
            raise StoreError("no room")

    writes = Writes(write)
    put = []

    def feed() -> None:
        with pytest.raises(StoreError, match="no room"):
            for n in range(1000):
                writes.put(n)  # type: ignore[arg-type]
                put.append(n)

    thread = threading.Thread(target=feed)
    thread.start()
    end = time.monotonic() + 10
    while len(put) < WRITES_WAITING and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)  # in which no more are taken
    assert len(put) == WRITES_WAITING
    gate.set()
    thread.join(10)
    assert not thread.is_alive() and taken[:4] == [0, 1, 2, 3]
    with pytest.raises(StoreError, match="no room"):
        writes.close()


def test_reading_stays_a_few_images_ahead(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the list: images read but not yet written are bounded."""
    data = tiny.write_dataset(tmp_path / "data", 60, (12, 16))
    from infercam.engine.run import run as module

    reads, ahead = [], []
    read = module.read_pixels
    monkeypatch.setattr(module, "read_pixels", lambda *a: (reads.append(1), read(*a))[1])
    source = folder_source(data / "images")
    labels = load_labels(data / "labels.json", tiny.CLASSES)
    job = Run(
        tiny_engine,
        source,
        labels,
        tmp_path / "out",
        recipe=RECIPES["released"],
        mode="both",
        watch=lambda summary, scheduler: ahead.append(len(reads) - summary.done),
    )
    found = job()
    assert found.done == 60 and len(reads) == 60
    assert max(ahead) <= tiny_engine.backend.limits.images + WRITES_WAITING + 2 * 4
    assert not job._prints, "nothing is remembered of images that are done"


def test_stopping_finishes_what_is_in_flight(tiny_engine: Engine, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path / "data", 40, (12, 16))
    job = Run(
        tiny_engine,
        folder_source(data / "images"),
        Predicted(0.2),
        tmp_path / "out",
        recipe=RECIPES["released"],
        mode="both",
        watch=lambda summary, scheduler: job.stop.set() if summary.done >= 3 else None,
    )
    found = job()
    assert 3 <= found.done < 40 and found.left == 40 - found.done and found.failed == 0
    store = MapStore.open(tmp_path / "out")
    assert len(store) == found.done == len(list(store))


# -- as a process: kills and signals ---------------------------------------------------------------------------

SLOW = ["--threads", "1", "--set", "stop_share=0"]  # every tile runs all its iterations


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images that a run lasts a few seconds."""
    return tiny.write_dataset(tmp_path_factory.mktemp("long"), 40, (90, 120))


def start(bundle: Bundle, data: Path, out: Path, *more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from infercam.engine.cli import main; main()"]
    command += [str(a) for a in arguments(bundle, data, out, *SLOW, *more)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def wait_for(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until so many maps are there, or the process has ended."""
    while process.poll() is None and len(list(out.glob("*.npz"))) < count:
        time.sleep(0.005)


def check_whole(out: Path) -> set[str]:
    """Every file under its final name is whole; returns the ids."""
    store = MapStore.open(out)
    names = {f.stem for f in out.glob("*.npz") if not f.name.startswith(TEMP_PREFIX)}
    for name in names:
        assert store.read(name).maps.max() <= 1
    assert set(store.ids()) <= names
    return names


@pytest.fixture(scope="module")
def undisturbed(tiny_bundle: Bundle, long: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    process = start(tiny_bundle, long, out)
    assert process.wait(120) == 0, process.communicate()
    assert len(maps_of(out)) == 40
    return out


def test_killed_again_and_again_it_ends_with_the_same_bytes(
    tiny_bundle: Bundle, long: Path, tmp_path: Path, undisturbed: Path
) -> None:
    out, rng, killed, there = tmp_path / "out", random.Random(1), 0, set()
    for _ in range(5):
        process = start(tiny_bundle, long, out)
        wait_for(out, len(there) + rng.randint(0, 9), process)
        time.sleep(rng.random() * 0.05)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        process.communicate()
        if (out / "store.json").exists():
            now = check_whole(out)
            assert there <= now, "what was done stays done"
            there = now
    assert killed >= 3 and len(there) > 0, (killed, len(there))
    process = start(tiny_bundle, long, out, "--json", "-")
    text, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    found = json.loads(text)
    assert found["kept"] + found["done"] == 40
    assert found["kept"] >= len(there) - killed, "a kill costs at most the file just being recorded"
    assert maps_of(out) == maps_of(undisturbed)
    others = {f.name for f in out.iterdir() if not f.name.startswith(TEMP_PREFIX)}
    assert others == {f.name for f in undisturbed.iterdir()}


def test_sigterm_finishes_what_is_in_flight(tiny_bundle: Bundle, long: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(tiny_bundle, long, out, "--json", tmp_path / "summary.json")
    wait_for(out, 2, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "stopping" in errors and "run the same command again" in errors and "Traceback" not in errors
    found = json.loads((tmp_path / "summary.json").read_text())
    assert 2 <= found["done"] < 40 and found["left"] == 40 - found["done"] and found["failed"] == 0
    assert len(check_whole(out)) == found["done"] == len(MapStore.open(out))
    assert not [f for f in out.iterdir() if f.name.startswith(TEMP_PREFIX)]


def test_an_image_as_it_comes_from_a_camera(
    infercam, tiny_bundle: Bundle, tiny_engine: Engine, tmp_path: Path
) -> None:
    """EXIF rotation is applied before the maps are made: their shape is that of the picture as looked at."""
    images = tmp_path / "images"
    images.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(tiny.picture(20, 44)).save(images / "turned.jpg", exif=exif)
    out = tmp_path / "out"
    args = ["run", tiny_bundle.path, "--images", images, "--labels", "predict", "--score-threshold", 0.01]
    assert infercam(*args, "-o", out).code == 0
    assert MapStore.open(out).read("turned").maps.shape[1:] == (44, 20)
