"""The method in one picture: `python -m infercam.engine.demo.picture -o picture.png`.

Photo, its plain CAM with the centre of mass and the split, the four tiles' maps after erasing, and the united
map, of one generated scene; nothing is drawn that the engine did not compute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from infercam.engine.api import Engine
from infercam.engine.common.errors import InfercamError
from infercam.engine.demo import drawing
from infercam.engine.demo.ablation import BUNDLE
from infercam.engine.demo.drawing import Page, Pixels
from infercam.engine.demo.gallery import split_of
from infercam.engine.demo.scenes import CLASS_NAMES, Scene, scene
from infercam.engine.method.geometry import Box
from infercam.engine.method.recipe import recipe
from infercam.engine.method.reference import crop

PICTURE_SEED = 53
"""A scene of one class on which the method does what it is meant to; it does not on every scene, which the
demo's gallery (always the first scenes) and its figures show."""

SIZE = (208, 260)
GAP, ARROW, MARGIN, TOP = 8, 30, 14, 34


def write_picture(file: Path, seed: int = PICTURE_SEED, recipe_name: str = "released") -> None:
    """Write the picture; raises InputError for an unknown recipe, StoreError where it cannot be written."""
    chosen, drawn = recipe(recipe_name), scene(seed, SIZE)
    with Engine.load(BUNDLE, threads=1) as engine:
        plain = engine.maps(drawn.image, drawn.classes, chosen, "baseline")
        centres, boxes = split_of(plain, chosen)
        tiles = [(box, engine.maps(crop(drawn.image, box), drawn.classes, chosen, "erase")) for box in boxes]
        united = engine.maps(drawn.image, drawn.classes, chosen, "both")
    cam = drawing.heat(drawn.image, plain, drawn.classes)
    drawing.tile_edges(cam, boxes)
    for centre, c in zip(centres, drawn.classes, strict=True):
        drawing.cross(cam, centre, drawing.colour(c))
    panels = [
        (f"image, label: {' + '.join(CLASS_NAMES[c] for c in drawn.classes)}", drawn.image),
        ("plain CAM, its centre of mass, the split", cam),
        ("each tile inferred anew, erased, inferred again", _apart(drawn, tiles)),
        ("united response map", drawing.heat(drawn.image, united, drawn.classes)),
    ]
    page = _page(panels)
    page.image = page.image.point(lambda v: v if v == 255 else v & 0xFC)  # a third fewer bytes as PNG
    page.save(file)


def _apart(drawn: Scene, tiles: list[tuple[Box, NDArray[np.float32]]]) -> Pixels:
    """The tiles' maps at their corners, moved apart on white."""
    height, width = drawn.mask.shape
    bottom, right = max(b.y0 for b, _ in tiles), max(b.x0 for b, _ in tiles)
    top, left = max(b.y1 for b, _ in tiles if b.y0 == 0), max(b.x1 for b, _ in tiles if b.x0 == 0)
    down = top - bottom + GAP if bottom else 0
    across = left - right + GAP if right else 0
    out = np.full((height + down, width + across, 3), 255, np.uint8)
    for box, maps in tiles:
        y, x = box.y0 + (down if box.y0 else 0), box.x0 + (across if box.x0 else 0)
        heat = drawing.heat(crop(drawn.image, box), maps, drawn.classes)
        out[y : y + box.height, x : x + box.width] = heat
    return out


def _page(panels: list[tuple[str, Pixels]]) -> Page:
    tallest = max(p.shape[0] for _, p in panels)
    page = Page(
        2 * MARGIN + sum(p.shape[1] for _, p in panels) + ARROW * (len(panels) - 1), TOP + tallest + MARGIN
    )
    x = MARGIN
    for i, (caption, pixels) in enumerate(panels):
        if i:
            page.arrow(x + 5, TOP + tallest // 2, ARROW - 10)
            x += ARROW
        page.words(caption, x + pixels.shape[1] // 2, 10, 13, align="m")
        page.picture(pixels, x, TOP + (tallest - pixels.shape[0]) // 2)
        x += pixels.shape[1]
    return page


def main(
    out: Annotated[Path, typer.Option("-o", "--out", help="PNG to write.")] = Path("picture.png"),
    seed: Annotated[int, typer.Option(min=0, help="Of the scene.")] = PICTURE_SEED,
    recipe: Annotated[str, typer.Option()] = "released",
) -> None:
    """Draw the method in one picture."""
    write_picture(out, seed, recipe)
    typer.echo(f"{out}: {out.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    try:
        typer.run(main)
    except InfercamError as e:
        raise SystemExit(f"error: {e}") from None
