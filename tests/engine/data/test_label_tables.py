"""Label tables as pandas, Open Images, ChestX-ray14, CelebA and spreadsheets write them; one line for others."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infercam.engine.common.errors import InputError
from infercam.engine.data.label_columns import id_rank, label_rank
from infercam.engine.data.labels import Labels, load_labels

CLASSES = ["cat", "dog", "horse", "potted plant"]


@pytest.fixture
def load(tmp_path: Path):
    def _load(text: str, name: str = "l.csv", classes: list[str] = CLASSES) -> Labels:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return load_labels(tmp_path / name, classes)

    return _load


def refusal(call, *args: object) -> str:
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *[
            "label",
            "labels",
            "Label",
            "class",
            "class_name",
            "class name",
            "className",
            "ClassName",
            "label_name",
        ],
        *["LabelName", "category", "category_name", "species", "Finding Labels", "target", "tags", "tag 1"],
        *["image_label", "primary_label", "classname", "breed", "true_class", "ground_truth_label"],
    ],
)
def test_columns_that_hold_labels(load, name: str) -> None:
    labels = load(f"image,width,{name}\na.jpg,640,cat\nb.jpg,3,dog|horse\n")
    assert labels.lookup("a") == [0] and labels.lookup("b") == [1, 2]


@pytest.mark.parametrize(
    "name", ["class_id", "category_id", "label_id", "ClassID", "label_idx", "class index", "labelid"]
)
def test_columns_that_hold_numbers(load, name: str) -> None:
    labels = load(f"file_name,{name}\na.jpg,0\nb.jpg,3\nc.jpg,2.0\n")
    assert [labels.lookup(i) for i in "abc"] == [[0], [3], [2]]


def test_names_are_taken_before_numbers(load) -> None:
    """The numbers may be another list's: 17 is COCO's id of the cat."""
    for text in (
        "image,category_id,category_name\na,3,cat\n",
        "image,category_name,category_id\na,cat,3\n",
        "image,label,class_name\na,3,cat\n",
        "image,label,label_id\na,cat,3\n",
        "image,class,species\na,mammal,cat\n",
        "image,label,label_text\na,cat,/m/01yrx\n",
    ):
        assert load(text).lookup("a") == [0]


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        *[("filename", 3), ("file_path", 3), ("image_path", 3), ("Image File", 3), ("Path", 3)],
        *[("image", 2), ("ImageID", 2), ("Image Index", 2), ("imageid", 2), ("photo", 2), ("img_name", 2)],
        *[("id", 1), ("", 1), ("Unnamed: 0", 1), ("index", 1), ("name", 1), ("#", 1)],
        *[("label", 0), ("cat", 0), ("a.jpg", 0), ("image1", 0), ("2007_000032", 0)],
    ],
)
def test_columns_that_name_the_image(name: str, rank: int) -> None:
    assert id_rank(name) == rank


def test_columns_that_are_no_labels() -> None:
    for name in (
        "cat",
        "label noise",
        "classification date",
        "subclasses of it",
        "id",
        "",
        "3",
        "class_weight",
    ):
        assert label_rank(name) == 0


@pytest.mark.parametrize(
    "text",
    [
        ",image,label\n0,a.jpg,cat\n1,b.jpg,dog\n",
        "Unnamed: 0,image,label\n0,a.jpg,cat\n1,b.jpg,dog\n",
        "index,file,label\n0,a.jpg,cat\n1,b.jpg,dog\n",
        "id,filename,label\n7,a.jpg,cat\n8,b.jpg,dog\n",
        "label,image\ncat,a.jpg\ndog,b.jpg\n",
        "species,file\ncat,a.jpg\ndog,b.jpg\n",
        "split,image,label\ntrain,a.jpg,cat\nval,b.jpg,dog\n",
        ",image,cat,dog\n0,a.jpg,1,0\n1,b.jpg,0,1\n",
        "split,cat,image,dog\ntrain,1,a.jpg,0\nval,0,b.jpg,1\n",
        "image,label,,\na.jpg,cat,,\nb.jpg,dog,,\n",
    ],
)
def test_the_image_is_named_by_the_column_that_says_so(load, text: str) -> None:
    labels = load(text)
    assert labels.lookup("a") == [0] and labels.lookup("b") == [1]


@pytest.mark.parametrize(
    "text",
    [
        "image,cat,dog\na,True,False\nb,False,True\n",
        "image,cat,dog\na,true,false\nb,no,yes\n",
        "image,cat,dog\na,1,\nb,,1\n",
        "image,cat,dog\na,1.0,\nb,,1.0\n",
        "image,cat,dog\na,1,-1\nb,-1,1\n",
        "image,cat,dog,\na,1,0,\nb,0,1,\n",
        "image,cat,dog,\na,1,0\nb,0,1\n",
        "image,cat,dog\na,1,0,\nb,0,1,,\n",
        "image,split,cat,width,dog\na,train,1,640,0\nb,val,0,480,1\n",
        "image,tag,cat,dog\na,train,1,0\nb,val,0,1\n",
        "image,Cat,DOG\na,1,0\nb,0,1\n",
        "Picture,cat,dog\na,True,\nb,,True\n",
    ],
)
def test_columns_of_classes(load, text: str) -> None:
    labels = load(text)
    assert labels.lookup("a") == [0] and labels.lookup("b") == [1]


def test_columns_of_classes_before_a_column_of_numbers(load) -> None:
    """A `label` of 0 and 1 beside them counts something else."""
    labels = load("image,label,cat,dog,horse\na,1,1,0,1\nb,0,0,1,0\n")
    assert labels.lookup("a") == [0, 2] and labels.lookup("b") == [1]
    assert load("image,label,cat,dog\na,horse,1,0\n").lookup("a") == [2]


def test_a_column_named_as_people_vary_it(load) -> None:
    assert load("image,potted_plant,cat\na,1,0\n").lookup("a") == [3]


def test_columns_that_are_no_class_are_told(load) -> None:
    labels = load("image,split,cat,zebra\na,train,1,1\n")
    assert labels.lookup("a") == [0]
    assert (
        labels.notes and "2 columns that are no class of the bundle ignored (split, zebra)" in labels.notes[0]
    )
    assert load("image,cat\na,1\n").notes == []


def test_minus_one_beside_zero_is_neither(load) -> None:
    """CheXpert's -1 is 'uncertain', with 0 for no."""
    labels = load("image,cat,dog\na,1,-1\nb,0,1\n")
    assert "other values" in refusal(labels.lookup, "a")
    assert labels.lookup("b") == [1]


