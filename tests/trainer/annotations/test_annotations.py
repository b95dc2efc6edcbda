"""Labels in the formats of labelling tools: polygons against pixels, each file through that tool's own reader."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image

from infercam.engine.common.errors import InputError
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.evaluation.label_png import read_label
from infercam.engine.inputs import SourceSettings
from infercam.engine.labelling.regions import Polygon
from infercam.engine.store.mapstore import MapRecord, MapStore
from infercam.trainer.annotations.write import FORMATS, check_format, write_annotations
from infercam.trainer.photos.photos import open_photos

CLASSES = ["cat", "dog & co", 'a "cow"']
SIZE = (40, 56)


def painted(polygons: list[Polygon], size: tuple[int, int]) -> np.ndarray:
    out = np.zeros(size, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(out, [polygon.points.astype(np.int32)], 1)
    return out > 0


# -- files -----------------------------------------------------------------------------------------------------
@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Three images: a ring and a block, one block, nothing."""
    store = MapStore.create_or_open(tmp_path / "maps", classes=CLASSES, settings={}, dtype="float16")
    folder = LabelFolder.create_or_open(tmp_path / "labels", CLASSES, {})
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    ring = np.hypot(y - 20, x - 18)
    a = np.where((ring < 15) & (ring > 6), 1, 0)
    a[5:30, 38:52] = 3
    a[0, :] = 255
    b = np.zeros(SIZE, int)
    b[10:20, 10:30] = 2
    for id, label, classes in (("a", a, [0, 2]), ("sub/b c", b, [1]), ("d", b * 0, [1])):
        maps = np.full((len(classes), *SIZE), 0.75, np.float32)
        store.write(MapRecord(id, classes, [CLASSES[c] for c in classes], maps), "made")
        folder.write(id, label.astype(np.uint8), "made")
    return tmp_path


def write(labels: Path, fmt: str, tolerance: float = 0.5) -> Path:
    return write_annotations(labels / "labels", MapStore.open(labels / "maps"), None, fmt, tolerance)


def mask(labels: Path, id: str, label: int) -> np.ndarray:
    return read_label(labels / "labels" / f"{id}.png", 3, SIZE) == label + 1


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_coco_is_read_by_pycocotools(labels):
    coco = pytest.importorskip("pycocotools.coco")
    found = coco.COCO(str(write(labels, "coco-rle")))
    assert [c["name"] for c in found.loadCats([1, 2, 3])] == CLASSES
    images = {image["file_name"]: image["id"] for image in found.loadImgs(found.getImgIds())}
    assert set(images) == {"a.jpg", "sub/b c.jpg", "d.jpg"} and not found.getAnnIds(images["d.jpg"])
    for id, label in (("a", 0), ("a", 2), ("sub/b c", 1)):
        (row,) = found.loadAnns(found.getAnnIds(images[f"{id}.jpg"], catIds=[label + 1]))
        assert np.array_equal(found.annToMask(row) > 0, mask(labels, id, label))
        assert row["score"] == pytest.approx(0.75) and row["area"] == mask(labels, id, label).sum()
    results = [
        {k: a[k] for k in ("image_id", "category_id", "segmentation", "score")}
        for a in found.dataset["annotations"]
    ]
    assert len(found.loadRes(results).anns) == 3  # as a file of results, too


def test_yolo_line_by_line(labels):
    folder = write(labels, "yolo-seg", 0)
    with (labels / "labels" / "scores.csv").open() as f:
        scores = list(csv.DictReader(f))
    lines = (folder / "a.txt").read_text().splitlines()
    assert len(lines) == 2 and (folder / "d.txt").read_text() == ""
    assert [(r["id"], r["line"], r["class"], r["score"]) for r in scores[:2]] == [
        ("a", "1", "cat", "0.7500"),
        ("a", "2", 'a "cow"', "0.7500"),
    ]
    for line in lines:
        label, *numbers = line.split()
        points = np.array(numbers, float).reshape(-1, 2) * SIZE[::-1]
        assert (
            iou(
                painted([Polygon(0, points.round().astype(np.int64), 1)], SIZE), mask(labels, "a", int(label))
            )
            > 0.98
        )


def test_yolo_is_read_by_supervision(labels):
    supervision = pytest.importorskip("supervision")
    write(labels, "yolo-seg", 0)
    for id in ("a", "d"):
        (labels / "images").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(labels / "images" / f"{id}.jpg")
    found = supervision.DetectionDataset.from_yolo(
        str(labels / "images"),
        str(labels / "labels" / "labels"),
        str(labels / "labels" / "data.yaml"),
        force_masks=True,
    )
    assert found.classes == CLASSES
    boxes = found.annotations[str(labels / "images" / "a.jpg")]
    assert boxes.class_id.tolist() == [0, 2]
    for one, label in zip(boxes.mask, (0, 2), strict=True):
        assert iou(one.astype(bool), mask(labels, "a", label)) > 0.9


def test_label_studio_takes_the_tasks(labels):
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    tasks = json.loads(write(labels, "label-studio", 0).read_text())
    config = interface.LabelInterface((labels / "labels" / "config.xml").read_text())
    assert set(config.get_control("label").labels) == set(CLASSES)
    for task in tasks:
        for prediction in task["predictions"]:
            assert config.validate_prediction(prediction)
        assert config.validate_task({"data": task["data"]})
    assert not config.validate_prediction(
        {"result": [{**tasks[0]["predictions"][0]["result"][0], "to_name": "x"}]}
    )


