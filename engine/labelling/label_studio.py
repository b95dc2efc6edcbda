"""Label Studio: polygons (points in per cent) and brushed masks as results of a prediction, and a project's
labelling interface, which says which of them it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.errors import InputError
from infercam.engine.common.suggest import did_you_mean
from infercam.engine.labelling.regions import Polygon, Region, polygons_of

TAGS = ("PolygonLabels", "BrushLabels")


@dataclass(frozen=True)
class LabelControl:
    """A project's `<PolygonLabels>` or `<BrushLabels>`, and what its attributes say to the model."""

    tag: str
    """One of TAGS."""
    name: str
    image: str
    """The name of the `<Image>` that it belongs to."""
    value: str
    """The key of a task's data that has the picture's address."""
    labels: Mapping[str, str]
    """Label by class name: the label's own value and each of its `predicted_values`."""
    bundle: str | None = None
    """`model_bundle`: which bundle of the server; None: the first."""
    score_threshold: float = 0.5
    """`model_score_threshold`: least probability of a class."""
    threshold: float = 0.3
    """`model_threshold`: the background's score."""
    tolerance: float = 1.0
    """`model_tolerance`: pixels that a border may move by."""

    @classmethod
    def of(cls, config: str) -> LabelControl:
        """The first of a labelling interface (XML); raises InputError, which says what to write, where there is
        none."""
        try:
            root = ElementTree.fromstring(config)
        except ElementTree.ParseError as e:
            raise InputError(f"the labelling interface is not XML: {e}") from None
        control = next((element for element in root.iter() if element.tag in TAGS), None)
        images = {image.get("name", ""): image.get("value", "") for image in root.iter("Image")}
        if control is None or control.get("toName") not in images:
            raise InputError(
                'the labelling interface has no <PolygonLabels name="label" toName="image"> (or BrushLabels) '
                "with its <Image>"
            )
        value = images[control.get("toName", "")]
        if not value.startswith("$"):
            raise InputError(
                f'the <Image> has value="{value}" instead of a key of the data, as in value="$image"'
            )
        labels = {}
        for label in control.iter("Label"):
            own = label.get("value", "")
            for name in (
                own,
                *(n.strip() for n in label.get("predicted_values", "").split(",") if n.strip()),
            ):
                labels[name] = own
        numbers = {
            field: _number(control, f"model_{field}", most)
            for field, most in (("score_threshold", 1.0), ("threshold", 1.0), ("tolerance", 1e6))
            if f"model_{field}" in control.attrib
        }
        name, image = control.get("name", ""), control.get("toName", "")
        return cls(control.tag, name, image, value[1:], labels, control.get("model_bundle"), **numbers)

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raises InputError where no label is one of the classifier's."""
        if not self.labels.keys() & set(classes):
            name = next(iter(self.labels), "")
            raise InputError(
                f"no label of the labelling interface is a class of the bundle ({', '.join(classes[:8])}, …); rename "
                f'them, or add predicted_values="CLASS" to a label{did_you_mean(name, classes)}'
            )

    def prediction(
        self, regions: Iterable[Region], classes: Sequence[str], height: int, width: int, model: str
    ) -> dict[str, Any]:
        """A prediction of an image's regions; what has no label in the interface is left out."""
        values: list[tuple[float, dict[str, Any]]] = []
        for region in (r for r in regions if classes[r.label] in self.labels):
            label = self.labels[classes[region.label]]
            if self.tag == "BrushLabels":
                values.append((region.score, _brushed(region, label)))
                continue
            for polygon in polygons_of(region, self.tolerance):
                values.append((polygon.score, _outlined(polygon, label, height, width)))
        results = [
            _result(n, self.tag, value, score, height, width, self.name, self.image)
            for n, (score, value) in enumerate(values)
        ]
        return prediction(results, model)


def prediction(results: list[dict[str, Any]], model: str) -> dict[str, Any]:
    """Results of one image; its score is the mean of theirs, 0 where there are none."""
    score = sum(r["score"] for r in results) / len(results) if results else 0.0
    return {"model_version": model, "score": score, "result": results}


def polygon_result(number: int, polygon: Polygon, label: str, height: int, width: int) -> dict[str, Any]:
    """One polygon, of the control `label` on the picture `image`; `number` makes its id."""
    value = _outlined(polygon, label, height, width)
    return _result(number, "PolygonLabels", value, polygon.score, height, width, "label", "image")


def run_lengths_of(inside: NDArray[np.bool_]) -> list[int]:
    """A mask H×W as bytes of Label Studio's brush: rle-pack's bits, of RGBA pixels that are all 255 or all 0.

    32 bits: how many values; 5: bits of one, less 1; four times 4: bits of a run's length, less 1. Then the runs: a
    1, which of the four lengths, the run's length less 1, its value.
    """
    flat = inside.ravel()
    ends = np.append(np.flatnonzero(flat[:-1] != flat[1:]) + 1, flat.size)
    bits = [f"{4 * inside.size:032b}{7:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        value = "1" * 8 if flat[begin] else "0" * 8
        left = 4 * (end - begin)
        while left:
            run = min(left, 1 << _SIZES[-1])
            which = next(k for k, size in enumerate(_SIZES) if run <= 1 << size)
            bits.append(f"1{which:02b}{run - 1:0{_SIZES[which]}b}{value}")
            left -= run
    whole = "".join(bits)
    whole += "0" * (-len(whole) % 8)
    return list(int(whole, 2).to_bytes(len(whole) // 8, "big"))


_SIZES = (3, 4, 8, 16)


def _outlined(polygon: Polygon, label: str, height: int, width: int) -> dict[str, Any]:
    shares = 100 * polygon.points / (width, height)
    points = [[round(float(x), 4), round(float(y), 4)] for x, y in shares]
    return {"points": points, "closed": True, "polygonlabels": [label]}


def _brushed(region: Region, label: str) -> dict[str, Any]:
    return {"format": "rle", "rle": run_lengths_of(region.inside), "brushlabels": [label]}


def _result(
    number: int, tag: str, value: dict[str, Any], score: float, height: int, width: int, name: str, image: str
) -> dict[str, Any]:
    return {
        "id": f"part{number}",
        "type": tag.lower(),
        "from_name": name,
        "to_name": image,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": score,
        "value": value,
    }


def _number(control: ElementTree.Element, name: str, most: float) -> float:
    text = control.get(name, "")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise InputError(f'<{control.tag} {name}="{text}"> is no number of 0 to {most:g}')
    return value
