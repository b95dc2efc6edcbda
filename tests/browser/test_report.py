"""The report in a browser, from file://: exact labels, filters, long lists, hostile names, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from infercam.engine.data.sources import folder_source, voc_source
from infercam.engine.report.build import PageOptions, build_report
from infercam.engine.report.html import write_page
from infercam.engine.report.pictures import Chunk, PagePicture, Painter, chunk_json, photo_name
from infercam.engine.report.runs import open_runs
from tests.browser.inputs import (
    CLASSES,
    argmax,
    maps_of,
    mean_iou,
    shown_labels,
    slide,
    write_labels,
    write_run,
    write_scenes,
)

SIZES = {f"s{k:02}": (96, 128) for k in range(9)} | {"large": (300, 421), "tall": (330, 200)}
QUICK = {"bootstrap": 20, "workers": 1}


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two map stores and a folder of labels, eleven images of three sizes, all in one page."""
    root = tmp_path_factory.mktemp("report")
    masks = write_scenes(root / "voc", SIZES)
    stores = [write_run(root / name, masks, seed) for name, seed in (("one", 100), ("two", 200))]
    write_labels(root / "labels", masks)
    runs = open_runs([root / "one", root / "two", root / "labels"])
    items = list(voc_source(root / "voc", "val"))
    build_report(runs, items, root / "report.html", PageOptions(title="A & B <i>", **QUICK))
    assert not (root / "report_files").exists()
    return {"page": root / "report.html", "masks": masks, "stores": stores, "root": root}


def opened(watched: Any, file: Path, image: str | None = None) -> Any:
    watched.page.goto(file.as_uri() + (f"#image={image}" if image else ""))
    watched.page.wait_for_selector("[data-shows]")
    return watched.page


def shows(page: Any) -> str:
    return page.inner_text("#detail h2")


def rows(page: Any) -> list[str]:
    return page.eval_on_selector_all(
        ".row",
        "rows => rows.sort((a, b) => a.ariaPosInSet - b.ariaPosInSet).map(r => r.querySelector('.name').textContent)",
    )


