"""Saliency fused by hand's arithmetic, and `infercam refine` from end to end: every way, going on, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infercam.engine.store.mapstore import MapStore
from infercam.trainer.affinity.crf import refine as dense_crf
from infercam.trainer.affinity.labels import with_background
from infercam.trainer.refine.fuse import fused
from infercam.trainer.refine.par import pixel_adaptive
from infercam.trainer.refine.settings import ParConfig
from infercam.trainer.saliency.files import write_saliency
from tests.trainer.label_scenes import SIZES, write_scenes

STEP = 1 / 2048  # of a float16 near 1


# -- saliency --------------------------------------------------------------------------------------------------
def test_fused_by_hand():
    maps = np.array([[[0.6, 0.0]], [[0.2, 0.0]]], np.float32)
    saliency = np.array([[255, 51]], np.uint8)
    assert np.allclose(fused(maps, saliency, "mean"), [[[0.8, 0.1]], [[0.6, 0.1]]])
    assert np.allclose(fused(maps, saliency, "product"), [[[0.6, 0]], [[0.2, 0]]])
    assert np.allclose(fused(maps, saliency, "share"), [[[0.75, 0.1]], [[0.25, 0.1]]])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_fused_maps_are_maps(count, height, width, seed):
    random = np.random.default_rng(seed)
    maps = random.random((count, height, width), np.float32) * (random.random((count, 1, 1)) < 0.7)
    maps = maps.astype(np.float32)
    saliency = random.integers(0, 256, (height, width), np.uint8)
    for rule in ("mean", "product", "share"):
        found = fused(maps, saliency, rule)
        assert found.shape == maps.shape and found.dtype == np.float32
        assert not found.size or (found.min() >= 0 and found.max() <= 1 + 1e-6)
    if count:  # as much saliency as there was
        assert np.abs(fused(maps, saliency, "share").sum(axis=0) - saliency / 255).max() < 1e-5


# -- the command -----------------------------------------------------------------------------------------------
@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_scenes(tmp_path)
    for id in SIZES:
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{id}.png")) > 0
        write_saliency(tmp_path / "sal" / f"{id}.png", np.where(mask, 0.9, 0.1).astype(np.float32))
    return tmp_path


def command(scenes: Path, *more: object) -> list[object]:
    photos = ("--images", scenes / "photos", "--workers", 0)
    return ["refine", scenes / "maps", "-o", scenes / "out", *photos, *more]


def photo(scenes: Path, id: str) -> np.ndarray:
    return np.array(Image.open(scenes / "photos" / f"{id}.png"))


def test_every_way_in_its_order(infercam, scenes):
    pytest.importorskip("pydensecrf")
    found = infercam(*command(scenes, "--saliency", scenes / "sal", "--par", "--crf"))
    assert found.code == 0 and "3 made, 0 kept" in found.err
    before, after = MapStore.open(scenes / "maps"), MapStore.open(scenes / "out")
    for id in SIZES:
        maps = before.read(id).maps
        saliency = np.asarray(Image.open(scenes / "sal" / f"{id}.png"))
        maps = pixel_adaptive(photo(scenes, id), fused(maps, saliency, "mean"), ParConfig())
        wanted = dense_crf(photo(scenes, id), with_background(maps, 4))[1:]
        assert np.abs(after.read(id).maps - wanted).max() <= STEP
        assert after.read(id).classes == before.read(id).classes
    how = after.info.settings["refined"]
    assert how["config"]["saliency"] == "mean" and how["config"]["par"]["stride"] == ParConfig().stride
    assert how["config"]["walk"] is None and how["saliency"] == str(scenes / "sal")


def test_saliency_alone_needs_no_photos(infercam, scenes):
    arguments = ["refine", scenes / "maps", "-o", scenes / "out", "--saliency", scenes / "sal"]
    assert infercam(*arguments, "--saliency-rule", "share").code == 0
    store = MapStore.open(scenes / "out")
    total = store.read("b").maps.sum(axis=0)
    assert np.abs(total - np.asarray(Image.open(scenes / "sal" / "b.png")) / 255).max() <= 2 * STEP


def test_the_walk(infercam, scenes):
    """Each class's share of the walk's scores, the background's among them."""
    torch = pytest.importorskip("torch")
    from infercam.trainer.affinity.affinitynet import STAGE, AffinityNet, edge_affinities
    from infercam.trainer.affinity.random_walk import walk_scores
    from infercam.trainer.loop.checkpoint import save_checkpoint
    from infercam.trainer.networks.backbones import build_backbone

    torch.manual_seed(0)
    net = AffinityNet(build_backbone("resnet38", output_stride=8, width=4), 5).eval()
    save_checkpoint(scenes / "net.ckpt", STAGE, net.state_dict(), net.facts())
    (scenes / "config.toml").write_text("[walk]\nlog2_steps = 2\n")
    walk = ["--affinity", scenes / "net.ckpt", "--config", scenes / "config.toml"]
    assert infercam(*command(scenes, *walk, "--saliency", scenes / "sal")).code == 0
    store = MapStore.open(scenes / "out")
    assert store.info.settings["refined"]["affinity"]["sha256"]
    for id in SIZES:
        saliency = np.asarray(Image.open(scenes / "sal" / f"{id}.png"))
        maps = fused(MapStore.open(scenes / "maps").read(id).maps, saliency, "mean")
        scores = walk_scores(maps, edge_affinities(net, photo(scenes, id)), log2_steps=2, radius=5)
        assert np.abs(store.read(id).maps - scores[1:] / scores.sum(axis=0)).max() <= STEP
    assert store.read("b").maps.max() > 0.2


