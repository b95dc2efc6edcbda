"""Training on pseudo labels in the three saliency modes, testing, and the table; on tiny photos."""

from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from infercam.engine.common.errors import InputError
from infercam.engine.evaluation.label_png import read_mask, write_label
from infercam.engine.inputs import SourceSettings
from tests.shared import SHARED

torch = pytest.importorskip("torch")

from infercam.trainer.networks.deeplab import load_deeplab, start_deeplab
from infercam.trainer.photos.labelled import LabelledPhotos
from infercam.trainer.photos.photos import open_photos
from infercam.trainer.saliency.files import write_saliency
from infercam.trainer.segment.confusion import class_iou, confusion, mean_iou
from infercam.trainer.segment.data import SaliencyFolder, SegmentAugment, SegmentItems, cut
from infercam.trainer.segment.predict import class_probabilities
from infercam.trainer.segment.settings import segment_config
from infercam.trainer.segment.stage import SegmentStage, train_segment
from infercam.trainer.segment.validation import Validation

SMALL = [
    "--arch",
    "small",
    "--random",
    "--classes",
    2,
    "--crop",
    65,
    "--batch",
    2,
    "--epochs",
    2,
    "--threads",
    1,
]


@pytest.fixture
def scene(tmp_path) -> Path:
    return write_scene(tmp_path)


