"""Classifier training: its network, its figure, its pictures, its exact resuming, its bundle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'infercam[train]'")

from hypothesis import given
from hypothesis import strategies as st

from infercam.engine.common.errors import InputError
from infercam.engine.demo.ablation import DEMO_SEED
from infercam.engine.demo.scenes import CLASS_NAMES, SIZE, scene
from infercam.engine.inputs import SourceSettings
from infercam.trainer.classify.average_precision import average_precision
from infercam.trainer.classify.classify import classify
from infercam.trainer.classify.scene_tree import TRAIN_SEED, VALIDATION_SEED, scene_tree
from infercam.trainer.classify.settings import ClassifyConfig, usual_config
from infercam.trainer.classify.split_unite import middle
from infercam.trainer.classify.stage import ClassifyAugment, ClassifyStage, LoadPicture
from infercam.trainer.loop.checkpoint import load_checkpoint
from infercam.trainer.loop.errors import TrainingError
from infercam.trainer.loop.fit import BEST, fit
from infercam.trainer.networks.classifiers import build_classifier
from infercam.trainer.networks.small import SmallNet, folded
from infercam.trainer.photos.photos import Photos, class_names, open_photos
from infercam.trainer.photos.whole_images import shape_at, shape_batches


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scene_tree(tmp_path_factory.mktemp("scenes") / "train", 24, seed=9)


@pytest.fixture(scope="module")
def photos(tree: Path) -> Photos:
    return open_photos(
        SourceSettings(voc=tree, split="train"), labels=tree / "labels.json", classes=CLASS_NAMES
    )


def settings(**changes: object) -> ClassifyConfig:
    few = {"arch": "small", "epochs": 4, "batch": 8, "crop": 64, "long_side": (56, 90), "side": 64}
    return usual_config(**{**few, "warmup": 0, "threads": 1, **changes})


def stage(photos: Photos, out: Path, config: ClassifyConfig, validation: Photos | None = None):
    built = build_classifier("small", len(CLASS_NAMES), None, seed=config.seed)
    return ClassifyStage(built, config, photos, validation, CLASS_NAMES, out)


# -- the figure ------------------------------------------------------------------------------------------------
def test_average_precision_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]], np.float32)
    labels = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], np.float32)
    ap = average_precision(scores, labels)
    assert ap[0] == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(ap[1])


def test_images_of_one_score_come_together() -> None:
    labels = np.array([[1], [0], [0], [1]], np.float32)
    assert average_precision(np.zeros((4, 1)), labels)[0] == pytest.approx(0.5)
    assert average_precision(np.array([[2.0], [1], [1], [1]]), labels)[0] == pytest.approx((1 + 0.5) / 2)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30), st.integers(0, 9))
def test_average_precision_does_not_depend_on_order(pairs: list[tuple[int, bool]], seed: int) -> None:
    scores = np.array([[p[0]] for p in pairs], np.float64)
    labels = np.array([[p[1]] for p in pairs], np.float64)
    order = np.random.default_rng(seed).permutation(len(pairs))
    first, second = average_precision(scores, labels), average_precision(scores[order], labels[order])
    np.testing.assert_allclose(first, second)
    if labels.any():
        assert labels.mean() / len(pairs) <= first[0] <= 1
        assert average_precision(labels, labels)[0] == 1


# -- the network -----------------------------------------------------------------------------------------------
def test_folding_keeps_the_scores() -> None:
    torch.manual_seed(0)
    net = SmallNet(5)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    plain = folded(net.eval())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in plain.modules())
    x = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        assert torch.allclose(net(x), plain(x), atol=1e-5)


def test_a_head_is_kept_only_where_it_scores_as_many_classes(tmp_path: Path) -> None:
    net = SmallNet(5)
    torch.save(net.state_dict(), tmp_path / "five.pth")
    same = build_classifier("small", 5, tmp_path / "five.pth")
    other = build_classifier("small", 7, tmp_path / "five.pth", seed=3)
    assert not same.new_head and torch.equal(same.head.weight, net.classifier.weight)
    assert other.new_head and other.head.weight.shape == (7, 96)
    again = build_classifier("small", 7, tmp_path / "five.pth", seed=3)
    assert torch.equal(other.head.weight, again.head.weight)
    x = torch.randn(1, 3, 40, 48)
    with torch.no_grad():
        assert torch.equal(same.network.eval()(x), net.eval()(x))


@pytest.mark.parametrize("arch", ["mobilenetv2", "resnet50"])
def test_maps_average_to_scores(arch: str) -> None:
    """forward_cam is what scores are the mean of (before ReLU): the head is the one that is trained."""
    built = build_classifier(arch, 3, None, random=True)
    network = built.network.eval()
    with torch.no_grad():
        built.head.weight.abs_()  # positive maps: ReLU does nothing
        x = torch.randn(1, 3, 33, 49)
        torch.testing.assert_close(network.forward_cam(x).mean((2, 3)), network(x), atol=1e-4, rtol=1e-3)


# -- pictures --------------------------------------------------------------------------------------------------
def test_scenes_carry_image_level_labels_only(tree: Path, photos: Photos) -> None:
    assert len({TRAIN_SEED, VALIDATION_SEED, DEMO_SEED}) == 3
    assert len(photos) == 24
    for i in (0, 7, 23):
        drawn = scene((9, i))
        assert photos.labels(photos.ids[i]) == drawn.classes
        assert np.abs(photos.image(photos.ids[i]).astype(int) - drawn.image).mean() < 4  # a JPEG of it
    assert scene_tree(tree, 24, seed=9) == tree  # not drawn again
    with pytest.raises(InputError, match="holds 24 scenes, not 25"):
        scene_tree(tree, 25, seed=9)


def test_a_training_picture_is_the_crop_and_the_labels(photos: Photos) -> None:
    config = settings(augment="split-unite", tile_share=1.0)
    load = LoadPicture(photos, len(CLASS_NAMES), True, "released")
    image, extra = load(photos.ids[0])
    assert np.flatnonzero(extra["labels"]).tolist() == photos.labels(photos.ids[0])
    made = ClassifyAugment(config, build_classifier("small", 8, None).input)(
        np.random.default_rng(0), image, extra
    )
    assert made["image"].shape == (3, 64, 64) and made["image"].dtype == torch.float32
    assert torch.equal(made["labels"], torch.from_numpy(extra["labels"]))


def test_tiles_are_taken_as_often_as_asked(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which part of the picture is taken, told by its size; without tiles it is always all of it."""
    seen: list[tuple[int, int]] = []

    def record(rng, image, planes, low, high):
        seen.append(image.shape[:2])
        return image, planes

    monkeypatch.setattr("infercam.trainer.classify.stage.random_long_side", record)
    for tiled, share, expected in ((True, 0.8, 0.8), (True, 0.0, 0.0), (False, 0.8, 0.0)):
        load = LoadPicture(photos, len(CLASS_NAMES), tiled, "paper")
        augment = ClassifyAugment(settings(tile_share=share), build_classifier("small", 8, None).input)
        image, extra = load(photos.ids[0])
        seen.clear()
        for i in range(200):
            augment(np.random.default_rng(i), image, extra)
        assert np.mean([s != SIZE for s in seen]) == pytest.approx(expected, abs=0.1)


