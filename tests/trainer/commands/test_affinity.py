"""`infercam affinity` from end to end: what it learns and leaves, going on, and bad input."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infercam.engine.common.errors import InputError
from infercam.engine.evaluation.label_png import write_label
from infercam.engine.inputs import SourceSettings
from infercam.trainer.affinity.affinitynet import AffinityNet, load_affinity
from infercam.trainer.affinity.loss import pair_accuracy, pair_distance, pair_groups
from infercam.trainer.affinity.settings import AffinityConfig, affinity_config
from infercam.trainer.affinity.stage import AffinityStage, train_affinity
from infercam.trainer.loop.fit import BEST, LAST
from infercam.trainer.networks.backbones import build_backbone
from infercam.trainer.photos.labelled import LabelledPhotos
from infercam.trainer.photos.photos import open_photos

IDS = ("a", "b", "c/d", "e")
SIZE = (96, 104)


def write_photos(root: Path) -> Path:
    """ROOT/photos/ID.png and ROOT/labels/ID.png: a coloured box on noise, its border ignored."""
    rng = np.random.default_rng(0)
    h, w = SIZE
    for number, item_id in enumerate(IDS):
        image = rng.integers(60, 120, (h, w, 3)).astype(np.uint8)
        label = np.zeros((h, w), np.uint8)
        y, x = (int(v) for v in rng.integers(12, 32, 2))
        label[y - 4 : y + 52, x - 4 : x + 44] = 255
        label[y : y + 48, x : x + 40] = number % 3 + 1
        image[y : y + 48, x : x + 40, number % 3] += 130
        for folder, save in (("photos", Image.fromarray(image).save), ("labels", None)):
            file = root / folder / f"{item_id}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            save(file) if save else write_label(file, label)
    return root


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_photos(tmp_path)


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ResNet-50 as a published checkpoint; the command tells its width from the file."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(build_backbone("resnet50", output_stride=8, width=8).net.state_dict(), file)
    return file


def command(scenes: Path, weights: Path | None, *more: object) -> list[object]:
    return [
        *("affinity", scenes / "labels", "-o", scenes / "run", "--images", scenes / "photos"),
        *("--arch", "resnet50", "--crop", 80, "--batch", 2, "--rate", 0.01, "--epochs", 2, "--threads", 1),
        *(() if weights is None else ("--weights", weights)),
        *more,
    ]


def test_trains_and_is_done_when_run_again(scenes: Path, backbone_file: Path, infercam) -> None:
    first = infercam(*command(scenes, backbone_file))
    assert first.code == 0, first.err
    assert "2 epochs on 4 photos" in first.err and "of pairs told rightly" in first.err
    history = [json.loads(line) for line in (scenes / "run" / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [1, 2]
    assert {"loss", "background", "foreground", "negative", "accuracy"} <= history[0].keys()
    assert history[0]["loss"] == pytest.approx(
        history[0]["background"] / 4 + history[0]["foreground"] / 4 + history[0]["negative"] / 2, abs=1e-4
    )
    net = load_affinity(scenes / "run" / BEST)
    assert net.backbone.arch == "resnet50" and net.backbone.width == 8

    before = (scenes / "run" / LAST).read_bytes()
    again = infercam(*command(scenes, backbone_file))
    assert again.code == 0 and (scenes / "run" / LAST).read_bytes() == before


def test_other_settings_or_labels_are_refused(scenes: Path, backbone_file: Path, infercam) -> None:
    assert infercam(*command(scenes, backbone_file, "--epochs", 1)).code == 0
    other = infercam(*command(scenes, backbone_file, "--epochs", 3))
    assert other.code == 1 and "was made with epochs = 1, not 3" in other.err
    write_label(scenes / "labels" / "a.png", np.zeros(SIZE, np.uint8))
    changed = infercam(*command(scenes, backbone_file, "--epochs", 1))
    assert changed.code == 1 and "was made with labels" in changed.err
    assert changed.err.count("\n") == 1


def test_unusable_labels_are_named(scenes: Path, backbone_file: Path, infercam) -> None:
    write_label(scenes / "labels" / "a.png", np.zeros((50, 60), np.uint8))
    write_label(scenes / "labels" / "b.png", np.full(SIZE, 21, np.uint8))
    (scenes / "labels" / "c" / "d.png").unlink()
    run = infercam(*command(scenes, backbone_file, "--epochs", 1))
    assert run.code == 1 and "Traceback" not in run.err
    assert "a.png: is 60×50, but its photo 104×96" in run.err
    assert "b.png: has value 21, but there are 20 classes" in run.err
    assert "d.png: no such file" in run.err
    assert "3 of 4 photos have no usable label (first: a)" in run.err
    assert not (scenes / "run").exists()
    skipped = infercam(*command(scenes, backbone_file, "--epochs", 1, "--skip-bad-labels"))
    assert skipped.code == 0 and "1 epochs on 1 photos" in skipped.err


def test_bad_input_is_one_line(scenes: Path, backbone_file: Path, tmp_path: Path, infercam) -> None:
    for file in (scenes / "labels").rglob("*.png"):
        write_label(scenes / "none" / file.name, np.zeros((3, 3), np.uint8))
    cases: dict[str, list[object]] = {
        "give pre-trained weights (--weights FILE)": command(scenes, None),
        "absent.pth": command(scenes, tmp_path / "absent.pth"),
        "does not fit mobilenetv2": command(scenes, backbone_file, "--arch", "mobilenetv2"),
        "arch: Input should be": command(scenes, backbone_file, "--arch", "vgg16"),
        "crop must be a multiple of 8, at least 72": command(scenes, backbone_file, "--crop", 81),
        "at least 72": command(scenes, backbone_file, "--crop", 64),
        "no such folder of labels": ["affinity", scenes / "x", *command(scenes, backbone_file)[2:]],
        "no usable label for any of the 4 photos": [
            *("affinity", scenes / "none", *command(scenes, backbone_file)[2:], "--skip-bad-labels")
        ],
    }
    for message, words in cases.items():
        run = infercam(*words)
        assert run.code == 1 and "Traceback" not in run.err, message
        lines = [line for line in run.err.splitlines() if not line.startswith("label: ")]
        assert len(lines) == 1 and message in lines[0], (message, run.err)
    assert not (scenes / "run").exists()


def test_a_killed_run_goes_on_to_the_same_weights(
    scenes: Path, backbone_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = open_photos(SourceSettings(images=scenes / "photos"))
    config = AffinityConfig(arch="resnet50", crop=80, batch=2, rate=0.01, epochs=2, threads=1)

    def train(name: str) -> dict[str, torch.Tensor]:
        train_affinity(photos, scenes / "labels", scenes / name, config, weights=backbone_file)
        return load_affinity(scenes / name / BEST).state_dict()

    whole = train("whole")
    loss, calls = AffinityStage.loss, itertools.count(1)

    def interrupted(self: AffinityStage, batch: dict) -> dict[str, torch.Tensor]:
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, batch)

    monkeypatch.setattr(AffinityStage, "loss", interrupted)
    with pytest.raises(SystemExit) as left:
        train("cut")
    assert left.value.code == 128 + signal.SIGTERM
    resumed = train("cut")
    assert next(calls) == 5  # four steps in all, none done twice
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, msg=name)


def test_presets_and_files(tmp_path: Path) -> None:
    assert affinity_config().rate == 0.1 and affinity_config().crop == 448
    assert affinity_config(arch="mobilenetv2").rate == 0.01
    assert affinity_config(arch="mobilenetv2", rate=0.2).rate == 0.2
    (tmp_path / "c.toml").write_text('arch = "mobilenetv2"\nlong_side = [320, 480]\nrate = 0.05\n')
    config = affinity_config(tmp_path / "c.toml", epochs=2)
    assert (config.rate, config.epochs, config.long_side) == (0.05, 2, (320, 480))
    with pytest.raises(InputError, match="smaller side first"):
        affinity_config(arch="resnet38", long_side=(500, 400))


def stage_of(scenes: Path, **changes: object) -> AffinityStage:
    torch.manual_seed(0)
    config = AffinityConfig(arch="resnet50", crop=80, batch=4, **changes)
    net = AffinityNet(
        build_backbone("resnet50", output_stride=8, width=16), freeze_backbone=config.freeze_backbone
    )
    return AffinityStage(
        net, config, LabelledPhotos(open_photos(SourceSettings(images=scenes / "photos")), scenes / "labels")
    )


def test_augmented_items_are_cells_of_the_crop(scenes: Path) -> None:
    stage = stage_of(scenes, long_side=(60, 200))
    one, same, other = stage.dataset[0, 1], stage.dataset[0, 1], stage.dataset[1, 1]
    assert one["image"].shape == (3, 80, 80) and one["cells"].shape == (10, 10)
    assert one["cells"].dtype == torch.uint8 and set(one["cells"].unique().tolist()) <= {0, 2, 255}
    assert torch.equal(one["image"], same["image"]) and torch.equal(one["cells"], same["cells"])
    assert not torch.equal(one["image"], other["image"])


def test_parameter_groups_are_psas(scenes: Path) -> None:
    stage = stage_of(scenes)
    groups = stage.parameter_groups()
    # the biases are BatchNorm's, which `fit` freezes first
    assert [group.get("scale", 1) for group in groups] == [1, 2, 10]
    assert groups[1]["weight_decay"] == 0 and len(groups[2]["params"]) == 4
    trained = [p for p in stage.network.parameters() if p.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(trained)
    (alone,) = stage_of(scenes, freeze_backbone=True).parameter_groups()
    assert alone["scale"] == 10 and len(alone["params"]) == 4


def fit_four(stage: AffinityStage, steps: int, rate: float) -> list[float]:
    """Losses of training on one and the same batch of all four photos."""
    items = [stage.dataset[0, i] for i in range(4)]
    batch = {key: torch.stack([item[key] for item in items]) for key in ("image", "cells")}
    groups = [{**g, "lr": rate * g.pop("scale", 1)} for g in stage.parameter_groups()]
    optimiser = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    losses = []
    for _ in range(steps):
        out = stage.loss(batch)
        optimiser.zero_grad()
        out["loss"].backward()
        optimiser.step()
        losses.append(float(out["loss"].detach()))
    stage.network.eval()
    with torch.no_grad():
        distance = pair_distance(stage.network(batch["image"]), stage.offsets)
        stage.accuracy = float(pair_accuracy(distance, pair_groups(batch["cells"], stage.offsets)))
    return losses


def test_the_loss_falls(scenes: Path) -> None:
    losses = fit_four(stage_of(scenes), 12, 0.003)
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


@pytest.mark.slow
def test_four_photos_are_fitted(scenes: Path) -> None:
    """More than 95 % of pairs told rightly, the three groups weighted as in the loss."""
    stage = stage_of(scenes)
    fit_four(stage, 140, 0.003)
    assert stage.accuracy > 0.95
