"""The demo: its scenes, its committed bundle, its pictures and its command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from infercam.engine.api import Engine
from infercam.engine.bundle import Bundle
from infercam.engine.cli import app
from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.data import voc
from infercam.engine.demo import drawing, paint
from infercam.engine.demo.ablation import BUNDLE, Ablation, ablation, prepare
from infercam.engine.demo.creatures import PLANS, creature, decoy
from infercam.engine.demo.gallery import chosen, pseudo_label, write_gallery
from infercam.engine.demo.picture import write_picture
from infercam.engine.demo.report import conclusion, table, write_results
from infercam.engine.demo.scenes import CLASS_NAMES, MIN_VISIBLE, Scene, scene, write_voc_tree
from infercam.engine.method.geometry import Box
from infercam.engine.method.recipe import MODES, recipe

MAX_BUNDLE_BYTES = 2_000_000


# ---- scenes ---------------------------------------------------------------------------------------------


def test_a_scene_is_a_function_of_its_seed() -> None:
    first, again, other = scene((3, 1)), scene((3, 1)), scene((3, 2))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, other.image)


def test_a_scene_does_not_depend_on_numpy_s_or_opencv_s_global_state() -> None:
    expected = scene(5).image
    np.random.seed(0)  # noqa: NPY002
    cv2.setRNGSeed(9)
    assert np.array_equal(scene(5).image, expected)


@settings(max_examples=20, deadline=None)
@example(seed=135931, size=(97, 211))  # its first attempt has a mark that lies outside the picture
@given(seed=st.integers(0, 10**6), size=st.sampled_from([(192, 240), (160, 128), (97, 211)]))
def test_what_every_scene_keeps(seed: int, size: tuple[int, int]) -> None:
    drawn = scene(seed, size)
    assert drawn.image.shape == (*size, 3) and drawn.image.dtype == np.uint8
    assert drawn.mask.shape == size and drawn.mask.dtype == np.uint8
    assert 1 <= len(drawn.classes) <= 3 and drawn.classes == sorted(set(drawn.classes))
    assert sorted(set(np.unique(drawn.mask)) - {0}) == [c + 1 for c in drawn.classes]  # labels are exact
    assert drawn.image.std() > 8  # never blank
    for c in drawn.classes:
        own = drawn.mask == c + 1
        assert (drawn.marks & own).any(), "a label without its evidence in the picture"
        assert (~drawn.marks & own).any(), "an object that is nothing but its mark"
    assert not (drawn.marks & (drawn.mask == 0)).any()


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return [scene((11, i)) for i in range(40)]


def test_the_mark_is_a_small_part_of_its_object(many: list[Scene]) -> None:
    shares = [drawn.marks.sum() / (drawn.mask > 0).sum() for drawn in many]
    assert np.mean(shares) < 0.2
    assert max(shares) < 0.5


def test_all_classes_and_numbers_of_classes_occur(many: list[Scene]) -> None:
    assert {len(s.classes) for s in many} == {1, 2, 3}
    assert {c for s in many for c in s.classes} == set(range(len(CLASS_NAMES)))


@pytest.mark.parametrize("label", range(len(CLASS_NAMES)))
def test_a_creature_has_a_body_of_its_plan_and_a_mark_of_its_own(label: int) -> None:
    made = creature(np.random.default_rng(1), label)
    names = {part.name for part in made.parts if not part.mark}
    sibling = {part.name for part in creature(np.random.default_rng(1), label ^ 1).parts if not part.mark}
    assert any(part.mark for part in made.parts)
    assert len(made.parts) >= 8
    assert len(names & sibling) >= 3  # the two classes of a plan share their other parts


def test_decoys_have_no_mark() -> None:
    rng = np.random.default_rng(0)
    assert not any(part.mark for _ in range(200) for part in decoy(rng).parts)
    for plan in PLANS:
        assert not any(part.mark for part in plan(rng, None))


def test_a_mark_that_is_hidden_makes_another_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels' evidence is checked after everything in front is painted."""
    from infercam.engine.demo import scenes

    monkeypatch.setattr(scenes, "MIN_VISIBLE", 1.1)  # cannot be reached
    monkeypatch.setattr(scenes, "ATTEMPTS", 3)
    with pytest.raises(RuntimeError, match="in 3 attempts"):
        scenes.scene(0)
    assert MIN_VISIBLE < 1


