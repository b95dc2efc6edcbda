"""Labels: every form of file gives the same classes, and one bad label fails one image only."""

from __future__ import annotations

import csv
import io
import json
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infercam.engine.common.errors import InputError
from infercam.engine.data import voc
from infercam.engine.data.labels import Labels, load_labels, read_annotation
from tests.shared import SHARED

CLASSES = ["cat", "dog", "horse", "potted plant"]


def refusal(call, *args: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def load(tmp_path: Path):
    def _load(name: str, content: object, classes: list[str] = CLASSES, **options: object) -> Labels:
        file = tmp_path / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif isinstance(content, str):
            file.write_text(content, encoding="utf-8")
        else:
            file.write_text(json.dumps(content), encoding="utf-8")
        return load_labels(file, classes, **options)

    return _load


# --- JSON


def test_json_with_its_own_classes_maps_by_name(load) -> None:
    labels = load(
        "l.json",
        {
            "classes": ["horse", "zebra", "cat"],
            "labels": {"a": [0, "dog"], "b": [2, "cat"], "z": [1], "o": [3]},
        },
    )
    assert labels.lookup("a") == [1, 2]
    assert labels.lookup("b") == [0]
    assert "label 'zebra' is not one of the bundle's 4 classes (cat, dog, …)" in refusal(labels.lookup, "z")
    assert "o: " in refusal(labels.lookup, "o") and "outside the file's 3 classes" in refusal(
        labels.lookup, "o"
    )


def test_plain_json(load) -> None:
    labels = load("l.json", {"a": ["dog", "cat", "dog"], "b": [3], "c": "horse", "d": 0, "e.jpg": [1]})
    assert [labels.lookup(i) for i in "abcde"] == [[0, 1], [3], [2], [0], [1]]
    assert len(labels) == 5


def test_one_bad_label_fails_one_image(load) -> None:
    labels = load(
        "l.json",
        {
            "ok": ["cat"],
            "empty": [],
            "unknown": ["cat", "zebra"],
            "near": ["Potted Plant"],
            "high": [4],
            "low": [-1],
            "bool": [True],
            "float": [1.0],
            "null": None,
            "nested": [["cat"]],
            "digits": ["1"],
            "map": {"cat": 1},
            "row": [0, 1, 0, 1],
        },
    )
    assert labels.lookup("ok") == [0]
    assert "empty" in refusal(labels.lookup, "empty")
    assert "label 'zebra'" in refusal(labels.lookup, "unknown")
    assert "did you mean 'potted plant'?" in refusal(labels.lookup, "near")
    assert "label 4, outside the bundle's 4 classes" in refusal(labels.lookup, "high")
    assert "label -1" in refusal(labels.lookup, "low")
    for name in ("bool", "float", "nested", "digits"):
        assert "is not one of the bundle's 4 classes" in refusal(labels.lookup, name)
    for name in ("null", "map"):
        assert "not a list of names or indices" in refusal(labels.lookup, name)
    assert "0s and 1s" in refusal(labels.lookup, "row")
    message = refusal(labels.lookup, "absent")
    assert message.startswith("absent: no labels in ") and "l.json" in message


def test_every_message_names_the_image_and_where(load) -> None:
    labels = load("l.json", {"high": [4], "empty": []})
    for name in ("high", "empty", "absent"):
        message = refusal(labels.lookup, name)
        assert message.startswith(f"{name}: ") and str(labels.file) in message


def test_repeated_ids(load) -> None:
    labels = load(
        "l.json", '{"a": ["cat"], "a": ["dog"], "b": ["cat"], "b": ["cat"], "c.jpg": [0], "c.png": [1]}'
    )
    assert "twice" in refusal(labels.lookup, "a")
    assert labels.lookup("b") == [0]
    assert "twice" in refusal(labels.lookup, "c")


def test_ids_with_folders(load) -> None:
    labels = load("l.json", {"001": ["cat"], "dogs/001": ["dog"], "x/7": ["cat"], "x/8": [1], "y/8": [2]})
    assert labels.lookup("dogs/001") == [1]  # exact before the last part
    assert labels.lookup("cats/001") == [0]
    assert labels.lookup("7") == [0]
    assert "x/8 or y/8" in refusal(labels.lookup, "8")
    assert "no labels" in refusal(labels.lookup, "z/7")  # two folders that disagree are two images


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ('{"a": [', "line 1, column"),
        ("[1, 2]", "holds a list"),
        ('"x"', "holds a str"),
        ('{"classes": "cat", "labels": {}}', "not a list of names"),
        ('{"classes": ["a", "a"], "labels": {}}', "names a class twice"),
        ('{"classes": ["a"], "labels": [["a"]]}', "should be one {id"),
        ("[" * 100_000, "JSON"),
        ('{"a": [' + "9" * 5000 + "]}", "JSON"),
    ],
)
def test_malformed_json(load, text: str, reason: str) -> None:
    assert reason in refusal(load, "l.json", text)


