"""Evaluation against a brute-force twin, and everything that may be wrong with its input."""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from infercam.engine.common.errors import InfercamError, InputError, MissingExtra, StoreError
from infercam.engine.evaluation.evaluate import (
    THRESHOLDS,
    JointHistogram,
    add_intervals,
    compare,
    count_image,
    evaluate,
    evaluate_store,
    folder_ground_truth,
    read_mask,
    summarise,
    voc_ground_truth,
)
from infercam.engine.evaluation.histogram import threshold_bins
from infercam.engine.evaluation.plots import plot_evaluation
from infercam.engine.store.mapstore import MapRecord, MapStore
from tests.shared import SHARED

NAMES = ["cat", "dog", "cow"]


def brute_force(records: list, n_classes: int) -> dict[str, np.ndarray]:
    """One confusion matrix per threshold by numpy.argmax over [t, A_0, ...], as engine/method/README.md §4 has it."""
    hits, predicted = np.zeros((2, n_classes + 1, 100), int)
    true = np.zeros(n_classes + 1, int)
    active = objects = 0
    for maps, classes, mask in records:
        scale = np.float32(255) if maps.dtype == np.uint8 else np.float32(1)
        full = np.zeros((n_classes + 1, *mask.shape), np.float32)
        for c, m in zip(classes, maps, strict=True):
            full[c + 1] = m.astype(np.float32) / scale
        valid = mask != 255
        for i in range(100):
            full[0] = np.float32(i / 100)
            label = full.argmax(axis=0)
            for c in range(n_classes + 1):
                hits[c, i] += (valid & (label == c) & (mask == c)).sum()
                predicted[c, i] += (valid & (label == c)).sum()
        for c in range(n_classes + 1):
            true[c] += (mask == c).sum()
        is_object = valid & (mask > 0)
        objects += is_object.sum()
        active += (is_object & (full[1:] > 0).any(axis=0)).sum()
    union = true[:, None] + predicted - hits
    iou = np.where(union > 0, hits / np.maximum(union, 1), 0)[true > 0]
    return {
        "curve": iou.sum(axis=0) / max(len(iou), 1),
        "active": active / objects if objects else None,
        "iou": iou,
    }


