"""The whole pipeline on synthetic scenes, from photos to a tested segmentation network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'infercam[train]'")

from infercam.engine.common.errors import InputError
from infercam.engine.demo.ablation import BUNDLE
from infercam.engine.demo.scenes import CLASS_NAMES, write_voc_tree
from infercam.trainer.affinity.stage import AffinityStage
from infercam.trainer.commands.pipeline import table
from infercam.trainer.networks.small import LAYERS, SmallNet
from infercam.trainer.pipeline.config import read_pipeline
from infercam.trainer.pipeline.pipeline import Pipeline, StepOutcome
from infercam.trainer.pipeline.steps import make_steps

CHANCE = 100 / (len(CLASS_NAMES) + 1)
"""mIoU of a label that says background everywhere, at most."""

STEPS = """
[maps]
{classifier}
recipe = "best"
threads = 1
[labels]
low_alpha = 2
high_alpha = 16
crf = false
[affinity]
arch = "small"
weights = "small.pth"
crop = 96
epochs = 4
batch = 4
rate = 0.05
threads = 1
[walk]
alpha = 6
beta = 16
log2_steps = 3
crf = false
threads = 1
[segment]
arch = "small"
weights = "small.pth"
crop = 97
scale = [0.8, 1.2]
epochs = 20
rate = 0.02
clip = 2.0
batch = 4
threads = 1
[test]
scales = [1.0]
threads = 1
"""
DATA = '[data]\nvoc = "voc"\nsplit = "train"\nlabels = "voc/labels.json"\nval_split = "train"\n'


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of twelve small scenes and the settings beside it."""
    root = tmp_path_factory.mktemp("pipeline")
    write_voc_tree(root / "voc", 12, 77, (96, 120), train=12)
    demo_weights(root / "small.pth")
    (root / "settings.toml").write_text(DATA + STEPS.format(classifier=f'bundle = "{BUNDLE}"'))
    return root


def demo_weights(file: Path) -> None:
    """The weights of the demo's bundle, whose BatchNorms are folded, for the small network to start from."""
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'infercam[export]'")
    from onnx.numpy_helper import to_array

    graph = onnx.load(BUNDLE / "response.onnx").graph
    values = {i.name: torch.tensor(to_array(i)) for i in graph.initializer}
    convolutions = [n for n in graph.node if n.op_type == "Conv"][: len(LAYERS)]
    state = SmallNet(1).state_dict()
    for i, node in enumerate(convolutions):
        weight, bias = (values[name] for name in node.input[1:3])
        state[f"features.{3 * i}.weight"], state[f"features.{3 * i + 1}.bias"] = weight, bias
        state[f"features.{3 * i + 1}.running_var"].fill_(1 - 1e-5)
    torch.save(state, file)


def changed(root: Path, name: str, *pairs: tuple[str, str]) -> Path:
    """The settings with some text replaced, in another file."""
    text = (root / "settings.toml").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (root / name).write_text(text)
    return root / name


def run(settings: Path, out: Path, **options: str) -> dict[str, StepOutcome]:
    pipeline = Pipeline(out, make_steps(read_pipeline(settings), out))
    return {o.step: o for o in pipeline.run(**options)}


@pytest.fixture(scope="module")
def whole(root: Path) -> dict[str, StepOutcome]:
    return run(root / "settings.toml", root / "out")


def test_every_step_is_better_than_chance(whole: dict[str, StepOutcome], root: Path) -> None:
    assert list(whole) == ["maps", "labels", "affinity", "walk", "segment", "test"]
    assert {o.status for o in whole.values()} == {"done"}
    assert whole["maps"].figures["best mIoU"] > 2.5 * CHANCE
    assert whole["labels"].figures["mIoU"] > 2.5 * CHANCE
    assert 5 < whole["labels"].figures["left open"] < 80
    assert whole["affinity"].figures["pair accuracy"] > 65
    assert whole["walk"].figures["mIoU"] > 2 * CHANCE
    assert whole["segment"].figures["loss"] < 1.0  # from about 2.2, the logarithm of 9 labels
    assert whole["test"].figures["mIoU"] > 1.5 * CHANCE
    assert {f.stem for f in (root / "out" / "eval").iterdir()} == {"maps", "labels", "walk", "test"}
    kept = json.loads((root / "out" / "settings.json").read_text())
    assert kept["affinity"]["settings"]["epochs"] == 4 and kept["segment"]["builds_on"] == ["walk"]
    assert table(list(whole.values())).row_count == 6


