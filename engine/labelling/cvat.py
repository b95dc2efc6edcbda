"""A function for CVAT's automatic annotation (`cvat_sdk.auto_annotation`), over an engine in this process:

cvat-cli task auto-annotate TASK --function-module infercam.engine.labelling.cvat -p bundle=str:BUNDLE
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any

import numpy as np

from infercam.engine.api import Engine
from infercam.engine.common.errors import BackendError
from infercam.engine.labelling.regions import Region, polygons_of, regions_of_maps

if TYPE_CHECKING:
    from PIL import Image


def create(
    bundle: str,
    recipe: str = "fast",
    backend: str = "auto",
    threshold: float = 0.3,
    score_threshold: float = 0.5,
    tolerance: float = 1.0,
) -> CvatFunction:
    """What cvat-cli calls with its `-p NAME=TYPE:VALUE`; raises InfercamError.

    threshold: the background's score beside the maps'. score_threshold: least probability of a class. tolerance:
    pixels that the border of a polygon may move by.
    """
    engine = Engine.load(bundle, backend)
    atexit.register(engine.close)
    return CvatFunction(engine, recipe, threshold, score_threshold, tolerance)


class CvatFunction:
    """A DetectionFunction of cvat-sdk: a mask for each class that the classifier predicts, with its score (the mean
    of the class's map there); polygons with cvat-cli's `--conv-mask-to-poly`."""

    def __init__(
        self,
        engine: Engine,
        recipe: str = "fast",
        threshold: float = 0.3,
        score_threshold: float = 0.5,
        tolerance: float = 1.0,
    ) -> None:
        """Raises BackendError without cvat-sdk, InputError for an unknown recipe."""
        try:
            import cvat_sdk.auto_annotation as auto
            from cvat_sdk import masks
        except ImportError:
            raise BackendError("the function for CVAT needs cvat-sdk: pip install cvat-cli") from None
        self._auto: Any = auto
        self._masks: Any = masks
        self._engine = engine
        self._recipe = engine.recipe(recipe)
        self._threshold = threshold
        self._score_threshold = score_threshold
        self._tolerance = tolerance
        labels = [auto.label_spec(name, c, type="mask") for c, name in enumerate(engine.manifest.classes)]
        self.spec = auto.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Shapes of one image; those whose score is below the context's `conf_threshold` are left out."""
        pixels = np.asarray(image.convert("RGB"))
        classes = self._engine.predict(pixels, self._score_threshold, self._recipe.ladder)
        maps = self._engine.maps(pixels, classes, self._recipe)
        least = context.conf_threshold or 0
        found = [r for r in regions_of_maps(maps, classes, self._threshold) if r.score >= least]
        return [s for region in found for s in self._shapes(region, context.conv_mask_to_poly)]

    def _shapes(self, region: Region, polygons: bool) -> list[Any]:
        if not polygons:
            points = self._masks.encode_mask(region.inside)
            return [self._auto.mask(region.label, points, score=region.score)]
        return [
            self._auto.polygon(p.label, p.points.ravel().astype(float).tolist(), score=p.score)
            for p in polygons_of(region, self._tolerance)
        ]
