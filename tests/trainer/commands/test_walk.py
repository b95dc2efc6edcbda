"""`infercam walk` from end to end over a small AffinityNet: both stages, going on, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infercam.engine.evaluation.label_png import read_label
from infercam.engine.store.mapstore import MapStore
from infercam.trainer.affinity.affinitynet import STAGE, AffinityNet, edge_affinities
from infercam.trainer.affinity.labels import with_background
from infercam.trainer.affinity.random_walk_ref import walk_ref
from infercam.trainer.affinity.settings import WalkConfig
from infercam.trainer.loop.checkpoint import save_checkpoint
from infercam.trainer.networks.backbones import build_backbone
from tests.trainer.label_scenes import CLASSES, SIZES, write_scenes


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_scenes(tmp_path)
    _checkpoint(tmp_path / "net.ckpt")
    return tmp_path


def _checkpoint(file: Path, seed: int = 0, radius: int = 5) -> AffinityNet:
    torch.manual_seed(seed)
    net = AffinityNet(build_backbone("resnet38", output_stride=8, width=4), radius).eval()
    net.f9.weight.data *= 20  # random features are nearly alike: this spreads affinities from 0.2 to 0.9
    save_checkpoint(file, STAGE, net.state_dict(), net.facts())
    return net


def _command(scenes: Path, *more: object) -> list[object]:
    return [
        *("walk", scenes / "maps", "--affinity", scenes / "net.ckpt", "-o", scenes / "out"),
        *("--images", scenes / "photos", "--workers", 0, "--log2-steps", 2, *more),  # few cells: a short walk
    ]


def _labels(folder: Path) -> dict[str, np.ndarray]:
    return {id: read_label(folder / f"{id}.png", 3, size) for id, size in SIZES.items()}


def _dense(scenes: Path, net: AffinityNet, id: str, alpha: float, beta: float) -> np.ndarray:
    """The scores of one image by the dense twin, cell by cell in NumPy."""
    record = MapStore.open(scenes / "maps").read(id)
    image = np.asarray(Image.open(scenes / "photos" / f"{id}.png"))
    scores = with_background(record.maps, alpha)
    h, w = (-(-n // 8) for n in image.shape[:2])
    cells = np.array(
        [[scores[:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].mean((1, 2)) for x in range(w)] for y in range(h)]
    )
    affinity = edge_affinities(net, image).numpy().astype(np.float64)
    walked = walk_ref(affinity, cells.transpose(2, 0, 1), beta=beta, log2_steps=2, radius=net.radius)
    large = torch.nn.functional.interpolate(torch.from_numpy(walked)[None], scale_factor=8, mode="bilinear")
    return large[0, :, : image.shape[0], : image.shape[1]].numpy()


@pytest.mark.parametrize("radius", [5, 3])
def test_labels_are_those_of_the_dense_walk(scenes: Path, infercam, radius: int) -> None:
    net = _checkpoint(scenes / "net.ckpt", radius=radius)
    assert infercam(*_command(scenes, "--beta", 20, "--alpha", 12)).code == 0
    labels = _labels(scenes / "out" / "walk")
    assert {1, 3} <= {v for label in labels.values() for v in np.unique(label)}
    for id, label in labels.items():
        scores = _dense(scenes, net, id, 12, 20)
        values = np.array([0, *(c + 1 for c in MapStore.open(scenes / "maps").read(id).classes)])
        best = np.sort(scores, axis=0)
        clear = best[-1] - best[-2] > 1e-4
        assert clear.mean() > 0.9
        assert (label == values[scores.argmax(0)])[clear].all()


def test_both_stages_and_going_on(scenes: Path, infercam) -> None:
    done = infercam(*_command(scenes, "--crf"))
    assert done.code == 0 and "3 made, 0 kept" in done.err, done.err
    out = scenes / "out"
    walk, crf = _labels(out / "walk"), _labels(out / "crf")
    assert any((walk[id] != crf[id]).any() for id in SIZES)
    info = json.loads((out / "crf" / "label_folder.json").read_text())
    assert info["classes"] == CLASSES and info["settings"]["config"]["crf"]["iterations"] == 10
    assert len(info["settings"]["affinity"]["sha256"]) == 64

    assert "0 made, 3 kept" in infercam(*_command(scenes, "--crf")).err
    assert "0 made, 3 kept" in infercam(*_command(scenes)).err  # the walk is there
    (out / "crf" / "b.png").unlink()
    assert "0 made, 3 kept" in infercam(*_command(scenes)).err
    assert "1 made, 2 kept" in infercam(*_command(scenes, "--crf")).err
    assert "3 made" in infercam(*_command(scenes, "--beta", 9)).err
    _checkpoint(scenes / "net.ckpt", seed=1)
    assert "3 made" in infercam(*_command(scenes, "--beta", 9)).err


def test_a_pool_of_processes_makes_the_same(scenes: Path, infercam) -> None:
    assert infercam(*_command(scenes, "--crf")).code == 0
    here = {stage: _labels(scenes / "out" / stage) for stage in ("walk", "crf")}
    pooled = infercam(*_command(scenes, "--crf", "--workers", 2, "-o", scenes / "pool"))
    assert pooled.code == 0, pooled.err
    for stage, labels in here.items():
        pool = _labels(scenes / "pool" / stage)
        assert all((labels[id] == pool[id]).all() for id in SIZES)


def test_uncertain_pixels_are_left_open_where_asked(scenes: Path, infercam) -> None:
    assert infercam(*_command(scenes, "--beta", 20)).code == 0
    plain = _labels(scenes / "out" / "walk")
    assert infercam(*_command(scenes, "--beta", 20, "--least-share", 0.7)).code == 0
    found = _labels(scenes / "out" / "walk")
    for id, label in found.items():
        sure = label != 255
        assert sure.any() and (label == plain[id])[sure].all() and (plain[id] != 255).all()
    assert any((label == 255).any() for label in found.values())


def test_bad_photos_are_listed_and_the_rest_goes_on(scenes: Path, infercam) -> None:
    Image.new("RGB", (57, 41)).save(scenes / "photos" / "a.png")
    Image.new("RGB", (57, 41)).save(scenes / "photos" / "new.png")
    done = infercam(*_command(scenes))
    assert done.code == 1 and "2 made, 0 kept, 2 failed" in done.err
    lines = (scenes / "out" / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "new"]
    assert "maps are 58×41, the photo 57×41" in lines[0] and "no maps in" in lines[1]


def test_a_diverged_network_is_named(scenes: Path, infercam) -> None:
    net = _checkpoint(scenes / "net.ckpt")
    net.f9.weight.data[:] = float("nan")
    save_checkpoint(scenes / "net.ckpt", STAGE, net.state_dict(), net.facts())
    done = infercam(*_command(scenes))
    assert done.code == 1 and "3 failed" in done.err
    assert "not a number; the checkpoint may hold NaN" in (scenes / "out" / "failures.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--affinity", "none.ckpt"], "none.ckpt"),
        (["--affinity", "maps/a.npz"], "a.npz"),
        (["--beta", 0], "beta: Input should be greater than 0"),
        (["--border", "irn"], "border"),
        (["--least-share", 1.2], "least_share"),
        (["--accelerator", "tpu"], "--accelerator is auto, cpu or cuda"),
        (["--images", "nowhere"], "nowhere: no such folder"),
        (["--split", "train"], "one source of images"),
    ],
)
def test_bad_options_are_one_line(
    scenes: Path, infercam, monkeypatch: pytest.MonkeyPatch, arguments: list, says: str
) -> None:
    monkeypatch.chdir(scenes)
    done = infercam(*_command(scenes, *arguments))
    assert done.code == 1 and done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    assert says in done.err
    assert not (scenes / "out").exists()


def test_the_defaults_are_psas() -> None:
    assert WalkConfig().model_dump(include={"beta", "log2_steps", "alpha"}) == {
        "beta": 8,
        "log2_steps": 8,
        "alpha": 16,
    }