def write_scene(root: Path, height: int = 56, width: int = 72, count: int = 3) -> Path:
    """ROOT/photos, ROOT/masks, ROOT/saliency: a red box (1), in every other photo a blue one too (2)."""
    rng = np.random.default_rng(0)
    for k in range(count):
        image = rng.integers(100, 140, (height, width, 3)).astype(np.uint8)
        mask = np.zeros((height, width), np.uint8)
        y, x = height // 8 + 3 * k, width // 12 + 2 * k
        red = (slice(y, y + height // 2), slice(x, x + width // 3))
        image[red], mask[red] = (220, 30, 30), 1
        if k % 2:
            blue = (slice(height // 8, 3 * height // 4), slice(5 * width // 8, 7 * width // 8))
            image[blue], mask[blue] = (20, 40, 230), 2
        (root / "photos").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / "photos" / f"p{k}.png")
        write_label(root / "masks" / f"p{k}.png", mask)
        write_saliency(root / "saliency" / f"p{k}.png", (mask > 0).astype(np.float32))
    return root


def validation_of(root: Path) -> Validation:
    return Validation(
        open_photos(SourceSettings(images=root / "photos")), lambda i: root / "masks" / f"{i}.png"
    )


# -- figures ---------------------------------------------------------------------------------------------------
def test_confusion_by_hand():
    truth = np.array([[0, 0, 1], [1, 255, 0]], np.uint8)
    predicted = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
    matrix = confusion(predicted, truth, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    iou = class_iou(matrix)
    assert iou[:3].tolist() == [2 / 3, 1 / 3, 0] and np.isnan(iou[3])
    assert mean_iou(matrix) == pytest.approx(0.5)  # the truth has no 2
    assert mean_iou(np.zeros((3, 3), np.int64)) == 0


# -- data ------------------------------------------------------------------------------------------------------
pixels = arrays(np.uint8, (3, 4), elements=st.integers(0, 255))


@given(arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 2, 255])), pixels)
def test_cut_only_makes_background(label, saliency):
    found = cut(label, saliency)
    assert found.dtype == np.uint8
    assert (found[saliency <= 127] == 0).all() and np.array_equal(
        found[saliency > 127], label[saliency > 127]
    )


def items_of(scene: Path, mode: str, **options) -> SegmentItems:
    photos = open_photos(SourceSettings(images=scene / "photos"))
    folder = None if mode == "none" else SaliencyFolder(scene / "saliency", photos.ids, **options)
    return SegmentItems(LabelledPhotos(photos, scene / "masks", 2), mode, folder)


def test_planes_of_each_mode(scene):
    write_saliency(scene / "saliency" / "p0.png", np.zeros((56, 72), np.float32))
    plain = items_of(scene, "none")("p0")[1]
    assert plain.keys() == {"label"} and plain["label"].any()
    assert not items_of(scene, "background")("p0")[1]["label"].any()
    refine = items_of(scene, "refine")("p0")[1]
    assert refine.keys() == {"label", "saliency", "inside"} and np.array_equal(
        refine["label"], plain["label"]
    )
    assert not refine["saliency"].any() and refine["inside"].all()


def test_missing_saliency(scene):
    (scene / "saliency" / "p1.png").unlink()
    with pytest.raises(InputError, match=r"1 of 3 photos have no saliency map \(first: p1\.png\)"):
        items_of(scene, "refine")
    _, planes = items_of(scene, "refine", skip_missing=True)("p1")
    assert not planes["inside"].any()
    _, planes = items_of(scene, "background", skip_missing=True)("p1")
    assert (planes["label"] == 2).any()  # as it is
    with pytest.raises(InputError, match="no such folder of saliency maps"):
        SaliencyFolder(scene / "nowhere", ["p0"])
    with pytest.raises(InputError, match="3 of 3"):  # the wrong folder, whatever is asked
        SaliencyFolder(scene, ["p0", "p1", "p2"], skip_missing=True)


def test_planes_stay_together_and_padding_is_outside(scene):
    config = segment_config(arch="small", crop=97, scale=(0.7, 1.4))
    network, _ = start_deeplab("small", None, classes=3, random=True)
    image, planes = items_of(scene, "refine")("p1")
    augment = pickle.loads(pickle.dumps(SegmentAugment(config, network.input)))
    for seed in range(6):
        found = augment(np.random.default_rng(seed), image, planes)
        assert found["image"].shape == (3, 97, 97) and found["label"].shape == (97, 97)
        inside = found["inside"] > 0
        assert (found["label"][~inside] == 255).all() and (found["saliency"][~inside] == 0).all()
        object_, salient = found["label"][inside] > 0, found["saliency"][inside] > 127
        assert (object_ == salient).float().mean() > 0.97  # nearest and linear differ at edges


# -- the stage -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["none", "background", "refine"])
def test_loss_falls_in_every_mode(scene, tmp_path, mode):
    config = segment_config(
        arch="small", crop=73, scale=(1, 1), epochs=8, batch=3, rate=0.03, head_scale=3, saliency_mode=mode
    )
    maps = None if mode == "none" else scene / "saliency"
    photos = open_photos(SourceSettings(images=scene / "photos"))
    done = train_segment(
        photos, scene / "masks", tmp_path / "run", config, classes=2, random=True, saliency=maps
    )
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert done.epochs == len(history) == 8 and history[-1]["loss"] < 0.6 * history[0]["loss"]
    if mode == "refine":
        assert history[0]["tau"] > 0.9 and history[0]["loss"] > history[0]["cross_entropy"]
        assert history[-1]["saliency"] < history[0]["saliency"]
    network = load_deeplab(tmp_path / "run" / "best.ckpt")
    assert network.classes == 3


def test_validation_is_of_whole_photos(scene):
    network, _ = start_deeplab("small", None, classes=3, random=True)
    stage = SegmentStage(
        network.eval(), segment_config(arch="small"), items_of(scene, "none"), validation_of(scene)
    )
    assert stage.best_by == "mIoU"
    total = np.zeros((3, 3), np.int64)
    for k in range(3):
        image = np.asarray(Image.open(scene / "photos" / f"p{k}.png"))
        total += confusion(stage.label(image), read_mask(scene / "masks" / f"p{k}.png"), 3)
    assert total.sum() == 3 * 56 * 72 and stage.validate() == {"mIoU": mean_iou(total)}


def test_validation_masks_without_any_class_are_refused(scene, tmp_path):
    """Masks of 0 and 255: all that could be scored is background."""
    network, _ = start_deeplab("small", None, classes=3, random=True)
    photos = open_photos(SourceSettings(images=scene / "photos"))
    for k in range(3):
        truth = read_mask(scene / "masks" / f"p{k}.png")
        Image.fromarray(((truth > 0) * 255).astype(np.uint8)).save(tmp_path / f"p{k}.png")
    binary = Validation(photos, lambda i: tmp_path / f"{i}.png")
    stage = SegmentStage(network.eval(), segment_config(arch="small"), items_of(scene, "none"), binary)
    with pytest.raises(InputError, match="validation masks hold no class at all"):
        stage.validate()


def test_presets_give_way():
    assert segment_config().rate == 2.5e-4 and segment_config().output_stride == 8
    assert segment_config(arch="mobilenetv2").output_stride == 16
    assert segment_config(arch="mobilenetv2", output_stride=8, rate=0.5).output_stride == 8
    with pytest.raises(InputError, match="scale"):
        segment_config(scale=(2, 1))


def test_views_are_averaged_and_unmirrored():
    network, _ = start_deeplab("small", None, classes=3, random=True)
    network.eval()
    image = np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8)
    one = class_probabilities(network, image, [1.0, 0.5], True)
    assert one.shape == (3, 45, 61) and np.allclose(one.sum(0), 1, atol=1e-5)
    mirrored = class_probabilities(network, np.ascontiguousarray(image[:, ::-1]), [1.0, 0.5], True)
    assert np.allclose(one, mirrored[:, :, ::-1], atol=1e-5)
    parts = [class_probabilities(network, image, [scale], True) for scale in (1.0, 0.5)]
    assert np.allclose(one, np.mean(parts, 0), atol=1e-6)


