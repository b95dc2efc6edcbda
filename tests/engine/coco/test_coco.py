"""COCO's annotations: regions against pycocotools, painting against a NumPy twin, bad files, the kept database."""

from __future__ import annotations

import json
import math
import os
import pickle
import sqlite3
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from infercam.engine.common.errors import InputError, MissingExtra, StoreError

pytest.importorskip("pycocotools", reason="needs the extra coco")

from pycocotools import mask as tools
from pycocotools.coco import COCO

from infercam.engine.coco import (
    CATEGORIES,
    CLASSES,
    Annotations,
    CocoMasks,
    coco_ground_truth,
    coco_labels,
    coco_source,
)
from infercam.engine.coco import annotations as parsed
from infercam.engine.coco.json_stream import JsonObject
from infercam.engine.coco.regions import RegionError, decode, encode, paint
from infercam.engine.data.coco_categories import mask_values
from tests.engine.coco import coco_set

SPLIT = "val2014"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "infercam" / "coco"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return coco_set.write_tree(tmp_path / "coco")


def annotation_file(root: Path) -> Path:
    return root / "annotations" / f"instances_{SPLIT}.json"


# -- categories ----------------------------------------------------------------------------------------------------
def test_the_eighty_categories() -> None:
    assert len(CATEGORIES) == len(set(CLASSES)) == 80
    assert list(CATEGORIES) == sorted(CATEGORIES) and (min(CATEGORIES), max(CATEGORIES)) == (1, 90)
    gaps = set(range(1, 91)) - set(CATEGORIES)
    assert gaps == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    values = mask_values(CATEGORIES)
    # fixed points of the mapping that every 80-class COCO model uses
    assert [values[c] for c in (1, 11, 13, 18, 44, 62, 67, 70, 90)] == [1, 11, 12, 17, 40, 57, 61, 62, 80]
    assert CLASSES[16] == "dog" and CLASSES[56] == "chair" and CATEGORIES[72] == "tv"


# -- regions -------------------------------------------------------------------------------------------------------
def test_regions_equal_pycocotools_own(root: Path) -> None:
    official = COCO(str(annotation_file(root)))
    for entry in official.loadAnns(official.getAnnIds()):
        image = official.imgs[entry["image_id"]]
        counts = encode(entry["segmentation"], image["height"], image["width"])
        found = decode(counts, image["height"], image["width"])
        assert np.array_equal(found, official.annToMask(entry).astype(bool)), entry["id"]
        assert found.any()