def test_a_second_run_does_nothing(whole: dict[str, StepOutcome], root: Path) -> None:
    def files() -> dict[str, int]:
        steps = [root / "out" / name for name in whole]
        return {str(f): f.stat().st_mtime_ns for step in steps for f in step.rglob("*")}

    before = files()
    again = run(root / "settings.toml", root / "out")
    assert {o.status for o in again.values()} == {"kept"} and files() == before
    assert {n: o.figures for n, o in again.items()} == {n: o.figures for n, o in whole.items()}
    machine = changed(root, "machine.toml", ("threads = 1", "threads = 2"))
    assert set(Pipeline(root / "out", make_steps(read_pipeline(machine), root / "out")).plan().values()) == {
        "keep"
    }


def test_a_change_redoes_what_it_concerns(whole: dict[str, StepOutcome], root: Path) -> None:
    def plan(*pairs: tuple[str, str]) -> list[str]:
        settings = changed(root, "other.toml", *pairs)
        steps = Pipeline(root / "out", make_steps(read_pipeline(settings), root / "out")).plan()
        return [name for name, what in steps.items() if what != "keep"]

    assert plan(("beta = 16", "beta = 8")) == ["walk", "segment", "test"]
    assert plan(("scales = [1.0]", "scales = [1.0, 1.5]")) == ["test"]
    assert plan(('recipe = "best"', 'recipe = "fast"'))[0] == "maps"
    labels = root / "voc" / "labels.json"
    text = labels.read_text()
    try:
        raw = json.loads(text)
        raw["labels"]["scene_00000"] = [CLASS_NAMES[0]]
        labels.write_text(json.dumps(raw))
        assert plan() == list(whole)
    finally:
        labels.write_text(text)


class Killed(BaseException):
    pass


