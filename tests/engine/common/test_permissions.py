"""Files and folders that may not be read: one line each. Run as root, these tests give up that right first."""

from __future__ import annotations

import codecs
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from infercam.engine.common.errors import InputError
from infercam.engine.data.images import image_size, read_image
from infercam.engine.data.labels import load_labels
from infercam.engine.data.sources import folder_source, list_source, voc_source

NOBODY = 65534
codecs.lookup("utf-8-sig")  # loaded now: where the interpreter's own folder is root's, nobody could not


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everyone may enter (pytest's own is for its user only), with a `locked` one in it."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    locked = root / "locked"
    (locked / "below").mkdir(parents=True)
    Image.new("RGB", (3, 2)).save(locked / "a.png")
    shutil.copy(locked / "a.png", root / "private.png")
    (root / "private.png").chmod(0)
    (root / "list.txt").write_text("locked/a\n")
    locked.chmod(0)
    yield root
    locked.chmod(0o700)
    shutil.rmtree(root)


@contextmanager
def unprivileged() -> Iterator[None]:
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def refusal(call: Callable[..., object], *arguments: object) -> str:
    with unprivileged(), pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("read", [read_image, image_size])
def test_pictures(public: Path, read: Callable[[Path], object]) -> None:
    for file in (public / "private.png", public / "locked/a.png"):
        assert refusal(read, file) == f"{file}: permission denied"


def test_a_locked_folder_is_not_skipped(public: Path) -> None:
    """Its images would be missing from the result without a word."""
    assert refusal(folder_source, public) == f"{public}/locked: permission denied"
    assert refusal(folder_source, public / "locked/below") == f"{public}/locked/below: permission denied"


def test_lists_and_trees(public: Path) -> None:
    assert "permission denied" in refusal(list_source, public / "locked/list.txt")
    assert "permission denied" in refusal(voc_source, public / "locked/below", "train")
    assert "no VOC tree" in refusal(voc_source, public / "locked", "train")


def test_an_id_in_a_locked_folder_is_an_item_that_fails_when_read(public: Path) -> None:
    with unprivileged():
        items = list(list_source(public / "list.txt"))
    assert [i.id for i in items] == ["locked/a"]
    assert "permission denied" in refusal(read_image, items[0].path)


def test_labels(public: Path) -> None:
    for name in ("l.json", "l.csv", "l.npy"):
        assert (
            refusal(load_labels, public / "locked" / name, ["cat"])
            == f"{public}/locked/{name}: permission denied"
        )
    (public / "private.json").write_text("{}")
    (public / "private.json").chmod(0)
    assert "permission denied" in refusal(load_labels, public / "private.json", ["cat"])
