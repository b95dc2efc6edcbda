"""COCO: `instances.json`, one run-length mask for each class of an image, its `score` beside it. Read by pycocotools,
Detectron2, FiftyOne, CVAT and most others."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import MissingExtra
from infercam.engine.labelling.regions import LabelledImage

FILE = "instances.json"


def write_coco(
    images: Iterable[LabelledImage], classes: list[str], out: Path, tolerance: float, name: str = FILE
) -> Path:
    """Category c + 1 is class c; image ids count from 1, in the order of the images. Masks need no tolerance."""
    masks = run_lengths()
    rows: list[dict[str, Any]] = []
    number = 0
    with atomic_write(out / name, "w") as f:
        f.write('{"annotations": [')
        for at, image in enumerate(images, start=1):
            rows.append({"id": at, "file_name": image.file, "height": image.height, "width": image.width})
            for region in image.regions:
                number += 1
                mask = encoded(masks, region.inside)
                row = {
                    "id": number,
                    "image_id": at,
                    "category_id": region.label + 1,
                    "segmentation": mask,
                    "bbox": [float(v) for v in masks.toBbox(mask)],
                    "area": int(masks.area(mask)),
                    "iscrowd": 0,
                    "score": region.score,
                }
                f.write(("," if number > 1 else "") + "\n" + json.dumps(row))
        categories = [{"id": c, "name": label} for c, label in enumerate(classes, start=1)]
        f.write(f'\n],\n"images": {json.dumps(rows)},\n"categories": {json.dumps(categories)}}}\n')
    return out / name


def encoded(masks: Any, inside: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask H×W, as JSON takes them."""
    found = masks.encode(np.asfortranarray(inside, np.uint8))
    return {"size": [int(n) for n in found["size"]], "counts": found["counts"].decode("ascii")}


def run_lengths() -> Any:
    """pycocotools' masks; raises MissingExtra without it."""
    try:
        from pycocotools import mask
    except ImportError:
        raise MissingExtra("pycocotools", "coco", "run-length masks") from None
    return mask