def test_files_that_cannot_be_read(load, tmp_path: Path) -> None:
    assert "no such file" in refusal(load_labels, tmp_path / "absent.json", CLASSES)
    assert "not UTF-8" in refusal(load, "l.json", b"\xff\xfe{")
    assert "read from .json" in refusal(load, "l.md", "a cat")
    assert "read from .json" in refusal(load, "l.pkl", pickle.dumps({}))


def test_no_labels() -> None:
    labels = load_labels(None, CLASSES)
    assert labels.describe() == {"kind": "none", "file": None, "sha256": None, "images": 0}
    assert "--labels" in refusal(labels.lookup, "a")


def test_describe_records_the_file_and_its_hash(load) -> None:
    import hashlib

    labels = load("l.json", {"a": ["cat"]})
    assert labels.describe() == {
        "kind": "json",
        "file": str(labels.file),
        "sha256": hashlib.sha256(b'{"a": ["cat"]}').hexdigest(),
        "images": 1,
    }


_ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda s: not set("./\\") & set(s) and unicodedata.is_normalized("NFC", s)
)
_table = st.dictionaries(_ids, st.sets(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_table)
def test_json_round_trip(load, table: dict[str, set[int]]) -> None:
    named = load("n.json", {"labels": {i: [CLASSES[c] for c in s] for i, s in table.items()}})
    numbered = load(
        "i.json", {"classes": CLASSES[::-1], "labels": {i: [3 - c for c in s] for i, s in table.items()}}
    )
    for item_id, expected in table.items():
        assert named.lookup(item_id) == sorted(expected)
        assert numbered.lookup(item_id) == sorted(expected)


# --- tables


@pytest.mark.parametrize(
    "text",
    [
        "image,label\na.jpg,cat\nb.jpg,dog\na.jpg,potted plant\n",
        "a,cat\nb,dog\na,potted plant\n",
        "id,labels\na,cat;potted plant\nb,dog\n",
        'id,labels\na,"cat, potted plant"\nb,"dog"\n',
        "id,labels\na,cat|potted plant\nb,dog\n",
        "a,cat,potted plant\nb,dog,\n",
        "image_id,split,label,width\na,train,cat,500\nb,val,dog,3\na,train,potted plant,500\n",
        "filename,label_1,label_2\na.png,cat,potted plant\nb.png,dog,\n",
        "id\tlabels\na\tcat;potted plant\nb\tdog\n",
        "id;label\na;cat\na;potted plant\nb;dog\n",
        "a,cat;potted plant\nb,dog\n",
        "a,0 3\nb,1\n",
        "a,0,3\nb,1\n",
        "id,cat,dog,horse,potted plant\na,1,0,0,1\nb,0,1,0,0\n",
        "id,potted plant,dog,cat\na,1.0,0.0,1.0\nb,0,1,0\n",
        "Picture No,cat,dog,horse,potted plant\na,1,0,0,1\nb,0,1,0,0\n",
        ",cat,dog,potted plant\na,1,0,1\nb,0,1,0\n",
        "id,cat,dog,potted plant\na,1,0,0\nb,0,1,0\na,0,0,1\n",
        '\ufeff"image","label"\r\n\r\n"a","cat"\r\n"a","potted plant"\r\n"b","dog"\r\n',
    ],
)
def test_every_form_of_table_gives_the_same(load, text: str) -> None:
    labels = load("l.csv", text)
    assert labels.lookup("a") == [0, 3]
    assert labels.lookup("b") == [1]
    assert labels.kind == "csv"


def test_labels_in_a_table_that_cannot_be_used(load) -> None:
    labels = load("l.csv", "id,label\na,zebra\nb,7\nc,\nd,cat\ne,cat zebra\n")
    assert "label 'zebra'" in refusal(labels.lookup, "a")
    assert "label 7, outside" in refusal(labels.lookup, "b")
    assert "is empty" in refusal(labels.lookup, "c")
    assert labels.lookup("d") == [0]
    assert "label 'zebra'" in refusal(labels.lookup, "e")


def test_one_hot_columns_that_cannot_be_used(load) -> None:
    labels = load("l.csv", "id,cat,zebra\na,1,0\nb,0,1\nc,0,0\nd,0.5,0\ne,1\nf,x,1\n")
    assert labels.lookup("a") == [0]
    assert "1 columns that are no class of the bundle ignored (zebra)" in labels.notes[0]
    for name in "bc":
        assert "is empty" in refusal(labels.lookup, name)
    for name in "def":
        assert "other values than one 0 or 1" in refusal(labels.lookup, name)


def test_a_row_of_0_and_1_without_a_header_is_not_taken_for_indices(load) -> None:
    labels = load("l.csv", "a,0,1,0,1\nb,1,0,0,0\n")
    assert "0s and 1s" in refusal(labels.lookup, "a")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no labels"),
        ("\n , \n", "holds no labels"),
        ("id\na\n", "one column"),
        ("id,cat,cat\na,1,0\n", "two columns of one name"),
        ('a,"' + "x" * 200_000, "not a table"),
    ],
)
def test_malformed_tables(load, text: str, reason: str) -> None:
    assert reason in refusal(load, "l.csv", text)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.text("abxyz0189_-", min_size=4, max_size=9), st.sets(st.integers(0, 3), min_size=1))
)
def test_table_round_trip(load, table: dict[str, set[int]]) -> None:
    if not table:
        return
    long, wide = io.StringIO(), io.StringIO()
    csv.writer(long).writerows([["image", "label"], *([i, CLASSES[c]] for i, s in table.items() for c in s)])
    rows = [[i, *(int(c in s) for c in range(4))] for i, s in table.items()]
    csv.writer(wide).writerows([["image", *CLASSES], *rows])
    for labels in (load("long.csv", long.getvalue()), load("wide.csv", wide.getvalue())):
        for item_id, expected in table.items():
            assert labels.lookup(item_id) == sorted(expected)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["l.csv", "l.tsv", "l.txt", "l.json", "l.npy"]),
    st.one_of(st.binary(max_size=80), st.text("ab,;\t\"01\n{}[]:'", max_size=60).map(str.encode)),
)
def test_any_bytes_give_labels_or_an_input_error(load, name: str, data: bytes) -> None:
    try:
        labels = load(name, data)
        for item_id in ("a", "b", "", "0"):
            try:
                found = labels.lookup(item_id)
            except InputError as e:
                assert "\n" not in str(e)
            else:
                assert found and found == sorted(set(found)) and set(found) <= set(range(4))
    except InputError as e:
        assert "\n" not in str(e)