def test_voc_palette_is_the_published_one() -> None:
    table = np.frombuffer(voc.palette(), np.uint8).reshape(256, 3)
    published = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 15: (192, 128, 128)}
    published |= {20: (0, 64, 128), 255: (224, 224, 192)}
    assert {i: tuple(table[i].tolist()) for i in published} == published


def test_voc_tree(tmp_path: Path) -> None:
    ids = write_voc_tree(tmp_path, 5, seed=4, size=(96, 120), train=2)
    sets = tmp_path / "ImageSets/Segmentation"
    assert (sets / "train.txt").read_text().split() == ids[:2]
    assert (sets / "val.txt").read_text().split() == ids[2:]
    labels = json.loads((tmp_path / "labels.json").read_text())
    assert labels["classes"] == list(CLASS_NAMES)
    for i, name in enumerate(ids):
        drawn = scene((4, i), (96, 120))
        with Image.open(tmp_path / f"SegmentationClass/{name}.png") as mask:
            assert mask.mode == "P" and np.array_equal(np.asarray(mask), drawn.mask)
        with Image.open(tmp_path / f"JPEGImages/{name}.jpg") as photo:
            error = np.abs(np.asarray(photo).astype(int) - drawn.image)
            assert photo.size == (120, 96) and error.mean() < 6
        assert labels["labels"][name] == [CLASS_NAMES[c] for c in drawn.classes]


# ---- paint ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", paint.COATS)
def test_coats_are_textured_colours(kind: str) -> None:
    made = paint.coat(np.random.default_rng(0), kind, 60, 80, 8, (200, 60, 60), (40, 40, 160))
    assert made.shape == (60, 80, 3) and np.isfinite(made).all()
    assert made.std(axis=(0, 1)).max() > 5


def test_unknown_coat() -> None:
    with pytest.raises(ValueError, match="no coat 'tweed'"):
        paint.coat(np.random.default_rng(0), "tweed", 8, 8, 4, (0, 0, 0), (9, 9, 9))


def test_fill_paints_inside_only_and_clips_at_the_border() -> None:
    canvas = paint.Canvas(np.zeros((40, 50, 3), np.float32))
    covered = canvas.fill(paint.ellipse((50, 20), (10, 10)), (200, 100, 50), owner=3, edge=0)
    assert covered[20, 45] and not covered[20, 35]
    assert np.array_equal(canvas.owner == 3, covered)
    assert np.allclose(canvas.rgb[20, 45], (200, 100, 50))
    assert not canvas.rgb[:, :35].any()
    outside = canvas.fill(paint.ellipse((-90, -90), (5, 5)), (255, 0, 0), owner=4)
    assert not outside.any() and not (canvas.owner == 4).any()


# ---- the committed bundle -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine():
    with Engine.load(BUNDLE, threads=1) as loaded:
        yield loaded


def test_committed_bundle_is_small_and_unchanged() -> None:
    bundle = Bundle.load(BUNDLE)  # compares every SHA-256
    size = sum(f.stat().st_size for f in BUNDLE.iterdir())
    assert size <= MAX_BUNDLE_BYTES
    assert bundle.manifest.classes == list(CLASS_NAMES)
    assert bundle.manifest.stride == 8 and bundle.manifest.multi_label
    assert bundle.manifest.bias == [0.0] * len(CLASS_NAMES)
    assert "demo_classifier" in bundle.manifest.source["command"]
    assert bundle.manifest.source["settings"]["epochs"] > 1


def test_committed_classifier_knows_the_scenes(engine: Engine) -> None:
    """On scenes it was not trained on: the labels' scores stand out from the others'."""
    right = total = 0
    for i in range(16):
        drawn = scene((77, i))
        scores = engine.scores(drawn.image)
        top = np.argsort(-scores)[: len(drawn.classes)]
        right += len(set(top.tolist()) & set(drawn.classes))
        total += len(drawn.classes)
    assert right / total > 0.75


def test_plain_cam_leans_on_the_marks(engine: Engine) -> None:
    """The phenomenon that the scenes are for: strong responses concentrate on the mark's surroundings."""
    density_mark, density_rest = [], []
    for i in range(8):
        drawn = scene((78, i))
        maps = engine.maps(drawn.image, drawn.classes, "released", "baseline")
        strength = maps.max(axis=0)
        density_mark.append(strength[drawn.marks].mean())
        density_rest.append(strength[(drawn.mask > 0) & ~drawn.marks].mean())
    assert np.mean(density_mark) > 1.3 * np.mean(density_rest)


