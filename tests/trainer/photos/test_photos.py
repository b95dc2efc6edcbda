"""Photos: the same ids, files and labels for every stage."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from infercam.engine.common.errors import InputError
from infercam.engine.inputs import SourceSettings
from infercam.trainer.photos.photos import open_photos


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, size in (("b/two", (5, 7)), ("a", (4, 6)), ("c", (9, 3))):
        file = tmp_path / "images" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(file), rng.integers(0, 256, (*size, 3), np.uint8))
    (tmp_path / "labels.json").write_text(json.dumps({"a": ["dog", "cat"], "b/two": ["person"], "c": []}))
    return tmp_path


def test_ids_images_and_labels(tree: Path) -> None:
    photos = open_photos(SourceSettings(images=tree / "images"), labels=tree / "labels.json")
    assert photos.ids == ["a", "b/two", "c"] and len(photos) == 3 and "b/two" in photos
    image = photos.image("b/two")
    assert image.dtype == np.uint8 and image.shape == (5, 7, 3) and photos.size("b/two") == (5, 7)
    bgr = cv2.imread(str(tree / "images" / "b" / "two.png"))
    assert np.array_equal(image, bgr[:, :, ::-1])
    assert photos.labels("a") == [7, 11]
    assert np.flatnonzero(photos.one_hot("a", 20)).tolist() == [7, 11]
    assert photos.describe()["source"]["count"] == 3 and photos.describe()["labels"]["sha256"]


def test_other_classes_limit_and_part(tree: Path) -> None:
    photos = open_photos(
        SourceSettings(images=tree / "images"), labels=tree / "labels.json", classes=["dog", "cat", "person"]
    )
    assert photos.labels("a") == [0, 1]
    assert open_photos(SourceSettings(images=tree / "images", limit=2)).ids == ["a", "b/two"]
    part = photos.only(["c", "a"])
    assert part.ids == ["a", "c"] and part.describe()["source"]["count"] == 2 and len(photos) == 3


def test_can_be_sent_to_another_process(tree: Path) -> None:
    photos = pickle.loads(
        pickle.dumps(open_photos(SourceSettings(images=tree / "images"), labels=tree / "labels.json"))
    )
    assert photos.labels("b/two") == [14] and photos.image("c").shape == (9, 3, 3)


def test_one_line_errors(tree: Path) -> None:
    with pytest.raises(InputError, match="one source of images"):
        open_photos(SourceSettings())
    with pytest.raises(InputError, match="one source of images"):
        open_photos(SourceSettings(images=tree / "images", voc=tree, split="train"))
    photos = open_photos(SourceSettings(images=tree / "images"))
    with pytest.raises(InputError, match="--labels"):
        photos.labels("a")
    with pytest.raises(InputError, match=r"zebra.*not one of the 3 images"):
        photos.image("zebra")
    with pytest.raises(InputError, match="not one of"):
        photos.only(["zebra"])
    labelled = open_photos(SourceSettings(images=tree / "images"), labels=tree / "labels.json")
    with pytest.raises(InputError, match=r"c: .*empty"):
        labelled.labels("c")
    (tree / "images" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="empty file"):
        labelled.image("a")
