"""A small data set in COCO's form, made by the tests: pictures, and annotations of every kind that COCO has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infercam.engine.data.coco_categories import CATEGORIES
from tests.engine.tiny import picture

HUGE = 9_007_199_254_740_993  # above 2^53: not exact as a float
SIZES = [(48, 64), (61, 37), (33, 90), (70, 70), (20, 25), (40, 41), (52, 30)]


def disc(cx: float, cy: float, radius: float, corners: int = 24) -> list[float]:
    """A polygon with fractional corners."""
    angles = np.arange(corners) * 2 * np.pi / corners
    points = np.stack([cx + radius * np.cos(angles), cy + radius * np.sin(angles)], axis=1)
    return [round(float(v), 2) for v in points.ravel()]


def runs(mask: np.ndarray) -> list[int]:
    """Uncompressed run lengths: columns first, beginning with zeros."""
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges.tolist(), len(flat)]).tolist()
    return lengths if flat[0] == 0 else [0, *lengths]


def compressed(mask: np.ndarray) -> str:
    from pycocotools import mask as tools

    return tools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def annotation(id: int, image: int, category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": id, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0, **more
    }  # fmt: skip


def entries() -> dict[str, list[dict[str, Any]]]:
    """Seven images: overlaps, parts and a hole, crowds, one without annotations, ids of unusual size."""
    ids = [9, 25, 30, 581_929, HUGE, 61, 62]
    images = [
        {"id": id, "file_name": f"COCO_val2014_{n:012d}.jpg", "height": h, "width": w, "license": 1}
        for n, (id, (h, w)) in enumerate(zip(ids, SIZES, strict=True))
    ]
    ring = np.zeros(SIZES[2], bool)
    ring[5:28, 10:70] = True
    ring[12:20, 30:50] = False
    crowd = np.zeros(SIZES[3], bool)
    crowd[10:60, 5:66] = True
    crowd[::3] = False
    strip = np.zeros(SIZES[5], bool)
    strip[:, 17:23] = True
    size = [list(s) for s in SIZES]
    annotations = [
        # a large person, a dog on it, a frisbee on both; listed smallest first
        annotation(700, 9, 34, [disc(30.5, 22.25, 5)], area=78.0),
        annotation(13, 9, 18, [disc(28, 24, 11)], area=380.0),
        annotation(HUGE, 9, 1, [disc(30, 24, 20)], area=1256.0),
        # two parts of one zebra, partly outside; a toothbrush over one of them
        annotation(5, 25, 24, [disc(8, 12, 9), disc(25, 50, 13)], area=785.0),
        annotation(6, 25, 90, [[20.0, 40.0, 34.5, 41.5, 33.0, 60.25, 21.0, 55.0]], area=220.0),
        # a hole, as uncompressed run lengths, and something seen through it
        annotation(40, 30, 13, {"size": size[2], "counts": runs(ring)}, area=float(ring.sum())),
        annotation(41, 30, 90, [disc(40, 16, 9)], area=254.0),
        # a crowd and one of it, of equal area by the file
        annotation(50, 581_929, 1, {"size": size[3], "counts": runs(crowd)}, area=2000.0, iscrowd=1),
        annotation(51, 581_929, 44, [disc(35, 35, 15)], area=2000.0),
        # compressed run lengths, without an area
        annotation(60, HUGE, 88, {"size": size[4], "counts": compressed(np.eye(20, 25) > 0)}),
        annotation(61, 61, 17, {"size": size[5], "counts": compressed(strip)}),
        annotation(62, 61, 82, [disc(20, 20, 12)]),
    ]  # image 62 has none
    categories = [{"id": id, "name": name, "supercategory": "x"} for id, name in CATEGORIES.items()]
    return {"images": images, "annotations": annotations, "categories": categories[::-1]}


def write_json(file: Path, content: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    official = {"info": {"year": 2014}, "images": content["images"], "licenses": [{"id": 1}]}
    file.write_text(json.dumps({**official, **content}))
    return file


def write_tree(root: Path, split: str = "val2014", nested: bool = False) -> Path:
    """ROOT with annotations and a picture for each image."""
    content = entries()
    write_json(root / "annotations" / f"instances_{split}.json", content)
    folder = root / "images" / split if nested else root / split
    folder.mkdir(parents=True)
    for n, image in enumerate(content["images"]):
        array = picture(image["height"], image["width"], n)
        Image.fromarray(array).save(folder / image["file_name"], quality=95)
    return root


def name(number: int) -> str:
    return f"COCO_val2014_{number:012d}"


def bundle(folder: Path, classes: list[str]) -> Path:
    """A bundle of a random network with those classes, any size."""
    import onnx

    from infercam.engine.bundle import InputSpec, Manifest, file_entry
    from tests.engine import tiny

    folder.mkdir(parents=True)
    onnx.save(tiny.model(4, len(classes)), str(folder / "response.onnx"))
    manifest = Manifest(
        name="coco-tiny",
        classes=classes,
        stride=4,
        input=InputSpec(),
        bias=tiny.weights(4, len(classes))["bias"].tolist(),
        graphs={"fp32": "response.onnx"},
        files={"response.onnx": file_entry(folder / "response.onnx")},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder
