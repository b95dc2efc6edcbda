"""Whose labels an entry of a file is: paths as written anywhere, on any system, by the longest tail that is clear."""

from __future__ import annotations

import json
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from infercam.engine.common.errors import InputError
from infercam.engine.data.label_keys import KeyIndex, plain_key
from infercam.engine.data.labels import load_labels
from infercam.engine.inputs import SourceSettings

CLASSES = ["cat", "dog"]


@pytest.mark.parametrize(
    "written",
    [
        *["cats/1", "cats/1.png", "./cats/1.png", "cats//1.PNG", ".\\cats\\1.png", "cats\\1", "/cats/1.jpg"],
        *["\\cats\\1.jpg", "../cats/1.png", "dogs/../cats/1.png", "../../cats/1"],
    ],
)
def test_one_key_however_written(written: str) -> None:
    assert plain_key(written) == "cats/1"


def test_keys_that_stay() -> None:
    for name in ("a", "a.b", "2007_000032", "x/.hidden", ".", "..", "a b,c"):
        assert plain_key(name) == name or name in (".", "..")


@pytest.mark.parametrize(
    ("keys", "root", "item", "found"),
    [
        (["cats/1", "dogs/1"], None, "cats/1", ["cats/1"]),
        (["C:/data/train/cats/1", "C:/data/train/dogs/1"], None, "cats/1", ["C:/data/train/cats/1"]),
        (["train/cats/1", "val/cats/1"], None, "cats/1", ["train/cats/1", "val/cats/1"]),
        (["train/cats/1", "val/cats/1"], "/home/me/val", "cats/1", ["val/cats/1"]),
        (["home/me/val/1", "val/1"], "/home/me/val", "1", ["home/me/val/1"]),
        (["x/7"], None, "z/7", []),  # folders that disagree are two images
        (["7"], None, "z/7", ["7"]),
        (["z/7", "7"], None, "y/z/7", ["z/7"]),
        (["x/7", "y/7"], None, "7", ["x/7", "y/7"]),
        (["x/17"], None, "7", []),
        ([], None, "7", []),
    ],
)
def test_the_longest_tail(keys: list[str], root: str | None, item: str, found: list[str]) -> None:
    assert KeyIndex(keys, root).find(item) == found


def test_labels_are_sent_to_other_processes(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps({"train/a": ["cat"], "val/a": ["dog"]}))
    labels = load_labels(tmp_path / "l.json", CLASSES, root=tmp_path / "val")
    assert labels.lookup("a") == [1]
    assert pickle.loads(pickle.dumps(labels)).lookup("a") == [1]


@pytest.fixture
def train(tmp_path: Path) -> Path:
    for name in ("cats/1.png", "dogs/1.png"):
        file = tmp_path / "data" / "train" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return tmp_path / "data" / "train"


def test_a_table_of_several_splits_is_told_apart_by_the_folder_of_images(train: Path, tmp_path: Path) -> None:
    table = "image,label\ntrain/cats/1.png,cat\nval/cats/1.png,dog\n"
    (tmp_path / "l.csv").write_text(table)
    labels = SourceSettings(images=train).labels(tmp_path / "l.csv", CLASSES)
    assert labels.lookup("cats/1") == [0]
    with pytest.raises(InputError, match=r"dogs/1: no labels in .*whose first image is train/cats/1"):
        labels.lookup("dogs/1")


def test_an_ambiguous_tail_is_not_matched_but_said(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image,label\na/cats/1.png,cat\nb/cats/1.png,dog\n")
    labels = load_labels(tmp_path / "l.csv", CLASSES, root=tmp_path / "photos")
    with pytest.raises(InputError, match=r"cats/1: in .* it could be a/cats/1 or b/cats/1; write its path"):
        labels.lookup("cats/1")


def test_one_name_for_pictures_of_two_folders_is_not_taken_for_both(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image,label\n1.png,cat\n2.png,dog\n")
    labels = load_labels(tmp_path / "l.csv", CLASSES)
    assert labels.lookup("cats/1") == labels.lookup("cats/1") == [0] and labels.lookup("dogs/2") == [1]
    with pytest.raises(
        InputError, match=r"dogs/1: in .* it would have the labels of 1, as cats/1 has; write paths"
    ):
        labels.lookup("dogs/1")
    assert labels.lookup("photos/cats/1") == [0]  # cats/1, seen from further up


def test_json_keys_are_paths_too(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps({"C:\\x\\cats\\1.png": ["cat"], "./dogs/1.png": ["dog"]}))
    labels = load_labels(tmp_path / "l.json", CLASSES)
    assert labels.lookup("cats/1") == [0] and labels.lookup("dogs/1") == [1]


@pytest.mark.parametrize("in_file", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_letters_and_accents_apart_or_together(tmp_path: Path, in_file: str, on_disk: str) -> None:
    name = "Café/Müller"
    for file, text in (
        ("l.json", json.dumps({f"{name}.jpg": ["dog"]})),
        ("l.csv", f"image,label\n{name}.jpg,dog\n"),
    ):
        (tmp_path / file).write_text(unicodedata.normalize(in_file, text), encoding="utf-8")
        labels = load_labels(tmp_path / file, CLASSES)
        assert labels.lookup(unicodedata.normalize(on_disk, name)) == [1]


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_annotations_of_either_form(tmp_path: Path, on_disk: str) -> None:
    file = tmp_path / "Annotations" / (unicodedata.normalize(on_disk, "Müller") + ".xml")
    file.parent.mkdir()
    file.write_text("<annotation><object><name>dog</name></object></annotation>")
    labels = load_labels(file.parent, CLASSES)
    for form in ("NFC", "NFD"):
        assert labels.lookup(unicodedata.normalize(form, "Müller")) == [1]


def test_ten_digits_in_a_npy_as_they_stand_before_vocs_form(tmp_path: Path) -> None:
    cat, dog = np.array([1, 0]), np.array([0, 1])
    table = {"2023010101": cat, 2007000032: dog, "2007_000039": cat, 2007000039: dog}
    np.save(tmp_path / "l.npy", np.array(table, dtype=object), allow_pickle=True)
    labels = load_labels(tmp_path / "l.npy", CLASSES)
    assert labels.lookup("2023010101") == [0]
    assert labels.lookup("2007_000032") == labels.lookup("2007000032") == [1]
    assert labels.lookup("JPEGImages/2007_000032") == [1]
    assert labels.lookup("2007_000039") == [0] and labels.lookup("2007000039") == [1]
