"""Reports without a browser: figures, chosen images, resuming, bad input, what is written where."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from infercam.engine.cli import app
from infercam.engine.common.errors import InfercamError, InputError
from infercam.engine.data.sources import Item, voc_source
from infercam.engine.evaluation.histogram import count_image
from infercam.engine.evaluation.mask_values import MaskValues
from infercam.engine.report import build as building
from infercam.engine.report.build import PageOptions, build_report
from infercam.engine.report.chosen import telling
from infercam.engine.report.html import scripts, styles
from infercam.engine.report.pictures import chunk_json, reduced, script_json
from infercam.engine.report.runs import image_iou, open_runs, run_names
from tests.browser.inputs import CLASSES, mean_iou, write_labels, write_run, write_scenes

QUICK = PageOptions(bootstrap=10, workers=1)
SIZES = {f"s{k:02}": (48 + k, 64) for k in range(20)}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    root = tmp_path_factory.mktemp("drawn")
    masks = write_scenes(root / "voc", SIZES)
    write_run(root / "a", masks, 1)
    write_run(root / "b", masks, 2)
    return root, masks


@pytest.fixture
def tree(drawn: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> dict[str, Any]:
    """A VOC tree of twenty scenes and two runs, the test's own."""
    shutil.copytree(drawn[0], tmp_path, dirs_exist_ok=True)
    return {"root": tmp_path, "masks": drawn[1], "items": list(voc_source(tmp_path / "voc", "val"))}


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert found
    return json.loads(found[1])


@given(seed=st.integers(0, 10**6), step=st.integers(0, 99))
def test_image_iou_is_the_mean_over_the_true_labels(seed: int, step: int) -> None:
    rng = np.random.default_rng(seed)
    classes = [int(c) for c in rng.permutation(5)[: rng.integers(0, 4)]]
    maps = rng.integers(0, 256, (len(classes), 7, 9)).astype(np.uint8)
    mask = rng.choice([0, 1, 2, 3, 5, 255], (7, 9)).astype(np.uint8)
    order = np.argsort(classes)
    planes = [np.full((7, 9), np.float32(step / 100)), *(maps[k] / np.float32(255) for k in order)]
    labels = np.array([0, *(classes[k] + 1 for k in order)])[np.argmax(np.stack(planes), axis=0)]
    assert image_iou(count_image(maps, classes, mask, 5), step) == pytest.approx(mean_iou(labels, mask))


def test_an_image_without_scored_pixels_has_no_iou() -> None:
    counts = count_image(np.zeros((0, 3, 3), np.uint8), [], np.full((3, 3), 255, np.uint8), 5)
    assert np.isnan(image_iou(counts, 30))


@given(st.integers(1, 40), st.integers(0, 3), st.integers(0, 45), st.integers(0, 1000))
def test_telling_images(images: int, runs: int, count: int, seed: int) -> None:
    iou = np.random.default_rng(seed).uniform(size=(images, runs))
    iou[::5] = np.nan
    found = telling(iou, count)
    assert len(found) == min(count, images) and found == sorted(set(found))
    scored = [k for k in range(images) if k % 5]
    if runs and scored and count >= 2 * runs:
        assert min(scored, key=lambda k: iou[k, 0]) in found
        assert max(scored, key=lambda k: iou[k, 0]) in found
        assert all(max(scored, key=lambda k: iou[k, r] - iou[k, 0]) in found for r in range(1, runs))


def test_names_are_the_shortest_that_tell_apart() -> None:
    assert run_names(["/x/maps"]) == ["maps"]
    assert run_names(["/x/one/maps", "/x/two/maps", "/x/other"]) == ["one/maps", "two/maps", "other"]
    with pytest.raises(InputError, match="named twice"):
        run_names(["/x/maps", "/x/maps/"])


@given(st.text())
def test_json_in_a_script_never_ends_it(text: str) -> None:
    written = script_json({text: [text]})
    assert written.isascii() and not set("<>&") & set(written)
    assert json.loads(written) == {text: [text]}
    assert json.loads(chunk_json(f"infercamChunk(3,{written});\n")) == {text: [text]}


@pytest.mark.parametrize(("size", "expected"), [((100, 50), (100, 50)), ((1024, 3), (256, 1))])
def test_reduced_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert reduced(size, 256) == expected


