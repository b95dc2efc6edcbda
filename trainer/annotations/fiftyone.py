"""FiftyOne's `COCODetectionDataset`: `labels.json`, COCO's annotations with `score`, which its importer takes as the
confidence; `data.json` says where the pictures are, so that none is copied."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from infercam.engine.common.atomic import write_text
from infercam.engine.labelling.regions import LabelledImage
from infercam.trainer.annotations.coco_rle import write_coco

LABELS = "labels.json"
PICTURES = "data.json"


def write_fiftyone(images: Iterable[LabelledImage], classes: list[str], out: Path, tolerance: float) -> Path:
    """Without known pictures there is no `data.json`: their folder is then given to FiftyOne as `data_path`."""
    pictures: dict[str, str] = {}

    def noted() -> Iterator[LabelledImage]:
        for image in images:
            if image.picture is not None:
                pictures[image.file] = str(image.picture.absolute())
            yield image

    file = write_coco(noted(), classes, out, tolerance, LABELS)
    if pictures:
        write_text(out / PICTURES, json.dumps(pictures, indent=0) + "\n")
    return file
