"""Metrics without a threshold: pointing, energy inside, insertion and deletion; against OpenVINO XAI's own code."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infercam.engine.api import Engine
from infercam.engine.common.errors import InputError
from infercam.engine.data.voc_xml import read_objects
from infercam.engine.evaluation.label_png import write_label
from infercam.engine.explanations.evaluate import evaluate_explanations, pointing
from infercam.engine.explanations.insertion import area, insertion_deletion, network_inputs, ranks
from infercam.engine.explanations.pointing import ClassBox, pointed, region_of_boxes, region_of_mask
from infercam.engine.live import LiveEngine
from infercam.engine.method import reference
from infercam.engine.store.mapstore import MapRecord, MapStore
from tests.engine import tiny

STEPS = 7


@pytest.fixture(scope="module")
def live(tiny_bundle):
    with Engine.load(tiny_bundle, backend="cpu", threads=1) as engine, LiveEngine(engine) as found:
        yield found


# -- pointing --------------------------------------------------------------------------------------------------
def test_pointed_by_hand():
    values = np.array([[0.1, 0.4], [0.3, 0.2]], np.float32)
    inside = np.array([[False, True], [False, True]])
    assert pointed(values, inside) == (1.0, pytest.approx(0.6))
    assert pointed(values, ~inside) == (0.0, pytest.approx(0.4))
    assert pointed(np.zeros((2, 2), np.float32), np.ones((2, 2), bool)) == (0.0, 0.0)
    twice = np.array([[1, 0], [0, 1]], np.float32)  # of several highest pixels any will do
    assert pointed(twice, inside).hit == 1 and pointed(twice, ~inside).hit == 1


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
def test_parts_of_a_map_share_its_energy(height, width, seed):
    random = np.random.default_rng(seed)
    values = random.random((height, width), np.float32) + np.float32(0.01)
    inside = random.random((height, width)) < 0.5
    here, there = pointed(values, inside), pointed(values, ~inside)
    assert here.energy + there.energy == pytest.approx(1) and here.hit + there.hit == 1


def test_regions():
    mask = np.array([[0, 2, 255], [1, 2, 0]], np.uint8)
    assert region_of_mask(mask, 1).tolist() == [[False, True, False], [False, True, False]]
    assert region_of_mask(mask, 2) is None
    boxes = [ClassBox(1, 1, 0, 1, 0), ClassBox(1, -3, 1, 0, 99), ClassBox(0, 0, 0, 2, 2)]
    assert region_of_boxes(boxes, 1, (2, 3)).tolist() == [[False, True, False], [True, False, False]]
    assert region_of_boxes(boxes, 4, (2, 3)) is None


def test_boxes_of_annotations(tmp_path):
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>10.4</xmax><ymax>9</ymax></bndbox>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    bad = "<bndbox><xmin>9</xmin><ymin>1</ymin><xmax>nan</xmax><ymax>2</ymax></bndbox>"
    objects = (f"<name>dog</name>{box}{part}", "<name>cat</name>", f"<name>cow</name>{bad}")
    text = "".join(f"<object>{one}</object>" for one in objects)
    (tmp_path / "a.xml").write_text(f"<annotation>{text}</annotation>")
    assert read_objects(tmp_path / "a.xml") == [
        ("dog", False, (1, 2, 9, 8)),
        ("cat", False, None),
        ("cow", False, None),
    ]


# -- insertion and deletion ------------------------------------------------------------------------------------
def test_area_and_ranks():
    assert area(np.array([0.0, 1.0])) == 0.5 and area(np.array([0, 1.0, 1.0])) == 0.75
    values = np.array([[0.2, 0.9], [0.9, 0.1]], np.float32)
    assert ranks(values, (2, 2)).tolist() == [[2, 0], [1, 3]]  # equal ones in reading order
    assert sorted(ranks(values, (5, 3)).ravel()) == list(range(15))


def twin(bundle, pixels: np.ndarray, values: np.ndarray, label: int, fill: str) -> tuple[float, float]:
    """Literal: every picture of the curve on its own, through the network in NumPy."""
    spec = bundle.manifest.input
    network, bias = tiny.numpy_network(), tiny.weights()["bias"]
    full = reference.normalise(pixels, spec)
    empty = {
        "mean": full.mean(axis=(1, 2), dtype=np.float64),
        "black": reference.normalise(pixels * 0, spec)[:, 0, 0],
    }
    curves = np.zeros((2, STEPS + 1))
    order = np.argsort(-values.ravel(), kind="stable")
    for step in range(STEPS + 1):
        chosen = np.zeros(values.size, bool)
        chosen[order[: int(step * values.size / STEPS)]] = True
        for row, shown in enumerate((chosen, ~chosen)):
            x = np.where(shown.reshape(values.shape), full, empty[fill].astype(np.float32)[:, None, None])
            logit = network(x[None])[0, label].mean() + bias[label]
            curves[row, step] = 1 / (1 + np.exp(-logit))
    return area(curves[0]), area(curves[1])


@settings(max_examples=8)
@given(st.integers(5, 24), st.integers(5, 24), st.sampled_from(["mean", "black"]), st.integers(0, 99))
def test_as_the_twin(live, tiny_bundle, height, width, fill, seed):
    pixels = tiny.picture(height, width, seed)
    maps = np.random.default_rng(seed).random((2, height, width), np.float32)
    found = insertion_deletion(live, pixels, maps, [3, 1], STEPS, fill)
    for areas, values, label in zip(found, maps, [3, 1], strict=True):
        wanted = twin(tiny_bundle, pixels, values, label, fill)
        assert (areas.insertion, areas.deletion) == pytest.approx(wanted, abs=2e-5)


def test_more_steps_than_a_batch_and_one(live):
    pixels, maps = tiny.picture(20, 30), np.random.default_rng(0).random((1, 20, 30), np.float32)
    (fine,) = insertion_deletion(live, pixels, maps, [0], 40)
    (coarse,) = insertion_deletion(live, pixels, maps, [0], 1)
    assert coarse.insertion == pytest.approx(coarse.deletion)  # both are the mean of the two ends
    assert 0 < fine.insertion < 1 and fine.insertion != fine.deletion


def test_a_blurred_fill_keeps_the_mean(live):
    full, empty = network_inputs(live, tiny.picture(40, 50), "blur")
    assert np.abs(full.mean((1, 2)) - empty.mean((1, 2))).max() < 0.2 and empty.std() < full.std()


def test_as_openvino_xai(live):
    """Its own code on the same maps and the same classifier."""
    deletion = pytest.importorskip("openvino_xai.metrics.insertion_deletion_auc", exc_type=ImportError)
    game = pytest.importorskip("openvino_xai.metrics.pointing_game", exc_type=ImportError)
    theirs = object.__new__(deletion.InsertionDeletionAUC)  # without its own runtime
    theirs.model_predict = lambda pixels: live.engine.probabilities(live.scores(pixels).result())
    random = np.random.default_rng(3)
    for n in range(4):
        pixels, maps = tiny.picture(24, 31, n), random.random((1, 24, 31), np.float32)
        (ours,) = insertion_deletion(live, pixels, maps, [n], STEPS, "black")
        wanted = theirs(maps[0], n, pixels, STEPS)
        assert ours.insertion == pytest.approx(wanted["insertion"], abs=1e-6)
        assert ours.deletion == pytest.approx(wanted["deletion"], abs=1e-6)
        x, y = (int(v) for v in random.integers(0, 20, 2))
        inside = region_of_boxes([ClassBox(0, x, y, x + 8, y + 9)], 0, (24, 31))
        hit = game.PointingGame()(maps[0], [(x, y, 8, 9)])["pointing_game"]
        assert pointed(maps[0], inside).hit == hit


# -- whole stores ----------------------------------------------------------------------------------------------
@pytest.fixture
def store(tmp_path):
    """Two pictures with maps and masks: a's cat is found, its dog is not; b has a cow that no mask has."""
    made = MapStore.create_or_open(tmp_path / "maps", classes=tiny.CLASSES, settings={}, dtype="float16")
    for id, classes in (("a", [0, 1]), ("b", [0, 3])):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(tiny.picture(12, 16)).save(tmp_path / "photos" / f"{id}.png")
        mask = np.zeros((12, 16), np.uint8)
        mask[:6], mask[6:, 8:] = 1, 2 if id == "a" else 0
        write_label(tmp_path / "masks" / f"{id}.png", mask)
        maps = np.zeros((2, 12, 16), np.float32)
        maps[:, :6] = 0.5
        made.write(MapRecord(id, classes, [tiny.CLASSES[c] for c in classes], maps), "made")
    return tmp_path


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str]:
    from infercam.engine import cli

    monkeypatch.setattr(sys, "argv", ["infercam", "eval", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as e:
        printed = capsys.readouterr()
        return int(e.code or 0), printed.out + printed.err
    printed = capsys.readouterr()
    return 0, printed.out + printed.err


def test_pointing_by_masks(store, monkeypatch, capsys):
    code, text = run(
        monkeypatch,
        capsys,
        store / "maps",
        "--gt",
        store / "masks",
        "--metric",
        "pointing",
        "--json",
        store / "f.json",
    )
    assert code == 0 and "pointing game" in text
    found = json.loads((store / "f.json").read_text())
    assert found["maps"] == 3 and found["images"] == 2
    assert found["figures"]["pointing_game"] == pytest.approx(2 / 3)
    assert found["by_class"]["cat"]["energy_inside"] == pytest.approx(1)
    assert found["by_class"]["dog"]["energy_inside"] == 0 and "cow" not in found["by_class"]


def test_pointing_by_boxes(store, monkeypatch, capsys):
    tree = store / "VOC2012"
    for folder in ("Annotations", "ImageSets/Segmentation"):
        (tree / folder).mkdir(parents=True)
    (store / "photos").rename(tree / "JPEGImages")
    (tree / "ImageSets" / "Segmentation" / "val.txt").write_text("a\nb\n")
    for id, y in (("a", 6), ("b", 3)):
        box = f"<bndbox><xmin>1</xmin><ymin>{y + 1}</ymin><xmax>16</xmax><ymax>12</ymax></bndbox>"
        objects = f"<object><name>cat</name>{box}</object><object><name>zebra</name>{box}</object>"
        (tree / "Annotations" / f"{id}.xml").write_text(f"<annotation>{objects}</annotation>")
    options = ["--voc", tree, "--split", "val", "--metric", "pointing", "--boxes", "--json", store / "f.json"]
    assert run(monkeypatch, capsys, store / "maps", *options)[0] == 0
    found = json.loads((store / "f.json").read_text())
    assert found["by_class"] == {
        "cat": {"maps": 2.0, "pointing_game": 0.5, "energy_inside": pytest.approx(0.25)}
    }


def test_insertion_needs_no_masks(store, tiny_bundle, live, monkeypatch, capsys):
    options = [
        "--images",
        store / "photos",
        "--bundle",
        tiny_bundle.path,
        "--backend",
        "cpu",
        "--steps",
        STEPS,
    ]
    command = [store / "maps", *options, "--metric", "insertion", "--json", store / "f.json"]
    assert run(monkeypatch, capsys, *command)[0] == 0
    found = json.loads((store / "f.json").read_text())
    assert found["maps"] == 4
    maps = MapStore.open(store / "maps").read("a").maps
    wanted = [insertion_deletion(live, tiny.picture(12, 16), maps, [0, c], STEPS) for c in (1, 3)]
    flat = [a for two in wanted for a in two]
    assert found["figures"]["insertion"] == pytest.approx(np.mean([a.insertion for a in flat]))
    assert found["figures"]["difference"] == pytest.approx(np.mean([a.insertion - a.deletion for a in flat]))


def test_what_is_not_given_is_one_line(store, monkeypatch, capsys):
    (store / "maps" / "b.npz").unlink()
    for options, message in (
        (["--metric", "points"], "--metric is miou, or of pointing, insertion; not 'points'"),
        (["--metric", "insertion", "--fill", "red"], "--fill is one of mean, black, blur, not 'red'"),
        (["--metric", "insertion", "--images", store / "photos"], "give --bundle"),
        (
            ["--metric", "pointing", "--boxes", "--gt", store / "masks"],
            "--boxes reads the annotations of a VOC tree",
        ),
        (["--metric", "pointing"], "name the ground truth"),
        (["--gt", store / "masks", "--images", store / "photos"], "--images goes with --metric insertion"),
        (["--gt", store / "masks", "--limit", "1"], "--limit goes with --metric insertion"),
        (["--gt", store / "masks", "--boxes"], "--boxes goes with --metric pointing"),
        (["--metric", "pointing", "--gt", store / "masks"], "has no maps for 1 of 2 images (first: b)"),
    ):
        code, text = run(monkeypatch, capsys, store / "maps", *options)
        assert code == 1 and message in " ".join(text.split()) and "Traceback" not in text
    skipping = ["--metric", "pointing", "--gt", store / "masks", "--missing", "skip"]
    assert run(monkeypatch, capsys, store / "maps", *skipping)[0] == 0


def test_nothing_to_score(store):
    with pytest.raises(InputError, match="nothing to score"):
        evaluate_explanations(MapStore.open(store / "maps"), ["a"], [pointing(lambda id, label, size: None)])
