"""CVAT for images 1.1: `annotations.xml`, polygons with `score` as an attribute of theirs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from infercam.engine.common.atomic import atomic_write
from infercam.engine.labelling.regions import LabelledImage, polygons_of

FILE = "annotations.xml"
_ATTRIBUTE = (
    "<attributes><attribute><name>score</name><mutable>False</mutable><input_type>text</input_type>"
    "<default_value></default_value><values></values></attribute></attributes>"
)


def write_cvat(images: Iterable[LabelledImage], classes: list[str], out: Path, tolerance: float) -> Path:
    labels = "".join(f"<label><name>{escape(name)}</name>{_ATTRIBUTE}</label>\n" for name in classes)
    with atomic_write(out / FILE, "w") as f:
        f.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        f.write(f"<meta><task><labels>\n{labels}</labels></task></meta>\n")
        for at, image in enumerate(images):
            size = f'width="{image.width}" height="{image.height}"'
            f.write(f'<image id="{at}" name={quoteattr(image.file)} {size}>\n')
            for polygon in (p for region in image.regions for p in polygons_of(region, tolerance)):
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in polygon.points)
                name = quoteattr(classes[polygon.label])
                f.write(f'<polygon label={name} source="auto" occluded="0" points="{points}" z_order="0">')
                f.write(f'<attribute name="score">{polygon.score:.4f}</attribute></polygon>\n')
            f.write("</image>\n")
        f.write("</annotations>\n")
    return out / FILE