@pytest.mark.parametrize("id", ["s03", "large", "tall"])
def test_the_slider_shows_numpys_argmax(watched: Any, reported: dict[str, Any], id: str) -> None:
    page = opened(watched, reported["page"], id)
    assert shows(page) == id
    height, width = SIZES[id]
    scale = min(1, 256 / max(height, width))
    size = (round(height * scale), round(width * scale))
    truth = cv2.resize(reported["masks"][id], size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    slide(page, "opacity", 100)
    seen = set()
    for step in (0, 1, 20, 47, 80, 99):
        slide(page, "threshold", step)
        for run, store in enumerate(reported["stores"]):
            expected = argmax(store, id, step / 100, size)
            shown = shown_labels(page, run)
            np.testing.assert_array_equal(shown, expected)
            seen.add(shown.tobytes())
            value = page.locator(".panels figure").nth(2 + run).locator(".value").inner_text()
            assert value == f"IoU {100 * mean_iou(expected, truth):.1f}"
    assert len(seen) > 6, "the labels hardly change with the threshold"
    np.testing.assert_array_equal(shown_labels(page, "Ground truth"), truth)
    label = cv2.resize(
        np.roll(reported["masks"][id], 5, axis=1), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT
    )
    np.testing.assert_array_equal(shown_labels(page, 2), label)


def test_the_best_threshold_of_each_run_is_the_start_and_can_be_had_again(
    watched: Any, reported: dict[str, Any]
) -> None:
    page = opened(watched, reported["page"], "s01")
    data = json.loads(
        page.inner_text("#data") or page.evaluate("document.getElementById('data').textContent")
    )
    best = [run["threshold"] for run in data["runs"]]
    steps = "[...document.querySelectorAll('canvas[data-step]')].map(c => Number(c.dataset.step))"
    assert page.evaluate(steps) == best
    slide(page, "threshold", 5)
    assert page.evaluate(steps) == [5, 5, 5]
    page.click("#own")
    assert page.evaluate(steps) == best


def test_a_class_that_is_switched_off_takes_no_part(watched: Any, reported: dict[str, Any]) -> None:
    masks = reported["masks"]
    id = next(id for id, mask in masks.items() if id.startswith("s") and len(np.unique(mask)) >= 3)
    page = opened(watched, reported["page"], id)
    slide(page, "opacity", 100)
    slide(page, "threshold", 10)
    off = int(np.unique(masks[id])[1]) - 1
    before = shown_labels(page, 0)
    page.click(f'.chip[data-class="{off}"]')
    after = shown_labels(page, 0)
    np.testing.assert_array_equal(after, argmax(reported["stores"][0], id, 0.1, SIZES[id], without=(off,)))
    assert (before != after).any()
    page.click('[data-view="maps"]')
    assert len(np.unique(np.array(page.evaluate(CANVAS_ALPHA)))) > 10, "the maps view paints many levels"


CANVAS_ALPHA = """() => {
  const canvas = document.querySelector('[data-panel="0"]');
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return Array.from(pixels).filter((_, i) => i % 4 === 0);
}"""


def test_filters_search_and_order(watched: Any, reported: dict[str, Any]) -> None:
    page = opened(watched, reported["page"])
    masks = reported["masks"]
    data = json.loads(page.evaluate("document.getElementById('data').textContent"))
    ids, iou = data["images"]["ids"], np.array(data["images"]["iou"])
    assert ids == list(masks)
    step = data["runs"][0]["threshold"] / 100
    for id in ("s00", "large"):  # the table's figures are those of the full size
        full = argmax(reported["stores"][0], id, step, SIZES[id])
        assert iou[ids.index(id), 0] == pytest.approx(mean_iou(full, masks[id]), abs=1e-4)
    assert rows(page) == [ids[k] for k in np.argsort(iou[:, 0], kind="stable")]
    page.select_option("#order", "gain-1")
    gains = iou[:, 1] - iou[:, 0]
    assert rows(page) == [ids[k] for k in np.argsort(-gains, kind="stable")]
    page.fill("#search", "S0")
    assert sorted(rows(page)) == [id for id in ids if id.startswith("s0")]
    page.fill("#search", "")
    held = {id: set(np.unique(mask)) - {0, 255} for id, mask in masks.items()}
    wanted = int(next(iter(held["s00"])))
    page.select_option("#by-class", str(wanted - 1))
    assert set(rows(page)) == {id for id, found in held.items() if wanted in found}
    page.select_option("#by-number", "2")
    assert set(rows(page)) == {id for id, found in held.items() if wanted in found and len(found) == 2}
    page.fill("#search", "nothing of the kind")
    assert rows(page) == [] and page.is_visible(".empty")


def test_keys_and_links(watched: Any, reported: dict[str, Any]) -> None:
    page = opened(watched, reported["page"])
    page.select_option("#order", "listed")
    ids = list(SIZES)
    assert shows(page) == ids[0]
    page.focus("#list")
    for key, expected in (("ArrowDown", ids[1]), ("End", ids[-1]), ("ArrowUp", ids[-2]), ("Home", ids[0])):
        page.keyboard.press(key)
        assert shows(page) == expected
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowRight")
    assert shows(page) == ids[1]
    assert page.url.endswith(f"#image={ids[1]}")
    assert page.get_attribute("#list", "aria-activedescendant") == "row-1"
    page.focus("#threshold")  # arrows there are the slider's own
    page.keyboard.press("ArrowRight")
    assert shows(page) == ids[1]
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"


def test_names_cannot_become_markup(watched: Any, tmp_path: Path) -> None:
    hostile = ["<img src=x onerror=window.hacked=1>", "'\"--><script>window.hacked=1<!--", "a&lt;b{{data}}"]
    classes = ["</script><script>window.hacked=1</script>", "<b>bold</b>", *CLASSES[2:]]
    mask = np.zeros((40, 50), np.uint8)
    mask[5:20, 5:25], mask[20:35, 20:45] = 1, 2
    (tmp_path / "photos").mkdir()
    (tmp_path / "gt").mkdir()
    for name in hostile:
        Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    run = tmp_path / "run <u>"
    write_run(run, dict.fromkeys(hostile, mask), 3, classes)
    summary = build_report(
        open_runs([run]),
        list(folder_source(tmp_path / "photos")),
        tmp_path / "r.html",
        PageOptions(title=classes[0], **QUICK),
    )
    assert summary.errors == []
    page = opened(watched, tmp_path / "r.html")
    assert page.inner_text("h1") == classes[0] == page.title()
    assert sorted(rows(page)) == sorted(hostile)
    assert page.inner_text(".run h2") == "run <u>"
    assert [chip.strip() for chip in page.locator(".chip").all_inner_texts()] == classes[:2]
    assert page.evaluate("window.hacked") is None


def test_without_ground_truth(watched: Any, reported: dict[str, Any], tmp_path: Path) -> None:
    root = reported["root"]
    photos = list(folder_source(root / "voc" / "JPEGImages"))
    build_report(open_runs([root / "one"]), photos, tmp_path / "r.html", PageOptions(**QUICK))
    page = opened(watched, tmp_path / "r.html", "s02")
    assert not page.is_visible("#figures") and not page.is_visible("#own")
    assert "no ground truth" in page.inner_text("#about")
    slide(page, "opacity", 100)
    slide(page, "threshold", 25)
    np.testing.assert_array_equal(
        shown_labels(page, 0), argmax(reported["stores"][0], "s02", 0.25, SIZES["s02"])
    )


def test_what_lies_beside_is_loaded_when_it_is_looked_at(
    watched: Any, reported: dict[str, Any], tmp_path: Path
) -> None:
    root = reported["root"]
    items = list(voc_source(root / "voc", "val"))
    out = tmp_path / "odd name #1.html"
    build_report(open_runs([root / "one"]), items, out, PageOptions(embed=2, **QUICK))
    page = opened(watched, out, "s04")
    slide(page, "opacity", 100)
    slide(page, "threshold", 25)
    for id in SIZES:
        page.evaluate("id => { document.getElementById('search').value = id; }", id)
        page.dispatch_event("#search", "input")
        page.wait_for_selector(f'[data-shows="{list(SIZES).index(id)}"]')
        if id.startswith("s"):
            expected = argmax(reported["stores"][0], id, 0.25, SIZES[id])
            np.testing.assert_array_equal(shown_labels(page, 0), expected)
    assert any("chunks/" in url for url in watched.requests)


def test_a_page_without_its_folder_says_so_and_keeps_what_it_holds(
    browser: Any, reported: dict[str, Any], tmp_path: Path
) -> None:
    root = reported["root"]
    build_report(
        open_runs([root / "one"]),
        list(voc_source(root / "voc", "val")),
        tmp_path / "r.html",
        PageOptions(embed=2, **QUICK),
    )
    (tmp_path / "r_files").rename(tmp_path / "elsewhere")
    page = browser.new_page()
    page.goto((tmp_path / "r.html").as_uri())
    page.wait_for_selector("[data-shows]")  # the worst image is held by the page
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".panels .bad")
    assert "keep the folder beside this page" in page.inner_text(".panels")
    page.close()