# -- the commands ----------------------------------------------------------------------------------------------
def train(infercam, scene, out, *options):
    return infercam("segment", scene / "masks", "-o", out, "--images", scene / "photos", *SMALL, *options)


def test_train_test_submit(infercam, scene, tmp_path):
    run, found = tmp_path / "run", tmp_path / "labels"
    (tmp_path / "classes.txt").write_text("red\nblue\n")
    validation = ["--val-images", scene / "photos", "--val-masks", scene / "masks"]
    trained = train(infercam, scene, run, "--saliency", scene / "saliency", *validation)
    assert trained.code == 0 and "mIoU" in trained.err and (run / "best.ckpt").is_file()
    assert json.loads((run / "config.json").read_text())["config"]["saliency_mode"] == "refine"
    command = ["segment-test", run / "best.ckpt", "-o", found, "--images", scene / "photos"]
    command += ["--classes", tmp_path / "classes.txt", "--scales", "0.5,1", "--submission", tmp_path / "sub"]
    tested = infercam(*command)
    assert tested.code == 0 and "3 made, 0 kept" in tested.err
    assert read_mask(found / "p1.png").shape == (56, 72) and read_mask(found / "p1.png").max() <= 2
    inside = "results/VOC2012/Segmentation/comp6_test_cls/p1.png"
    assert (tmp_path / "sub" / inside).read_bytes() == (found / "p1.png").read_bytes()
    with tarfile.open(tmp_path / "sub" / "results.tar.gz") as tar:
        assert sorted(tar.getnames()) == [inside.replace("p1", f"p{k}") for k in range(3)]
    again = infercam(*command)
    assert again.code == 0 and "0 made, 3 kept" in again.err
    other = infercam(*command, "--no-mirror")  # other settings: made again
    assert other.code == 0 and "3 made, 0 kept" in other.err


def test_test_goes_on_past_a_bad_photo(infercam, scene, tmp_path):
    run = tmp_path / "run"
    assert train(infercam, scene, run, "--epochs", 1).code == 0
    (tmp_path / "classes.txt").write_text("red\nblue\n")
    (scene / "photos" / "p1.png").write_bytes(b"nothing")
    command = ["segment-test", run / "best.ckpt", "-o", tmp_path / "x", "--images", scene / "photos"]
    found = infercam(*command, "--classes", tmp_path / "classes.txt")
    assert found.code == 1 and "2 made" in found.err and "1 failed" in found.err
    assert "p1" in (tmp_path / "x" / "failures.jsonl").read_text()
    (tmp_path / "classes.txt").write_text("red\n")
    wrong = infercam(*command, "--classes", tmp_path / "classes.txt")
    assert wrong.code != 0 and "scores 2 object classes, but there are 1 names" in wrong.err


