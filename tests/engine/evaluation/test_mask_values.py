"""Masks whose values are no class indices: refused in one line, or mapped by --gt-values; no figure of nothing."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from infercam.engine.cli import app
from infercam.engine.common.errors import InputError
from infercam.engine.evaluation.evaluate import evaluate_store, folder_ground_truth
from infercam.engine.evaluation.evaluate_labels import evaluate_labels, holds_labels
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.evaluation.label_png import write_label
from infercam.engine.evaluation.mask_values import MaskValues
from infercam.engine.inputs import GroundTruthSettings
from infercam.engine.store.mapstore import MapRecord, MapStore

NAMES = ["cat", "dog"]
OBJECT = np.zeros((6, 8), np.uint8)
OBJECT[1:4, 2:7] = 1


@pytest.fixture
def store(tmp_path: Path) -> MapStore:
    """Maps of two images that are right everywhere: cat in `a`, dog in `b`."""
    store = MapStore.create_or_open(tmp_path / "maps", classes=NAMES, settings={})
    for id, c in (("a", 0), ("b", 1)):
        store.write(MapRecord(id, [c], [NAMES[c]], OBJECT[None].astype(np.float32)), "x")
    return store


def masks(folder: Path, **by_id: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    for id, mask in by_id.items():
        Image.fromarray(mask.astype(np.uint8)).save(folder / f"{id}.png")
    return folder


def test_masks_of_0_and_255_alone_are_no_ground_truth(store: MapStore, tmp_path: Path) -> None:
    gt = masks(tmp_path / "gt", a=OBJECT * 255, b=OBJECT * 255)
    with pytest.raises(InputError, match=r"gt: holds no class at all, .*--gt-values 0,255"):
        evaluate_store(store, folder_ground_truth(gt))
    with pytest.raises(InputError, match="holds no class at all"):
        evaluate_store(store, folder_ground_truth(masks(tmp_path / "none", a=OBJECT * 0, b=OBJECT * 0)))


def test_one_picture_of_background_only_is_fine(store: MapStore, tmp_path: Path) -> None:
    gt = masks(tmp_path / "gt", a=OBJECT * 0, b=OBJECT * 2)
    assert evaluate_store(store, folder_ground_truth(gt)).images == 2


def test_labels_against_masks_without_a_class(tmp_path: Path) -> None:
    folder = LabelFolder.create_or_open(tmp_path / "labels", NAMES, {})
    folder.write("a", OBJECT, "x")
    gt = masks(tmp_path / "gt", a=OBJECT * 255)
    with pytest.raises(InputError, match="--gt-values"):
        evaluate_labels(folder, folder_ground_truth(gt))
    values = MaskValues.parse("0,255")
    assert evaluate_labels(folder, folder_ground_truth(gt).with_values(values)).scores.all.miou == 1


def test_labels_that_leave_every_object_open(tmp_path: Path) -> None:
    """It is not the masks that lack classes."""
    folder = LabelFolder.create_or_open(tmp_path / "labels", NAMES, {})
    folder.write("a", OBJECT * np.uint8(255), "x")
    with pytest.raises(InputError, match="the labels leave all of them open"):
        evaluate_labels(folder, folder_ground_truth(masks(tmp_path / "gt", a=OBJECT)))


@pytest.mark.parametrize(
    ("values", "cat", "dog"), [("0,255,128", 255, 128), ("7,1,9", 1, 9), (" 0 , 20 , 30 ", 20, 30)]
)
def test_values_become_classes(store: MapStore, tmp_path: Path, values: str, cat: int, dog: int) -> None:
    background = int(values.split(",")[0])
    gt = masks(tmp_path / "gt", a=np.where(OBJECT, cat, background), b=np.where(OBJECT, dog, background))
    found = evaluate_store(store, GroundTruthSettings(gt=gt, gt_values=values).open())
    assert found.all.miou == 1 and found.all.labels == [0, 1, 2] and found.unlisted == 0
    assert f"(values {values.replace(' ', '')}; others ignored)" in found.ground_truth


def test_an_empty_place_is_a_class_that_no_value_has(store: MapStore, tmp_path: Path) -> None:
    gt = masks(tmp_path / "gt", b=OBJECT * 255)
    found = evaluate_store(store, GroundTruthSettings(gt=gt, gt_values="0,,255").open())
    assert found.all.labels == [0, 2] and found.all.miou == 1


def test_other_values_are_not_scored_and_counted(store: MapStore, tmp_path: Path) -> None:
    mask = OBJECT * 200
    mask[0] = 99
    mask[5] = 255  # ignored in every mask: not told
    gt = masks(tmp_path / "gt", a=mask)
    found = evaluate_store(store, GroundTruthSettings(gt=gt, gt_values="0,200").open())
    assert found.unlisted == 8 and found.pixels == 48 - 16
    assert found.to_json()["pixels_of_unlisted_values"] == 8


def test_values_beyond_the_classes_are_named(store: MapStore, tmp_path: Path) -> None:
    gt = masks(tmp_path / "gt", a=OBJECT, b=OBJECT * 200)
    with pytest.raises(InputError, match=r"b: the ground truth has value 200, .*2 classes .*--gt-values"):
        evaluate_store(store, folder_ground_truth(gt))
    write_label(gt / "b.png", np.arange(48, dtype=np.uint8).reshape(6, 8))
    with pytest.raises(InputError, match=r"values 3, 4, 5, …, but there are 2"):
        evaluate_store(store, folder_ground_truth(gt))


def test_values_beyond_named_classes_are_told_as_they_stand(store: MapStore, tmp_path: Path) -> None:
    """Masks that name their classes are matched by name; the value told is the mask's own."""
    folder = LabelFolder.create_or_open(tmp_path / "gt", NAMES[::-1], {})
    folder.write("a", OBJECT * np.uint8(2), "x")
    folder.write("b", OBJECT, "x")
    assert evaluate_store(store, folder_ground_truth(folder.path)).all.miou == 1
    folder.write("b", OBJECT * np.uint8(77), "x")
    with pytest.raises(InputError, match="b: the ground truth has value 77"):
        evaluate_store(store, folder_ground_truth(folder.path))
    truth = folder_ground_truth(folder.path).with_values(MaskValues.parse("0,77,2"))
    assert evaluate_store(store, truth).all.miou == 1  # 77 is the masks' first class, dog


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no class"),
        ("0", "names no class"),
        ("0,", "names no class"),
        ("0,x", "whole numbers"),
        ("0,1.5", "whole numbers"),
        ("0,256", "0 to 255"),
        ("-1,1", "0 to 255"),
        ("0,5,5", "twice"),
        (",".join(["0", *[""] * 254, "1"]), "254 classes"),
    ],
)
def test_values_that_cannot_be(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        MaskValues.parse(text)
    assert str(caught.value).startswith("--gt-values") and "\n" not in str(caught.value)


def test_more_values_than_classes(store: MapStore, tmp_path: Path) -> None:
    gt = masks(tmp_path / "gt", a=OBJECT)
    with pytest.raises(InputError, match="names 3 classes, but there are 2"):
        evaluate_store(store, GroundTruthSettings(gt=gt, gt_values="0,1,2,3").open())


def test_on_the_command_line(store: MapStore, tmp_path: Path) -> None:
    gt = masks(tmp_path / "gt", a=OBJECT * 255)
    asked = ["eval", str(store.path), "--gt", str(gt), "--bootstrap", "0"]
    refused = CliRunner().invoke(app, asked)
    assert isinstance(refused.exception, InputError)
    figures = tmp_path / "f.json"
    done = CliRunner().invoke(app, [*asked, "--gt-values", "0,255", "--json", str(figures)])
    assert done.exit_code == 0 and "values 0,255" in done.output
    assert json.loads(figures.read_text())["all_classes"]["miou"] == 1
    painted = CliRunner().invoke(
        app, ["eval", str(store.path), "--coco", "x", "--split", "y", "--gt-values", "0,1"]
    )
    assert isinstance(painted.exception, InputError) and "--gt-values" in str(painted.exception)


# -- masks' files ----------------------------------------------------------------------------------------------------


def test_masks_that_end_in_capitals(store: MapStore, tmp_path: Path) -> None:
    gt = masks(tmp_path / "gt", a=OBJECT, b=OBJECT * 2)
    (gt / "a.png").rename(gt / "a.PNG")
    truth = folder_ground_truth(gt)
    assert [id for id, _ in truth.pairs] == ["a", "b"]
    assert evaluate_store(store, truth).all.miou == 1
    labels = LabelFolder.open(gt)
    assert labels.ids() == ["a", "b"] and "a" in labels and holds_labels(gt)
    assert evaluate_labels(labels, truth, classes=NAMES).scores.all.miou == 1
    (gt / "b.PNG").write_bytes((gt / "b.png").read_bytes())
    with pytest.raises(InputError, match=r"b\.png and b\.PNG are two masks of one image"):
        folder_ground_truth(gt)


@pytest.mark.parametrize("of_mask", ["NFC", "NFD"])
@pytest.mark.parametrize("of_maps", ["NFC", "NFD"])
def test_maps_and_masks_in_other_unicode_forms(tmp_path: Path, of_mask: str, of_maps: str) -> None:
    store = MapStore.create_or_open(tmp_path / "maps", classes=NAMES, settings={})
    id = unicodedata.normalize(of_maps, "Müller")
    store.write(MapRecord(id, [0], ["cat"], OBJECT[None].astype(np.float32)), "x")
    gt = masks(tmp_path / "gt", **{unicodedata.normalize(of_mask, "Müller"): OBJECT})
    assert evaluate_store(store, folder_ground_truth(gt)).all.miou == 1
