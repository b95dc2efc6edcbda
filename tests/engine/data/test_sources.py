"""Sources: which images are found, under which ids, in which order, and what is refused at once."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.paths import check_id
from infercam.engine.data.sources import Item, Source, folder_source, list_source, read_pixels, voc_source
from tests.shared import SHARED


def touch(root: Path, *names: str) -> None:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def ids(source: Source) -> list[str]:
    return [item.id for item in source]


def refusal(make, *args: object) -> str:
    with pytest.raises(InputError) as caught:
        make(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- ids


@pytest.mark.parametrize(
    "bad", ["", ".", "/", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "a\\b", "nul\0"]
)
def test_ids_that_leave_their_folder_are_refused(bad: str) -> None:
    assert "id" in refusal(check_id, bad)


def test_ids_are_made_plain() -> None:
    assert check_id("./a//b") == "a/b"
    assert check_id("a..b/...c") == "a..b/...c"


@given(st.text())
def test_a_permitted_id_stays_below_its_root(text: str) -> None:
    try:
        item_id = check_id(text)
    except InputError:
        return
    full = os.path.normpath(f"/root/{item_id}")
    assert full.startswith("/root/")
    assert check_id(item_id) == item_id


@given(st.text())
def test_shown_text_is_one_printable_line(text: str) -> None:
    assert shown(text).isprintable()
    shown(text).encode()


# --- folders


def test_folder_ids_are_relative_paths_without_suffix_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a/z.png", "a/b/c.webp", "d.tar.jpeg", "e.tif")
    source = folder_source(tmp_path)
    assert ids(source) == ["a/b/c", "a/z", "b", "d.tar", "e"]
    assert next(i.path for i in source) == tmp_path / "a/b/c.webp"
    assert len(source) == 5
    assert ids(source) == ids(source)  # iterable again
    assert source[2] == Item("b", tmp_path / "b.JPG")
    assert ids(source[1:3]) == ["a/z", "b"]
    assert source.describe() == {"kind": "folder", "root": str(tmp_path), "split": None, "count": 5}


def test_folder_not_recursive(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/z.png")
    assert ids(folder_source(tmp_path, recursive=False)) == ["b"]


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".b.jpg", "._a.jpg", ".cache/c.jpg", "notes.txt", "sub/Thumbs.db")
    source = folder_source(tmp_path)
    assert ids(source) == ["a"]
    assert source.notes == [f"{tmp_path}: 2 files that are no pictures passed over"]


def test_two_files_of_one_id_are_refused_naming_both(tmp_path: Path) -> None:
    touch(tmp_path, "s/x.jpg", "s/x.png", "y.jpg")
    message = refusal(folder_source, tmp_path)
    assert "s/x.jpg" in message and "s/x.png" in message and "list" in message


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    touch(tmp_path, name, "café.jpg")
    source = folder_source(tmp_path)
    assert ids(source) == ["café", "caf%e9"]
    assert source[1].path.is_file() and source[1].path.name == name
    touch(tmp_path, "caf%e9.png")
    assert "caf%e9.png" in refusal(folder_source, tmp_path)


def test_linked_folders_are_read_once_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.jpg")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "outside").mkdir()
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    touch(elsewhere, "b.jpg")
    (tmp_path / "linked").symlink_to(elsewhere)
    assert ids(folder_source(tmp_path)) == ["linked/b", "real/a"]


def test_a_broken_link_is_an_item_that_fails_when_read(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert ids(folder_source(tmp_path)) == ["gone", "loop"]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    assert "no such folder" in refusal(folder_source, tmp_path / "absent")
    touch(tmp_path, "file.txt")
    assert "is not a folder" in refusal(folder_source, tmp_path / "file.txt")
    assert "no images in it (1 other files" in refusal(folder_source, tmp_path)


# --- lists


def write_list(root: Path, text: str | bytes, name: str = "list.txt") -> Path:
    file = root / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_list_of_paths_beside_it(tmp_path: Path) -> None:
    file = write_list(tmp_path, "b.jpg\nsub/a.PNG\n./b2.jpg\n")
    source = list_source(file)
    assert ids(source) == ["b", "sub/a", "b2"]
    assert [i.path for i in source] == [tmp_path / "b.jpg", tmp_path / "sub/a.PNG", tmp_path / "b2.jpg"]
    assert source.describe() == {"kind": "list", "root": str(tmp_path), "split": str(file), "count": 3}


def test_list_with_bom_crlf_comments_blanks_and_repeats(tmp_path: Path) -> None:
    file = write_list(tmp_path, b"\xef\xbb\xbf# the images\r\n\r\n  b.jpg \r\na.jpg\r\nb.jpg\r\n./a.jpg")
    source = list_source(file)
    assert ids(source) == ["b", "a"]
    assert source.notes == [f"{file}: 2 repeated lines left out"]


def test_list_of_ids_finds_their_files(tmp_path: Path) -> None:
    root = tmp_path / "images"
    touch(root, "a.png", "sub/b.jpg", "JPEGImages/2007_000032.jpg", "v1.5.jpg")
    source = list_source(write_list(tmp_path, "a\nsub/b\n2007_000032\nabsent\nv1.5\n"), root)
    assert ids(source) == ["a", "sub/b", "2007_000032", "absent", "v1.5"]
    assert [i.path.relative_to(root).as_posix() for i in source] == [
        "a.png",
        "sub/b.jpg",
        "JPEGImages/2007_000032.jpg",
        "absent.jpg",
        "v1.5.jpg",
    ]


@pytest.mark.parametrize("slash", ["/", ""])
def test_psa_lines_are_below_the_voc_root_and_keep_the_mask(tmp_path: Path, slash: str) -> None:
    root = tmp_path / "VOCdevkit/VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    line = f"{slash}JPEGImages/2007_000032.jpg {slash}SegmentationClassAug/2007_000032.png\n"
    file = write_list(tmp_path, line)
    expected = Item(
        "2007_000032",
        root / "JPEGImages/2007_000032.jpg",
        root / "SegmentationClassAug/2007_000032.png",
    )
    for given_root in (root, root.parent, tmp_path):
        assert list(list_source(file, given_root)) == [expected]


def test_psa_lines_without_their_root_say_so(tmp_path: Path) -> None:
    file = write_list(tmp_path, "/JPEGImages/2007_000032.jpg\n")
    assert "name the VOC root" in refusal(list_source, file)


def test_names_with_spaces_need_no_quoting(tmp_path: Path) -> None:
    file = write_list(tmp_path, "my photo.jpg\nmy photo 2.jpg my mask 2.png\nt.jpg\tm.png\nu v.jpg\t\n")
    assert [(i.id, i.mask and i.mask.name) for i in list_source(file)] == [
        ("my photo", None),
        ("my photo 2", "my mask 2.png"),
        ("t", "m.png"),
        ("u v", None),
    ]


def test_absolute_paths(tmp_path: Path) -> None:
    inside = tmp_path / "data/cats/1.jpg"
    file = write_list(tmp_path, f"{inside}\n/elsewhere/2.jpg /masks/2.png\n")
    source = list_source(file, tmp_path / "data") if (tmp_path / "data").mkdir() is None else None
    assert source is not None
    assert list(source) == [
        Item("cats/1", inside),
        Item("2", Path("/elsewhere/2.jpg"), Path("/masks/2.png")),
    ]


def test_two_files_of_one_id_in_a_list_are_refused_with_their_lines(tmp_path: Path) -> None:
    message = refusal(list_source, write_list(tmp_path, "/a/1.jpg\n\n/b/1.jpg\n"))
    assert "lines 1 and 3" in message and "root" in message
    assert "lines 1 and 2" in refusal(list_source, write_list(tmp_path, "x.jpg\nx.png\n"))


@pytest.mark.parametrize(
    "line", ["../x.jpg", "a/../../x.jpg", "..", "/JPEGImages/../../x.jpg", "a\\..\\..\\b.jpg"]
)
def test_lines_that_leave_the_root_are_refused_with_their_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "JPEGImages").mkdir()
    assert "line 2: id" in refusal(list_source, write_list(tmp_path, f"ok.jpg\n{line}\n"))


def test_lists_that_cannot_be_used(tmp_path: Path) -> None:
    assert "no such file" in refusal(list_source, tmp_path / "absent.txt")
    assert "is a folder" in refusal(list_source, tmp_path)
    assert "names no images" in refusal(list_source, write_list(tmp_path, "# nothing\n\n"))
    assert "not UTF-8" in refusal(list_source, write_list(tmp_path, b"\xff\xfea\0.\0j\0p\0g\0"))
    assert "no such folder" in refusal(list_source, write_list(tmp_path, "a.jpg"), tmp_path / "nowhere")


_name = (
    st.text("abc é.-_", min_size=1, max_size=8).map(str.strip).filter(lambda s: s.strip("./") and s[0] != "#")
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(_name, min_size=1, max_size=3).map("/".join), min_size=1, unique=True))
def test_a_list_round_trips(tmp_path: Path, names: list[str]) -> None:
    """Whatever relative paths are written come back as ids, in order."""
    source = list_source(write_list(tmp_path, "".join(f"{n}.jpg\n" for n in names)))
    plain = [check_id(f"{n}.jpg")[: -len(".jpg")] for n in names]
    assert ids(source) == list(dict.fromkeys(plain))


MEMORY_OF_A_LIST = """
import sys, tracemalloc
from infercam.engine.data.sources import list_source