def test_a_label_that_was_looked_for_and_not_found(load) -> None:
    """Open Images' human-verified labels: confidence 0 says that it is not there."""
    labels = load(
        "ImageID,Source,LabelName,Confidence\na,verification,cat,1\na,verification,dog,0\nb,verification,dog,0\n"
    )
    assert labels.lookup("a") == [0]
    assert "is empty" in refusal(labels.lookup, "b")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("image,width,height\na,3,4\n", "image, width, height"),
        ("image,lion,zebra\na,1,0\n", "image, lion, zebra"),
        ("image,label,source\na,lion,x\nb,zebra,y\n", "image, label, source"),
        ("image,label\na,\nb,\n", "none of its labels (nothing)"),
        ("a.jpg,lion\nb.jpg,zebra\n", "'lion', 'zebra'"),
        ("ImageID,LabelName\na,/m/01yrx\n", "/m/01yrx"),
        ("image,label\na,17\nb,44\n", "numbers from 17 to 44"),
        (
            "image,label\na,1\nb,4\n",
            "numbers from 1 to 4, but numbers count the bundle's 4 classes from 0 to 3",
        ),
        ("image,label\na,-1\nb,1\n", "numbers from -1 to 1"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(load, text: str, names: str) -> None:
    message = refusal(load, text)
    assert names in message and "l.csv" in message


def test_one_bad_row_is_one_image(load) -> None:
    labels = load("image,label\na,cat\nb,zebra\nc\nd,9\n")
    assert labels.lookup("a") == [0]
    assert "'zebra'" in refusal(labels.lookup, "b")
    assert "is empty" in refusal(labels.lookup, "c")
    assert "label 9, outside" in refusal(labels.lookup, "d")


@pytest.mark.parametrize(
    "text",
    [
        "cats/a.jpg 0\ndogs/b.jpg 1\n",
        "# mine\ncats/a.jpg cat\n\ndogs/b.jpg dog\r\n",
        "cats/a.jpg\tcat\ndogs/b.jpg\tdog\n",
        "cats/a.jpg,cat\ndogs/b.jpg,dog\n",
        "cats/a cat\ndogs/b 1\n",
        "image label\ncats/a.jpg cat\ndogs/b.jpg dog\n",
    ],
)
def test_lists_with_labels(load, text: str) -> None:
    labels = load(text, "train.txt")
    assert labels.lookup("cats/a") == [0] and labels.lookup("dogs/b") == [1]


def test_lists_whose_paths_have_spaces_and_several_labels(load) -> None:
    assert load("my cats/a 1.jpg cat dog\n", "train.txt").lookup("my cats/a 1") == [0, 1]


def test_a_list_of_ids_or_masks_alone_has_no_labels(load) -> None:
    assert "none of its labels (nothing)" in refusal(load, "a.jpg\nb.jpg\n", "train.txt")
    assert "none of its labels" in refusal(load, "/JPEGImages/a.jpg /Masks/a.png\n", "train.txt")


def test_vocs_lists_of_one_class_are_no_labels(load) -> None:
    assert "numbers from -1 to 1" in refusal(load, "2008_000008 -1\n2008_000015  1\n", "cat_train.txt")


_CELLS = [
    "",
    "image",
    "file",
    "label",
    "class_id",
    "Confidence",
    "cat",
    "dog",
    "a",
    "a.jpg",
    "0",
    "1",
    "-1",
    "True",
    "x",
]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["l.csv", "l.txt"]),
    st.sampled_from([",", " ", "\t"]),
    st.lists(st.lists(st.sampled_from(_CELLS), min_size=1, max_size=5), max_size=5),
)
def test_any_table_gives_labels_or_one_line(load, name: str, separator: str, rows: list[list[str]]) -> None:
    try:
        labels = load("\n".join(separator.join(row) for row in rows), name)
        found = labels.lookup("a")
    except InputError as e:
        assert "\n" not in str(e)
    else:
        assert found and set(found) <= set(range(len(CLASSES)))


def test_a_table_of_other_names_says_which_was_meant(load) -> None:
    said = refusal(load, "image,label\na.jpg,Zebra\nb.jpg,Dog\nc.jpg,Cat\n")
    assert said.endswith("; did you mean 'dog' by 'Dog'?") and "none of its labels" in said
    assert "did you mean" not in refusal(load, "image,label\na.jpg,zebra\n")
