"""Datumaro: `annotations/default.json`, one run-length mask for each class of an image, its score an attribute."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from infercam.engine.common.atomic import atomic_write
from infercam.engine.labelling.regions import LabelledImage
from infercam.trainer.annotations.coco_rle import encoded, run_lengths

SUBSET = "default"


def write_datumaro(images: Iterable[LabelledImage], classes: list[str], out: Path, tolerance: float) -> Path:
    masks = run_lengths()
    labels = [{"name": name, "parent": "", "attributes": []} for name in classes]
    categories = {"label": {"attributes": [], "labels": labels}, "mask": {"colormap": []}}
    file = out / "annotations" / f"{SUBSET}.json"
    with atomic_write(file, "w") as f:
        f.write(f'{{"info": {{}}, "categories": {json.dumps(categories)}, "items": [')
        number = 0
        for at, image in enumerate(images):
            found: list[dict[str, Any]] = []
            for region in image.regions:
                number += 1
                found.append(
                    {
                        "id": number,
                        "type": "mask",
                        "attributes": {"score": region.score},
                        "group": number,
                        "label_id": region.label,
                        "z_order": 0,
                        "rle": encoded(masks, region.inside),
                    }
                )
            picture = {"path": image.file, "size": [image.height, image.width]}
            row = {"id": image.id, "annotations": found, "attr": {}, "image": picture}
            f.write(("," if at else "") + "\n" + json.dumps(row))
        f.write("\n]}\n")
    return file
