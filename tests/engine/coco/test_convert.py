"""`infercam coco`: what it writes, resuming, failures; and COCO all the way: run, then eval, over 81 classes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from infercam.engine.cli import app
from infercam.engine.common.errors import InfercamError, InputError, StoreError
from infercam.engine.data import voc
from infercam.engine.data.labels import load_labels
from infercam.engine.evaluation.evaluate import count_image, evaluate, evaluate_store, folder_ground_truth
from infercam.engine.evaluation.evaluate_labels import evaluate_labels
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.evaluation.label_png import read_mask
from infercam.engine.inputs import SourceSettings
from infercam.engine.store.mapstore import MapRecord, MapStore

pytest.importorskip("pycocotools", reason="needs the extra coco")

from infercam.engine.coco import CLASSES, Annotations, CocoMasks, coco_ground_truth
from infercam.engine.coco.convert import convert
from tests.engine.coco import coco_set

SPLIT = "val2014"
WITH = [coco_set.name(n) for n in (0, 1, 2, 5, 3, 4)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return coco_set.write_tree(tmp_path / "coco")


def painter(root: Path, **choices: str) -> CocoMasks:
    return CocoMasks(Annotations.open(root / "annotations" / f"instances_{SPLIT}.json"), **choices)


def change(root: Path, content: dict) -> None:
    file = coco_set.write_json(root / "annotations" / f"instances_{SPLIT}.json", content)
    os.utime(file, ns=(time.time_ns(), 77))


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def failures(out: Path) -> dict[str, str]:
    lines = (out / "failures.jsonl").read_text().splitlines()
    return {row["id"]: row["reason"] for row in map(json.loads, lines)}


def test_the_command_writes_masks_list_and_labels(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = invoke("coco", root, "--split", SPLIT, "-o", out)
    assert ran.exit_code == 0, ran.output
    assert (out / f"{SPLIT}.txt").read_text().split() == WITH
    masks = painter(root)
    for name in WITH:
        assert np.array_equal(read_mask(out / "masks" / f"{name}.png"), masks(name))
    with Image.open(out / "masks" / f"{WITH[0]}.png") as picture:
        assert picture.mode == "P" and bytes(picture.getpalette() or []) == voc.palette()
    assert LabelFolder.open(out / "masks").ids() == sorted(WITH) and not (out / "failures.jsonl").exists()
    # the labels are those that the annotations give, in the project's own form
    labels, direct = (
        load_labels(out / "labels.json", CLASSES),
        SourceSettings(coco=root, split=SPLIT).labels("coco", CLASSES),
    )
    assert [labels.lookup(name) for name in WITH] == [direct.lookup(name) for name in WITH]
    record = json.loads((out / "coco.json").read_text())
    assert (record["split"], record["crowd"], record["order"], record["empty"]) == (
        SPLIT,
        "class",
        "area",
        "skip",
    )
    assert (
        record["categories"][11] == {"id": 13, "value": 12, "name": "stop sign"} and record["coco_categories"]
    )
    assert record["sha256"] == masks.annotations.sha256
    info = LabelFolder.open(out / "masks").info
    assert info is not None and info.classes == CLASSES and info.settings["values"]["90"] == 80


def test_only_what_is_asked_for(root: Path, tmp_path: Path) -> None:
    file = root / "annotations" / f"instances_{SPLIT}.json"  # a file alone will do
    for option, made in (("--masks", "masks"), ("--lists", f"{SPLIT}.txt"), ("--labels", "labels.json")):
        out = tmp_path / option
        assert invoke("coco", file, "-o", out, option).exit_code == 0
        assert sorted(f.name for f in out.iterdir()) == sorted(["coco.json", made])


def test_images_without_annotations(root: Path, tmp_path: Path) -> None:
    done = convert(painter(root), SPLIT, tmp_path / "out", empty="keep")
    assert done.images == done.written == 7 and not done.failures
    assert not read_mask(tmp_path / "out" / "masks" / f"{coco_set.name(6)}.png").any()
    assert json.loads((tmp_path / "out" / "labels.json").read_text())["labels"][coco_set.name(6)] == []


def test_going_on(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert convert(painter(root), SPLIT, out).written == 6
    file = out / "masks" / f"{WITH[2]}.png"
    before, stamp = file.read_bytes(), (out / "masks" / f"{WITH[0]}.png").stat().st_mtime_ns
    file.unlink()
    again = convert(painter(root), SPLIT, out)
    assert (again.written, again.kept) == (1, 5) and file.read_bytes() == before
    assert (out / "masks" / f"{WITH[0]}.png").stat().st_mtime_ns == stamp
    other = convert(painter(root, crowd="ignore"), SPLIT, out)  # another choice: made anew
    assert (other.written, other.kept) == (6, 0)
    assert 255 in read_mask(out / "masks" / f"{coco_set.name(3)}.png")
    with pytest.raises(StoreError, match="holds split val2014; write train2014 to another folder"):
        convert(painter(root), "train2014", out)
    (out / "coco.json").write_text("{")
    with pytest.raises(StoreError, match=r"coco\.json: damaged"):
        convert(painter(root), SPLIT, out)


def many(root: Path, count: int) -> None:
    """The same set with images and annotations repeated under other ids."""
    content = coco_set.entries()
    images, annotations = [], []
    for n in range(count):
        image = content["images"][n % 6]
        images.append({**image, "id": n + 1, "file_name": f"{n:012d}.jpg"})
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        annotations += [{**a, "id": 100 * n + i, "image_id": n + 1} for i, a in enumerate(own)]
    change(root, {**content, "images": images, "annotations": annotations})


def test_processes_write_the_same(root: Path, tmp_path: Path) -> None:
    many(root, 80)
    seen: list[int] = []
    one = convert(painter(root), SPLIT, tmp_path / "one", workers=1)
    two = convert(painter(root), SPLIT, tmp_path / "two", workers=2, progress=seen.append)
    assert one.written == two.written == sum(seen) == 80
    names = [f"{n:012d}.png" for n in range(80)]
    assert all(
        (tmp_path / "one/masks" / n).read_bytes() == (tmp_path / "two/masks" / n).read_bytes() for n in names
    )


def test_stopping_and_going_on(root: Path, tmp_path: Path) -> None:
    many(root, 100)
    asked: list[int] = []
    done = convert(
        painter(root), SPLIT, tmp_path / "out", workers=1, stop=lambda: asked.append(1) or len(asked) > 2
    )
    assert done.stopped and done.written == 64
    again = convert(painter(root), SPLIT, tmp_path / "out", workers=1)
    assert (again.written, again.kept, again.stopped) == (36, 64, False)


def test_a_signal_stops_the_command_between_two_masks(root: Path, tmp_path: Path) -> None:
    many(root, 6000)
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "infercam.engine.cli",
        "coco",
        str(root),
        "--split",
        SPLIT,
        "-o",
        str(out),
    ]
    with subprocess.Popen(
        [*command, "--masks", "--workers", "1"], stderr=subprocess.PIPE, text=True
    ) as child:
        limit = time.monotonic() + 60
        while (
            not (out / "masks" / "index.jsonl").exists() and child.poll() is None and time.monotonic() < limit
        ):
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        errors = child.communicate(timeout=60)[1]
    assert child.returncode == 128 + signal.SIGTERM, errors
    assert "run the same command again" in errors and "Traceback" not in errors
    written = len((out / "masks" / "index.jsonl").read_text().splitlines())
    assert 0 < written < 6000
    assert len(list((out / "masks").glob("*.png"))) == written and not list((out / "masks").glob(".tmp-*"))


def test_what_is_broken_is_one_line_each_and_the_rest_goes_on(root: Path, tmp_path: Path) -> None:
    content = coco_set.entries()
    content["annotations"][0]["segmentation"] = [[1, 1, 2, float("1e9"), 3, 3]]
    content["annotations"][3]["category_id"] = 91
    content["annotations"][5]["segmentation"]["counts"].append(3)
    content["images"][3]["width"] = 71  # its run lengths no longer fit
    content["annotations"].append(coco_set.annotation(999, 31337, 1, [coco_set.disc(5, 5, 3)]))
    change(root, content)
    picture = Image.open(root / SPLIT / f"{coco_set.name(5)}.jpg").resize((39, 40))
    picture.save(root / SPLIT / f"{coco_set.name(5)}.jpg")
    for number in (3, 4):
        (root / SPLIT / f"{coco_set.name(number)}.jpg").unlink()  # masks need no picture
    out = tmp_path / "out"
    ran = invoke("coco", root, "--split", SPLIT, "-o", out)
    assert ran.exit_code == 1 and "6 failed" in ran.stderr.replace("\n", " ")
    found = failures(out)
    assert found.keys() == {*(coco_set.name(n) for n in (0, 1, 2, 3, 5)), "annotation 999"}
    assert "annotation 700 has a polygon far outside" in found[coco_set.name(0)]
    assert "annotation 5 has category 91, which the file does not name" in found[coco_set.name(1)]
    assert "annotation 40 has run lengths that do not add up" in found[coco_set.name(2)]
    assert (
        "annotation 50 has run lengths for size [70, 70], but its image is [70, 71]"
        in found[coco_set.name(3)]
    )
    assert "its picture is 39×40, its annotations are for 41×40" in found[coco_set.name(5)]
    assert [f.stem for f in (out / "masks").glob("*.png")] == [coco_set.name(4)]
    labels = json.loads((out / "labels.json").read_text())["labels"]
    assert labels.keys() == {coco_set.name(n) for n in (0, 2, 3, 4, 5)}  # known where the category is
    # mended, the same command does what is left
    change(root, coco_set.entries())
    (root / SPLIT / f"{coco_set.name(5)}.jpg").unlink()
    assert invoke("coco", root, "--split", SPLIT, "-o", out).exit_code == 0
    assert not (out / "failures.jsonl").exists() and len(list((out / "masks").glob("*.png"))) == 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{root}"], "name the split"),
        (["{root}", "--split", "test"], "no split 'test'"),
        (["{root}/val2014"], "name the split"),
        (["{root}/val2014", "--split", "val2014"], "no split 'val2014'"),
        (["{root}/none", "--split", "val2014"], "no such folder"),
        (["{root}", "--split", SPLIT, "--crowd", "x"], "crowd is one of class, ignore, skip"),
        (["{root}", "--split", SPLIT, "--order", "x"], "order is one of area, file"),
        (["{root}", "--split", SPLIT, "--empty", "x"], "empty is one of skip, keep"),
        (["{root}/val2014/COCO_val2014_000000000000.jpg"], "not UTF-8"),
    ],
)
def test_refused_in_one_line(root: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    ran = invoke("coco", *(a.format(root=root) for a in arguments), "-o", tmp_path / "out")
    assert isinstance(ran.exception, InfercamError), ran.output
    assert says in str(ran.exception) and "\n" not in str(ran.exception)
    assert not (tmp_path / "out").exists()


# -- all the way ---------------------------------------------------------------------------------------------------
def test_run_and_eval_over_81_classes(root: Path, tmp_path: Path) -> None:
    bundle, maps, out = coco_set.bundle(tmp_path / "bundle", CLASSES), tmp_path / "maps", tmp_path / "out"
    (root / SPLIT / f"{coco_set.name(2)}.jpg").unlink()
    data = ["--coco", root, "--split", SPLIT]
    run = ["run", bundle, *data, "--labels", "coco", "-o", maps, "--recipe", "fast", "--threads", 1]
    ran = invoke(*run)
    assert ran.exit_code == 1 and list(failures(maps)) == [coco_set.name(2)]  # a picture is missing
    store = MapStore.open(maps)
    assert sorted(store.ids()) == sorted(set(WITH) - {coco_set.name(2)})
    assert store.read(coco_set.name(0)).names == ["person", "dog", "frisbee"]
    assert store.info.settings["labels"]["kind"] == "coco" and store.info.settings["source"]["kind"] == "coco"

    ran = invoke("eval", maps, *data)
    assert isinstance(ran.exception, InputError) and "no maps for 1 of the 6 images of val2014" in str(
        ran.exception
    )
    ran = invoke(
        "eval", maps, *data, "--missing", "skip", "--json", tmp_path / "painted.json", "--bootstrap", 50
    )
    assert ran.exit_code == 0, ran.output
    painted = json.loads((tmp_path / "painted.json").read_text())
    assert painted["images"] == 5 and len(painted["iou_at_best_threshold"]) == 81

    # the same figures from the images one by one, in memory
    masks = painter(root)
    records = [(r.maps, r.classes, masks(id)) for id in WITH if id in store for r in [store.read_stored(id)]]
    direct = evaluate(records, 80)
    assert painted["all_classes"]["miou"] == direct.all.miou
    assert painted["iou_at_best_threshold"]["person"] == direct.iou[1]

    # and from the masks that `infercam coco` writes, alone or by the split
    assert invoke("coco", root, "--split", SPLIT, "-o", out, "--masks").exit_code == 0
    for truth in (["--gt", out / "masks"], [*data, "--gt", out / "masks"]):
        ran = invoke(
            "eval", maps, *truth, "--missing", "skip", "--json", tmp_path / "f.json", "--bootstrap", 50
        )
        assert ran.exit_code == 0, ran.output
        found = json.loads((tmp_path / "f.json").read_text())
        assert found["all_classes"]["curve"] == painted["all_classes"]["curve"]
        assert found["by_classes_in_image"] == painted["by_classes_in_image"]


def test_maps_with_other_numbers_are_scored_by_name(root: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = coco_ground_truth(root, SPLIT)
    turned = ["unicorn", *CLASSES[::-1]]
    stores = [
        MapStore.create_or_open(tmp_path / name, classes=classes, settings={})
        for name, classes in (("a", CLASSES), ("b", turned))
    ]
    labels = SourceSettings(coco=root, split=SPLIT).labels("coco", CLASSES)
    for id, file in truth.pairs:
        names = [CLASSES[c] for c in labels.lookup(id)]
        maps = 4 * rng.integers(0, 63, (len(names), *truth.read(id, file).shape))
        maps += np.arange(len(names))[:, None, None]  # no ties: those go by the classes' order
        maps = (maps / 255).astype(np.float32)
        for store in stores:
            order = sorted(range(len(names)), key=lambda i: store.info.classes.index(names[i]))
            own = [names[i] for i in order]
            store.write(MapRecord(id, [store.info.classes.index(n) for n in own], own, maps[order]), "x")
    one, two = (evaluate_store(store, truth) for store in stores)
    assert one.all.miou == pytest.approx(two.all.miou, abs=1e-12) and one.all.miou > 0
    assert one.iou[CLASSES.index("dog") + 1] == two.iou[turned.index("dog") + 1]
    few = MapStore.create_or_open(tmp_path / "c", classes=["person"], settings={})
    with pytest.raises(InputError, match="79 classes that what is scored has not"):
        evaluate_store(few, truth, missing="zero")


def test_labels_of_81_classes(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(painter(root), SPLIT, out, what=["masks"])
    truth = coco_ground_truth(root, SPLIT)
    found = evaluate_labels(LabelFolder.open(out / "masks"), truth)
    assert found.scores.all.miou == 1 and found.pixel_accuracy == 1 and found.ignored_share == 0
    # a folder of another tool: its classes are those of the ground truth, or of --classes
    (out / "masks" / "label_folder.json").unlink()
    assert evaluate_labels(LabelFolder.open(out / "masks"), truth).scores.all.miou == 1
    assert invoke("eval", out / "masks", "--gt", out / "masks", "--classes", "coco").exit_code == 0
    ran = invoke("eval", out / "masks", "--gt", out / "masks")
    assert isinstance(ran.exception, InputError) and "there are 20 classes" in str(ran.exception)
    # crowds as 255 are not scored
    ignoring = evaluate_labels(
        LabelFolder.open(out / "masks"), coco_ground_truth(root, SPLIT, crowd="ignore")
    )
    assert ignoring.scores.pixels < found.scores.pixels and ignoring.pixel_accuracy == 1


def test_a_folder_of_masks_tells_its_classes(root: Path, tmp_path: Path) -> None:
    convert(painter(root), SPLIT, tmp_path, what=["masks"])
    truth = folder_ground_truth(tmp_path / "masks")
    assert truth.classes == CLASSES
    table = truth.table(CLASSES[::-1])
    assert table is not None
    mask = truth.read(*truth.pairs[0])
    labels, unlisted = table.apply(mask, "x")
    counted = count_image(np.zeros((0, *mask.shape), np.uint8), [], labels, 80)
    assert unlisted == 0
    assert 80 in counted.true_labels  # the person, last of the reversed classes
