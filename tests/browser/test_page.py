"""The service's page in a browser, against the real server: a photo in, maps, threshold, tiles and steps."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infercam.engine.demo.scenes import scene

pytest.importorskip("fastapi", reason="needs the extra serve")

from infercam.engine.bundle import Bundle
from infercam.engine.serve.bounds import Bounds
from infercam.engine.serve.hosted import Hosts
from tests.browser.inputs import CLASSES, shown_labels, slide
from tests.engine.serve.serving import Served, served

DROP = """([text, name, type]) => {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type }));
  document.getElementById('drop').dispatchEvent(
    new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """The demo's classifier behind the real server."""
    bundle = Bundle.load(Path(str(files("infercam.engine.demo") / "bundle")))
    with served(Hosts.load([bundle.path], "fast", threads=2), Bounds(queue=8, pixels=200_000)) as it:
        yield it


@pytest.fixture
def page(watched: Any, server: Served) -> Any:
    watched.page.goto(f"http://{server.address}/")
    watched.page.wait_for_selector("#recipe option", state="attached")
    return watched.page


def jpeg(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=90)
    return out.getvalue()


def drop(page: Any, data: bytes, name: str = "photo.jpg") -> None:
    page.evaluate(DROP, [base64.b64encode(data).decode(), name, "image/jpeg"])


def answer_to(page: Any, act: Any) -> dict[str, Any]:
    """What the server answers to an action, once the page shows it."""
    page.evaluate("delete document.getElementById('answer').dataset.shows")
    with page.expect_response(lambda r: "/maps" in r.url) as waited:
        act()
    page.wait_for_selector("#answer[data-shows]")
    return waited.value.json()


def test_a_dropped_photo_is_mapped_and_can_be_looked_at(page: Any, tmp_path: Path) -> None:
    drawn = next(s for s in map(scene, range(50)) if len(s.classes) == 2)
    chosen = [CLASSES[c] for c in drawn.classes]
    page.select_option("#recipe", "corrected")
    for c in drawn.classes:
        page.select_option("#add", str(c))
    assert page.locator("#chosen .chip").all_inner_texts() == chosen
    answer = answer_to(page, lambda: drop(page, jpeg(drawn.image)))
    assert [m["name"] for m in answer["maps"]] == chosen
    assert answer["recipe"] == "corrected"
    first = page.locator("#scores li").first.inner_text().split("\n")
    assert first[0] == answer["scores"][0]["name"]
    assert first[-1] == f"{100 * answer['scores'][0]['probability']:.1f} %"

    maps = [np.asarray(Image.open(io.BytesIO(base64.b64decode(m["png"])))) for m in answer["maps"]]
    slide(page, "opacity", 100)
    page.evaluate("document.getElementById('overlay').dataset.panel = 'overlay'")
    for step in (5, 30, 77):
        slide(page, "threshold", step)
        planes = [np.full(maps[0].shape, np.float32(step / 100)), *(m / np.float32(255) for m in maps)]
        expected = np.array([0, *(c + 1 for c in drawn.classes)], np.uint8)[
            np.argmax(np.stack(planes), axis=0)
        ]
        np.testing.assert_array_equal(shown_labels(page, "overlay"), expected)

    assert page.locator(".stack .tile").count() == sum(not t["whole"] for t in answer["steps"]["tiles"]) == 4
    assert page.locator(".stack .centre").count() == 2
    page.click("#tiles")
    assert page.locator(".stack .tile").count() == 0

    tile = answer["steps"]["tiles"][1]
    page.click('[data-tile="1"]')
    page.wait_for_selector(f".panels[data-shows='1/{len(tile['iterations']) - 1}']")
    slide(page, "iteration", 1)
    page.wait_for_selector(".panels[data-shows='1/0']")
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(tile["iterations"][0]["mask"]))))
    painted = page.evaluate(
        """() => {
          const canvas = document.querySelector('.panels canvas[role=img]');
          const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          let count = 0;
          for (let i = 3; i < pixels.length; i += 4) count += pixels[i] > 0;
          return [canvas.width, canvas.height, count];
        }"""
    )
    assert painted == [mask.shape[1], mask.shape[0], int((mask > 0).sum())]
    assert page.locator(".panels figure").count() == 1 + len(tile["iterations"][0]["maps"])
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_other_recipes_and_modes_and_predicted_classes(page: Any) -> None:
    drawn = scene(4)
    page.select_option("#mode", "baseline")
    assert page.input_value("#recipe") == "fast", "the server's default"
    slide(page, "score", 1)
    page.uncheck("#steps")
    answer = answer_to(page, lambda: drop(page, jpeg(drawn.image)))
    assert (answer["recipe"], answer["mode"]) == ("fast", "baseline")
    over = {s["name"] for s in answer["scores"] if s["probability"] > 0.01}
    assert {m["name"] for m in answer["maps"]} == over
    assert "steps" not in answer and not page.is_visible("#trace") and not page.is_visible("#tiles")
    absent = answer["scores"][-1]["name"]
    if page.is_visible("#all-scores"):
        page.click("#all-scores")
    again = answer_to(page, lambda: page.locator("#scores li button").last.click())
    assert [m["name"] for m in again["maps"]] == [absent], "a click on a score asks for that class"


def test_errors_are_one_line(page: Any, watched: Any) -> None:
    cases = [
        (b"no picture at all", "not a picture"),
        (jpeg(np.zeros((600, 600, 3), np.uint8)), "over the limit"),
    ]
    for data, words in cases:
        drop(page, data)
        page.locator("#error", has_text=words).wait_for()
        assert "\n" not in page.inner_text("#error").strip()
        assert page.inner_text("#status") == ""
    page.check("[name=given][value=chosen]")
    page.click("#run")
    page.locator("#error", has_text="choose at least one").wait_for()
    assert all(
        "Failed to load resource" in line for line in watched.complaints
    )  # the browser's own word on a 4xx
    watched.complaints.clear()


@pytest.mark.shared
def test_a_real_photo(page: Any, shared: Path) -> None:
    photo = shared / "voc" / "VOC2012" / "JPEGImages" / "2007_007417.jpg"
    page.select_option("#add", "2")
    answer = answer_to(page, lambda: page.set_input_files("#file", photo))
    assert (answer["width"], answer["height"]) == Image.open(photo).size
    assert page.evaluate("document.getElementById('overlay').width") == answer["width"]