@st.composite
def images(draw, n_classes: int):
    """Few distinct values, on and beside the thresholds, so that ties of every kind are frequent."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 7)))
    classes = draw(st.permutations(range(n_classes)))[: draw(st.integers(0, n_classes))]
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    ties = np.concatenate([THRESHOLDS[[0, 1, 29, 30, 57, 58, 99]], [0, 0, 0.5, 0.999, 1]]).astype(np.float32)
    pool = np.concatenate([ties, np.nextafter(ties, 1), np.nextafter(ties, 0)]).astype(np.float32)
    maps = rng.choice(pool, size=(len(classes), *shape)).astype(np.float32)
    dtype = draw(st.sampled_from(["float32", "float16", "uint8"]))
    if dtype == "uint8":
        maps = np.rint(maps * 255).astype(np.uint8)
    mask = rng.choice([*range(n_classes + 1), 255], size=shape).astype(np.uint8)
    return maps.astype(dtype), classes, mask


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_brute_force(data) -> None:
    n_classes = data.draw(st.integers(1, 5))
    records = data.draw(st.lists(images(n_classes), min_size=1, max_size=4))
    expected = brute_force(records, n_classes)
    if not expected["active"] and not any(((m > 0) & (m < 255)).any() for *_, m in records):
        with pytest.raises(InputError, match="ignored"):
            evaluate(records, n_classes)
        return
    found = evaluate(records, n_classes)
    assert np.allclose(found.all.curve, expected["curve"], atol=1e-12)
    assert found.all.miou == found.all.curve.max() and found.all.step == found.all.curve.argmax()
    assert found.active_share == expected["active"]
    counted = ~np.isnan(found.iou)
    assert np.allclose(found.iou[counted], expected["iou"][:, found.all.step])


@given(st.lists(st.floats(0, 1, width=32), min_size=1))
def test_bins_count_the_thresholds_strictly_below(values: list[float]) -> None:
    activation = np.array(values, np.float32)
    expected = (THRESHOLDS[:, None] < activation).sum(axis=0)
    assert np.array_equal(threshold_bins(activation), expected)


def test_bins_at_every_threshold_and_a_thousand_floats_around_it() -> None:
    for t in THRESHOLDS:
        bits = int(t.view(np.int32))
        near = np.arange(max(0, bits - 1000), bits + 1000, dtype=np.int32).view(np.float32)
        assert np.array_equal(threshold_bins(near), (THRESHOLDS[:, None] < near).sum(axis=0))
    levels = np.arange(256, dtype=np.uint8)
    expected = (THRESHOLDS[:, None] < levels / np.float32(255)).sum(axis=0)
    assert np.array_equal(threshold_bins(levels), expected)


def test_hand_made_image() -> None:
    maps = np.array([[[0.5, 0.5, 0.0, 0.9]]], np.float32)
    mask = np.array([[1, 0, 1, 255]], np.uint8)
    found = evaluate([(maps, [0], mask)], 1)
    # below 0.5: object and background both 1/3 of their union; from 0.5 on all is background
    assert found.all.curve[49] == pytest.approx((1 / 3 + 0) / 2)
    assert found.all.curve[50] == pytest.approx((0 + 1 / 3) / 2)
    assert found.active_share == 0.5


def test_ties_between_classes_go_to_the_lower_index_whatever_the_order() -> None:
    maps = np.full((2, 1, 1), 0.5, np.float32)
    mask = np.array([[2]], np.uint8)
    for classes in ([1, 4], [4, 1]):
        counts = count_image(maps, classes, mask, 5)
        assert counts.hits[counts.labels == 2, 0] == 1


def test_order_and_merging_do_not_matter() -> None:
    records = sample_records(9)
    whole = evaluate(records, 3)
    parts = [JointHistogram(3) for _ in range(3)]
    for part, record in zip(itertools.cycle(parts), records, strict=False):
        part.add(*record)
    total = JointHistogram(3)
    for part in parts:
        total.merge(part)
    merged = summarise(total)
    assert np.array_equal(merged.all.curve, whole.all.curve)
    assert merged.images == 9 and len(merged.counts or []) == 9
    with pytest.raises(InputError):
        total.merge(JointHistogram(4))


def sample_records(count: int, seed: int = 0, noise: float = 0.3) -> list:
    """Squares of one or two classes with noisy maps."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(count):
        mask = np.zeros((20, 24), np.uint8)
        classes = [int(c) for c in sorted(rng.permutation(3)[: 1 + i % 2])]
        for k, c in enumerate(classes):
            mask[4:12, 3 + 10 * k : 10 + 10 * k] = c + 1
        mask[0] = 255
        maps = np.stack([(mask == c + 1) * 0.6 for c in classes]).astype(np.float32)
        maps = np.clip(maps + noise * np.random.default_rng(i).random(maps.shape), 0, 1).astype(np.float32)
        records.append((maps, classes, mask))
    return records


def test_groups_and_frequent_classes() -> None:
    records = sample_records(12)
    found = evaluate(records, 3, min_images=7, class_names=NAMES)
    single = [r for r in records if len(r[1]) == 1]
    assert set(found.groups) == {"1", "2"} and found.groups["1"].images == 6
    own = brute_force(single, 3)["curve"]
    assert found.groups["1"].own.miou == pytest.approx(own.max())
    assert found.groups["1"].at_overall_threshold == pytest.approx(own[found.all.step])
    often = [0, *(c + 1 for c in range(3) if sum(c in r[1] for r in records) >= 7)]
    assert 1 < len(often) < 4  # the sample has both kinds
    assert found.frequent is not None and found.frequent.labels == often
    assert evaluate(records, 3, min_images=99).frequent is None
    assert found.images_with.tolist()[0] == 12


