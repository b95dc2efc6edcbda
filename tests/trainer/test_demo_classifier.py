"""The command that re-makes the demo's classifier: its data, its training step, its export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'infercam[train]'")

from infercam.engine.demo.scenes import CLASS_NAMES, scene  # noqa: E402
from infercam.trainer import demo_classifier as dc  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> dc.LabelledScenes:
    return dc.draw_scenes(32, seed=9, workers=1)


def test_drawn_scenes_carry_image_level_labels_only(data: dc.LabelledScenes) -> None:
    assert data.images.shape == (32, 192, 240, 3) and data.labels.shape == (32, len(CLASS_NAMES))
    for i in (0, 7, 31):
        drawn = scene((9, i))
        assert np.array_equal(data.images[i], drawn.image)
        assert np.flatnonzero(data.labels[i]).tolist() == drawn.classes


def test_training_and_demo_seeds_differ() -> None:
    from infercam.engine.demo.ablation import DEMO_SEED

    assert len({dc.TRAIN_SEED, dc.VALIDATION_SEED, DEMO_SEED}) == 3


def test_batches_cover_an_epoch_once_and_have_one_size_each(data: dc.LabelledScenes) -> None:
    marked = dc.LabelledScenes(data.images, np.arange(32, dtype=np.float32)[:, None].repeat(8, axis=1))
    seen = []
    for images, labels in dc.batches(marked, 10, np.random.default_rng(0)):
        assert images.dtype == torch.float32 and images.shape[:2] == (10, 3)
        seen += labels[:, 0].tolist()
    assert len(seen) == len(set(seen)) == 30  # the odd two wait for the next epoch


@pytest.mark.parametrize("scale", dc.SCALES)
def test_augmented_size(scale: float) -> None:
    out = dc.augment(scene(1).image, scale, np.random.default_rng(0))
    assert out.dtype == np.uint8
    assert out.shape == (round(163 * scale), round(204 * scale), 3)


def test_normalise_matches_the_manifest_s_formula() -> None:
    pixels = scene(1).image[None]
    expected = (pixels[0, 5, 7] / 255 - np.array(dc.MEAN)) / np.array(dc.STD)
    assert np.allclose(dc.normalise(pixels)[0, :, 5, 7], expected, atol=1e-5)


def test_average_precision() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]], np.float32)
    labels = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], np.float32)
    ap = dc.average_precision(scores, labels)
    assert ap[0] == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(ap[1])


def test_average_precision_is_one_for_a_perfect_ranking() -> None:
    labels = (np.random.default_rng(0).random((50, 3)) < 0.3).astype(np.float32)
    assert np.allclose(dc.average_precision(labels, labels), 1)


def test_folding_keeps_the_scores() -> None:
    torch.manual_seed(0)
    net = dc.DemoNet()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    net.eval()
    plain = dc.folded(net)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in plain.modules())
    x = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        assert torch.allclose(net(x), plain(x), atol=1e-5)


def test_training_lowers_the_loss_is_seeded_and_reports(data: dc.LabelledScenes) -> None:
    chosen = dc.Settings(scenes=16, epochs=4, batch=8)
    few = dc.LabelledScenes(data.images[:16], data.labels[:16])
    lines: list[str] = []
    first = dc.train(few, chosen, lines.append)
    again = dc.train(few, chosen)
    assert len(lines) == 4
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
    assert losses[-1] < losses[0]
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_command_writes_a_bundle_that_the_engine_runs(tmp_path: Path) -> None:
    """The whole command, one short epoch: train, validate, export, verify."""
    pytest.importorskip("onnx")
    from infercam.engine.api import Engine

    out = tmp_path / "bundle"
    command = [sys.executable, "-m", "infercam.trainer.demo_classifier", "-o", str(out)]
    command += ["--scenes", "32", "--validation", "16", "--epochs", "1", "--batch", "8", "--threads", "1"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "mean AP" in ran.stdout
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["source"]["settings"]["scenes"] == 32
    with Engine.load(out, threads=1) as engine:
        drawn = scene(1)
        maps = engine.maps(drawn.image, drawn.classes, "released", "baseline")
    assert maps.shape == (len(drawn.classes), *drawn.mask.shape)
