"""Label Studio: polygons as results of a prediction (points in per cent), and a project's labelling interface."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from infercam.engine.common.errors import InputError
from infercam.engine.common.suggest import did_you_mean
from infercam.engine.labelling.regions import Polygon


@dataclass(frozen=True)
class PolygonControl:
    """A project's `<PolygonLabels>`, and what its attributes say to the model."""

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
    def of(cls, config: str) -> PolygonControl:
        """The first of a labelling interface (XML); raises InputError, which says what to write, where there is
        none."""
        try:
            root = ElementTree.fromstring(config)
        except ElementTree.ParseError as e:
            raise InputError(f"the labelling interface is not XML: {e}") from None
        control = next(root.iter("PolygonLabels"), None)
        images = {image.get("name", ""): image.get("value", "") for image in root.iter("Image")}
        if control is None or control.get("toName") not in images:
            raise InputError(
                'the labelling interface has no <PolygonLabels name="label" toName="image"> with its <Image>'
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
        return cls(name, image, value[1:], labels, control.get("model_bundle"), **numbers)

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raises InputError where no label is one of the classifier's."""
        if not self.labels.keys() & set(classes):
            name = next(iter(self.labels), "")
            raise InputError(
                f"no label of the labelling interface is a class of the bundle ({', '.join(classes[:8])}, …); rename "
                f'them, or add predicted_values="CLASS" to a label{did_you_mean(name, classes)}'
            )

    def prediction(
        self, polygons: Iterable[Polygon], classes: Sequence[str], height: int, width: int, model: str
    ) -> dict[str, Any]:
        """A prediction of an image's polygons; what has no label in the interface is left out."""
        found = [p for p in polygons if classes[p.label] in self.labels]
        results = [
            polygon_result(n, p, self.labels[classes[p.label]], height, width, self.name, self.image)
            for n, p in enumerate(found)
        ]
        return prediction(results, model)


def prediction(results: list[dict[str, Any]], model: str) -> dict[str, Any]:
    """Results of one image; its score is the mean of theirs, 0 where there are none."""
    score = sum(r["score"] for r in results) / len(results) if results else 0.0
    return {"model_version": model, "score": score, "result": results}


def polygon_result(
    number: int,
    polygon: Polygon,
    label: str,
    height: int,
    width: int,
    control: str = "label",
    image: str = "image",
) -> dict[str, Any]:
    """One polygon; `number` makes its id, control and image are the interface's names."""
    shares = 100 * polygon.points / (width, height)
    return {
        "id": f"part{number}",
        "type": "polygonlabels",
        "from_name": control,
        "to_name": image,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": polygon.score,
        "value": {
            "points": [[round(float(x), 4), round(float(y), 4)] for x, y in shares],
            "closed": True,
            "polygonlabels": [label],
        },
    }


def _number(control: ElementTree.Element, name: str, most: float) -> float:
    text = control.get(name, "")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise InputError(f'<PolygonLabels {name}="{text}"> is no number of 0 to {most:g}')
    return value