def test_classes_without_ground_truth_are_not_averaged() -> None:
    maps = np.array([[[0.9, 0.2]], [[0.1, 0.8]]], np.float32)
    found = evaluate([(maps, [0, 2], np.array([[1, 0]], np.uint8))], 3)
    assert found.all.labels == [0, 1] and np.isnan(found.iou[3])
    assert found.all.curve[50] == pytest.approx(0.5)  # the false 'cow' costs background its only pixel


def test_image_without_classes() -> None:
    mask = np.array([[0, 1]], np.uint8)
    found = evaluate([(np.zeros((0, 5, 5), np.uint8), [], mask)], 2)
    assert found.active_share == 0 and found.all.curve[0] == pytest.approx(0.25)
    beside = evaluate([(np.zeros((0, 1, 2), np.uint8), [], m) for m in (mask, mask * 0)], 2)
    assert beside.images == 2 and set(beside.groups) == {"1"}
    json.dumps(beside.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("maps", "classes", "mask", "says"),
    [
        (np.zeros((1, 2, 3), np.float32), [0], np.zeros((3, 2), np.uint8), "3×2.*2×3"),
        (np.zeros((1, 2, 2), np.float32), [0], np.full((2, 2), 4, np.uint8), "value 4"),
        (np.zeros((1, 2, 2), np.float32), [0], np.full((2, 2), 254, np.uint8), "value 254"),
        (np.zeros((1, 2, 2), np.float32), [0], np.full((2, 2), 300, np.int32), "value 300"),
        (np.zeros((1, 2, 2), np.float32), [0], np.full((2, 2), -1, np.int32), "plane of labels"),
        (np.zeros((1, 2, 2), np.float32), [0], np.zeros((2, 2, 3), np.uint8), "plane of labels"),
        (np.zeros((1, 2, 2), np.float32), [0], np.zeros((2, 2), np.float32), "plane of labels"),
        (np.zeros((2, 2, 2), np.float32), [0], np.zeros((2, 2), np.uint8), "for 1 classes"),
        (np.zeros((1, 2, 2), np.float32), [3], np.zeros((2, 2), np.uint8), "below 3"),
        (np.zeros((2, 2, 2), np.float32), [1, 1], np.zeros((2, 2), np.uint8), "repeat"),
        (np.full((1, 2, 2), np.nan, np.float32), [0], np.zeros((2, 2), np.uint8), "NaN"),
    ],
)
def test_input_that_does_not_fit(maps, classes, mask, says) -> None:
    with pytest.raises(InputError, match=says):
        JointHistogram(3).add(maps, classes, mask, "img")


def test_nothing_to_evaluate() -> None:
    with pytest.raises(InputError, match="no images"):
        evaluate([], 3)
    with pytest.raises(InputError, match="254"):
        JointHistogram(255)


def test_bootstrap_equals_explicit_resampling() -> None:
    records = sample_records(10)
    found = evaluate(records, 3, min_images=1)
    add_intervals(found, resamples=130, seed=3)
    random = np.random.default_rng(3)
    values = []
    for start in (0, 64, 128):
        rows = random.multinomial(10, np.full(10, 0.1), size=min(64, 130 - start))
        for row in rows:
            drawn = [records[i] for i, n in enumerate(row) for _ in range(n)]
            values.append(evaluate(drawn, 3).all.miou)
    low, high = np.percentile(values, [2.5, 97.5])
    assert found.intervals["all"].low == pytest.approx(low)
    assert found.intervals["all"].high == pytest.approx(high)
    assert found.intervals["all"].std == pytest.approx(np.std(values))
    assert found.resamples == 130 and found.to_json()["all_classes"]["interval_95"][0] == pytest.approx(low)


