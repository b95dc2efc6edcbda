"""Lists as other tools write them: quotes, tabs, commas, comments, backslashes; images and labels from one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from infercam.engine.data.labels import load_labels
from infercam.engine.data.list_lines import cells, is_comment, split_line
from infercam.engine.data.sources import list_source

CLASSES = ["cat", "dog", "horse", "cow", "potted plant"]
PAIRS = {
    "quotes, space": '"img/x.jpg" 3\n"img/y z.jpg" 1\n',
    "quotes, tab": '"img/x.jpg"\t3\n"img/y z.jpg"\t1\n',
    "quotes, comma": '"img/x.jpg",3\n"img/y z.jpg",1\n',
    "quotes, comma, space": '"img/x.jpg", 3\n"img/y z.jpg", 1\n',
    "quotes, semicolon": '"img/x.jpg";3\n"img/y z.jpg";1\n',
    "single quotes": "'img/x.jpg' 3\n'img/y z.jpg' 1\n",
    "single quotes, comma": "'img/x.jpg',3\n'img/y z.jpg',1\n",
    "quoted labels": '"img/x.jpg" "cow"\n"img/y z.jpg" "dog"\n',
    "quoted labels, comma": '"img/x.jpg","3"\n"img/y z.jpg","1"\n',
    "quoted ids": '"img/x" 3\n"img/y z" 1\n',
    "tabs": "img/x.jpg\t3\nimg/y z.jpg\t1\n",
    "tabs, CRLF": "img/x.jpg\t3\r\nimg/y z.jpg\t1\r\n",
    "spaces": "img/x.jpg  3 \n img/y z.jpg 1\n",
    "byte order mark": '\ufeff"img/x.jpg" 3\n"img/y z.jpg" 1\n',
    "header": '"path" "label"\n"img/x.jpg" 3\n"img/y z.jpg" 1\n',
    "header, comma": '"path","label"\n"img/x.jpg",3\n"img/y z.jpg",1\n',
    "header, tab": "path\tlabel\nimg/x.jpg\t3\nimg/y z.jpg\t1\n",
    "comment as header": "# path label\nimg/x.jpg 3\nimg/y z.jpg 1\n",
    "comment as header, comma": "# path,label\nimg/x.jpg,3\nimg/y z.jpg,1\n",
    "comment as header, tab": "# path\tlabel\nimg/x.jpg\t3\nimg/y z.jpg\t1\n",
    "comment with commas": "# made by a; b, c\nimg/x.jpg 3\nimg/y z.jpg 1\n",
    "comment with commas over commas": "# made by a, b\npath,label\nimg/x.jpg,3\nimg/y z.jpg,1\n",
    "comment between": 'img/x.jpg 3\n  # and, now\n#\n"img/y z.jpg" 1\n# end\n',
    "comment between, comma": "img/x.jpg,3\n# and, zebra\nimg/y z.jpg,1\n",
    "comment between, tab": '"img/x.jpg"\t3\n# now\tzebra\n"img/y z.jpg"\t1\n',
    "backslashes": "img\\x.jpg 3\nimg\\y z.jpg 1\n",
    "backslashes, quotes": '"img\\x.jpg" 3\n".\\img\\y z.jpg" 1\n',
    "backslashes, tab": "img\\x.jpg\t3\n.\\img\\y z.jpg\t1\n",
}


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".lst"])
@pytest.mark.parametrize("kind", PAIRS)
def test_images_and_labels_from_one_file(tmp_path: Path, kind: str, suffix: str) -> None:
    file = tmp_path / f"list{suffix}"
    file.write_text(PAIRS[kind], encoding="utf-8", newline="")
    for name in ("x", "y z"):
        (tmp_path / "img").mkdir(exist_ok=True)
        (tmp_path / "img" / f"{name}.jpg").write_bytes(b"")
    source = list_source(file)
    assert [(item.id, item.mask) for item in source] == [("img/x", None), ("img/y z", None)]
    assert [item.path.is_file() for item in source] == [True, True]
    assert source.notes == [f"{file}: 2 lines hold labels; --labels {file} uses them"]
    if suffix != ".lst":
        labels = load_labels(file, CLASSES, root=tmp_path)
        assert [labels.lookup(item.id) for item in source] == [[3], [1]]


def test_images_alone_and_with_masks(tmp_path: Path) -> None:
    file = tmp_path / "l.txt"
    file.write_text('"a.jpg"\n"b c.jpg"\t"m/b c.png"\n\'d.jpg\',\'m/d.png\'\n"e" m\\e.png\n"f""g.jpg"\t\n')
    source = list_source(file)
    assert [item.id for item in source] == ["a", "b c", "d", "e", 'f"g'] and source.notes == []
    masks = [item.mask and item.mask.relative_to(tmp_path).as_posix() for item in source]
    assert masks == [None, "m/b c.png", "m/d.png", "m/e.png", None]


def test_psa_lines_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    file = tmp_path / "l.txt"
    file.write_text('"/JPEGImages/x.jpg" "/SegmentationClassAug/x.png"\n')
    assert list_source(file)[0].mask == tmp_path / "SegmentationClassAug/x.png"


def test_names_with_quotes_stay(tmp_path: Path) -> None:
    file = tmp_path / "l.txt"
    file.write_text("o'x.jpg 3\n'y'.jpg 1\n12\" disc.jpg 0\n")
    source = list_source(file)
    assert [item.id for item in source] == ["o'x", "'y'", '12" disc']
    assert [load_labels(file, CLASSES).lookup(item.id) for item in source] == [[3], [1], [0]]


def test_several_labels_behind_a_quoted_picture(tmp_path: Path) -> None:
    file = tmp_path / "l.txt"
    file.write_text('"a.jpg" "cat" "potted plant"\n"b.jpg" 0 3\n"c.jpg" potted plant\n')
    labels = load_labels(file, CLASSES)
    assert [labels.lookup(id) for id in "abc"] == [[0, 4], [0, 3], [4]]


def test_an_id_with_a_hash_is_no_comment(tmp_path: Path) -> None:
    file = tmp_path / "l.csv"
    file.write_text("#,image,label\n1,#12.jpg,cat\n2,b.jpg,dog\n")
    assert load_labels(file, CLASSES).lookup("#12") == [0]
    file.write_text("#12,cat\nb,dog\n")
    assert load_labels(file, CLASSES).lookup("#12") == [0]


def test_the_parts() -> None:
    assert split_line('"a b" c') == ("a b", "c") and split_line("a b c") is None
    assert split_line('"open.jpg 3') == ('"open.jpg', "3") and split_line('""') is None
    assert cells("\"a\" b 'c d'") == ["a", "b", "c d"] and cells("a b") == ["a b"] and cells(" ") == []
    assert [is_comment(line) for line in ("# a", "#", " ##", "#!", "#a", "a #")] == [True] * 4 + [False] * 2