def test_killed_in_the_middle_it_goes_on_to_the_same_figures(
    whole: dict[str, StepOutcome], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    loss = AffinityStage.loss

    def stop(self, batch):
        nonlocal calls
        calls += 1
        if calls == 8:  # in the third epoch
            raise Killed
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(AffinityStage, "loss", stop)
        with pytest.raises(Killed):
            run(root / "settings.toml", tmp_path, until="walk")
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["labels"]["done"] and not state["affinity"]["done"]
    rows = (tmp_path / "affinity" / "history.jsonl").read_text().splitlines()
    assert len(rows) == 2
    found = run(root / "settings.toml", tmp_path, until="walk")
    assert [o.status for o in found.values()] == ["kept", "kept", "done", "done", "left", "left"]
    assert not (tmp_path / "affinity.old").exists()
    for name in ("maps", "labels", "affinity", "walk"):
        assert found[name].figures == pytest.approx(whole[name].figures), name


def test_a_photo_that_fails_is_left_out_and_counted(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "voc", tmp_path / "voc")
    (tmp_path / "voc" / "JPEGImages" / "scene_00003.jpg").write_bytes(b"no picture")
    settings = tmp_path / "settings.toml"
    settings.write_text((root / "settings.toml").read_text().replace("small.pth", str(root / "small.pth")))
    found = run(settings, tmp_path / "out", until="labels")
    assert found["maps"].figures["failed"] == 1 and "failed" not in found["labels"].figures
    assert len(list((tmp_path / "out" / "labels").glob("*.png"))) == 11
    assert "scene_00003" in (tmp_path / "out" / "maps" / "failures.jsonl").read_text()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("[walk]", "[stroll]")], r"stroll: Extra inputs"),
        ([("beta = 16", "gamma = 16")], r"walk\.gamma: Extra inputs"),
        ([("epochs = 4\n", "epochs = 0\n")], r"affinity\.epochs: .*greater than or equal to 1"),
        ([('weights = "small.pth"', 'weights = "gone.pth"')], r"gone\.pth: no such file"),
        ([("rate = 0.05", "devices = 2")], r"affinity\.devices: a pipeline trains on one"),
        ([('recipe = "best"', 'recipe = "worst"')], r"no recipe 'worst'"),
        ([('recipe = "best"', 'mode = "all"')], r"no mode 'all'"),
        ([('weights = "small.pth"', 'weights = "classify"')], r"there is no \[classify\]"),
        ([("[maps]", "[classify]\nrandom = true\n[maps]")], r"give \[classify\], or \[maps\] bundle"),
        ([('val_split = "train"\n', "")], r"\[test\] needs data\.voc and data\.val_split"),
        ([('split = "train"\n', 'split = "trian"\n')], r"no split 'trian'"),
        ([("[data]", "[data")], r"cannot be read as TOML"),
        ([("voc/labels.json", "voc/gone.json")], r"gone\.json"),
        ([(str(BUNDLE), "nowhere")], r"nowhere: no manifest\.json"),
    ],
)
def test_bad_settings_are_one_line_before_any_work(
    root: Path, tmp_path: Path, pairs: list[tuple[str, str]], message: str
) -> None:
    from infercam.engine.common.errors import InfercamError

    settings = changed(root, "bad.toml", *pairs)
    with pytest.raises(InfercamError, match=message) as caught:
        run(settings, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_steps_need_each_other(root: Path) -> None:
    text = (root / "settings.toml").read_text()
    a, b = text.index("[labels]"), text.index("[affinity]")
    (root / "bad.toml").write_text(text[:a] + text[b:])
    with pytest.raises(InputError, match=r"\[affinity\] without \[labels\]"):
        read_pipeline(root / "bad.toml")


EVERY_TABLE = """
[classify]
arch = "small"
random = true
epochs = 1
batch = 4
long_side = [90, 130]
crop = 96
side = 96
validate = true
threads = 1
[maps]
recipe = "fast"
mode = "both"
backend = "cpu"
threads = 1
set = {threshold = 0.6}
[labels]
kind = "threshold"
threshold = 0.3
workers = 0
[affinity]
arch = "small"
weights = "classify"
crop = 96
epochs = 1
batch = 4
threads = 1
[walk]
log2_steps = 2
crf = {iterations = 1}
threads = 1
workers = 0
[saliency]
superpixels = 60
workers = 0
[segment]
arch = "small"
random = true
crop = 97
epochs = 1
batch = 4
saliency_mode = "refine"
threads = 1
[test]
scales = [1.0]
mirror = false
crf = false
threads = 1
workers = 0
"""


def test_every_table_that_is_documented_runs(tmp_path: Path) -> None:
    """Nets that have learned nothing: what each table asks for is done, kept, and done again for another setting."""
    pytest.importorskip("pydensecrf")
    write_voc_tree(tmp_path / "voc", 6, 3, (96, 120), train=6)
    file = tmp_path / "settings.toml"
    file.write_text(DATA + EVERY_TABLE)
    found = run(file, tmp_path / "out")
    assert list(found) == ["classify", "maps", "labels", "affinity", "walk", "saliency", "segment", "test"]
    assert {o.status for o in found.values()} == {"done"}
    assert found["saliency"].figures == {"photos": 6.0}
    assert len(list((tmp_path / "out" / "saliency").glob("*.png"))) == 6
    assert {o.status for o in run(file, tmp_path / "out").values()} == {"kept"}
    file.write_text(DATA + EVERY_TABLE.replace("superpixels = 60", "superpixels = 50"))
    again = run(file, tmp_path / "out")
    assert [n for n, o in again.items() if o.status == "done"] == ["saliency", "segment", "test"]


@pytest.mark.parametrize(
    "data",
    [
        'images = "voc/JPEGImages"\nlimit = 3\n',
        'list = "ids.txt"\nroot = "voc/JPEGImages"\nclasses = "classes.txt"\n',
    ],
)
def test_other_sources_and_a_folder_of_saliency(tmp_path: Path, data: str) -> None:
    write_voc_tree(tmp_path / "voc", 4, 3, (96, 120), train=4)
    names = sorted(f.name for f in (tmp_path / "voc" / "JPEGImages").iterdir())[:3]
    (tmp_path / "ids.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    (tmp_path / "grey").mkdir()
    for name in names:
        cv2.imwrite(str(tmp_path / "grey" / f"{Path(name).stem}.png"), np.full((96, 120), 200, np.uint8))
    tables = EVERY_TABLE.replace("validate = true\n", "").replace(
        'saliency_mode = "refine"', 'saliency_mode = "background"\nsaliency = "grey"'
    )
    parts = [tables.index(f"[{name}]") for name in ("affinity", "segment", "test")]
    tables = tables[: parts[0]] + tables[parts[1] : parts[2]]
    file = tmp_path / "settings.toml"
    file.write_text('[data]\nlabels = "voc/labels.json"\n' + data + tables)
    found = run(file, tmp_path / "out")
    assert list(found) == ["classify", "maps", "labels", "segment"]
    assert {o.status for o in found.values()} == {"done"}
    assert len(list((tmp_path / "out" / "labels").glob("*.png"))) == 3


def command(*words: object) -> list[str]:
    return [str(Path(sys.executable).with_name("infercam")), "pipeline", *map(str, words)]


@pytest.mark.slow
def test_the_command_survives_kill_9(whole: dict[str, StepOutcome], root: Path, tmp_path: Path) -> None:
    words = [root / "settings.toml", "-o", tmp_path, "--until", "walk"]
    running = subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "affinity" / "last.ckpt").exists():
        assert running.poll() is None
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    ran = subprocess.run(command(*words), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    summary = {s["step"]: s for s in json.loads((tmp_path / "summary.json").read_text())}
    assert summary["labels"]["status"] == "kept" and summary["walk"]["status"] == "done"
    assert summary["walk"]["figures"] == pytest.approx(whole["walk"].figures)
    ran = subprocess.run(command(*words, "--dry-run"), capture_output=True, text=True)
    assert ran.stdout.split() == ["maps", "keep", "labels", "keep", "affinity", "keep", "walk", "keep"]


@pytest.mark.slow
def test_from_photos_alone(tmp_path: Path) -> None:
    """With a classifier of its own, whose weights the later networks start from, and a dense CRF."""
    pytest.importorskip("pydensecrf")
    write_voc_tree(tmp_path / "voc", 110, 5, (128, 160), train=80)
    demo_weights(tmp_path / "small.pth")
    classify = """
[classify]
arch = "small"
weights = "small.pth"
augment = "split-unite"
epochs = 12
refresh = 4
rate = 0.02
head_scale = 10.0
batch = 16
warmup = 5
long_side = [90, 200]
crop = 128
side = 160
validate = true
threads = 2
"""
    steps = STEPS.format(classifier="").replace("small.pth", "classify").replace("threads = 1", "threads = 2")
    steps = steps.replace("crf = false", "crf = true").replace("epochs = 20", "epochs = 6")
    data = DATA.replace('val_split = "train"', 'val_split = "val"')
    (tmp_path / "settings.toml").write_text(data + classify + steps)
    found = run(tmp_path / "settings.toml", tmp_path / "out")
    assert found["classify"].figures["mAP"] > 35  # a class is in 22 % of the scenes
    assert found["maps"].figures["best mIoU"] > 1.5 * CHANCE
    assert found["walk"].figures["mIoU after CRF"] > 1.2 * CHANCE
    assert found["test"].figures["mIoU"] > CHANCE