def test_whole_photos_come_in_batches_of_one_shape(tmp_path: Path) -> None:
    import cv2

    rng = np.random.default_rng(0)
    sizes = {"a": (40, 60), "b": (60, 40), "c": (80, 120), "d": (41, 60), "e": (40, 60), "f": (20, 30)}
    for name, size in sizes.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), rng.integers(0, 256, (*size, 3), np.uint8))
    found = {}
    spec = build_classifier("small", 8, None).input
    for names, images in shape_batches(
        open_photos(SourceSettings(images=tmp_path)), list(sizes), 60, 3, spec
    ):
        assert len(names) == len(images) <= 3
        assert all(tuple(images.shape[2:]) == shape_at(sizes[n], 60) for n in names)
        found |= dict.fromkeys(names)
    assert set(found) == set(sizes)


# -- training --------------------------------------------------------------------------------------------------
def test_the_loss_falls_and_is_seeded(photos: Photos, tmp_path: Path) -> None:
    first = stage(photos, tmp_path / "a", settings())
    history = fit(first, tmp_path / "a").history
    assert history[-1]["loss"] < history[0]["loss"] < 0.75
    second = stage(photos, tmp_path / "b", settings())
    assert fit(second, tmp_path / "b").history == history
    other = stage(photos, tmp_path / "c", settings(seed=1))
    assert fit(other, tmp_path / "c").history != history


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [4, 8])
def test_split_unite_resumes_as_if_never_stopped(photos: Photos, tmp_path: Path, at: int) -> None:
    """Killed at a step: in an epoch, in one whose centres were found anew, right after; every centre and
    every weight is as without."""
    config = settings(augment="split-unite", refresh=2, epochs=5)
    undisturbed = stage(photos, tmp_path / "whole", config)
    history = fit(undisturbed, tmp_path / "whole").history
    files = sorted(f.name for f in (tmp_path / "whole" / "centres").iterdir())
    assert files == ["epoch_002.json", "epoch_004.json"]

    killed = stage(photos, tmp_path / "cut", config)
    calls = 0

    def loss(batch):
        nonlocal calls
        calls += 1
        if calls > at:
            raise Stop
        return ClassifyStage.loss(killed, batch)

    killed.loss = loss
    with pytest.raises(Stop):
        fit(killed, tmp_path / "cut")
    assert fit(stage(photos, tmp_path / "cut", config), tmp_path / "cut").history == history
    for name in files:
        assert json.loads((tmp_path / "cut" / "centres" / name).read_text()) == json.loads(
            (tmp_path / "whole" / "centres" / name).read_text()
        )
    states = [load_checkpoint(tmp_path / d / BEST, "classify")[0] for d in ("whole", "cut")]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_centres_of_an_earlier_run_are_not_used(photos: Photos, tmp_path: Path) -> None:
    config = settings(augment="split-unite", refresh=1, epochs=2)
    fit(stage(photos, tmp_path, config), tmp_path)
    stale = tmp_path / "centres" / "epoch_001.json"
    good = stale.read_text()
    (tmp_path / "last.ckpt").unlink()
    stale.write_text(json.dumps({i: [[1, 1]] * 3 for i in photos}))
    fit(stage(photos, tmp_path, config), tmp_path)
    assert stale.read_text() == good