def test_the_scripts_become_one_without_imports_eval_or_addresses() -> None:
    text = scripts()
    assert not re.search(r"^\s*(import|export)\b", text, re.MULTILINE)
    assert not re.search(r"\beval\(|new Function|innerHTML|insertAdjacentHTML|document\.write", text)
    addresses = re.findall(r"https?://[^'\"\s]+", text + styles())
    assert set(addresses) == {"http://www.w3.org/2000/svg"}
    assert "</" not in text


def test_one_file_or_a_folder_beside_it(tree: dict[str, Any]) -> None:
    root, items = tree["root"], tree["items"]
    runs, out = open_runs([root / "a", root / "b"]), root / "out" / "r.html"
    summary = build_report(runs, items, out, QUICK)
    assert (summary.images, summary.scored, summary.errors, summary.beside_bytes) == (20, 20, [], 0)
    assert not (root / "out" / "r_files").exists()
    assert out.read_text().count('id="chunk-') == 3

    summary = build_report(runs, items, out, PageOptions(bootstrap=10, workers=1, embed=3))
    (stamp,) = (root / "out" / "r_files").iterdir()
    assert len(list(stamp.glob("photos/*/*.webp"))) == 17
    assert len(list(stamp.glob("chunks/*.js"))) == 2
    assert summary.beside_bytes > 0 and data_of(out)["files"] == f"r_files/{stamp.name}/"

    build_report(runs, items, out, PageOptions(bootstrap=10, workers=1, embed=3, size=64))
    assert stamp not in list((root / "out" / "r_files").iterdir()), "the earlier build's pictures are gone"
    build_report(runs, items, out, PageOptions(bootstrap=10, workers=1, embed=None))
    assert not (root / "out" / "r_files").exists()


