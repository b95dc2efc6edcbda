"""Overlays: the right pixels coloured, captions, sizes, and files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.store.heatmaps import blend, overlay, write_overlay
from infercam.engine.store.mapstore import MapRecord

CAPTION = 22


def photo(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def record(count: int = 1, shape: tuple[int, int] = (60, 80), **meta) -> MapRecord:
    maps = np.zeros((count, *shape), np.float32)
    maps[:, shape[0] // 2 :] = 1
    return MapRecord("a/b", list(range(count)), [f"thing{i}" for i in range(count)], maps, meta)


def test_no_activation_leaves_the_photo_and_full_activation_colours_it() -> None:
    image = photo()
    panel = overlay(image, record())[CAPTION:]
    assert panel.shape == image.shape and panel.dtype == np.uint8
    assert np.array_equal(panel[:30], image[:30])
    hot = cv2.applyColorMap(np.full((1, 1), 255, np.uint8), cv2.COLORMAP_INFERNO)[0, 0, ::-1]
    expected = np.rint(0.25 * image[30:] + 0.75 * hot)
    assert np.abs(panel[30:] - expected).max() <= 1


def test_more_activation_is_never_darker() -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    colours = blend(np.zeros((1, 256, 3), np.uint8), ramp)
    light = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)[0].astype(int)
    assert (np.diff(light) >= -1).all() and light[-1] > light[0] + 100


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_one_panel_a_class(count: int) -> None:
    columns, rows = min(count, 3), -(-count // 3)
    found = overlay(photo(), record(count))
    assert found.shape == (rows * (60 + CAPTION + 4) - 4, columns * 84 - 4, 3)


def test_captions_differ_by_name_and_score() -> None:
    plain, scored = overlay(photo(), record()), overlay(photo(), record(scores=[2.5]))
    assert plain[:CAPTION].max() > 200  # something is written
    assert not np.array_equal(plain[:CAPTION, :80], scored[:CAPTION, :80])
    assert np.array_equal(plain[CAPTION:], scored[CAPTION:])


def test_any_name_and_any_size() -> None:
    named = record()
    named.names = ["Größe 鳥 " + "x" * 200]
    overlay(photo(), named)
    for shape in ((1, 1), (1, 300), (300, 1)):
        found = overlay(photo(*shape), record(2, shape))
        assert found.shape == (shape[0] + CAPTION, 2 * shape[1] + 4, 3)
    assert overlay(photo(), record(0)).shape == (60 + CAPTION, 80, 3)
    large = overlay(np.zeros((1000, 2000, 3), np.uint8), record(1, (1000, 2000)))
    assert large.shape == (320 + CAPTION, 640, 3)
    assert not large[CAPTION : CAPTION + 150].any() and (large[-150:].max(axis=2) > 100).all()


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match="a/b: the picture is 80×60, its maps are 81×60"):
        overlay(photo(), record(1, (60, 81)))
    for bad in (photo()[..., 0], photo().astype(np.float32)):
        with pytest.raises(InputError, match=r"a/b: .*RGB"):
            overlay(bad, record())


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_files(tmp_path: Path, suffix: str) -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    image[..., 0] = 255  # red: catches swapped channels
    assert write_overlay(tmp_path, image, record(), suffix) == tmp_path / f"a/b{suffix}"
    found = cv2.imread(str(tmp_path / f"a/b{suffix}"))[..., ::-1]
    assert found.shape == (82, 80, 3)
    assert np.abs(found[CAPTION + 10, 40].astype(int) - [255, 0, 0]).max() <= 12
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == [f"b{suffix}"]


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="jpg or"):
        write_overlay(tmp_path, photo(), record(), ".gif")
    (tmp_path / "a").write_text("")
    with pytest.raises(StoreError, match=r"b\.jpg: cannot be written"):
        write_overlay(tmp_path, photo(), record())
    for id in ("../x", "/x", "", "a/../../x"):
        outside = record()
        outside.id = id
        with pytest.raises(InputError, match="cannot name a file"):
            write_overlay(tmp_path / "d", photo(), outside)
