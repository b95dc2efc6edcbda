"""Label Studio: `tasks.json`, a task an image with its polygons as a prediction (points in per cent), and
`config.xml`, the labelling interface that they belong to. Pictures are named as files of local storage."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from infercam.engine.common.atomic import atomic_write, write_text
from infercam.engine.labelling.label_studio import polygon_result, prediction
from infercam.engine.labelling.regions import LabelledImage, polygons_of

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
            size = image.height, image.width
            found = [polygon_result(n, p, classes[p.label], *size) for n, p in enumerate(parts)]
            data = {"image": LOCAL + quote(image.file), "id": image.id}
            f.write(
                ("," if at else "")
                + "\n"
                + json.dumps({"data": data, "predictions": [prediction(found, MODEL)]})
            )
        f.write("\n]\n")
    return out / "tasks.json"