def test_found_centres_are_of_the_labels_maps(photos: Photos, tmp_path: Path) -> None:
    made = stage(photos, tmp_path, settings(augment="split-unite"))
    found = made.find_centres()
    assert set(found) == set(photos)
    for name, centres in found.items():
        assert len(centres) == len(photos.labels(name))
        assert all(0 <= y < SIZE[0] and 0 <= x < SIZE[1] for y, x in centres)
    made.built.head.weight.data.zero_()  # empty maps
    assert made.find_centres()[photos.ids[0]] == middle(*SIZE, len(photos.labels(photos.ids[0])))


def test_a_run_writes_a_bundle_and_does_nothing_twice(photos: Photos, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from infercam.engine.api import Engine

    def run():
        return classify(
            photos, tmp_path, settings(epochs=2), CLASS_NAMES, validation=photos.only(photos.ids[:8])
        )

    result = run()
    bundle = tmp_path / "bundle" / "manifest.json"
    before = bundle.stat().st_mtime_ns
    assert 0 < result.mean_ap < 1 and result.epochs == 2
    assert json.loads((tmp_path / "result.json").read_text())["mean_ap"] == result.mean_ap
    again = run()
    assert bundle.stat().st_mtime_ns == before and again.mean_ap == result.mean_ap
    with Engine.load(tmp_path / "bundle", threads=1) as engine:
        image = photos.image(photos.ids[0])
        maps = engine.maps(image, photos.labels(photos.ids[0]), "released", "baseline")
        assert maps.shape[1:] == image.shape[:2]
        assert engine.manifest.classes == list(CLASS_NAMES)
        state, facts = load_checkpoint(tmp_path / BEST, "classify")
        assert facts["arch"] == "small" and state["classifier.weight"].shape == (8, 96)
    shutil.rmtree(tmp_path / "bundle")
    run()  # what was lost is made again, without training
    assert bundle.exists()
    with pytest.raises(InputError, match="was made with epochs = 2, not 3"):
        classify(photos, tmp_path, settings(epochs=3), CLASS_NAMES, validation=photos.only(photos.ids[:8]))


def test_bad_input_is_one_line(photos: Photos, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.pth: no such checkpoint"):
        classify(photos, tmp_path, settings(), CLASS_NAMES, weights=tmp_path / "gone.pth")
    with pytest.raises(InputError, match="give pre-trained weights"):
        classify(photos, tmp_path, settings(arch="mobilenetv2"), CLASS_NAMES)
    unlabelled = open_photos(
        SourceSettings(voc=tree, split="train"),
        labels=_labels(tmp_path, {"scene_00000": ["lion"]}),
        classes=CLASS_NAMES,
    )
    with pytest.raises(InputError, match=r"scene_00001: no labels .*\(and 22 more of 24 images\)"):
        classify(unlabelled, tmp_path, settings(), CLASS_NAMES)
    with pytest.raises(InputError, match="arch"):
        usual_config(arch="vgg")
    with pytest.raises(InputError, match="smaller side first"):
        usual_config(long_side=(300, 200))
    hot = settings(rate=1e18, clip=0.0)
    with pytest.raises(TrainingError, match=r"not finite at epoch 1, step \d"):
        fit(stage(photos, tmp_path / "hot", hot), tmp_path / "hot")


def test_an_unreadable_photo_is_named(tree: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(tree, tmp_path / "tree")
    (copied / "JPEGImages" / "scene_00003.jpg").write_bytes(b"not a picture")
    broken = open_photos(
        SourceSettings(voc=copied, split="train"), labels=copied / "labels.json", classes=CLASS_NAMES
    )
    with pytest.raises(InputError, match=r"scene_00003\.jpg: not a picture"):
        fit(stage(broken, tmp_path / "run", settings(epochs=1)), tmp_path / "run")


def test_usual_settings_give_way_to_those_given(tmp_path: Path) -> None:
    assert usual_config(arch="small").rate == 0.1 and usual_config().arch == "resnet38"
    file = tmp_path / "s.toml"
    file.write_text('arch = "mobilenetv2"\nepochs = 3\ncrop = 320\n')
    chosen = usual_config(file, crop=256)
    assert (chosen.epochs, chosen.crop, chosen.rate) == (3, 256, 0.01)


def test_class_names(tmp_path: Path) -> None:
    assert class_names(None, None)[0] == "aeroplane"
    assert class_names(None, _labels(tmp_path, {})) == list(CLASS_NAMES)
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    assert class_names(tmp_path / "names.txt", None) == ["one", "two"]


def _labels(folder: Path, labels: dict[str, list[str]]) -> Path:
    file = folder / "labels.json"
    file.write_text(json.dumps({"classes": list(CLASS_NAMES), "labels": labels}))
    return file


# -- the command -----------------------------------------------------------------------------------------------
def command(*words: object) -> list[str]:
    return [str(Path(sys.executable).with_name("infercam")), "classify", *map(str, words)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give one source"),
        (["--demo", "--labels", "l.json"], "--demo draws its own"),
        (["--demo", "--long-side", "12"], "--long-side 12: write 2 numbers separated by commas"),
        (["--demo", "--set", "side"], "NAME=VALUE"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, infercam: Callable, words: list[str], says: str
) -> None:
    done = infercam("classify", "-o", tmp_path / "out", *words)
    assert done.code == 1 and says in done.err and done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_goes_on_after_a_signal(tree: Path, tmp_path: Path) -> None:
    words = ["-o", tmp_path / "run", "--voc", tree, "--split", "train", "--labels", tree / "labels.json"]
    words += ["--arch", "small", "--epochs", "40", "--batch", "4", "--crop", "96", "--long-side", "80,140"]
    words += ["--threads", "1", "--augment", "split-unite", "--set", "side=96"]
    running = subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "last.ckpt").exists():
        assert running.poll() is None
        time.sleep(0.1)
    os.kill(running.pid, signal.SIGTERM)
    _, errors = running.communicate()
    assert running.returncode == 128 + signal.SIGTERM and "run the same command again" in errors
    ran = subprocess.run(command(*words), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in rows] == list(range(1, 41))
    assert (tmp_path / "run" / "bundle" / "manifest.json").exists()


@pytest.mark.slow
def test_four_scenes_are_learned_by_heart(photos: Photos, tmp_path: Path) -> None:
    few = photos.only(photos.ids[:4])
    config = settings(epochs=150, batch=4, jitter=0.0, long_side=(96, 96), rate=0.05)
    made = stage(few, tmp_path, config, few)
    assert fit(made, tmp_path).best["mAP"] > 0.95


@pytest.mark.slow
def test_the_demos_classifier_learns(tmp_path: Path) -> None:
    """The whole command, shortened: well above chance, which is 0.22 (a class is in about 22 % of the scenes).

    8 epochs of 600 scenes gave 0.43, 14 gave 0.49; it is the number of scenes that limits it.
    """
    pytest.importorskip("onnx")
    words = [
        "--demo",
        "-o",
        tmp_path,
        "--scenes",
        "600",
        "--val-scenes",
        "100",
        "--epochs",
        "8",
        "--threads",
        "2",
    ]
    ran = subprocess.run(command(*words), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "average precision" in ran.stdout
    assert json.loads((tmp_path / "result.json").read_text())["mean_ap"] > 0.35
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["source"]["images"] == 600 and manifest["source"]["command"] == "infercam classify"
