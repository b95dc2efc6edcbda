"""What to do next for an image: which tiles to open, when a tile has converged (engine/method/README.md §2, §3).

Decisions only; no pixels. The same program drives every backend.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infercam.engine.method.geometry import Box, Placed, split_boxes, whole_box
from infercam.engine.method.recipe import Mode, Recipe
from infercam.engine.method.task import Advanced, ImageTask, Tile


class Program:
    """The method under one recipe and mode."""

    def __init__(self, recipe: Recipe, mode: Mode, smallest: int = 1) -> None:
        self.recipe = recipe
        self.mode = mode
        self.smallest = smallest
        """Least side of a tile in pixels: the network's (see geometry.ViewSizes)."""

    def start(self, image: ImageTask) -> list[Tile]:
        """The tiles to begin with: the whole image, in the roles that the recipe needs it for."""
        if self._only_whole(image):
            return [self._whole(image, self._whole_iterations(image))]
        centre_views = self.recipe.centre_views or self.recipe.views
        united = self.recipe.whole != "none"
        if united and centre_views == self.recipe.views:
            whole = self._whole(image, self._whole_iterations(image))
            whole.locates = True
            return [whole]
        centre = Tile(image, self._box(image), (), 1, locates=True, views=centre_views)
        return [centre, self._whole(image, self._whole_iterations(image))] if united else [centre]

    def after(self, tile: Tile, result: Advanced) -> tuple[bool, list[Tile]]:
        """Record an iteration's result; says whether the tile goes on, and which tiles open now."""
        if tile.iteration < 0:  # a probe
            worth_it = self._worth_it(tile, result)
            tile.iteration = 0
            tile.views = self.recipe.first_of_tile()
            return worth_it, []
        tile.iteration += 1
        opened: list[Tile] = []
        if tile.iteration == 1:
            peak = result.peak / np.float32(tile.views.count)
            if tile.whole:
                tile.peak = peak
            if tile.locates:
                opened = self._split(tile.image, result.centres, peak)
        tile.views = self.recipe.later()
        share = result.erased / tile.box.area
        return tile.iteration < tile.iterations and share >= self.recipe.stop_share, opened

    def _only_whole(self, image: ImageTask) -> bool:
        """No centres are needed: nothing is split, or the `released` split leaves 3+ classes whole."""
        if self.mode in ("baseline", "erase") or self.recipe.split == "none":
            return True
        return self.recipe.split == "released" and len(image.classes) > 2

    def _whole_iterations(self, image: ImageTask) -> int:
        if self.mode in ("baseline", "split"):
            return 1
        if self.mode == "both" and self.recipe.whole != "none":
            return self.recipe.whole_iterations
        return self.recipe.iterations

    def _whole(self, image: ImageTask, iterations: int) -> Tile:
        every = tuple(range(len(image.classes)))
        return Tile(image, self._box(image), every, iterations, whole=True, views=self.recipe.views)

    def _split(
        self, image: ImageTask, centres: list[tuple[int, int]], peak: NDArray[np.float32]
    ) -> list[Tile]:
        placed = split_boxes(image.height, image.width, centres, self.recipe, self.smallest)
        return [self._part(image, p, peak) for p in placed]

    def _part(self, image: ImageTask, placed: Placed, peak: NDArray[np.float32]) -> Tile:
        iterations = self.recipe.iterations if self.mode == "both" else 1
        views = self.recipe.first_of_tile()
        tile = Tile(image, placed.box, placed.takes, iterations, peak=peak, views=views)
        if self.recipe.probe:
            tile.iteration = -1
            tile.views = self.recipe.probing()
        return tile

    def _worth_it(self, tile: Tile, probed: Advanced) -> bool:
        assert tile.peak is not None
        return bool((probed.peak / tile.views.count >= self.recipe.probe * tile.peak).any())

    @staticmethod
    def _box(image: ImageTask) -> Box:
        return whole_box(image.height, image.width)