@given(st.lists(st.integers(0, 1), min_size=1, max_size=60), st.integers(1, 8))
def test_every_form_of_run_lengths_gives_the_mask_back(values: list[int], height: int) -> None:
    width = -(-len(values) // height)
    mask = np.resize(np.array(values, bool), (height, width))
    for counts in (coco_set.runs(mask), coco_set.compressed(mask)):
        found = decode(encode({"size": [height, width], "counts": counts}, height, width), height, width)
        assert np.array_equal(found, mask)


def test_only_the_one_warning_of_pycocotools_is_silenced() -> None:
    """The suite's filter (pyproject.toml) hides what decoding says of NumPy, and nothing else of that kind."""
    counts = encode([[0, 0, 3, 0, 3, 3]], 4, 5)
    with warnings.catch_warnings(record=True) as all_of_them:
        warnings.simplefilter("always")
        decode(counts, 4, 5)
    assert {(w.category, "copy keyword" in str(w.message)) for w in all_of_them} <= {
        (DeprecationWarning, True)
    }
    with warnings.catch_warnings(record=True) as seen:  # the suite's own filters
        decode(counts, 4, 5)
        warnings.warn("__array__ is old", DeprecationWarning, stacklevel=1)
    assert [str(w.message) for w in seen] == ["__array__ is old"]


def test_polygons_are_roughly_what_pillow_draws() -> None:
    polygon = coco_set.disc(60.3, 41.7, 33)
    found = decode(encode([polygon], 90, 120), 90, 120)
    picture = Image.new("1", (120, 90))
    ImageDraw.Draw(picture).polygon(polygon, fill=1)
    drawn = np.asarray(picture)
    assert (found & drawn).sum() / (found | drawn).sum() > 0.94
    assert abs(found.sum() / (math.pi * 33**2) - 1) < 0.02


def test_degenerate_polygons_enclose_nothing() -> None:
    whole = encode([coco_set.disc(10, 10, 5)], 20, 20)
    assert encode([[1.0, 1.0, 5.0, 5.0], coco_set.disc(10, 10, 5), [3.0, 3.0]], 20, 20) == whole


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        (None, "neither polygons nor"),
        ([], "no polygon of three"),
        ([[1, 1, 2, 2]], "no polygon of three"),
        ([[1, 1, 2, 2, 3]], "5 numbers"),
        ([[1, 1, 2, "2", 3, 3]], "no list of numbers"),
        ([1, 2, 3, 4, 5, 6], "no list of numbers"),
        ([[1, 1, 2, math.nan, 3, 3]], "not a number"),
        ([[1, 1, 2, math.inf, 3, 3]], "not a number"),
        ([[1, 1, 2e8, 2, 3, 3]], "far outside"),
        ([[1, 1, 2, -1e300, 3, 3]], "far outside"),
        ({"counts": [3, 2], "size": [4, 5]}, "do not add up"),
        ({"counts": [3, 20], "size": [4, 5]}, "do not add up"),
        ({"counts": [25, -5], "size": [4, 5]}, "do not add up"),
        ({"counts": [3, 2.5, 14.5], "size": [4, 5]}, "whole numbers"),
        ({"counts": [3, 2, 15], "size": [5, 4]}, "for size"),
        ({"counts": [3, 2, 15]}, "for size None"),
        ({"counts": "zzzz", "size": [4, 5]}, "break off|cannot be read|add up"),
        ({"counts": "32", "size": [4, 5]}, "do not add up"),
        ({"counts": "P", "size": [4, 5]}, "break off"),
        ({"counts": "é", "size": [4, 5]}, "cannot be read"),
        ({"counts": "o" * 9, "size": [4, 5]}, "cannot be read|break off"),
        ({"counts": None, "size": [4, 5]}, "whole numbers"),
    ],
)
def test_segmentations_that_pycocotools_must_not_see(segmentation: object, says: str) -> None:
    with pytest.raises(RegionError, match=says):
        encode(segmentation, 4, 5)


@given(st.text(alphabet=[chr(c) for c in range(40, 116)], max_size=12))
def test_no_text_of_run_lengths_leaves_pixels_unset(text: str) -> None:
    """What is accepted decodes to runs that fill the image: twice the same, whatever memory held before."""
    try:
        counts = encode({"size": [4, 5], "counts": text}, 4, 5)
    except RegionError:
        return
    first = decode(counts, 4, 5).copy()
    np.full(4096, 255, np.uint8)
    assert np.array_equal(first, decode(counts, 4, 5)) and set(np.unique(first.view(np.uint8))) <= {0, 1}


