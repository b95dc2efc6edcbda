"""gallery.png: a few of the demo's scenes with the maps of every mode, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infercam.engine.data.images import read_image
from infercam.engine.data.voc import image_path, mask_path
from infercam.engine.demo import drawing
from infercam.engine.demo.ablation import VOC, Ablation, ModeOutcome
from infercam.engine.demo.drawing import Page, Pixels
from infercam.engine.evaluation.evaluate import read_mask
from infercam.engine.method.geometry import Box, split_boxes
from infercam.engine.method.recipe import MODES, Recipe
from infercam.engine.method.reference import centre_of_mass
from infercam.engine.store.mapstore import MapRecord

ROWS = ((1, 3), (2, 3), (3, 1))
"""How many scenes with one, two and three classes: always the first ones, so nothing is picked by looks."""

GAP, MARGIN, HEADER, CAPTION = 6, 16, 66, 22


def write_gallery(done: Ablation, file: Path) -> None:
    """Rows: scenes. Columns: photo, ground truth, and each mode's maps as heat in the classes' colours.

    Dashed lines are the tiles' edges, crosses the centres of mass that decide them; the white outline is the
    pseudo label at the mode's own best background threshold. Raises StoreError where it cannot be written.
    """
    rows = [_row(done, name) for name in chosen(done)]
    height, width = rows[0][1][0].shape[:2]
    columns = 2 + len(MODES)
    page = Page(
        2 * MARGIN + columns * (width + GAP) - GAP,
        HEADER + len(rows) * (height + CAPTION + GAP) + 2 * MARGIN,
    )
    page.words("Response maps of synthetic scenes, by mode", MARGIN, 10, 20)
    headings = ["photo", "ground truth", *(_heading(outcome) for outcome in done.outcomes)]
    for i, heading in enumerate(headings):
        page.words(heading, MARGIN + i * (width + GAP), HEADER - 24, 15, drawing.FAINT)
    for r, (classes, cells) in enumerate(rows):
        y = HEADER + r * (height + CAPTION + GAP)
        for i, cell in enumerate(cells):
            page.picture(cell, MARGIN + i * (width + GAP), y)
        names = [(done.store("baseline").info.classes[c], drawing.colour(c)) for c in classes]
        page.swatches(names, MARGIN, y + height + 3)
    note = (
        "heat: response map · dashed: tile edges · cross: centre of mass of the plain CAM · "
        f"white: label at the mode's best threshold · recipe {done.recipe.name}"
    )
    page.words(note, MARGIN, page.image.height - MARGIN - 10, 14, drawing.FAINT)
    page.save(file)


def chosen(done: Ablation) -> list[str]:
    """The first scenes of each number of classes, as many as ROWS asks for and there are."""
    store = done.store("baseline")
    by_count: dict[int, list[str]] = {}
    for name in done.ids:
        by_count.setdefault(len(store.read(name).classes), []).append(name)
    return [name for count, rows in ROWS for name in by_count.get(count, [])[:rows]]


def _heading(outcome: ModeOutcome) -> str:
    return f"{outcome.mode} · best mIoU {100 * outcome.result.all.miou:.1f} %"


def _row(done: Ablation, name: str) -> tuple[list[int], list[Pixels]]:
    """The classes of a scene and its cells."""
    pixels = read_image(image_path(done.folder / VOC, name))
    cells = [pixels, drawing.labels(pixels, read_mask(mask_path(done.folder / VOC, name)))]
    baseline = done.store("baseline").read(name)
    centres, boxes = split_of(baseline.maps, done.recipe)
    for outcome in done.outcomes:
        record = done.store(outcome.mode).read(name)
        cells.append(_cell(pixels, record, outcome, boxes))
        if outcome.mode == "baseline":
            for centre, c in zip(centres, record.classes, strict=True):
                drawing.cross(cells[-1], centre, drawing.colour(c))
    return baseline.classes, cells


def _cell(pixels: Pixels, record: MapRecord, outcome: ModeOutcome, boxes: Sequence[Box]) -> Pixels:
    cell = drawing.heat(pixels, record.maps, record.classes)
    drawing.contours(cell, pseudo_label(record.maps, outcome.result.all.threshold))
    if outcome.mode in ("split", "both"):
        drawing.tile_edges(cell, boxes)
    return cell


def pseudo_label(maps: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Where each class wins against the others and the background threshold: K×H×W (engine/method/README.md §4)."""
    best = maps.argmax(axis=0)
    wins = maps.max(axis=0) > threshold
    return np.stack([(best == k) & wins for k in range(len(maps))])


def split_of(baseline: NDArray[np.float32], recipe: Recipe) -> tuple[list[tuple[int, int]], list[Box]]:
    """The centres of mass (y, x) of an image's plain CAMs K×H×W, and the tiles that they lead to."""
    centres = [centre_of_mass(m) for m in baseline]
    _, height, width = baseline.shape
    return centres, [placed.box for placed in split_boxes(height, width, centres, recipe)]