# --- psa's npy


def save_npy(path: Path, table: object) -> Path:
    np.save(path, np.array(table, dtype=object), allow_pickle=True)
    return path


def test_npy_of_psa_and_of_irn(tmp_path: Path) -> None:
    table = {
        "2007_000032": np.array([1, 0, 0, 1], np.float32),
        2007000039: np.array([0, 1, 0, 0], np.uint8),
        "2007000063": np.array([False, False, True, False]),
        139: np.array([1.0, 0, 0, 0]),
    }
    labels = load_labels(save_npy(tmp_path / "cls_labels.npy", table), CLASSES)
    assert labels.kind == "npy"
    assert labels.lookup("2007_000032") == [0, 3]
    assert labels.lookup("2007_000039") == [1]
    assert labels.lookup("2007_000063") == [2]
    assert labels.lookup("139") == [0]
    assert labels.lookup("JPEGImages/2007_000032") == [0, 3]


def test_npy_rows_that_cannot_be_used(tmp_path: Path) -> None:
    table = {
        "zero": np.zeros(4),
        "soft": np.array([0.3, 0, 0, 0]),
        "nan": np.array([np.nan, 0, 0, 0]),
        "short": np.ones(3),
        "matrix": np.ones((2, 4)),
        "ok": np.array([0, 1.0, 0, 0]),
    }
    labels = load_labels(save_npy(tmp_path / "l.npy", table), CLASSES)
    assert labels.lookup("ok") == [1]
    assert "is empty" in refusal(labels.lookup, "zero")
    for name in ("soft", "nan"):
        assert "other values than one 0 or 1" in refusal(labels.lookup, name)
    assert "has 3 columns, for a bundle of 4 classes" in refusal(labels.lookup, "short")
    assert "not a list" in refusal(labels.lookup, "matrix")


def test_npy_columns_of_voc_follow_names(tmp_path: Path) -> None:
    """Rows of 20 are in VOC's order, whatever the order in which the bundle knows these names."""
    row = np.zeros(20, np.float32)
    row[[voc.CLASSES.index("dog"), voc.CLASSES.index("person")]] = 1
    file = save_npy(tmp_path / "l.npy", {"a": row})
    shuffled = ["zebra", *voc.CLASSES[::-1]]
    assert load_labels(file, shuffled).lookup("a") == sorted(
        [shuffled.index("dog"), shuffled.index("person")]
    )
    others = [f"c{i}" for i in range(20)]
    assert load_labels(file, others).lookup("a") == [11, 14]


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("hidden", [False, True])
def test_a_malicious_npy_is_refused_and_runs_nothing(tmp_path: Path, hidden: bool) -> None:
    mark = tmp_path / "executed"
    content: object = _Evil(mark)
    file = save_npy(tmp_path / "l.npy", {"a": content} if hidden else content)
    message = refusal(load_labels, file, CLASSES)
    assert "refused" in message and str(file) in message
    assert not mark.exists()


