"""Maps of other images than those that are scored: one line says how many, which, and what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infercam.engine.common.errors import InputError
from infercam.engine.evaluation.coverage import coverage
from infercam.engine.evaluation.evaluate import evaluate_store, voc_ground_truth
from infercam.engine.evaluation.evaluate_labels import evaluate_labels
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.evaluation.label_png import write_label
from infercam.engine.store.mapstore import MapRecord, MapStore

TRAIN = {"source": {"kind": "voc", "root": "/data/VOC2012", "split": "train", "count": 3}}
ONE = np.ones((2, 3), np.uint8)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "ImageSets/Segmentation", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("v1\nv2\n")
    for name in ("v1", "v2"):
        write_label(root / "SegmentationClass" / f"{name}.png", ONE)
    return root


def store(folder: Path, *ids: str) -> MapStore:
    made = MapStore.create_or_open(folder, classes=["cat"], settings=TRAIN)
    for id in ids:
        made.write(MapRecord(id, [0], ["cat"], np.ones((1, 2, 3), np.float32)), "x")
    return made


def error(maps: MapStore, voc: Path, **how: str) -> str:
    with pytest.raises(InputError) as caught:
        evaluate_store(maps, voc_ground_truth(voc, "val"), **how)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{maps.path}: ")


def test_a_run_of_another_split(voc: Path, tmp_path: Path) -> None:
    maps = store(tmp_path / "maps", "t1", "t2", "t3")
    said = (
        "no maps for 2 of the 2 images of val (v1, v2); none of the 3 that it has, made from split train of "
        "/data/VOC2012 (t1, t2, t3) is among them: is this the right split? Name the images that were run "
        "(--split train), or run these"
    )
    for missing in ("error", "skip", "zero"):
        assert error(maps, voc, missing=missing) == said


def test_some_images_of_the_split_and_some_others(voc: Path, tmp_path: Path) -> None:
    assert error(store(tmp_path / "maps", "t1", "v1", "t2"), voc) == (
        "no maps for 1 of the 2 images of val (v2); 2 of the 3 that it has are no images of it (t1, t2); "
        "finish the run, or choose --missing skip or zero"
    )
    assert error(store(tmp_path / "less", "v1"), voc) == (
        "no maps for 1 of the 2 images of val (v2); finish the run, or choose --missing skip or zero"
    )


def test_labels_say_it_too(voc: Path, tmp_path: Path) -> None:
    folder = LabelFolder.create_or_open(tmp_path / "labels", ["cat"], {})
    folder.write("t1", ONE, "x")
    with pytest.raises(
        InputError, match=r"no labels for 2 of the 2 .* none of the 1 that it has .t1. is among"
    ):
        evaluate_labels(folder, voc_ground_truth(voc, "val"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "none of the 1 that it has (x) is among them: is this"),
        ({"source": "?"}, "that it has (x)"),
        ({"source": {"kind": "folder", "root": "/photos", "split": None}}, "made from /photos (x)"),
        ({"source": {"kind": "list", "root": "/photos", "split": "/l.txt"}}, "made from /l.txt (x)"),
        (
            {"source": {"kind": "voc", "root": "/V", "split": "val"}},
            "ids (a path without suffix) must be equal",
        ),
    ],
)
def test_whatever_the_store_was_made_from(settings: dict, says: str) -> None:
    assert says in coverage("maps", ["a"], ["a"], "val", ["x"], settings)


def test_an_empty_store() -> None:
    assert coverage("maps", list("abcde"), list("abcde"), "val", [], {}) == (
        "no maps for 5 of the 5 images of val (a, b, c, …): it has none at all; `infercam run` makes them"
    )