def test_bad_input_is_one_line(infercam, scene, tmp_path):
    def refused(text: str, *options) -> None:
        found = train(infercam, scene, tmp_path / "run", *options)
        assert found.code != 0 and text in found.err.replace("\n", " "), found.err
        assert "Traceback" not in found.err and not (tmp_path / "run" / "last.ckpt").exists()

    refused("give --saliency DIR with --saliency-mode", "--saliency-mode", "refine")
    refused("validation: give", "--val-split", "val")
    refused(
        "3 validation photos have no", "--val-images", scene / "photos", "--val-masks", scene / "photos" / "x"
    )
    refused("a version 3 head needs at least 2", "--head", "v3", "--batch", 1)
    refused("saliency_mode", "--saliency", scene / "saliency", "--saliency-mode", "all")
    write_label(scene / "masks" / "p0.png", np.full((56, 72), 7, np.uint8))
    refused("has value 7, but there are 2 classes")
    write_label(scene / "masks" / "p0.png", np.zeros((5, 6), np.uint8))
    refused("6×5")


def test_compare_is_one_table(infercam, scene, tmp_path):
    out = tmp_path / "cmp"
    command = ["saliency-compare", scene / "masks", "--saliency", scene / "saliency", "-o", out]
    command += [
        "--images",
        scene / "photos",
        "--val-images",
        scene / "photos",
        "--val-masks",
        scene / "masks",
    ]
    options = [*SMALL[:-4], "--epochs", 1, "--threads", 1]
    first = infercam(*command, *options)
    assert first.code == 0, first.err
    report = json.loads((out / "comparison.json").read_text())
    assert [row["mode"] for row in report["rows"]] == ["none", "background", "refine"]
    assert report["rows"][0]["gain"] is None and report["rows"][2]["interval"] is not None
    assert [len(row["tau"]) for row in report["rows"]] == [
        0,
        0,
        1,
    ]  # a figure an epoch, where it is in the loss
    assert 0 < report["rows"][2]["tau"][0] <= 1 and f"{report['rows'][2]['tau'][0]:.3f} to" in first.out
    assert set(report["means"]) == {"none", "background", "refine"}
    for mode in ("none", "background", "refine"):
        assert mode in first.out
    again = infercam(*command, *options)  # nothing is trained twice
    assert again.code == 0 and "0 made, 3 kept" not in again.out and "epoch" not in again.err
    assert json.loads((out / "comparison.json").read_text()) == report
    bad = infercam(*command, *options, "--modes", "none,other")
    assert bad.code != 0 and "modes are some of" in bad.err


# -- overfitting -----------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_small_network_fits_four_photos(tmp_path):
    scene = write_scene(tmp_path, 128, 136, count=4)
    config = segment_config(
        arch="small", crop=137, scale=(1, 1), rate=0.03, head_scale=3, epochs=150, batch=4, threads=1
    )
    photos = open_photos(SourceSettings(images=scene / "photos"))
    done = train_segment(
        photos,
        scene / "masks",
        tmp_path / "run",
        config,
        classes=2,
        random=True,
        validation=validation_of(scene),
    )
    assert done.best["mIoU"] > 0.95


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not here")
def test_mobilenetv2_fits_four_photos(tmp_path):
    """From ImageNet weights with the preset's rates. The crop is the photo: only mirroring varies it."""
    scene = write_scene(tmp_path, 145, 145, count=4)
    config = segment_config(arch="mobilenetv2", crop=145, scale=(1, 1), epochs=120, batch=4)
    done = train_segment(
        open_photos(SourceSettings(images=scene / "photos")),
        scene / "masks",
        tmp_path / "run",
        config,
        classes=2,
        weights=SHARED / "models" / "mobilenetv2_imagenet_folded_fp16.safetensors",
        validation=validation_of(scene),
    )
    assert done.best["mIoU"] > 0.95
