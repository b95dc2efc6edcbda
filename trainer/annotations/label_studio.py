"""Label Studio: `tasks.json`, a task an image with its polygons as a prediction (points in per cent), and
`config.xml`, the labelling interface that they belong to. Pictures are named as files of local storage."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from infercam.engine.common.atomic import atomic_write, write_text
from infercam.trainer.annotations.regions import LabelledImage, Polygon, polygons_of

LOCAL = "/data/local-files/?d="
MODEL = "infercam"


def write_label_studio(
    images: Iterable[LabelledImage], classes: list[str], out: Path, tolerance: float
) -> Path:
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in classes)
    polygons = f'  <PolygonLabels name="label" toName="image">\n{labels}  </PolygonLabels>\n'
    write_text(out / "config.xml", f'<View>\n  <Image name="image" value="$image"/>\n{polygons}</View>\n')
    with atomic_write(out / "tasks.json", "w") as f:
        f.write("[")
        for at, image in enumerate(images):
            parts = [p for region in image.regions for p in polygons_of(region, tolerance)]
            found = [_result(n, p, image, classes) for n, p in enumerate(parts)]
            score = sum(p.score for p in parts) / len(parts) if parts else 0.0
            prediction = {"model_version": MODEL, "score": score, "result": found}
            data = {"image": LOCAL + quote(image.file), "id": image.id}
            f.write(("," if at else "") + "\n" + json.dumps({"data": data, "predictions": [prediction]}))
        f.write("\n]\n")
    return out / "tasks.json"


def _result(number: int, polygon: Polygon, image: LabelledImage, classes: list[str]) -> dict[str, Any]:
    shares = 100 * polygon.points / (image.width, image.height)
    return {
        "id": f"part{number}",
        "type": "polygonlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "score": polygon.score,
        "value": {
            "points": [[round(float(x), 4), round(float(y), 4)] for x, y in shares],
            "closed": True,
            "polygonlabels": [classes[polygon.label]],
        },
    }
