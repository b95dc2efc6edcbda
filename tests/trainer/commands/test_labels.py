"""`infercam labels` from end to end: its files, going on, what is made again, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infercam.engine.common.errors import shown
from infercam.engine.evaluation.histogram import THRESHOLDS
from infercam.engine.evaluation.label_png import read_label, write_label
from infercam.engine.store.mapstore import MapRecord, MapStore
from tests.trainer.label_scenes import CLASSES, SIZES, write_scenes


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path)


def _labels(folder: Path) -> dict[str, np.ndarray]:
    return {id: read_label(folder / f"{id}.png", 3, size) for id, size in SIZES.items()}


def test_affinity_labels_are_right_and_resumed(scenes: Path, infercam) -> None:
    out = scenes / "out"
    command = ["labels", scenes / "maps", "-o", out, "--images", scenes / "photos", "--workers", 0]
    first = infercam(*command)
    assert first.code == 0 and "3 made, 0 kept" in first.err, first.err
    for id, label in _labels(out).items():
        truth = read_label(scenes / "masks" / f"{id}.png", 3)
        sure = label != 255
        assert sure.mean() > 0.2 and (label[sure] == truth[sure]).mean() > 0.95
        assert set(np.unique(label[sure])) == set(np.unique(truth))
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*.png")}
    assert "0 made, 3 kept" in infercam(*command).err
    assert before == {f: f.stat().st_mtime_ns for f in out.rglob("*.png")}

    (out / "a.png").write_bytes((out / "a.png").read_bytes()[:-9])  # cut: made again
    assert "1 made, 2 kept" in infercam(*command).err
    _labels(out)
    assert "3 made" in infercam(*command, "--low-alpha", 6).err  # other settings
    info = json.loads((out / "label_folder.json").read_text())
    assert info["classes"] == CLASSES and info["settings"]["config"]["low_alpha"] == 6
    record = MapStore.open(scenes / "maps").read("a")
    MapStore.open(scenes / "maps").write(record, "made otherwise")
    assert "1 made, 2 kept" in infercam(*command, "--low-alpha", 6).err  # other maps


def test_threshold_labels_score_as_their_maps_do(scenes: Path, infercam) -> None:
    """The curve of maps at a threshold is the mIoU of the labels at that threshold."""
    out, truth = scenes / "out", ["--gt", scenes / "masks", "--bootstrap", 0, "--workers", 1]
    assert infercam("eval", scenes / "maps", *truth, "--json", scenes / "m.json").code == 0
    maps = json.loads((scenes / "m.json").read_text())
    for at in (0, 20, 47):
        again = infercam(
            "labels", scenes / "maps", "-o", out, "--kind", "threshold", "--threshold", THRESHOLDS[at]
        )
        assert again.code == 0 and "3 made" in again.err
        assert infercam("eval", out, *truth, "--json", scenes / "l.json").code == 0
        labels = json.loads((scenes / "l.json").read_text())
        assert abs(labels["all_classes"]["miou"] - maps["all_classes"]["curve"][at]) < 1e-6
        assert labels["pixel_accuracy"] > (0.5 if at else 0.1)


def test_a_pool_of_processes_makes_the_same(scenes: Path, infercam) -> None:
    command = ["labels", scenes / "maps", "--images", scenes / "photos"]
    assert infercam(*command, "-o", scenes / "here", "--workers", 0).code == 0
    done = infercam(*command, "-o", scenes / "pool", "--workers", 2)
    assert done.code == 0, done.err
    here, pool = _labels(scenes / "here"), _labels(scenes / "pool")
    assert all((here[id] == pool[id]).all() for id in SIZES)
    assert len((scenes / "pool" / "index.jsonl").read_text().splitlines()) == 3


def test_bad_photos_are_listed_and_the_rest_goes_on(scenes: Path, infercam) -> None:
    Image.new("RGB", (57, 41)).save(scenes / "photos" / "a.png")
    Image.new("RGB", (57, 41)).save(scenes / "photos" / "new.png")
    file = scenes / "maps" / "b.npz"
    file.write_bytes(file.read_bytes()[:200])
    command = ["labels", scenes / "maps", "-o", scenes / "out", "--images", scenes / "photos", "--workers", 0]
    done = infercam(*command)
    assert done.code == 1 and "1 made, 0 kept, 3 failed" in done.err
    failures = [json.loads(line) for line in (scenes / "out" / "failures.jsonl").read_text().splitlines()]
    reasons = {f["id"]: f["reason"] for f in failures}
    assert reasons.keys() == {"a", "b", "new"}
    assert "a: maps are 58×41, the photo 57×41" in reasons["a"]
    assert "b.npz" in reasons["b"]
    assert "new: no maps in" in reasons["new"]
    (scenes / "photos" / "new.png").unlink()
    write_scenes(scenes)
    assert "2 made, 1 kept" in infercam(*command).err and not (scenes / "out" / "failures.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--kind", "both"], "--kind is one of affinity, threshold"),
        (["--kind", "threshold"], "needs --threshold"),
        (["--kind", "threshold", "--threshold", 2], "threshold: Input should be less than or equal to 1"),
        (["--kind", "threshold", "--threshold", 0.3, "--low-alpha", 4], "--low-alpha is not for"),
        (["--threshold", 0.3], "--threshold is not for --kind affinity"),
        (["--low-alpha", -1], "low_alpha"),
        ([], "the dense CRF needs the photos"),
        (["--no-crf", "--format", "psa"], "holds npz maps, not psa"),
        (["--images", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_options_are_one_line(scenes: Path, infercam, arguments: list, says: str) -> None:
    done = infercam("labels", scenes / "maps", "-o", scenes / "out", *arguments)
    assert done.code == 1 and done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    assert says in done.err


def test_maps_of_another_list_are_one_line(scenes: Path, infercam) -> None:
    Image.new("RGB", (8, 8)).save(scenes / "other.png")
    (scenes / "others").mkdir()
    (scenes / "other.png").rename(scenes / "others" / "x.png")
    done = infercam("labels", scenes / "maps", "-o", scenes / "out", "--images", scenes / "others")
    assert (
        done.code == 1 and "has maps for none of the 1 photos (x)" in done.err and done.err.count("\n") == 1
    )
    assert not (scenes / "out").exists()


def test_folders_that_cannot_be_written_to(scenes: Path, infercam) -> None:
    command = ["labels", scenes / "maps", "--no-crf"]
    assert "is what this command reads" in infercam(*command, "-o", scenes / "maps").err
    assert infercam(*command, "-o", scenes / "out").code == 0
    other = MapStore.create_or_open(scenes / "birds", classes=["bird"], settings={})
    other.write(MapRecord("a", [0], ["bird"], np.zeros((1, 3, 4), np.float32)), "x")
    assert "labels of other classes" in infercam("labels", other.path, "--no-crf", "-o", scenes / "out").err
    (scenes / "file").write_text("")
    assert "cannot be written" in infercam(*command, "-o", scenes / "file" / "out").err


def test_settings_from_a_file(scenes: Path, infercam) -> None:
    (scenes / "s.toml").write_text("low_alpha = 5\n[crf]\niterations = 2\n")
    command = ["labels", scenes / "maps", "-o", scenes / "out", "--images", scenes / "photos", "--workers", 0]
    assert infercam(*command, "--config", scenes / "s.toml", "--high-alpha", 20).code == 0
    config = json.loads((scenes / "out" / "label_folder.json").read_text())["settings"]["config"]
    assert (config["low_alpha"], config["high_alpha"], config["crf"]["iterations"]) == (5, 20, 2)
    assert "3 made" in infercam(*command, "--config", scenes / "s.toml", "--no-crf").err
    (scenes / "s.toml").write_text("lowest_alpha = 5\n")
    assert "lowest_alpha" in infercam(*command, "--config", scenes / "s.toml").err


def test_a_full_disk_ends_the_job(scenes: Path, infercam, monkeypatch: pytest.MonkeyPatch) -> None:
    from infercam.engine.evaluation import label_folder
    from infercam.engine.store.image_index import DiskFullError

    written = []

    def full(file: Path, label: np.ndarray) -> None:
        if written:
            raise DiskFullError(f"{shown(file)}: disk full; free some space")
        written.append(file)
        write_label(file, label)

    monkeypatch.setattr(label_folder, "write_label", full)
    command = ["labels", scenes / "maps", "-o", scenes / "out", "--no-crf"]
    done = infercam(*command)
    assert done.code == 1 and "disk full" in done.err and done.err.count("\n") == 1
    monkeypatch.setattr(label_folder, "write_label", write_label)
    assert "2 made, 1 kept" in infercam(*command).err
    _labels(scenes / "out")