def test_several_processes_make_the_same_report(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_INLINE", 1)
    runs = open_runs([tree["root"] / "a"])
    pages = []
    for workers in (1, 2):
        out = tree["root"] / f"w{workers}" / "r.html"
        build_report(runs, tree["items"], out, PageOptions(bootstrap=0, workers=workers))
        pages.append(re.sub(r'"created":"[^"]*"', "", out.read_text()))
    assert pages[0] == pages[1]


def test_a_build_that_was_stopped_goes_on(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    root, items = tree["root"], tree["items"]
    runs, out, options = (
        open_runs([root / "a"]),
        root / "r.html",
        PageOptions(bootstrap=0, workers=1, embed=3),
    )
    undisturbed = root / "whole" / "r.html"
    build_report(runs, items, undisturbed, options)

    class Stopped(Exception):
        pass

    class Stopping(building.NoWatch):
        done = 0

        def advance(self, count: int) -> None:
            self.done += count
            if self.done >= len(items) + 4:  # all scored, the first two chunks painted
                raise Stopped

    with pytest.raises(Stopped):
        build_report(runs, items, out, options, Stopping())
    assert not out.exists()
    kept = {f: f.stat().st_mtime_ns for f in (root / "r_files").rglob("*.js")}
    assert kept
    build_report(runs, items, out, options)
    assert all(f.stat().st_mtime_ns == when for f, when in kept.items() if f.exists()), (
        "what was there is kept"
    )
    files = {f.relative_to(root / "whole"): f.read_bytes() for f in (root / "whole" / "r_files").rglob("*.*")}
    assert files and all((root / name).read_bytes() == content for name, content in files.items())
    created = r'"created":"[^"]*"'
    assert re.sub(created, "", out.read_text()) == re.sub(created, "", undisturbed.read_text())


def test_other_maps_make_other_pictures(tree: dict[str, Any]) -> None:
    root, items = tree["root"], tree["items"]
    options = PageOptions(bootstrap=0, workers=1, embed=0)
    build_report(open_runs([root / "a"]), items, root / "r.html", options)
    before = {f.name for f in (root / "r_files").iterdir()}
    write_run(root / "a", {"s00": tree["masks"]["s00"]}, 77)
    build_report(open_runs([root / "a"]), items, root / "r.html", options)
    assert before.isdisjoint(f.name for f in (root / "r_files").iterdir())


def test_a_broken_photo_stands_in_the_page_and_the_rest_goes_on(tree: dict[str, Any]) -> None:
    root = tree["root"]
    (root / "voc" / "JPEGImages" / "s03.jpg").write_bytes(b"no picture")
    (root / "voc" / "SegmentationClass" / "s05.png").unlink()
    (root / "a" / "s07.npz").unlink()
    out = root / "r.html"
    done = CliRunner().invoke(
        app,
        [
            "report",
            str(root / "a"),
            str(root / "b"),
            "--voc",
            str(root / "voc"),
            "--split",
            "val",
            "-o",
            str(out),
        ],
    )
    assert done.exit_code == 1
    assert "s03.jpg: not a picture" in done.stderr and "20 images, 18 scored" in done.stderr
    data = data_of(out)
    assert data["failed"] == 1
    assert [k for k, row in enumerate(data["images"]["iou"]) if None in row] == [5, 7]


def test_labels_beside_maps_and_fewer_images(tree: dict[str, Any]) -> None:
    root = tree["root"]
    write_labels(root / "labels", tree["masks"])
    runs = open_runs([root / "a", root / "labels"])
    options = PageOptions(bootstrap=10, workers=1, max_images=6)
    summary = build_report(runs, tree["items"], root / "r.html", options)
    data = data_of(root / "r.html")
    assert [run["kind"] for run in data["runs"]] == ["maps", "labels"]
    assert (summary.images, summary.scored) == (6, 20), "all are scored, some are listed"
    first, second = (run["miou"] for run in data["runs"])
    assert data["differences"][0]["sets"]["all"]["gain"] == pytest.approx(second - first, abs=2e-4)
    assert any("6 of 20" in note for note in data["notes"])
    assert all(len(data["images"][key]) == 6 for key in ("ids", "classes", "iou"))


def test_bad_input_is_one_line(tree: dict[str, Any]) -> None:
    root, items = tree["root"], tree["items"]
    write_run(root / "other", {"s00": tree["masks"]["s00"]}, 1, [*CLASSES, "one more"])
    runs = open_runs([root / "a"])

    def refused(words: str, act: Any) -> None:
        with pytest.raises(InfercamError, match=words) as caught:
            act()
        assert "\n" not in str(caught.value)

    refused("other classes", lambda: open_runs([root / "a", root / "other"]))
    refused("not a map store", lambda: open_runs([root / "voc" / "ImageSets"]))
    refused("name the page", lambda: build_report(runs, items, root / "report", QUICK))
    refused("right split", lambda: build_report(runs, [Item("x", root / "x.jpg")], root / "r.html", QUICK))
    (root / "file").write_text("")
    refused("cannot be written", lambda: build_report(runs, items, root / "file" / "r.html", QUICK))


def test_images_of_another_size_than_the_maps(tree: dict[str, Any]) -> None:
    root = tree["root"]
    swapped = [Item("s00", root / "voc" / "JPEGImages" / "s09.jpg")]
    summary = build_report(open_runs([root / "a"]), swapped, root / "r.html", QUICK)
    assert len(summary.errors) == 1 and "name the images that the maps were made from" in summary.errors[0]


def test_masks_with_values_of_their_own(tree: dict[str, Any], tmp_path: Path) -> None:
    """--gt-values: the page is scored and drawn as with the masks' classes themselves; without, one line."""
    gt, values = tmp_path / "gt", [10 * label + 5 for label in range(len(CLASSES) + 1)]
    for id, mask in tree["masks"].items():
        gt.mkdir(exist_ok=True)
        Image.fromarray(np.where(mask == 255, 255, 10 * mask.astype(int) + 5).astype(np.uint8)).save(
            gt / f"{id}.png"
        )
    items = [Item(item.id, item.path, gt / f"{item.id}.png") for item in tree["items"]]
    runs = open_runs([tree["root"] / "a"])
    with pytest.raises(InputError, match="--gt-values"):
        build_report(runs, items, tmp_path / "r.html", QUICK)
    options = replace(QUICK, gt_values=MaskValues(tuple(values)))
    assert build_report(runs, items, tmp_path / "r.html", options).errors == []
    build_report(runs, tree["items"], tmp_path / "own.html", QUICK)
    mapped, own = data_of(tmp_path / "r.html"), data_of(tmp_path / "own.html")
    assert mapped["images"]["iou"] == own["images"]["iou"]
    assert [run["miou"] for run in mapped["runs"]] == [run["miou"] for run in own["runs"]]
