"""Annotation files of other tools: ids of text, file names of other systems; what is passed over is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infercam.engine.common.errors import InputError

pytest.importorskip("pycocotools")

from infercam.engine.coco import Annotations, CocoMasks, coco_labels, coco_source
from infercam.engine.coco.convert import convert
from infercam.engine.coco.tree import notes

SQUARES = [[5.0, 5.0, 25.0, 5.0, 25.0, 25.0, 5.0, 25.0]], [[10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def image(id: Any, name: str) -> dict[str, Any]:
    return {"id": id, "file_name": name, "width": 40, "height": 30}


def mark(id: Any, of: Any, category: Any, square: int = 0) -> dict[str, Any]:
    return {"id": id, "image_id": of, "category_id": category, "segmentation": SQUARES[square], "iscrowd": 0}


def write(
    tmp_path: Path, images: list, annotations: list, categories: Any = ((3, "cat"), (7, "dog"))
) -> Path:
    file = tmp_path / "coco" / "annotations" / "instances_train.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "coco" / "train").mkdir(exist_ok=True)
    named = [{"id": id, "name": name} for id, name in categories]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": named}))
    return file


def test_ids_of_text(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        [image("b-1", "b.jpg"), image("a-1", "a.jpg"), image(5, "five.jpg"), image("6", "six.jpg")],
        [mark("m1", "a-1", 3), mark("m2", "b-1", 7), mark(1, "5", 3), mark(2, 6, "7")],
    )
    found = Annotations.open(file)
    assert found.names() == ["b", "a", "five", "six"] and found.strays() == []  # text in the file's order
    masks = CocoMasks(found)
    assert [int(masks(name).max()) for name in found.names()] == [2, 1, 1, 2]
    labels = coco_labels(tmp_path / "coco", "train", ["dog", "cat"])
    assert labels.lookup("a") == [1] and labels.lookup("b") == [0]


def test_categories_of_text_follow_the_others_in_the_files_order(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        [image(1, "a.jpg")],
        [mark(1, 1, "zebra-id"), mark(2, 1, "ant-id", 1), mark(3, 1, 5)],
        [("zebra-id", "zebra"), (4, "cat"), ("ant-id", "ant")],
    )
    found = Annotations.open(file)
    assert found.classes == ["cat", "zebra", "ant"]
    with pytest.raises(InputError, match="annotation 3 has category 5, which the file does not name"):
        CocoMasks(found)("a")  # 5 stands for zebra here, and must not be taken for it
    os_file = write(
        tmp_path, [image(1, "a.jpg")], [mark("x", 1, "b"), mark("y", 1, "a", 1)], [("a", "ant"), ("b", "bee")]
    )
    mask = CocoMasks(Annotations.open(os_file))("a")
    assert mask[7, 7] == 2 and mask[15, 15] == 1


def test_of_equal_areas_the_lower_id_is_on_top_whatever_ids_are(tmp_path: Path) -> None:
    for first, second in ((("n", "m")), ("m", 9), (12, 9)):
        both = [{**mark(id, 1, category), "area": 5} for id, category in ((first, 3), (second, 7))]
        mask = CocoMasks(Annotations.open(write(tmp_path, [image(1, "a.jpg")], both)))("a")
        assert mask.max() == 2 and (tmp_path / "coco").is_dir()


def test_backslashes_are_folders(tmp_path: Path) -> None:
    write(tmp_path, [image(1, "sub\\b.jpg")], [mark(1, 1, 3)])
    source = coco_source(tmp_path / "coco", "train")
    assert source[0].id == "sub/b" and source[0].path == tmp_path / "coco" / "train" / "sub" / "b.jpg"
    assert not any("passed over" in note for note in source.notes)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/data/train/a.jpg", "is absolute; write it relative"),
        ("C:\\data\\a.jpg", "is absolute; write it relative"),
        ("d:/data/a.jpg", "is absolute"),
        ("\\\\host\\share\\a.jpg", "is absolute"),
        ("../a.jpg", "leaves its folder by '..'"),
        ("a\0.jpg", "null character"),
        ("", "empty"),
    ],
)
def test_images_that_cannot_be_used(tmp_path: Path, name: str, says: str) -> None:
    """Alone: the error names the first; beside others: a note counts and names them, and failures.jsonl."""
    file = write(tmp_path, [image("i7", name)], [mark(1, "i7", 3)])
    with pytest.raises(
        InputError, match=r"none of its 1 images can be used; the first: image i7: .*"
    ) as caught:
        Annotations.open(file)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    annotations = [mark(1, "i7", 3), mark(2, "ok", 3)]
    found = Annotations.open(write(tmp_path, [image("i7", name), image("ok", "ok.jpg")], annotations))
    line = next(note for note in notes(found) if "passed over" in note)
    assert "2 entries passed over: image i7: " in line and "annotation 1: there is no image i7" in line
    done = convert(CocoMasks(found), "train", tmp_path / "out", workers=1)
    assert says in done.failures["image i7"] and done.written == 1
    assert "image i7" in (tmp_path / "out" / "failures.jsonl").read_text()


def test_categories_that_cannot_be_classes(tmp_path: Path) -> None:
    file = write(tmp_path, [image(1, "a.jpg")], [], [(i, f"c{i}") for i in range(1, 256)])
    with pytest.raises(InputError, match="has 255 categories; masks of 8 bits allow 254"):
        Annotations.open(file)
    file = write(tmp_path, [image(1, "a.jpg")], [], [(1, "cat"), (2, "dog"), ("x", "cat")])
    with pytest.raises(InputError, match="categories 1, x have one name, 'cat'; rename or unite them"):
        Annotations.open(file)


def test_masks_of_text_ids_are_those_of_numbers(tmp_path: Path) -> None:
    def painted(text: bool) -> np.ndarray:
        id = (lambda n: f"id-{n}") if text else (lambda n: n)
        file = write(tmp_path, [image(id(1), "a.jpg")], [mark(id(1), id(1), 3), mark(id(2), id(1), 7, 1)])
        return CocoMasks(Annotations.open(file))("a")

    assert np.array_equal(painted(True), painted(False))