def test_npy_that_is_no_dictionary(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.ones((3, 4)))
    assert "plain.npy" in refusal(load_labels, tmp_path / "plain.npy", CLASSES)
    data = save_npy(tmp_path / "cut.npy", {"a": np.ones(4)}).read_bytes()
    (tmp_path / "cut.npy").write_bytes(data[:-10])
    assert "cut.npy" in refusal(load_labels, tmp_path / "cut.npy", CLASSES)


# --- VOC annotations

XML = """<annotation>
  <filename>a.jpg</filename><size><width>5</width></size>
  <object><name>dog</name><difficult>0</difficult><part><name>head</name></part></object>
  <object><name> cat
  </name><difficult>1</difficult></object>
  <object><name>dog</name></object>
</annotation>"""


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    folder = tmp_path / "VOC2012/Annotations"
    folder.mkdir(parents=True)
    (tmp_path / "VOC2012/JPEGImages").mkdir()
    (folder / "a.xml").write_text(XML)
    (folder / "none.xml").write_text("<annotation><size/></annotation>")
    (folder / "broken.xml").write_text("<annotation><object>")
    (folder / "other.xml").write_text("<svg/>")
    (folder / "empty.xml").write_bytes(b"")
    (folder / "nameless.xml").write_text("<annotation><object><difficult>0</difficult></object></annotation>")
    return folder


def test_annotations(annotations: Path) -> None:
    assert read_annotation(annotations / "a.xml") == [("dog", False), ("cat", True), ("dog", False)]
    labels = load_labels("voc-xml", CLASSES, voc_root=annotations.parents[1])
    assert labels.lookup("a") == [0, 1]
    assert labels.lookup("JPEGImages/a") == [0, 1]
    assert labels.describe() == {
        "kind": "voc-xml",
        "file": str(annotations),
        "sha256": None,
        "difficult": True,
    }
    assert load_labels(annotations, CLASSES, difficult=False).lookup("a") == [1]
    assert load_labels(annotations.parent, CLASSES).lookup("a") == [0, 1]


def test_annotations_that_cannot_be_used(annotations: Path) -> None:
    labels = load_labels(annotations, CLASSES)
    assert "is empty" in refusal(labels.lookup, "none")
    assert "not XML" in refusal(labels.lookup, "broken")
    assert "not XML" in refusal(labels.lookup, "empty")
    assert "not a VOC annotation" in refusal(labels.lookup, "other")
    assert "label ''" in refusal(labels.lookup, "nameless")
    assert "no labels in" in refusal(labels.lookup, "absent")
    assert "leaves its folder" in refusal(labels.lookup, "../Annotations/a")
    refusal(labels.lookup, "x" * 5000)
    for name in ("none", "broken", "empty", "other", "nameless", "absent"):
        assert refusal(labels.lookup, name).startswith(f"{name}: ")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused(annotations: Path, encoding: str) -> None:
    """Neither a billion laughs nor a file from the disk; in any encoding that the parser knows."""
    secret = annotations / "secret.txt"
    secret.write_text("cat")
    bombs = {
        "laughs": '<!DOCTYPE l [<!ENTITY a "cat"><!ENTITY b "&a;&a;">]>',
        "file": f'<!DOCTYPE l [<!ENTITY b SYSTEM "file://{secret}">]>',
        "remote": '<!DOCTYPE annotation SYSTEM "http://localhost/x.dtd">',
    }
    for name, dtd in bombs.items():
        body = f"{dtd}<annotation><object><name>&b;</name></object></annotation>"
        (annotations / f"{name}.xml").write_bytes(body.encode(encoding))
        labels = load_labels(annotations, CLASSES)
        assert "document type definition" in refusal(labels.lookup, name)


def test_annotation_folders_that_are_missing(tmp_path: Path) -> None:
    assert "--voc" in refusal(load_labels, "voc-xml", CLASSES)
    (tmp_path / "JPEGImages").mkdir()
    assert "no such folder" in refusal(load_labels, "voc-xml", CLASSES, voc_root=tmp_path)


# --- real files


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")
def test_real_label_files_agree() -> None:
    mine = load_labels(SHARED / "voc/labels.json", voc.CLASSES)
    psa = load_labels(SHARED / "voc/cls_labels_psa.npy", voc.CLASSES)
    assert len(mine) == 400
    assert len(psa) == 12_031
    ids = list(json.loads((SHARED / "voc/labels.json").read_text())["labels"])
    assert sum(mine.lookup(i) == psa.lookup(i) for i in ids) > 0.9 * len(ids)
    same = load_labels(SHARED / "voc/labels.json", voc.CLASSES[::-1])
    for item_id in ids[:20]:
        assert sorted(19 - c for c in same.lookup(item_id)) == mine.lookup(item_id)