tracemalloc.start()
source = list_source(sys.argv[1])
held = tracemalloc.get_traced_memory()[0]
sizes = []
for _ in range(2):  # the first pass lets the interpreter's table of interned strings grow
    for _item in source:
        pass
    sizes.append(tracemalloc.get_traced_memory()[0])
print(len(source), held, sizes[1] - sizes[0])
"""


def test_a_long_list_takes_little_memory(tmp_path: Path) -> None:
    """In a process of its own: what other tests left running allocates too."""
    count = 20_000
    file = write_list(tmp_path, "".join(f"folder_{i % 100:03d}/image_{i:08d}.jpg\n" for i in range(count)))
    command = [sys.executable, "-c", MEMORY_OF_A_LIST, str(file)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    length, held, growth = map(int, out.split())
    assert length == count
    assert held < count * 150
    assert growth < 100_000


# --- VOC trees


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit/VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    for name, text in {
        "Segmentation/train": "2007_000032\n2007_000039\n",
        "Segmentation/val": "2007_000033\r\n\r\n",
        "Main/train": "2008_000008\n",
        "Main/trainval": "2008_000008\n2008_000015\n",
        "Main/cat_train": "2008_000008  1\n2008_000015 -1\n2008_000019  0\n",
    }.items():
        file = root / f"ImageSets/{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_voc_split(voc: Path) -> None:
    for root in (voc, voc.parent, voc.parent.parent):
        source = voc_source(root, "train")
        assert source[0] == Item(
            "2007_000032",
            voc / "JPEGImages/2007_000032.jpg",
            voc / "SegmentationClass/2007_000032.png",
        )
        assert source.describe() == {"kind": "voc", "root": str(voc), "split": "train", "count": 2}
    assert ids(voc_source(voc, "val")) == ["2007_000033"]


def test_voc_main(voc: Path) -> None:
    assert ids(voc_source(voc, "trainval")) == ["2008_000008", "2008_000015"]
    assert ids(voc_source(voc, "Main/train")) == ["2008_000008"]
    assert ids(voc_source(voc, "cat_train")) == ["2008_000008", "2008_000019"]


@pytest.mark.parametrize("split", ["test", "", "../Segmentation/train", "/etc/passwd", "a/b/c", "tr*"])
def test_an_unknown_split_names_those_there_are(voc: Path, split: str) -> None:
    assert "there are: train, val, Main/train, trainval" in refusal(voc_source, voc, split)


def test_voc_trees_that_cannot_be_used(voc: Path, tmp_path: Path) -> None:
    assert "no such folder" in refusal(voc_source, tmp_path / "absent", "train")
    (tmp_path / "empty").mkdir()
    assert "no VOC tree" in refusal(voc_source, tmp_path / "empty", "train")
    (voc / "ImageSets/Segmentation/bad.txt").write_text("2007_000032\n../../etc/passwd\n")
    assert "bad.txt, line 2: id" in refusal(voc_source, voc, "bad")
    (voc / "ImageSets/Segmentation/none.txt").write_text("\n")
    assert "names no images" in refusal(voc_source, voc, "none")


def test_several_voc_trees(voc: Path) -> None:
    (voc.parent / "VOC2007/JPEGImages").mkdir(parents=True)
    assert voc_source(voc.parent, "train").root == voc
    voc.rename(voc.parent / "VOC2010")
    assert "name one" in refusal(voc_source, voc.parent, "train")


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")
def test_real_voc_tree_and_psa_list() -> None:
    source = voc_source(SHARED / "voc", "val")
    assert len(source) == 100
    assert all(item.path.is_file() and item.mask is not None and item.mask.is_file() for item in source)
    psa = list_source(SHARED / "voc/psa_list_sample.txt")
    assert len(psa) == 50
    assert psa[0].id == "2007_000032"
    assert psa[0].path == SHARED / "voc/VOC2012/JPEGImages/2007_000032.jpg"


# --- lists of other tools


@pytest.mark.parametrize(
    "text",
    [
        "cats/a.jpg 3\ndogs/b.png 7\n",
        "cats/a.jpg\t3\ndogs/b.png\t7\n",
        "cats/a.jpg,cat\ndogs/b.png,dog\n",
        "image,label\ncats/a.jpg,cat\ndogs/b.png,dog\n",
        "path label\ncats/a.jpg cat\ndogs/b.png potted plant\n",
    ],
)
def test_labels_on_the_lines_are_no_masks_and_told(tmp_path: Path, text: str) -> None:
    file = write_list(tmp_path, text)
    source = list_source(file)
    assert list(source) == [Item("cats/a", tmp_path / "cats/a.jpg"), Item("dogs/b", tmp_path / "dogs/b.png")]
    assert source.notes == [f"{file}: 2 lines hold labels; --labels {file} uses them"]


def test_masks_behind_commas(tmp_path: Path) -> None:
    assert list_source(write_list(tmp_path, "a.jpg,m/a.png\n"))[0].mask == tmp_path / "m/a.png"


@pytest.mark.parametrize(
    ("item_id", "says"),
    [
        ("a\\b", "has a backslash; write / between folders"),
        ("/a/b", "is absolute; write it relative"),
        ("../b", r"leaves its folder by '..'; write it relative to a folder above"),
        ("a\0", "has a null character"),
        ("", "is empty; name a file"),
    ],
)
def test_each_reason_has_its_own_words(item_id: str, says: str) -> None:
    assert says in refusal(check_id, item_id)


@pytest.mark.parametrize("in_list", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_lists_and_files_in_other_unicode_forms(tmp_path: Path, in_list: str, on_disk: str) -> None:
    file = tmp_path / unicodedata.normalize(on_disk, "Café") / unicodedata.normalize(on_disk, "Müller.png")
    file.parent.mkdir()
    file.write_bytes(encoded_png())
    for line in ("Café/Müller.png", "Café/Müller"):
        item = list_source(write_list(tmp_path, unicodedata.normalize(in_list, line)))[0]
        assert read_pixels(None, item.path).shape == (2, 3, 3)


def encoded_png() -> bytes:
    done = io.BytesIO()
    Image.new("RGB", (3, 2)).save(done, "PNG")
    return done.getvalue()