# ---- the ablation, its report and gallery ----------------------------------------------------------------


SCENES = 5


@pytest.fixture(scope="module")
def done(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    seen: list[tuple[str, int, int]] = []
    out = tmp_path_factory.mktemp("demo") / "out"
    made = ablation(engine, out, SCENES, recipe("released"), 2022, lambda *step: seen.append(step))
    assert {step for step, _, _ in seen} == {"scenes", *MODES}
    assert all((step == "scenes" or step in MODES) and 0 <= n <= total == SCENES for step, n, total in seen)
    assert {step for step, n, total in seen if n == total} == {"scenes", *MODES}
    return made


def test_every_mode_is_run_and_evaluated(done: Ablation) -> None:
    assert [o.mode for o in done.outcomes] == list(MODES)
    baseline, *others = done.outcomes
    assert baseline.gain is None
    for outcome in done.outcomes:
        assert outcome.summary.done == outcome.result.images == SCENES
        assert 0 < outcome.result.all.miou < 1
        assert 0 < outcome.found <= 1 and 0 < outcome.right <= 1
        assert sorted(done.store(outcome.mode).ids()) == done.ids
    for outcome in others:
        assert outcome.gain is not None
        assert outcome.gain.difference == pytest.approx(outcome.result.all.miou - baseline.result.all.miou)
        assert outcome.summary.network_pixels > baseline.summary.network_pixels


def test_found_and_right_are_recall_and_precision(done: Ablation) -> None:
    outcome = done.outcomes[0]
    hit = labelled = true = 0
    for i, name in enumerate(done.ids):
        record = done.store("baseline").read(name)
        regions = pseudo_label(record.maps, outcome.result.all.threshold)
        mask = scene((2022, i)).mask
        for region, c in zip(regions, record.classes, strict=True):
            hit += int((region & (mask == c + 1)).sum())
            labelled += int(region.sum())
        true += int((mask > 0).sum())
    assert outcome.found == pytest.approx(hit / true, abs=1e-3)
    assert outcome.right == pytest.approx(hit / labelled, abs=1e-3)


def test_results_and_table(done: Ablation, tmp_path: Path) -> None:
    write_results(done, tmp_path / "results.json", 2022)
    read = json.loads((tmp_path / "results.json").read_text())
    assert list(read["modes"]) == list(MODES) and read["seed"] == 2022 and read["scenes"] == SCENES
    both = read["modes"]["both"]
    assert both["evaluation"]["all_classes"]["miou"] == pytest.approx(done.outcomes[3].result.all.miou)
    low, high = both["gain_over_baseline"]["interval_95"]
    assert low <= high
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table(done))
    text = console.export_text()
    assert "…" not in text, "the table does not fit 80 columns"
    for outcome in done.outcomes:
        assert f"{100 * outcome.result.all.miou:.1f}" in text


def test_conclusion_names_every_mode_once_and_its_limits(done: Ablation) -> None:
    said = conclusion(done)
    assert "says nothing of PASCAL VOC" in said and "\n" not in said
    for mode in MODES[1:]:
        assert said.count(f"{mode} (") == 1


def test_gallery_shows_the_first_scenes_of_each_number_of_classes(done: Ablation, tmp_path: Path) -> None:
    names = chosen(done)
    counts = [len(done.store("baseline").read(n).classes) for n in names]
    assert counts == sorted(counts) and 1 <= len(names) <= 6
    first = next(n for n in done.ids if len(done.store("baseline").read(n).classes) == counts[0])
    assert names[0] == first
    write_gallery(done, tmp_path / "gallery.png")
    with Image.open(tmp_path / "gallery.png") as picture:
        height, width = scene((2022, 0)).mask.shape
        assert picture.width > 6 * width and picture.height > len(names) * height
        photo = np.asarray(picture)[66 : 66 + height, 16 : 16 + width].astype(int)
    original = scene((2022, int(names[0].split("_")[1]))).image
    assert np.abs(photo - original).mean() < 6