def test_label_studio_in_per_cent(labels):
    tasks = json.loads(write(labels, "label-studio", 0).read_text())
    assert [unquote(t["data"]["image"]) for t in tasks] == [
        f"/data/local-files/?d={name}" for name in ("a.jpg", "sub/b c.jpg", "d.jpg")
    ]
    (block,) = tasks[1]["predictions"][0]["result"]
    points = np.array(block["value"]["points"]) / 100 * SIZE[::-1]
    assert block["value"]["polygonlabels"] == ["dog & co"] and block["score"] == pytest.approx(0.75)
    assert points.min(axis=0) == pytest.approx([10, 10], abs=1e-3) and points.max(axis=0) == pytest.approx(
        [29, 19], abs=1e-3
    )
    assert tasks[2]["predictions"][0]["result"] == []


def test_fiftyone_by_hand(labels):
    """As its COCODetectionDataset importer looks things up: labels.json, data.json, scores as confidences."""
    for id in ("a", "sub/b c", "d"):
        picture = labels / "photos" / f"{id}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(picture)
    photos = open_photos(SourceSettings(images=labels / "photos"))
    store = MapStore.open(labels / "maps")
    found = json.loads(write_annotations(labels / "labels", store, photos, "fiftyone").read_text())
    where = json.loads((labels / "labels" / "data.json").read_text())
    assert {i["file_name"] for i in found["images"]} == set(where) == {"a.png", "sub/b c.png", "d.png"}
    for name, file in where.items():
        assert Path(file).is_absolute() and Path(file) == (labels / "photos" / name).absolute()
    assert [a["score"] for a in found["annotations"]] == [pytest.approx(0.75)] * 3
    assert [c["name"] for c in found["categories"]] == CLASSES
    assert write(labels, "fiftyone").name == "labels.json"  # pictures not known: it is told their folder


def test_fiftyone_reads_it(labels, monkeypatch):
    monkeypatch.setenv("FIFTYONE_DISABLE_SERVICES", "1")  # importing wants no database
    fiftyone = pytest.importorskip("fiftyone.utils.coco", exc_type=ImportError)
    test_fiftyone_by_hand(labels)
    write_annotations(
        labels / "labels",
        MapStore.open(labels / "maps"),
        open_photos(SourceSettings(images=labels / "photos")),
        "fiftyone",
    )
    with fiftyone.COCODetectionDatasetImporter(
        str(labels / "labels"), data_path="data.json", label_types="segmentations"
    ) as it:
        found = {Path(file).relative_to(labels / "photos").as_posix(): parts for file, _, parts in it}
        assert it.get_dataset_info()["classes"] == CLASSES
    assert set(found) == {"a.png", "sub/b c.png", "d.png"} and found["d.png"] is None
    for one, label in zip(found["a.png"].detections, (0, 2), strict=True):
        assert one.label == CLASSES[label] and one.confidence == pytest.approx(0.75)
        x, y, w, h = np.array(one.bounding_box) * (*SIZE[::-1], *SIZE[::-1])
        inside = np.zeros(SIZE, bool)
        inside[round(y) : round(y + h), round(x) : round(x + w)] = one.mask
        assert np.array_equal(inside, mask(labels, "a", label))


def test_cvat_by_hand(labels):
    root = ElementTree.parse(write(labels, "cvat", 0)).getroot()
    assert [e.text for e in root.iter("name") if e.text != "score"] == CLASSES
    images = {e.get("name"): e for e in root.iter("image")}
    (block,) = images["sub/b c.jpg"].findall("polygon")
    assert block.get("label") == "dog & co" and block.find("attribute").text == "0.7500"
    assert "10.00,10.00" in block.get("points")


@pytest.mark.parametrize("fmt", ["cvat", "datumaro"])
def test_datumaro_reads_it(labels, fmt):
    datumaro = pytest.importorskip("datumaro")
    file = write(labels, fmt, 0)
    for id in ("a", "sub/b c", "d"):  # its reader of CVAT looks for the pictures
        picture = labels / "labels" / "images" / f"{id}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(picture)
    found = datumaro.Dataset.import_from(str(file if fmt == "cvat" else labels / "labels"), fmt)
    names = [c.name for c in found.categories()[datumaro.AnnotationType.label]]
    assert names == CLASSES
    items = {item.id.replace("\\", "/"): item for item in found}
    assert set(items) == {"a", "sub/b c", "d"} and not items["d"].annotations
    for one, label in zip(items["a"].annotations, (0, 2), strict=True):
        assert one.label == label and float(one.attributes["score"]) == pytest.approx(0.75)
        if fmt == "datumaro":
            assert np.array_equal(one.image > 0, mask(labels, "a", label))
        else:
            points = np.array(one.points).reshape(-1, 2).round().astype(np.int64)
            assert np.array_equal(painted([Polygon(0, points, 1)], SIZE), mask(labels, "a", label))


# -- what is wrong ---------------------------------------------------------------------------------------------
def test_an_unknown_format():
    with pytest.raises(
        InputError,
        match="--to is one of coco-rle, yolo-seg, label-studio, fiftyone, cvat, datumaro, not 'voc'",
    ):
        check_format("voc")


def test_images_without_a_label_are_left_out(labels):
    (labels / "labels" / "a.png").unlink()
    assert len(json.loads(write(labels, "label-studio").read_text())) == 2


def test_no_images_at_all_is_still_a_file(labels):
    for id in ("a", "sub/b c", "d"):
        (labels / "labels" / f"{id}.png").unlink()
    for fmt in FORMATS:
        file = write(labels, fmt)
        if file.suffix == ".json":
            json.loads(file.read_text())


def test_the_command(infercam, labels):
    command = ["labels", labels / "maps", "-o", labels / "out", "--kind", "threshold", "--threshold", 0.5]
    found = infercam(*command, "--to", "cvat", "--tolerance", 2)
    assert found.code == 0 and (labels / "out" / "annotations.xml").is_file() and "cvat:" in found.err
    assert infercam(*command, "--to", "xyz").code == 1
