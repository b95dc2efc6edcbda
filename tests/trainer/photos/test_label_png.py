"""Label PNGs: what is written is read back, and everything that may be wrong with one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.data import voc
from infercam.trainer.photos.label_png import IGNORE, read_label, write_label


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labels")


@settings(max_examples=30)
@given(
    arrays(
        np.uint8,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.sampled_from([0, 1, 2, 20, IGNORE]),
    )
)
def test_round_trip(folder: Path, label: np.ndarray) -> None:
    write_label(folder / "sub" / "x.png", label)
    found = read_label(folder / "sub" / "x.png", 20, label.shape)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, label)
    with Image.open(folder / "sub" / "x.png") as image:  # as any viewer shows it
        assert image.mode == "P" and image.getpalette() == list(voc.palette())


def test_values_beyond_the_classes(folder: Path) -> None:
    write_label(folder / "x.png", np.array([[0, 3, 7, 255]], np.uint8))
    assert read_label(folder / "x.png", 7).max() == 255
    with pytest.raises(InputError, match=r"x\.png: has value 7, but there are 6 classes"):
        read_label(folder / "x.png", 6)


def test_another_size(folder: Path) -> None:
    write_label(folder / "x.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(InputError, match=r"x\.png: is 4×3, but its photo 3×4"):
        read_label(folder / "x.png", 6, (4, 3))


def test_files_that_are_no_labels(folder: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_label(folder / "none.png", 6)
    Image.new("RGB", (4, 3)).save(folder / "colours.png")
    with pytest.raises(InputError, match="not colours"):
        read_label(folder / "colours.png", 6)
    write_label(folder / "x.png", np.random.default_rng(0).integers(0, 6, (50, 50)).astype(np.uint8))
    (folder / "cut.png").write_bytes((folder / "x.png").read_bytes()[:300])
    with pytest.raises(InputError, match="not a readable PNG"):
        read_label(folder / "cut.png", 6)


def test_what_cannot_be_written(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        write_label(folder / "file" / "x.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match="int64"):
        write_label(folder / "y.png", np.zeros((3, 4), np.int64))
    assert not (folder / "y.png").exists()