def test_gallery_that_cannot_be_written(done: Ablation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        write_gallery(done, tmp_path / "file" / "gallery.png")


def test_again_gives_the_same_maps_and_replaces_the_folder(engine: Engine, tmp_path: Path) -> None:
    chosen_recipe = recipe("released")
    first = ablation(engine, tmp_path / "out", 2, chosen_recipe, 5, lambda *step: None)
    before = {m: first.store(m).read(first.ids[0]).maps for m in MODES}
    again = ablation(engine, tmp_path / "out", 1, chosen_recipe, 5, lambda *step: None)
    for mode in MODES:
        assert again.store(mode).ids() == again.ids == first.ids[:1]  # nothing is left of the first
        assert again.outcomes[0].summary.done == 1  # nor taken over from it
        assert np.allclose(again.store(mode).read(again.ids[0]).maps, before[mode], atol=1.5 / 255)


def test_only_a_demo_s_own_folder_is_replaced(tmp_path: Path) -> None:
    prepare(tmp_path / "new")
    (tmp_path / "new/voc").mkdir()
    (tmp_path / "new/notes.txt").write_text("kept")
    prepare(tmp_path / "new")
    assert {f.name for f in (tmp_path / "new").iterdir()} == {"about.txt", "notes.txt"}
    mine = tmp_path / "data/voc/precious.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with pytest.raises(InputError, match="not a demo's"):
        prepare(tmp_path / "data")
    assert mine.read_text() == "precious"
    with pytest.raises(InputError, match="not a folder"):
        prepare(mine)
    with pytest.raises(StoreError, match="cannot be written"):
        prepare(mine / "below")


# ---- drawing --------------------------------------------------------------------------------------------


def test_heat_colours_where_the_map_is_strong() -> None:
    pixels = np.full((20, 30, 3), 100, np.uint8)
    maps = np.zeros((1, 20, 30), np.float32)
    maps[0, 5:10, 5:10] = 1
    out = drawing.heat(pixels, maps, [1]).astype(int)
    assert np.ptp(out[0, 0]) < 10  # grey
    assert np.abs(out[7, 7] - drawing.colour(1)).max() < 45


def test_pseudo_label_is_the_argmax_with_background_first() -> None:
    maps = np.array([[[0.2, 0.5, 0.9]], [[0.1, 0.6, 0.9]]], np.float32)
    assert pseudo_label(maps, 0.5).tolist() == [[[False, False, True]], [[False, True, False]]]
    assert not pseudo_label(maps, 0.9).any()  # a tie goes to the background


def test_tile_edges_are_drawn_inside_only() -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    drawing.tile_edges(picture, [Box(0, 0, 40, 60)])
    assert not picture.any()
    drawing.tile_edges(picture, [Box(0, 0, 25, 35), Box(0, 25, 25, 60)])
    assert set(np.flatnonzero(picture[0, :, 0])) == {25, 34}
    assert picture[24].any() and not picture[30].any()


def test_picture(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    write_picture(file)
    assert 10_000 < file.stat().st_size < 300 * 1024
    with Image.open(file) as picture:
        assert picture.width > 4 * 260 and picture.height > 208


# ---- the command ----------------------------------------------------------------------------------------


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = CliRunner().invoke(app, ["demo", "--out", str(out), "--images", "2", "--threads", "1"])
    assert ran.exit_code == 0, ran.output
    assert {f.name for f in out.iterdir()} == {"about.txt", "voc", "maps", "gallery.png", "results.json"}
    read = json.loads((out / "results.json").read_text())
    assert read["scenes"] == 2
    assert "both" in ran.stdout and "says nothing of PASCAL VOC" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--recipe", "nope"], "no recipe"),
        (["--backend", "abacus"], "no backend"),
        (["--out", "{file}"], "not a folder"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    given = [a.format(file=tmp_path / "file") for a in arguments]
    command = [sys.executable, "-m", "infercam.engine.cli", "demo", "--images", "1", *given]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 1
    assert says in ran.stderr and "Traceback" not in ran.stderr and ran.stdout == ""


def test_demo_does_not_import_torch_onnx_or_matplotlib(tmp_path: Path) -> None:
    code = (
        "import sys; from infercam.engine.commands import demo; "
        "from infercam.engine.demo import ablation, gallery, report, picture; "
        "print([m for m in ('torch', 'onnx', 'matplotlib') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout.strip() == "[]", ran.stderr