def test_compare_sees_a_real_gain_and_no_false_one() -> None:
    good, bad = (evaluate(sample_records(30, noise=n), 3) for n in (0.5, 0.9))
    gain = compare(bad, good, 300)["all"]
    assert gain.difference == pytest.approx(good.all.miou - bad.all.miou) and gain.difference > 0
    assert gain.interval.low > 0 and gain.not_better == 0
    same = compare(good, good, 300)["all"]
    assert same.difference == 0 and same.not_better == 0.5 and same.interval.std == 0
    back = compare(good, bad, 300)["all"]
    assert back.difference == pytest.approx(-gain.difference) and back.not_better == 1


def test_compare_pairs_by_id_and_refuses_other_images() -> None:
    records = sample_records(6)

    def run(order: list[int], name: str = "") -> object:
        histogram = JointHistogram(3)
        for i in order:
            histogram.add(*records[i], id=f"{name}{i}")
        return summarise(histogram)

    a = run([0, 1, 2, 3, 4, 5])
    assert compare(a, run([5, 4, 3, 2, 1, 0]), 50)["all"].interval.std == 0
    for other in (run([0, 1, 2]), run([0, 1, 2, 3, 4, 5], "x"), run([0, 0, 1, 2, 3, 4])):
        with pytest.raises(InputError, match="different images"):
            compare(a, other, 10)
    records[3] = (records[3][0], records[3][1], records[3][2] * 0)
    with pytest.raises(InputError, match=r"3: .*ground truth"):
        compare(a, run([0, 1, 2, 3, 4, 5]), 10)
    histogram = JointHistogram(3, keep_images=False)
    histogram.add(*records[0])
    with pytest.raises(InputError, match="keep_images"):
        add_intervals(summarise(histogram))


