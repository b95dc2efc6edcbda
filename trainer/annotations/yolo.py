"""YOLO segmentation (Ultralytics): `labels/<id>.txt`, a line `class x1 y1 x2 y2 …` for each connected part,
coordinates as shares of width and height; `data.yaml` with the names. That format has no scores: `scores.csv` has
those of the lines, in their order."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from infercam.engine.common.atomic import atomic_write, write_text
from infercam.engine.common.paths import check_id
from infercam.engine.labelling.regions import LabelledImage, polygons_of


def write_yolo(images: Iterable[LabelledImage], classes: list[str], out: Path, tolerance: float) -> Path:
    names = "".join(f"  {c}: {json.dumps(name, ensure_ascii=False)}\n" for c, name in enumerate(classes))
    write_text(out / "data.yaml", f"path: .\ntrain: images\nval: images\nnames:\n{names}")
    with atomic_write(out / "scores.csv", "w") as f:
        scores = csv.writer(f, lineterminator="\n")
        scores.writerow(["id", "line", "class", "score"])
        for image in images:
            lines = []
            for polygon in (p for region in image.regions for p in polygons_of(region, tolerance)):
                shares = polygon.points / (image.width, image.height)
                lines.append(f"{polygon.label} " + " ".join(f"{v:.6f}" for v in shares.ravel()))
                scores.writerow([image.id, len(lines), classes[polygon.label], f"{polygon.score:.4f}"])
            write_text(out / "labels" / f"{check_id(image.id)}.txt", "".join(f"{line}\n" for line in lines))
    return out / "labels"
