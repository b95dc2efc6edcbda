"""The yardstick gives the released code's own maps, and does what its docstring says it does."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from PIL import Image
from torch import nn

from infercam.benchmarks.yardsticks import pytorch_loop as loop
from infercam.engine.bundle import InputSpec
from infercam.engine.common.errors import InputError
from tests.shared import SHARED

GOLDEN = SHARED / "golden"


class Tiny(nn.Module):
    """The network of the golden files: four 3×3 convolutions with ReLU, then `fc8`."""

    def __init__(self, widths=(12, 24, 32, 32), classes=20) -> None:
        super().__init__()
        channels = (3, *widths)
        for i, (a, b) in enumerate(zip(channels, widths, strict=False), 1):
            stride, dilation = (1, 2) if i == 4 else (2, 1)
            self.add_module(f"c{i}", nn.Conv2d(a, b, 3, stride, dilation, dilation))
        self.fc8 = nn.Conv2d(widths[-1], classes, 1, bias=False)

    def forward_cam(self, x):
        for conv in (self.c1, self.c2, self.c3, self.c4):
            x = F.relu(conv(x))
        return F.relu(self.fc8(x))


@pytest.fixture
def golden():
    if not GOLDEN.is_dir():
        pytest.skip("needs ../shared/golden, which is not here")
    module = Tiny()
    with np.load(GOLDEN / "tiny_weights.npz") as weights:
        module.load_state_dict({k: torch.from_numpy(weights[k]) for k in weights.files})
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    items = [(m["id"], GOLDEN / "images" / f"{m['id']}.png") for m in manifest]
    return module, items, {m["id"]: m["classes"] for m in manifest}


def read(path):
    held = np.load(path, allow_pickle=True).item()
    assert list(held) == sorted(held)
    return np.stack(list(held.values()))


@pytest.mark.shared
@pytest.mark.parametrize("recipe", ["released", "corrected"])
@pytest.mark.parametrize("all_classes", [True, False])
def test_golden(golden, tmp_path, recipe, all_classes):
    module, items, labels = golden
    took = loop.run(module, items, labels, tmp_path, recipe, "both", all_classes)
    with np.load(GOLDEN / "expected.npz") as expected:
        for name, _ in items:
            for key, folder in (("baseline", "cam"), (recipe, "maps")):
                want, got = expected[f"{name}/{key}"], read(tmp_path / folder / f"{name}.npy")
                assert got.shape == want.shape
                assert np.abs(got - want).max() <= 1e-4, (name, key)
    assert took["images"] == 5
    assert took["tiles"] == 4 * 5  # the image of three classes four times over as well


@pytest.mark.shared
def test_the_two_recipes_differ_where_goldens_do(golden, tmp_path):
    module, items, labels = golden
    for recipe in loop.RECIPES:
        loop.run(module, items[:1], labels, tmp_path / recipe, recipe)
    name = items[0][0]
    a, b = (read(tmp_path / recipe / "maps" / f"{name}.npy") for recipe in loop.RECIPES)
    assert np.abs(a - b).max() > 1e-3


@pytest.fixture
def small(tmp_path):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    items = []
    for i, (height, width) in enumerate([(40, 52), (37, 41), (48, 33)]):
        file = tmp_path / f"p{i}.png"
        blocks = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC).save(file)
        items.append((f"p{i}", file))
    return Tiny((4, 6, 8, 8), 5), items, {"p0": [2], "p1": [0, 3], "p2": [1, 2, 4]}


@pytest.mark.parametrize("mode", loop.MODES)
def test_modes_write_what_they_say(small, tmp_path, mode):
    module, items, labels = small
    took = loop.run(module, items, labels, tmp_path / "out", "released", mode, classes=5)
    tiles = {"baseline": 0, "split": 12, "erase": 3, "both": 12}[mode]
    assert took["tiles"] == tiles
    assert tiles <= took["iterations"] <= tiles * (1 if mode == "split" else loop.ITERATIONS)
    assert (tmp_path / "out" / "maps").exists() == (mode != "baseline")
    for name, path in items:
        with Image.open(path) as picture:
            size = picture.size[::-1]
        folder = "cam" if mode == "baseline" else "maps"
        maps = read(tmp_path / "out" / folder / f"{name}.npy")
        assert maps.shape == (len(labels[name]), *size)
        assert maps.min() >= 0
        assert maps.max() <= 1
    assert sum(took["stages"].values()) == pytest.approx(took["seconds"], abs=1e-2)
    assert module.training


def test_baseline_counts_eight_views(small, tmp_path):
    module, items, labels = small
    took = loop.run(module, items[:1], labels, tmp_path / "out", mode="baseline", classes=5)
    assert took["network_pixels"] == 2 * (40 * 52 + 20 * 26 + 60 * 78 + 80 * 104)


def test_present_only_gives_the_same_maps(small, tmp_path):
    module, items, labels = small
    for flag in (True, False):
        loop.run(module, items, labels, tmp_path / str(flag), "corrected", "both", flag, classes=5)
    for name, _ in items:
        a, b = (read(tmp_path / str(flag) / "maps" / f"{name}.npy") for flag in (True, False))
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_mirrored_copy_is_masked_where_each_recipe_says():
    clock = loop.LoopClock()
    view = torch.rand(1, 3, 4, 6)
    left = torch.ones(1, 1, 4, 6)
    left[..., 0] = 0
    for recipe, column in (("released", 0), ("corrected", -1)):
        engine = loop.PyTorchLoop(
            Tiny(), recipe=recipe, input_spec=InputSpec(), all_classes=True, clock=clock
        )
        plain, mirrored = engine.erase([view, view.flip(-1)], left)
        mean = view.mean((2, 3))
        assert torch.allclose(plain[..., 0], mean[..., None].expand(-1, -1, 4))
        assert torch.allclose(mirrored[..., column], mean[..., None].expand(-1, -1, 4), atol=1e-6)
        assert torch.equal(plain[..., 1:], view[..., 1:])


@pytest.mark.parametrize(
    ("centres", "boxes"),
    [
        ([(50, 40)], [(0, 0, 60, 50), (0, 30, 60, 90), (40, 0, 100, 50), (40, 30, 100, 90)]),
        ([(50, 40), (20, 60)], [(0, 0, 70, 80), (0, 20, 70, 90), (0, 0, 100, 80), (0, 20, 100, 90)]),
        ([(3, 88)], [(0, 0, 13, 90), (0, 78, 13, 90), (0, 0, 100, 90), (0, 78, 100, 90)]),
        ([(1, 1), (2, 2), (3, 3)], [(0, 0, 100, 90)] * 4),
    ],
)
def test_split(centres, boxes):
    assert loop.split(100, 90, centres) == boxes


def test_centre_of_mass():
    cam = np.zeros((9, 12), np.float32)
    assert loop.centre_of_mass(cam) == (4, 6)
    cam[2, 3], cam[3, 4] = 1, 1
    assert loop.centre_of_mass(cam) == (2, 3)  # 2.5, 3.5 truncated


def test_unknown_recipe(small, tmp_path):
    module, items, labels = small
    with pytest.raises(InputError, match="released, corrected"):
        loop.run(module, items, labels, tmp_path, "paper")


def test_unreadable_picture_is_named(small, tmp_path):
    module, _, labels = small
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff cut")
    with pytest.raises(InputError, match=r"bad\.jpg"):
        loop.run(module, [("p0", bad)], labels, tmp_path / "out", classes=5)


@pytest.mark.shared
def test_weights_from_onnx_give_the_files_own_scores():
    ort = pytest.importorskip("onnxruntime")
    file = SHARED / "models" / "mobilenetv2_voc.onnx"
    if not file.is_file():
        pytest.skip("needs ../shared/models, which is not here")
    classifier = loop.load_classifier("mobilenetv2", file)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).integers(0, 256, (75, 98, 3)).astype(np.float32)
    imagenet = (pixels / 255 - (0.485, 0.456, 0.406)) / np.array((0.229, 0.224, 0.225))
    want = session.run(None, {"image": imagenet.transpose(2, 0, 1)[None].astype(np.float32)})[0]
    ours = torch.from_numpy((pixels / 127.5 - 1).transpose(2, 0, 1)[None])
    with torch.inference_mode():
        got = classifier.module.eval()(ours).numpy()
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
