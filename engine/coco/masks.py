"""From annotations to semantic masks, and to the classes of an image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercam.engine.coco.annotations import Annotations, CocoImage, CocoObject
from infercam.engine.coco.regions import paint
from infercam.engine.common.errors import InputError, shown
from infercam.engine.evaluation.histogram import IGNORE

CROWD = ("class", "ignore", "skip")
ORDER = ("area", "file")


@dataclass(frozen=True)
class CocoMasks:
    """Paints masks, with values by `Annotations.values`.

    crowd: a crowd region becomes its 'class', 255 ('ignore'), or is left out ('skip').
    order: 'area': larger objects first, so that smaller ones stay on top, of equal ones that of the lower annotation
        id; 'file': as the file has them, later ones on top.
    """

    annotations: Annotations
    crowd: str = "class"
    order: str = "area"

    def __post_init__(self) -> None:
        for name, known in (("crowd", CROWD), ("order", ORDER)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")

    def __call__(self, id: str, file: Path | None = None) -> NDArray[np.uint8]:
        """The (H, W) uint8 mask of an image; raises InputError where it or an annotation of it is broken.

        file: not looked at (masks that are files are read by callables of this form).
        """
        image = self.annotations.image(id)
        objects = self.annotations.objects(image)
        problem = next((o.problem for o in objects if o.problem is not None), image.problem)
        if problem is not None:
            raise InputError(f"{shown(id)}: {problem}")
        regions = [(self._value(o), o.region) for o in self._ordered(objects) if o.region is not None]
        return paint(regions, image.height, image.width)

    def describe(self) -> dict[str, Any]:
        """What outputs record."""
        return {
            "annotations": shown(self.annotations.file),
            "sha256": self.annotations.sha256,
            "values": {str(id): value for id, value in self.annotations.values.items()},
            "crowd": self.crowd,
            "order": self.order,
        }

    @property
    def words(self) -> str:
        """The choices, for a line that people read."""
        crowd = {"class": "as their class", "ignore": "as 255", "skip": "left out"}[self.crowd]
        order = {"area": "smaller objects on top", "file": "later annotations on top"}[self.order]
        return f"COCO masks, {shown(self.annotations.file)} ({order}, crowds {crowd})"

    def _ordered(self, objects: list[CocoObject]) -> list[CocoObject]:
        if self.crowd == "skip":
            objects = [o for o in objects if not o.crowd]
        if self.order == "file":
            return objects
        first = sorted(objects, key=lambda o: (isinstance(o.id, str), o.id), reverse=True)
        return sorted(first, key=lambda o: -o.area)

    def _value(self, found: CocoObject) -> int:
        assert found.category is not None  # else it has a problem
        return IGNORE if found.crowd and self.crowd == "ignore" else self.annotations.values[found.category]


def image_classes(annotations: Annotations, image: CocoImage) -> list[str]:
    """The names of the classes of an image's annotations, crowd regions among them, in the classes' order.

    Raises InputError where an annotation has no known category.
    """
    objects = annotations.objects(image)
    unknown = next((o.problem for o in objects if o.category is None), None)
    if unknown is not None:
        raise InputError(f"{shown(image.name)}: {unknown}")
    present = {o.category for o in objects}
    return [name for category, name in annotations.categories.items() if category in present]
