"""Split & unite as augmentation: tiles as the engine cuts them, centres as it finds them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercam.engine.common.errors import InputError
from infercam.engine.data.voc import CLASSES
from infercam.engine.inputs import SourceSettings
from infercam.engine.method.geometry import Box
from infercam.engine.method.host_ops import centre_of_mass
from infercam.engine.method.reference import resize_bilinear
from infercam.engine.store.mapstore import MapRecord, MapStore
from infercam.trainer.classify.split_unite import (
    LEAST_SIDE,
    load_centres,
    map_centres,
    middle,
    save_centres,
    store_centres,
    tiles,
)
from infercam.trainer.photos.photos import open_photos


def test_one_class_gives_four_tiles_that_overlap_by_the_buffer() -> None:
    assert tiles(200, 300, [(80, 120)]) == [
        Box(0, 0, 90, 130),
        Box(0, 110, 90, 300),
        Box(70, 0, 200, 130),
        Box(70, 110, 200, 300),
    ]


def test_two_classes_share_the_rectangle_between_their_centres() -> None:
    found = tiles(200, 300, [(60, 200), (120, 100)])
    assert found[0] == Box(0, 0, 140, 220) and found[3] == Box(40, 80, 200, 300)
    for box in found:
        assert box.y0 <= 60 and box.y1 >= 120 and box.x0 <= 100 and box.x1 >= 200


def test_three_classes_are_whole_or_each_cut_alone() -> None:
    centres = [(60, 200), (120, 100), (100, 150)]
    assert tiles(200, 300, centres, "released") == [Box(0, 0, 200, 300)]
    assert len(tiles(200, 300, centres, "paper")) == 12
    assert set(tiles(200, 300, centres[:1])) <= set(tiles(200, 300, centres, "paper"))


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.lists(st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)), min_size=1, max_size=4),
)
def test_tiles_lie_in_the_image_and_are_no_slivers(
    height: int, width: int, at: list[tuple[float, float]]
) -> None:
    centres = [(int(y * height), int(x * width)) for y, x in at]
    for split in ("released", "paper"):
        found = tiles(height, width, centres, split)  # type: ignore[arg-type]
        assert found
        for box in found:
            assert 0 <= box.y0 < box.y1 <= height and 0 <= box.x0 < box.x1 <= width
            assert min(box.height, box.width) >= LEAST_SIDE or box == Box(0, 0, height, width)


def test_centres_are_those_of_the_enlarged_maps() -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((3, 7, 9)).astype(np.float32) ** 4
    maps[2] = 0
    expected = [centre_of_mass(m) for m in resize_bilinear(maps, 61, 83)]
    assert map_centres(maps, 61, 83) == expected
    assert expected[2] == (30, 41) == middle(61, 83, 1)[0]  # an empty map: the image's centre


def test_saved_centres_come_back_and_damage_is_one_line(tmp_path: Path) -> None:
    centres = {"a/b": [(1, 2)], "c": [(3, 4), (5, 6)]}
    save_centres(tmp_path / "deep" / "epoch_003.json", centres)
    assert load_centres(tmp_path / "deep" / "epoch_003.json") == centres
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(InputError, match="damaged"):
        load_centres(tmp_path / "bad.json")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Two photos, their labels, and a store of their maps."""
    store = MapStore.create_or_open(tmp_path / "maps", classes=CLASSES, settings={})
    rng = np.random.default_rng(0)
    labels = {"a": [7, 11], "b": [3]}
    for name, classes in labels.items():
        image = rng.integers(0, 256, (40, 50, 3), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), image)
        maps = np.zeros((len(classes), 40, 50), np.float32)
        for k in range(len(classes)):
            maps[k, 10 * k : 10 * k + 5, 20:31] = 1
        store.write(MapRecord(name, classes, [CLASSES[c] for c in classes], maps), "x")
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    return tmp_path


def test_centres_from_a_store_are_in_the_labels_order(stored: Path) -> None:
    photos = open_photos(SourceSettings(images=stored / "images"), labels=stored / "labels.json")
    assert store_centres(MapStore.open(stored / "maps"), photos) == {"a": [(2, 25), (12, 25)], "b": [(2, 25)]}


def test_a_store_of_other_images_sizes_or_labels_is_named(stored: Path) -> None:
    store = MapStore.open(stored / "maps")
    rng = np.random.default_rng(0)
    cv2.imwrite(str(stored / "images" / "c.png"), rng.integers(0, 256, (40, 50, 3), np.uint8))
    with pytest.raises(InputError, match=r"no maps of 1 of 3 images \(c"):
        store_centres(
            store, open_photos(SourceSettings(images=stored / "images"), labels=stored / "labels.json")
        )
    (stored / "images" / "c.png").unlink()
    (stored / "labels.json").write_text(json.dumps({"a": [7, 12], "b": [3]}))
    with pytest.raises(InputError, match=r"a: .* no map of some of its labels"):
        store_centres(
            store, open_photos(SourceSettings(images=stored / "images"), labels=stored / "labels.json")
        )
    cv2.imwrite(str(stored / "images" / "b.png"), rng.integers(0, 256, (41, 50, 3), np.uint8))
    with pytest.raises(InputError, match=r"b: its maps are \(40, 50\), the image is \(41, 50\)"):
        store_centres(
            store,
            open_photos(SourceSettings(images=stored / "images"), labels=stored / "labels.json").only(["b"]),
        )
