"""Saliency without ground truth: superpixels, background detection, files, the command."""

from __future__ import annotations

import json
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from infercam.engine.common.errors import InputError
from infercam.engine.inputs import SourceSettings
from infercam.trainer.saliency.files import read_saliency, write_saliency
from infercam.trainer.saliency.saliency import (
    SaliencyConfig,
    SaliencyWriter,
    background_probability,
    saliency_map,
)
from infercam.trainer.saliency.superpixels import border, lab, means, neighbours, slic
from tests.shared import SHARED


def scene(height: int = 90, width: int = 120, noise: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on green noise, and its mask."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    mask = (y - 0.45 * height) ** 2 + (x - 0.5 * width) ** 2 < (0.25 * height) ** 2
    image = np.where(mask[..., None], (200, 40, 40), (60, 140, 60)) + rng.integers(
        -noise, noise + 1, (height, width, 3)
    )
    return image.astype(np.uint8), mask


# -- superpixels -----------------------------------------------------------------------------------------------
@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.integers(0, 9))
@example(1, 21, 1, 0)  # strips narrower than a step
@example(21, 1, 1, 0)
def test_superpixels_of_any_size(height, width, count, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    index = slic(lab(image), count)
    assert index.shape == (height, width) and index.dtype == np.int32
    assert np.array_equal(np.unique(index), np.arange(index.max() + 1))  # no gaps
    assert index.max() + 1 <= 2 * count + 2
    edge = border(index)
    assert set(edge) == set(index[0]) | set(index[-1]) | set(index[:, 0]) | set(index[:, -1])
    pairs = neighbours(index)
    assert (pairs[:, 0] < pairs[:, 1]).all() and len(np.unique(pairs, axis=0)) == len(pairs)


def test_superpixels_follow_edges():
    image, mask = scene()
    index = slic(lab(image), 60)
    share = means(mask[..., None].astype(np.float32), index, index.max() + 1)[:, 0]
    inside = np.minimum(share, 1 - share)[index]
    assert inside.mean() < 0.02  # pixels on the wrong side of a superpixel


def test_neighbours_and_means_by_hand():
    index = np.array([[0, 0, 1], [2, 2, 1]], np.int32)
    assert neighbours(index).tolist() == [[0, 1], [0, 2], [1, 2]]
    values = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    assert means(values, index, 3)[:, 0].tolist() == [0.5, 3.5, 3.5]


# -- saliency --------------------------------------------------------------------------------------------------
def test_finds_what_differs_from_the_border():
    image, mask = scene()
    found = saliency_map(image)
    assert found.dtype == np.float32 and found.shape == mask.shape
    assert found.min() == 0 and found.max() == 1
    salient = found > 0.5
    assert (salient & mask).sum() / (salient | mask).sum() > 0.9


def test_features_tell_apart_what_colours_do_not():
    rng = np.random.default_rng(1)
    image = rng.integers(100, 110, (96, 96, 3)).astype(np.uint8)
    features = np.zeros((2, 12, 12), np.float32)
    features[0] = 1
    features[:, 4:8, 4:8] = [[[0]], [[1]]]
    found = saliency_map(image, features) > 0.5
    mask = np.zeros((96, 96), bool)
    mask[32:64, 32:64] = True
    assert (found & mask).sum() / (found | mask).sum() > 0.6


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2), (33, 50), (500, 20)])
def test_photos_of_any_size(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = saliency_map(image)
    assert found.shape == size and np.isfinite(found).all() and 0 <= found.min() <= found.max() <= 1


def test_a_photo_without_contrast_is_salient_nowhere():
    assert not saliency_map(np.full((40, 50, 3), 90, np.uint8)).any()


def test_background_is_what_touches_the_border():
    """A ring of superpixels about a different middle: 3×3 of them."""
    index = np.repeat(np.repeat(np.arange(9).reshape(3, 3), 4, 0), 4, 1)
    distance = np.zeros((9, 9))
    distance[4, :] = distance[:, 4] = 50
    distance[4, 4] = 0
    found = background_probability(distance, neighbours(index), border(index), 10.0)
    assert (found[[0, 1, 2, 3, 5, 6, 7, 8]] > 0.95).all() and found[4] < 0.05


# -- files -----------------------------------------------------------------------------------------------------
def test_written_and_read(tmp_path):
    saliency = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    write_saliency(tmp_path / "deep" / "a.png", saliency)
    found = read_saliency(tmp_path / "deep" / "a.png", (3, 4))
    assert np.abs(found / 255 - saliency).max() <= 0.5 / 255 + 1e-6
    with Image.open(tmp_path / "deep" / "a.png") as image:
        assert image.mode == "L"


def test_other_tools_maps_are_read(tmp_path):
    plane = np.zeros((8, 8), np.uint8)
    plane[:, 4:] = 255
    Image.fromarray(np.dstack([plane] * 3)).save(tmp_path / "rgb.png")  # grey kept as colours
    assert np.array_equal(read_saliency(tmp_path / "rgb.png", (8, 8)), plane)
    larger = read_saliency(tmp_path / "rgb.png", (16, 24))  # of a network with a fixed size
    assert larger.shape == (16, 24) and not larger[:, :10].any() and (larger[:, 14:] == 255).all()


def test_bad_maps_are_one_line(tmp_path):
    Image.fromarray(scene()[0]).save(tmp_path / "photo.png")
    with pytest.raises(InputError, match=r"photo\.png: has colours; a saliency map is grey"):
        read_saliency(tmp_path / "photo.png", (90, 120))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(InputError, match=r"bad\.png"):
        read_saliency(tmp_path / "bad.png", (4, 4))


def test_a_writer_travels_without_its_network(tmp_path):
    writer = SaliencyWriter(None, tmp_path, SaliencyConfig())
    writer._network = object()
    assert pickle.loads(pickle.dumps(writer))._network is None


# -- the command -----------------------------------------------------------------------------------------------
@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, size in (("a", (40, 60)), ("sub/b", (50, 30))):
        assert cv2.imwrite(str(folder / f"{name}.png"), scene(*size)[0][..., ::-1])
    return folder


def test_command(infercam, photos, tmp_path):
    out = tmp_path / "sal"
    first = infercam("saliency", "--images", photos, "-o", out, "--workers", 0)
    assert first.code == 0 and "2 made, 0 kept" in first.err
    for name, size in (("a", (40, 60)), ("sub/b", (50, 30))):
        assert read_saliency(out / f"{name}.png", size).max() == 255
    before = (out / "a.png").stat().st_mtime_ns
    again = infercam("saliency", "--images", photos, "-o", out, "--workers", 0)
    assert again.code == 0 and "0 made, 2 kept" in again.err and (out / "a.png").stat().st_mtime_ns == before


def test_command_goes_on_past_a_bad_photo(infercam, photos, tmp_path):
    (photos / "aa.png").write_bytes(b"nothing")
    out = tmp_path / "sal"
    found = infercam("saliency", "--images", photos, "-o", out, "--workers", 0)
    assert found.code == 1 and "2 made" in found.err and "1 failed" in found.err
    lines = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["aa"]
    (photos / "aa.png").unlink()
    assert infercam("saliency", "--images", photos, "-o", out, "--workers", 0).code == 0
    assert not (out / "failures.jsonl").exists()


def test_command_refuses_other_settings_and_bad_weights(infercam, photos, tmp_path):
    out = tmp_path / "sal"
    assert infercam("saliency", "--images", photos, "-o", out, "--workers", 0).code == 0
    (tmp_path / "other.toml").write_text("superpixels = 50\n")
    changed = infercam("saliency", "--images", photos, "-o", out, "--config", tmp_path / "other.toml")
    assert changed.code != 0 and "was made with superpixels = 250, not 50" in changed.err
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    bad = infercam("saliency", "--images", photos, "-o", tmp_path / "x", "--weights", tmp_path / "bad.pth")
    assert bad.code != 0 and "bad.pth" in bad.err and "Traceback" not in bad.err


@pytest.mark.slow
def test_processes_make_the_same(infercam, photos, tmp_path):
    for name, workers in (("one", 0), ("two", 2)):
        assert infercam("saliency", "--images", photos, "-o", tmp_path / name, "--workers", workers).code == 0
    for name in ("a.png", "sub/b.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not here")
def test_real_photos_with_features(tmp_path):
    """Better than chance on photos that were not looked at; a floor, not a figure."""
    from infercam.trainer.photos.photos import open_photos

    pytest.importorskip("torch")
    photos = open_photos(SourceSettings(voc=SHARED / "voc", split="train"))
    ids = photos.ids[3:60:16]
    weights = SHARED / "models" / "mobilenetv2_imagenet_folded_fp16.safetensors"
    writer = SaliencyWriter(photos, tmp_path, SaliencyConfig(), weights)
    scores = []
    for item_id in ids:
        writer(item_id)
        mask = np.asarray(Image.open(photos.mask_path(item_id)))
        found = read_saliency(tmp_path / f"{item_id}.png", mask.shape) > 127
        known, mask = mask != 255, mask > 0
        scores.append((found & mask & known).sum() / ((found | mask) & known).sum())
    assert np.mean(scores) > 0.35