def test_going_on(infercam, scenes):
    assert infercam(*command(scenes, "--par")).code == 0
    assert "0 made, 3 kept" in infercam(*command(scenes, "--par")).err
    (scenes / "out" / "b.npz").unlink()
    assert "1 made, 2 kept" in infercam(*command(scenes, "--par")).err
    with_saliency = command(scenes, "--par", "--saliency", scenes / "sal")
    assert "3 made, 0 kept" in infercam(*with_saliency).err  # other settings
    write_saliency(scenes / "sal" / "a.png", np.zeros(SIZES["a"], np.float32))
    assert "1 made, 2 kept" in infercam(*with_saliency).err  # other saliency


def test_one_bad_photo_fails_alone(infercam, scenes):
    (scenes / "sal" / "b.png").unlink()
    (scenes / "maps" / "a.npz").write_bytes(b"nothing")
    found = infercam(*command(scenes, "--saliency", scenes / "sal"))
    assert found.code == 1 and "1 made" in found.err and "2 failed" in found.err
    lines = [json.loads(line) for line in (scenes / "out" / "failures.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {"a", "b"}
    assert all("Error:" not in line["reason"] for line in lines)


def test_maps_of_other_photos(infercam, scenes):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(scenes / "photos" / "a.png")
    found = infercam(*command(scenes, "--par"))
    assert found.code == 1 and "2 made" in found.err
    assert "maps are 58×41, the photo 5×5" in (scenes / "out" / "failures.jsonl").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to do: say --saliency DIR, --par, --crf or --affinity CKPT"),
        (["--saliency-rule", "mean"], "--saliency-rule needs --saliency DIR"),
        (["--saliency", "absent"], "--saliency absent: no such folder; make it with infercam saliency"),
        (
            ["--saliency", ".", "--saliency-rule", "sum"],
            "saliency: Input should be 'mean', 'product' or 'share'",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(infercam, scenes, options, message):
    found = infercam(*command(scenes, *options))
    assert found.code == 1 and message in found.err and "Traceback" not in found.err
    assert not (scenes / "out").exists()


def test_par_needs_photos(infercam, scenes):
    found = infercam("refine", scenes / "maps", "-o", scenes / "out", "--par")
    assert found.code == 1 and "--par, --crf and --affinity look at the photos: --voc" in found.err