def write_mask(file: Path, mask: np.ndarray, mode: str = "P") -> None:
    image = Image.fromarray(mask, mode="L")
    if mode == "P":
        image = Image.frombytes("P", mask.shape[::-1], mask.tobytes())
        # A palette in which no entry equals its index, so that colours cannot pass for labels.
        image.putpalette([(37 * i + 11) % 256 for i in range(768)])
    elif mode != "L":
        image = image.convert(mode)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def grey_of_four_bits() -> bytes:
    """A 2×1 PNG with the values 1 and 2, which Pillow reads as 17 and 34."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\x00\x12")) + chunk(b"IEND", b"")


@pytest.fixture
def scene(tmp_path: Path) -> tuple[MapStore, Path]:
    """A store and a VOC tree of 40 images with palette masks."""
    root = tmp_path / "VOC2012"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    store = MapStore.create_or_open(tmp_path / "maps", classes=NAMES, settings={"recipe": "x"})
    ids = []
    for i, (maps, classes, mask) in enumerate(sample_records(40)):
        ids.append(f"2007_{i:06d}")
        store.write(MapRecord(ids[-1], classes, [NAMES[c] for c in classes], maps), "fp")
        write_mask(root / "SegmentationClass" / f"{ids[-1]}.png", mask)
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(ids) + "\n")
    return store, root


def test_masks_are_read_as_indices(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 20], [255, 3, 3]], np.uint8)
    for mode in ("P", "L"):
        write_mask(tmp_path / f"{mode}.png", mask, mode)
        assert np.array_equal(read_mask(tmp_path / f"{mode}.png"), mask)
    for mode in ("RGB", "RGBA", "1", "LA", "I;16"):
        write_mask(tmp_path / "bad.png", mask, mode)
        with pytest.raises(InputError, match=r"bad\.png: mode"):
            read_mask(tmp_path / "bad.png")
    (tmp_path / "bad.png").write_bytes(grey_of_four_bits())
    with pytest.raises(InputError, match=r"bad\.png: mode L of 4 bits"):
        read_mask(tmp_path / "bad.png")
    whole = (tmp_path / "P.png").read_bytes()
    for bad in (b"", b"junk", whole[:-30], whole[:40]):
        (tmp_path / "bad.png").write_bytes(bad)
        with pytest.raises(InputError, match=r"bad\.png: ") as caught:
            read_mask(tmp_path / "bad.png")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        read_mask(tmp_path / "missing.png")


def test_store_evaluation_in_one_and_two_processes(scene) -> None:
    store, root = scene
    truth = voc_ground_truth(root, "val")
    seen: list[int] = []
    one = evaluate_store(store, truth, progress=seen.append)
    two = evaluate_store(store, truth, workers=2)
    assert one.to_json() == two.to_json()
    assert sum(seen) == 40 and one.images == 40 and one.split == "val"
    assert str(root / "SegmentationClass") in one.ground_truth
    direct = evaluate(sample_records(40), 3)
    assert abs(one.all.miou - direct.all.miou) < 1e-3  # uint8 against float32


def test_errors_in_a_worker_reach_the_caller_as_one_line(scene) -> None:
    store, root = scene
    write_mask(root / "SegmentationClass/2007_000035.png", np.zeros((20, 25), np.uint8))
    with pytest.raises(InputError, match="2007_000035: maps are 24×20, the ground truth is 25×20"):
        evaluate_store(store, voc_ground_truth(root, "val"), workers=2)
    store.file("2007_000035").write_bytes(b"junk")
    with pytest.raises(StoreError, match=r"2007_000035\.npz: corrupt"):
        evaluate_store(store, voc_ground_truth(root, "val"))


def test_missing_maps(scene) -> None:
    store, root = scene
    for i in (3, 5):
        store.file(f"2007_{i:06d}").unlink()
    truth = voc_ground_truth(root, "val")
    with pytest.raises(
        InputError, match=r"no maps for 2 of the 40 images of val \(2007_000003, 2007_000005\)"
    ):
        evaluate_store(store, truth)
    skipped = evaluate_store(store, truth, missing="skip")
    assert (skipped.images, skipped.missing) == (38, 2)
    zero = evaluate_store(store, truth, missing="zero")
    assert (zero.images, zero.missing) == (40, 2)
    assert zero.active_share is not None and skipped.active_share is not None
    assert zero.active_share < skipped.active_share
    with pytest.raises(InputError, match="missing is one of"):
        evaluate_store(store, truth, missing="ignore")
    empty = MapStore.create_or_open(root / "empty", classes=NAMES, settings={})
    with pytest.raises(InputError, match="none at all"):
        evaluate_store(empty, truth, missing="skip")


def test_folder_of_masks(scene) -> None:
    store, root = scene
    masks = root / "SegmentationClass"
    by_folder = evaluate_store(store, folder_ground_truth(masks))
    assert by_folder.all.miou == evaluate_store(store, voc_ground_truth(root, "val", masks)).all.miou
    with pytest.raises(InputError, match=r"no \.png"):
        folder_ground_truth(root / "ImageSets")
    with pytest.raises(InputError, match="no such folder"):
        folder_ground_truth(root / "nowhere")


def invoke(*arguments: object):
    import typer

    from infercam.engine.commands import register

    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_command(scene, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    store, root = scene
    out, plot = tmp_path / "r.json", tmp_path / "r.png"
    ran = invoke("eval", store.path, "--voc", root, "--split", "val", "--json", out, "--plot", plot)
    assert ran.exit_code == 0, ran.output
    assert "40 images of val" in ran.output and "SegmentationClass" in ran.output.replace("\n", "")
    found = json.loads(out.read_text())
    expected = evaluate_store(store, voc_ground_truth(root, "val"), bootstrap=1000)
    assert found == json.loads(json.dumps(expected.to_json()))
    assert found["settings"] == {"recipe": "x"} and len(found["all_classes"]["curve"]) == 100
    assert set(found["iou_at_best_threshold"]) == {"background", *NAMES}
    assert f"{100 * expected.all.miou:.2f}" in ran.output
    with Image.open(plot) as picture:
        assert picture.size[0] > 500


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--voc ROOT --split NAME, or --gt"),
        (["--voc", "{root}"], "--voc ROOT"),
        (["--voc", "{root}", "--split", "test"], "no split"),
        (["--voc", "{root}", "--split", "val", "--plot", "x.txt"], "x.txt"),
        (["--voc", "{root}", "--split", "val", "--missing", "maybe"], "--missing"),
        (["--voc", "{root}", "--split", "val", "--format", "psa"], "npz"),
        (["--voc", "{root}", "--split", "val", "--format", "rar"], "--format"),
        (
            ["--voc", "{root}", "--split", "val", "--json", "{root}/ImageSets/Segmentation/val.txt/x"],
            "val.txt",
        ),
    ],
)
def test_command_errors_are_one_line(scene, options: list[str], says: str) -> None:
    store, root = scene
    ran = invoke("eval", store.path, *(o.format(root=root) for o in options))
    assert isinstance(ran.exception, InfercamError)
    assert says in str(ran.exception) and "\n" not in str(ran.exception)


def test_plot_without_matplotlib_fails_before_counting(tmp_path: Path, monkeypatch) -> None:
    found = evaluate(sample_records(2), 3)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"infercam\[plot\]"):
        plot_evaluation(found, tmp_path / "a.png")


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")
def test_uint8_is_within_a_tenth_of_a_point_on_real_maps(tmp_path: Path) -> None:
    """Baseline CAMs at scales 1 and 0.5 of a real classifier on real photos (the first 20 of val)."""
    records = _real_records(20)
    exact = evaluate(records, 20)
    stores = {}
    for dtype in ("uint8", "float16"):
        store = MapStore.create_or_open(
            tmp_path / dtype, dtype=dtype, classes=[f"c{i}" for i in range(20)], settings={}
        )
        sizes = [
            store.write(MapRecord(f"{i}", classes, [f"c{c}" for c in classes], maps), "fp")
            for i, (maps, classes, _) in enumerate(records)
        ]
        decoded = [(store.read_stored(f"{i}").maps, r[1], r[2]) for i, r in enumerate(records)]
        stores[dtype] = (evaluate(decoded, 20), np.mean(sizes))
    for found, _ in stores.values():
        assert abs(found.all.miou - exact.all.miou) < 0.001
        assert np.abs(found.all.curve - exact.all.curve).max() < 0.003
        assert found.active_share == exact.active_share
    assert stores["uint8"][1] < 60_000


def _real_records(count: int) -> list:
    import cv2

    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    model = onnx.load(SHARED / "models" / "mobilenetv2_voc.onnx")
    pooled = next(n.input[0] for n in model.graph.node if n.op_type == "GlobalAveragePool")
    head = next(n for n in reversed(model.graph.node) if n.op_type == "Conv")
    weights = next(onnx.numpy_helper.to_array(i) for i in model.graph.initializer if i.name == head.input[1])
    model.graph.output.append(onnx.helper.make_tensor_value_info(pooled, 1, None))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    labels = json.loads((SHARED / "voc" / "labels.json").read_text())
    truth = voc_ground_truth(SHARED / "voc", "val")
    records = []
    for id, file in truth.pairs[:count]:
        photo = cv2.imread(str(SHARED / "voc/VOC2012/JPEGImages" / f"{id}.jpg"))[:, :, ::-1]
        classes = sorted(
            labels["classes"].index(n) if isinstance(n, str) else n for n in labels["labels"][id]
        )
        cams = sum(_cam(session, pooled, weights[classes, :, 0, 0], photo, s) for s in (1, 0.5))
        maps = cams / (cams.max(axis=(1, 2), keepdims=True) + 1e-5)
        records.append((maps.astype(np.float32), classes, read_mask(file)))
    return records


def _cam(session, pooled: str, weights: np.ndarray, photo: np.ndarray, scale: float) -> np.ndarray:
    import cv2

    height, width = photo.shape[:2]
    small = cv2.resize(photo, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_CUBIC)
    x = (small / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    features = session.run([pooled], {"image": x.astype(np.float32).transpose(2, 0, 1)[None]})[0][0]
    cams = np.maximum(np.tensordot(weights, features, 1), 0)
    return np.stack([cv2.resize(c, (width, height), interpolation=cv2.INTER_LINEAR) for c in cams])
