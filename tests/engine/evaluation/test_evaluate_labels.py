"""Scoring label PNGs: figures by hand and against a plain confusion matrix, and everything that may be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from infercam.engine.cli import app
from infercam.engine.common.errors import InfercamError, InputError, StoreError
from infercam.engine.evaluation.evaluate import folder_ground_truth
from infercam.engine.evaluation.evaluate_labels import evaluate_labels, holds_labels
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.evaluation.label_png import write_label
from infercam.engine.store.mapstore import MapStore

NAMES = ["cat", "dog", "cow"]


def _write(root: Path, pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[LabelFolder, Path]:
    folder = LabelFolder.create_or_open(root / "labels", NAMES, {"kind": "test"})
    for i, (label, mask) in enumerate(pairs):
        folder.write(f"im{i}", np.asarray(label, np.uint8), "x")
        write_label(root / "masks" / f"im{i}.png", np.asarray(mask, np.uint8))
    return folder, root / "masks"


def test_by_hand(tmp_path: Path) -> None:
    """Background: 2 hits of 4; cat: 2 of 4; dog: 1 of 3; cow: never true, not averaged."""
    label = np.array([[0, 0, 1, 1], [1, 2, 255, 3], [2, 0, 0, 0]])
    truth = np.array([[0, 0, 1, 1], [0, 2, 1, 1], [0, 2, 255, 255]])
    folder, masks = _write(tmp_path, [(label, truth)])
    found = evaluate_labels(folder, folder_ground_truth(masks), min_images=1)
    iou = found.to_json()["iou"]
    assert iou["background"] == pytest.approx(2 / 5)  # predicted 3 (one is dog), true 4: union 5
    assert iou["cat"] == pytest.approx(2 / 4)  # predicted 3, true 3 that are scored
    assert iou["dog"] == pytest.approx(1 / 3) and iou["cow"] is None
    assert found.scores.all.miou == pytest.approx((2 / 5 + 1 / 2 + 1 / 3) / 3)
    assert found.pixel_accuracy == pytest.approx(5 / 9)
    assert found.ignored_share == pytest.approx(1 / 10)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 5))
def test_equals_a_confusion_matrix(seed: int, count: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = np.random.default_rng(seed)
    values = [0, 0, 1, 2, 3, 255]
    pairs = []
    for _ in range(count):
        shape = rng.integers(1, 9, 2)
        pairs.append((rng.choice(values, shape), rng.choice(values[: rng.integers(3, 6)], shape)))
    folder, masks = _write(tmp_path_factory.mktemp("x"), pairs)
    matrix = np.zeros((4, 4))
    for label, mask in pairs:
        for t, p in zip(mask.ravel(), label.ravel(), strict=True):
            if 255 not in (t, p):
                matrix[t, p] += 1
    if not matrix[1:].sum():
        with pytest.raises(InputError):
            evaluate_labels(folder, folder_ground_truth(masks))
        return
    found = evaluate_labels(folder, folder_ground_truth(masks))
    true, hits = matrix.sum(1), matrix.diagonal()
    union = true + matrix.sum(0) - hits
    want = [hits[c] / union[c] for c in range(4) if true[c]]
    assert found.scores.all.miou == pytest.approx(np.mean(want))
    assert found.pixel_accuracy == pytest.approx(hits.sum() / matrix.sum())


def test_json_has_the_shape_of_maps_less_thresholds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 3, (5, 6)), rng.integers(0, 3, (5, 6))) for _ in range(8)]
    folder, masks = _write(tmp_path, pairs)
    found = evaluate_labels(folder, folder_ground_truth(masks), bootstrap=50).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["images"] == 8 and found["images_without_labels"] == 0
    assert found["labels"] == str(folder.path) and found["settings"] == {"kind": "test"}
    assert set(found["all_classes"]) == {"miou", "labels", "interval_95", "std"}
    low, high = found["all_classes"]["interval_95"]
    assert low < found["all_classes"]["miou"] < high
    assert found["frequent_classes"]["labels"] == [0, 1, 2]
    assert set(found["by_classes_in_image"]["2"]) == {"images", "miou", "labels"}
    assert not any("threshold" in key or "maps" in key for key in found)


def test_processes_count_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pairs = [(rng.choice([0, 1, 2, 255], (4, 5)), rng.integers(0, 3, (4, 5))) for _ in range(70)]
    folder, masks = _write(tmp_path, pairs)
    one = evaluate_labels(folder, folder_ground_truth(masks), workers=1).to_json()
    assert evaluate_labels(folder, folder_ground_truth(masks), workers=2).to_json() == one


def test_missing_labels(tmp_path: Path) -> None:
    folder, masks = _write(tmp_path, [(np.ones((2, 3)), np.ones((2, 3)))])
    write_label(masks / "other.png", np.array([[0, 1]], np.uint8))
    truth = folder_ground_truth(masks)
    with pytest.raises(InputError, match=r"no labels for 1 of the 2 images .*\(other\)"):
        evaluate_labels(folder, truth)
    assert evaluate_labels(folder, truth, missing="skip").scores.images == 1
    assert evaluate_labels(folder, truth, missing="zero").pixel_accuracy == pytest.approx(7 / 8)


def test_bad_labels_are_named(tmp_path: Path) -> None:
    folder, masks = _write(tmp_path, [(np.ones((2, 3)), np.ones((2, 3)))])
    truth = folder_ground_truth(masks)
    folder.write("im0", np.ones((3, 2), np.uint8), "x")
    with pytest.raises(InputError, match=r"im0\.png: is 2×3, but its photo 3×2"):
        evaluate_labels(folder, truth)
    folder.write("im0", np.full((2, 3), 4, np.uint8), "x")
    with pytest.raises(InputError, match=r"im0\.png: has value 4, but there are 3 classes"):
        evaluate_labels(folder, truth)
    folder.file("im0").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"im0\.png: "):
        evaluate_labels(folder, truth)


def test_folders_of_other_tools(tmp_path: Path) -> None:
    write_label(tmp_path / "labels" / "im0.png", np.array([[0, 20]], np.uint8))
    write_label(tmp_path / "masks" / "im0.png", np.array([[0, 20]], np.uint8))
    folder, truth = LabelFolder.open(tmp_path / "labels"), folder_ground_truth(tmp_path / "masks")
    assert folder.info is None and folder.ids() == ["im0"]
    assert evaluate_labels(folder, truth).to_json()["iou"]["tvmonitor"] == 1
    with pytest.raises(InputError, match="there are 2 classes"):
        evaluate_labels(folder, truth, classes=["a", "b"])


def test_what_is_a_folder_of_labels(tmp_path: Path) -> None:
    folder, masks = _write(tmp_path, [(np.ones((2, 3)), np.ones((2, 3)))])
    assert holds_labels(folder.path) and holds_labels(masks)
    MapStore.create_or_open(tmp_path / "maps", classes=NAMES, settings={})
    (tmp_path / "maps" / "picture.png").write_bytes(b"")
    assert not holds_labels(tmp_path / "maps") and not holds_labels(tmp_path / "none")
    LabelFolder.create_or_open(tmp_path / "walk" / "crf", NAMES, {})
    with pytest.raises(StoreError, match=r"holds folders of labels; name one: .*crf"):
        holds_labels(tmp_path / "walk")


def test_label_folders(tmp_path: Path) -> None:
    folder = LabelFolder.create_or_open(tmp_path / "x", NAMES, {"a": 1})
    folder.write("d/im", np.zeros((2, 2), np.uint8), "print")
    assert folder.done("d/im", "print") and not folder.done("d/im", "other") and "d/im" in folder
    again = LabelFolder.create_or_open(tmp_path / "x", NAMES, {"a": 2})
    assert again.done("d/im", "print") and again.info is not None and again.info.settings == {"a": 2}
    again.file("d/im").write_bytes(b"")
    assert not again.done("d/im", "print")
    for bad in ("../im", "/im", ""):
        with pytest.raises(InputError):
            folder.file(bad)
    with pytest.raises(StoreError, match="other classes"):
        LabelFolder.create_or_open(tmp_path / "x", ["bird"], {})
    for text in ("{", '{"classes": []}', '{"schema_version": "new"}', "[1]"):
        (tmp_path / "x" / "label_folder.json").write_text(text)
        with pytest.raises(InfercamError, match=r"label_folder\.json: damaged"):
            LabelFolder.open(tmp_path / "x")
    (tmp_path / "x" / "label_folder.json").write_text('{"schema_version": 2, "classes": ["a"]}')
    with pytest.raises(StoreError, match="newer"):
        LabelFolder.open(tmp_path / "x")
    with pytest.raises(StoreError, match="no such folder"):
        LabelFolder.open(tmp_path / "none")


def test_the_command(tmp_path: Path) -> None:
    folder, masks = _write(tmp_path, [(np.array([[0, 1, 255]]), np.array([[0, 1, 1]]))])
    arguments = ["eval", str(folder.path), "--gt", str(masks)]
    result = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "r.json")])
    assert result.exit_code == 0, result.output
    assert "mIoU (%) over" in result.stdout and "threshold" not in result.stdout
    assert "pixels labelled rightly: 100.00 %; left open (255) and not scored: 33.3 %" in result.stdout
    assert json.loads((tmp_path / "r.json").read_text())["all_classes"]["miou"] == 1
    refused = CliRunner().invoke(app, [*arguments, "--plot", "x.png"])
    assert refused.exit_code and "labels have not" in str(refused.exception)