def test_without_pycocotools(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(MissingExtra, match=r"infercam\[coco\]"):
        Annotations.open(annotation_file(root))


# -- painting ------------------------------------------------------------------------------------------------------
def twin(official: COCO, image_id: int, crowd: str, order: str) -> np.ndarray:
    """Each pixel looks for itself which of the annotations that cover it is on top."""
    image = official.imgs[image_id]
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    entries = [e for e in official.dataset["annotations"] if e["image_id"] == image_id]
    covers = [official.annToMask(e).astype(bool) for e in entries]
    areas = [e.get("area") or c.sum() for e, c in zip(entries, covers, strict=True)]
    rank = sorted(CATEGORIES)
    for y, x in np.ndindex(*mask.shape):
        here = [i for i, c in enumerate(covers) if c[y, x]]
        here = [i for i in here if not (crowd == "skip" and entries[i]["iscrowd"])]
        if not here:
            continue
        if order == "area":
            top = min(here, key=lambda i: (areas[i], entries[i]["id"]))
        else:
            top = max(here)
        ignored = crowd == "ignore" and entries[top]["iscrowd"]
        mask[y, x] = 255 if ignored else rank.index(entries[top]["category_id"]) + 1
    return mask


@pytest.mark.parametrize("crowd", ["class", "ignore", "skip"])
@pytest.mark.parametrize("order", ["area", "file"])
def test_masks_equal_the_twin(root: Path, crowd: str, order: str) -> None:
    official = COCO(str(annotation_file(root)))
    annotations = Annotations.open(annotation_file(root))
    masks = CocoMasks(annotations, crowd, order)
    seen: set[int] = set()
    for image_id, image in official.imgs.items():
        found = masks(Path(image["file_name"]).stem)
        assert found.dtype == np.uint8 and found.flags.c_contiguous
        assert np.array_equal(found, twin(official, image_id, crowd, order)), image_id
        seen |= set(np.unique(found).tolist())
    assert (255 in seen) == (crowd == "ignore")
    assert 80 in seen and 0 in seen


def test_small_objects_stay_on_top_whatever_the_files_order(root: Path) -> None:
    content = coco_set.entries()
    content["annotations"].reverse()
    turned = coco_set.write_json(root / "turned.json", content)
    one, two = CocoMasks(Annotations.open(annotation_file(root))), CocoMasks(Annotations.open(turned))
    for n in range(7):
        assert np.array_equal(one(coco_set.name(n)), two(coco_set.name(n)))
    by_file = CocoMasks(one.annotations, order="file"), CocoMasks(two.annotations, order="file")
    assert any(
        not np.array_equal(by_file[0](coco_set.name(n)), by_file[1](coco_set.name(n))) for n in range(7)
    )


@st.composite
def boxes(draw):
    """Rectangles with values, as regions of a 12×15 image."""
    found = []
    for _ in range(draw(st.integers(0, 6))):
        y, x = draw(st.integers(0, 11)), draw(st.integers(0, 14))
        mask = np.zeros((12, 15), bool)
        mask[y : y + draw(st.integers(1, 12)), x : x + draw(st.integers(1, 15))] = True
        found.append((draw(st.integers(1, 80)), mask))
    return found


@given(boxes())
def test_painting(objects: list[tuple[int, np.ndarray]]) -> None:
    regions = [(value, tools.encode(np.asfortranarray(m.view(np.uint8)))["counts"]) for value, m in objects]
    found = paint(regions, 12, 15)
    covered = np.any([m for _, m in objects], axis=0) if objects else np.zeros((12, 15), bool)
    assert np.array_equal(found > 0, covered)  # nothing is painted elsewhere, and nothing is lost
    if objects:
        value, mask = objects[-1]
        assert (found[mask] == value).all()  # the last is whole
        assert np.array_equal(paint([*regions, regions[-1]], 12, 15), found)  # twice is once
    assert set(np.unique(found)) <= {0, *(value for value, _ in objects)}


# -- the file and what is kept of it -------------------------------------------------------------------------------
def test_what_the_file_says(root: Path) -> None:
    annotations = Annotations.open(annotation_file(root))
    assert annotations.official and annotations.classes == CLASSES
    # by ascending image id, the largest last; without the one that has no annotations
    assert annotations.names() == [coco_set.name(n) for n in (0, 1, 2, 5, 3, 4)]
    assert annotations.names(empty=True) == [coco_set.name(n) for n in (0, 1, 2, 5, 6, 3, 4)]
    assert annotations.image(coco_set.name(4)).id == coco_set.HUGE
    first = annotations.objects(annotations.image(coco_set.name(0)))
    assert [o.id for o in first] == [700, 13, coco_set.HUGE] and first[0].area == 78
    assert annotations.broken() == set() and annotations.strays() == []
    with pytest.raises(InputError, match="nowhere: not an image of"):
        annotations.image("nowhere")


def test_the_file_is_parsed_once(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read = annotation_file(root), []
    before = Annotations.open(file, read.append)
    assert sum(read) == file.stat().st_size and len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patched:
        patched.setattr(parsed, "_make", None)  # would fail
        again = Annotations.open(file, read.append)
    assert again.sha256 == before.sha256 and sum(read) == file.stat().st_size
    # another content at the same size, another time: made anew
    text = file.read_text().replace('"width": 64', '"width": 65')
    file.write_text(text)
    os.utime(file, ns=(1, 1))
    changed = Annotations.open(file)
    assert changed.sha256 != before.sha256 and changed.image(coco_set.name(0)).width == 65
    assert before.image(coco_set.name(0)).width == 64  # who has it open keeps what it has
    assert len(list(cache.iterdir())) == 1


def test_a_damaged_database_is_made_again(root: Path, cache: Path) -> None:
    Annotations.open(annotation_file(root))
    (database,) = cache.iterdir()
    for junk in (b"", b"junk" * 999, database.read_bytes()[:3000]):
        database.write_bytes(junk)
        assert Annotations.open(annotation_file(root)).classes == CLASSES
    with sqlite3.connect(database) as connection:
        connection.execute("DROP TABLE objects")
    with pytest.raises(StoreError, match="remove it and run again"):
        Annotations.open(annotation_file(root)).names()


def test_nothing_is_left_of_a_file_that_cannot_be_used(root: Path, cache: Path) -> None:
    annotation_file(root).write_text('{"images": [')
    with pytest.raises(InputError, match="not JSON"):
        Annotations.open(annotation_file(root))
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="set XDG_CACHE_HOME"):
        Annotations.open(annotation_file(root))


def test_may_be_sent_to_other_processes(root: Path) -> None:
    masks = CocoMasks(Annotations.open(annotation_file(root)), crowd="ignore")
    copy = pickle.loads(pickle.dumps(masks))
    assert copy.crowd == "ignore" and np.array_equal(copy(coco_set.name(3)), masks(coco_set.name(3)))


def test_annotations_before_their_images(root: Path) -> None:
    content = coco_set.entries()
    order = {key: content[key] for key in ("annotations", "categories", "images")}
    file = root / "order.json"
    file.write_text(json.dumps(order))
    one, two = CocoMasks(Annotations.open(file)), CocoMasks(Annotations.open(annotation_file(root)))
    for n in range(7):
        assert np.array_equal(one(coco_set.name(n)), two(coco_set.name(n)))


def test_one_bad_entry_does_not_stop_the_others(root: Path) -> None:
    content = coco_set.entries()
    images, annotations = content["images"], content["annotations"]
    images[5]["height"] = 0
    images += [
        {"id": 9, "file_name": "again.jpg", "height": 5, "width": 5},
        {"id": 1000, "file_name": images[1]["file_name"], "height": 5, "width": 5},
        {"id": 1.5, "file_name": "x.jpg", "height": 5, "width": 5},
        {"id": 1001, "file_name": "../../etc/x.jpg", "height": 5, "width": 5},
        {"id": 1002, "file_name": "bomb.png", "height": 60000, "width": 60000},
        "nonsense",
    ]
    annotations[1]["segmentation"] = [[1, 2, 3]]
    annotations[5]["category_id"] = 12  # one of the gaps
    annotations += [
        coco_set.annotation(900, 424242, 1, [coco_set.disc(5, 5, 2)]),
        coco_set.annotation(901, 30, 1, [coco_set.disc(5, 5, 2)], iscrowd=7),
        coco_set.annotation(902, 1002, 1, [coco_set.disc(5, 5, 2)]),
        {"id": 903},
    ]
    found = Annotations.open(coco_set.write_json(root / "bad.json", content))
    strays = dict(found.strays())
    assert strays["again"] == "another image has its id 9"
    assert "have one file name" in strays[coco_set.name(1)]
    assert "leaves its folder" in strays["image 1001"]
    assert strays["annotation 900"] == "there is no image 424242"
    assert sum("no id or" in reason for reason in strays.values()) == 3
    assert found.broken() == {"bomb", *(coco_set.name(n) for n in (0, 2, 5))}
    masks = CocoMasks(found)
    for number, says in (
        (0, "annotation 13 has a polygon of 3"),
        (2, "annotation 40 has category 12"),
        (5, "41×0"),
    ):
        with pytest.raises(InputError, match=f"{coco_set.name(number)}: .*{says}"):
            masks(coco_set.name(number))
    with pytest.raises(InputError, match="bomb: its size"):
        masks("bomb")
    assert masks(coco_set.name(1)).any() and masks(coco_set.name(3)).any()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
        ('{"images": [}', "not JSON"),
        ('{"images": [1 2]}', "',' or ']'"),
        ('{"images": []} x', "more text"),
        ('{"images": [], "annotations": [], "categories": []}', "has no images"),
        ('{"images": [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 2}]}', "has no categories"),
        ('{"categories": [{"id": 1}]}', "category"),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "category"),
        ('{"a": ' + "[" * 100_000, "JSON"),
        ('{"a": [' + "1" * 5000 + "]}", "JSON"),
        ("\xff\xfe", "not UTF-8"),
    ],
)
def test_files_that_are_no_annotations(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=says) as caught:
        Annotations.open(file)
    assert "x.json" in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for file in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError):
            Annotations.open(file)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(max_size=4), st.lists(JSON, max_size=6) | JSON, max_size=5),
    st.integers(1, 40),
    st.booleans(),
)
@example({"": [-0.0, 1.5, 1e30, 1e-7, True, "é\\"]}, 1, False)
@example({"": [-0.0]}, 3, False)
def test_streaming_equals_reading_it_whole(content, chunk: int, ascii_only: bool) -> None:
    """However the text falls into chunks: inside of numbers, escapes and multi-byte characters."""
    import tempfile

    from infercam.engine.coco import json_stream

    text = json.dumps(content, ensure_ascii=ascii_only, indent=chunk % 3 or None)
    before, json_stream._CHUNK = json_stream._CHUNK, chunk
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "x.json")
            file.write_text(text, encoding="utf-8")
            found = list(JsonObject(file).elements())
    finally:
        json_stream._CHUNK = before
    assert found == [(k, e) for k, v in content.items() if isinstance(v, list) for e in v]