def test_ten_thousand_images(watched: Any, tmp_path: Path) -> None:
    count, beside = 10_000, tmp_path / "r_files" / "stamp"
    page_file = _long_report(tmp_path, beside, count)
    assert page_file.stat().st_size < 2_000_000
    page = opened(watched, page_file)
    assert page.inner_text("#found") == "10,000 images"
    elements = "document.querySelectorAll('*').length"

    def loaded() -> int:  # the browser keeps no resource timing of file://
        return len({url for url in watched.requests if url.endswith(".webp")})

    page.wait_for_timeout(300)
    assert page.evaluate(elements) < 600 and 0 < loaded() < 60
    page.focus("#list")
    page.keyboard.press("End")
    page.wait_for_selector('[data-shows="9999"]')
    assert shows(page) == "image-09999"
    assert "image-09999" in rows(page)[-1]
    for _ in range(30):
        page.keyboard.press("PageUp")
    page.wait_for_timeout(300)
    assert len(rows(page)) < 40
    assert page.evaluate(elements) < 600, "rows out of sight stay in the page"
    assert loaded() < 1000
    page.fill("#search", "0777")
    assert page.inner_text("#found") == "11 of 10,000 images"
    page.screenshot(path=tmp_path / "ten-thousand.png")


def _long_report(root: Path, beside: Path, count: int) -> Path:
    """A page of `count` rows over the pictures of one image."""
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:60] = 3
    write_run(root / "run", {"only": mask}, 1)
    Image.fromarray(np.full((60, 80, 3), 120, np.uint8)).save(root / "only.png")
    runs = open_runs([root / "run"])
    Painter(runs, beside, 256, 70, 10**6)(Chunk(0, [PagePicture(0, "only", root / "only.png", None)], False))
    image = json.loads(chunk_json((beside / "chunks" / "0.js").read_text()))[0]
    places = [list(range(start, min(start + 16, count))) for start in range(0, count, 16)]
    for number, members in enumerate(places):
        content = json.dumps([image] * len(members))
        (beside / "chunks" / f"{number}.js").write_text(f"infercamChunk({number},{content});\n")
    for number in range(1, count):
        link = beside / photo_name(number)
        link.parent.mkdir(exist_ok=True)
        link.hardlink_to(beside / photo_name(0))
    classes, _ = maps_of(mask, 1)
    data = {
        "title": "long", "created": "2026-01-01T00:00", "version": "0", "classes": CLASSES,
        "runs": [{"name": "run", "kind": "maps", "about": ""}], "differences": [], "scored": 0, "truth": None,
        "images": {
            "ids": [f"image-{k:05}" for k in range(count)], "classes": [classes] * count, "iou": [[]] * count,
            "places": places, "embedded": 0,
        },
        "files": "r_files/stamp/", "notes": [], "failed": 0,
    }  # fmt: skip
    write_page(root / "r.html", "long", data, [])
    return root / "r.html"