def test_parsing_takes_little_memory(tmp_path: Path) -> None:
    """A file of 12 MB, which would be over 50 MB as Python's objects, under 8 MB."""
    polygon = [round(0.37 * i % 40, 2) for i in range(2000)]
    content = coco_set.entries()
    content["annotations"] = [coco_set.annotation(i, 9, 1, [polygon], area=1.0) for i in range(1000)]
    file = coco_set.write_json(tmp_path / "large.json", content)
    del content
    assert file.stat().st_size > 10e6
    tracemalloc.start()
    try:
        annotations = Annotations.open(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6
    assert len(annotations.objects(annotations.image(coco_set.name(0)))) == 1000


# -- source, labels, ground truth ----------------------------------------------------------------------------------
@pytest.mark.parametrize("nested", [False, True])
def test_source(tmp_path: Path, nested: bool) -> None:
    root = coco_set.write_tree(tmp_path / "tree", nested=nested)
    source = coco_source(root, SPLIT)
    assert [item.id for item in source] == Annotations.open(annotation_file(root)).names()
    assert all(item.path.is_file() for item in source) and source[0].path.name.endswith("0000.jpg")
    assert source.describe() == {"kind": "coco", "root": str(root), "split": SPLIT, "count": 6}
    assert any("1 images without annotations" in note for note in source.notes)
    assert len(source[:2]) == 2 and pickle.loads(pickle.dumps(source._item))(source._entries[0]) == source[0]


def test_trees_that_are_none(tmp_path: Path, root: Path) -> None:
    (root / "train2017").mkdir()
    with pytest.raises(InputError, match=r"no split 'train2017'.*\(there are: val2014\)"):
        coco_source(root, "train2017")
    with pytest.raises(InputError, match="no folder of images"):
        coco_source(root, "val2017")
    with pytest.raises(InputError, match=r"no split '\.\./x'"):
        coco_ground_truth(root, "../x")
    with pytest.raises(InputError, match="no such folder; --coco takes"):
        coco_source(tmp_path / "none", SPLIT)


def test_labels(root: Path) -> None:
    labels = coco_labels(root, SPLIT, CLASSES)
    by_name = {coco_set.name(n): [CLASSES[c] for c in labels.lookup(coco_set.name(n))] for n in range(6)}
    assert by_name[coco_set.name(0)] == ["person", "dog", "frisbee"]
    assert by_name[coco_set.name(3)] == ["person", "bottle"]  # the person is a crowd
    assert by_name[coco_set.name(4)] == ["teddy bear"]
    with pytest.raises(InputError, match="is empty"):
        labels.lookup(coco_set.name(6))
    with pytest.raises(InputError, match="not an image"):
        labels.lookup("x")
    described = labels.describe()
    assert described["kind"] == "coco" and described["images"] == 6 and len(described["sha256"]) == 64
    # by name, whatever order the bundle has; a name that it has not is one image's failure
    turned = coco_labels(root, SPLIT, CLASSES[::-1])
    assert turned.lookup(coco_set.name(0)) == sorted(
        79 - CLASSES.index(n) for n in ("person", "dog", "frisbee")
    )
    with pytest.raises(InputError, match="'teddy bear' is not one of"):
        coco_labels(root, SPLIT, CLASSES[:70]).lookup(coco_set.name(4))


def test_ground_truth(root: Path) -> None:
    truth = coco_ground_truth(root, SPLIT)
    masks = CocoMasks(Annotations.open(annotation_file(root)))
    assert [id for id, _ in truth.pairs] == masks.annotations.names() and truth.classes == CLASSES
    assert np.array_equal(truth.read(*truth.pairs[0]), masks(coco_set.name(0)))
    assert "smaller objects on top, crowds as their class" in truth.masks
    content = coco_set.entries()
    content["annotations"][0]["segmentation"] = []
    coco_set.write_json(annotation_file(root), content)
    os.utime(annotation_file(root), ns=(5, 5))
    truth = coco_ground_truth(root, SPLIT, crowd="ignore")
    assert len(truth.pairs) == 5 and "1 broken images left out" in truth.masks and "as 255" in truth.masks
    with pytest.raises(InputError, match="crowd is one of"):
        coco_ground_truth(root, SPLIT, crowd="maybe")


def test_values_are_matched_by_name(root: Path) -> None:
    truth = coco_ground_truth(root, SPLIT)
    assert truth.table(CLASSES) is None and truth.table([*CLASSES, "unicorn"]) is None
    table = truth.table(["unicorn", *CLASSES[::-1]])
    assert table is not None and table.labels[0] == 0 and table.labels[255] == 255
    assert table.labels[1] == 81 and table.labels[80] == 2
    assert table.refused[81:255].all() and not table.refused[[0, 1, 80, 255]].any()  # none passes for a class
    with pytest.raises(
        InputError, match=r"79 classes that what is scored has not \(bicycle, car, motorcycle, …\)"
    ):
        truth.table(["person"])
