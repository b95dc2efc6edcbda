"""The function for CVAT, driven by cvat-sdk's own driver; its client and the task's pictures are stand-ins."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from infercam.engine.api import Engine
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError, InfercamError
from infercam.engine.labelling import cvat
from infercam.engine.labelling.regions import Region, regions_of_maps
from tests.engine import tiny

PICTURES = [tiny.picture(30, 40, 2), tiny.picture(26, 34, 5)]
SETTINGS: dict[str, Any] = {"threshold": 0.2, "score_threshold": 0.0, "tolerance": 0.0}


def regions(engine: Engine, pixels: np.ndarray) -> list[Region]:
    classes = engine.predict(pixels, 0.0, ladder=True)
    return regions_of_maps(engine.maps(pixels, classes, "fast"), classes, 0.2)


def annotate(
    monkeypatch: pytest.MonkeyPatch, function: Any, names: list[str], kind: str = "any", **options: Any
) -> list[Any]:
    """What the driver uploads for a task of PICTURES, whose labels have ids from 100 on."""
    driver = pytest.importorskip("cvat_sdk.auto_annotation.driver")
    models = pytest.importorskip("cvat_sdk.models")
    samples = [
        SimpleNamespace(
            frame_name=f"{n}.png",
            frame_index=n,
            media=SimpleNamespace(load_image=lambda pixels=pixels: Image.fromarray(pixels).convert("RGBA")),
        )
        for n, pixels in enumerate(PICTURES)
    ]
    labels = [
        models.Label(name=name, id=100 + n, type=kind, attributes=[], sublabels=[])
        for n, name in enumerate(names)
    ]
    monkeypatch.setattr(
        driver, "TaskDataset", lambda *args, **more: SimpleNamespace(labels=labels, samples=samples)
    )
    sent: list[Any] = []
    api = SimpleNamespace(
        partial_update_annotations=lambda action, task, patched_labeled_data_request: sent.append(
            patched_labeled_data_request
        )
    )
    client = SimpleNamespace(logger=logging.getLogger("cvat"), tasks=SimpleNamespace(api=api))
    driver.annotate_task(client, 3, function, **options)
    (request,) = sent
    assert request.tags == []
    return list(request.shapes)


def test_masks_are_the_engine_s_regions(monkeypatch: pytest.MonkeyPatch, tiny_engine: Engine) -> None:
    masks = pytest.importorskip("cvat_sdk.masks")
    function = cvat.CvatFunction(tiny_engine, **SETTINGS)
    shapes = annotate(monkeypatch, function, tiny.CLASSES)
    want = [(n, region) for n, pixels in enumerate(PICTURES) for region in regions(tiny_engine, pixels)]
    assert len(shapes) == len(want) > 2
    for shape, (frame, region) in zip(shapes, want, strict=True):
        height, width = PICTURES[frame].shape[:2]
        found = masks.decode_mask(shape.points, image_width=width, image_height=height)
        assert (shape.frame, shape.label_id, shape.source) == (frame, 100 + region.label, "auto")
        assert np.array_equal(found, region.inside) and shape.score == pytest.approx(region.score)


def test_polygons_where_masks_are_not_wanted(monkeypatch: pytest.MonkeyPatch, tiny_engine: Engine) -> None:
    pytest.importorskip("cvat_sdk")
    function = cvat.CvatFunction(tiny_engine, **SETTINGS)
    shapes = annotate(monkeypatch, function, tiny.CLASSES, "polygon", conv_mask_to_poly=True)
    for n, pixels in enumerate(PICTURES):
        for region in regions(tiny_engine, pixels):
            painted = np.zeros(pixels.shape[:2], np.uint8)
            for shape in shapes:
                if (shape.frame, shape.label_id) == (n, 100 + region.label):
                    assert shape.type.value == "polygon" and shape.score == pytest.approx(region.score)
                    cv2.fillPoly(painted, [np.array(shape.points).reshape(-1, 2).astype(np.int32)], 1)
            assert (painted & region.inside).sum() / (painted | region.inside).sum() > 0.8


def test_a_threshold_and_labels_that_a_task_lacks(
    monkeypatch: pytest.MonkeyPatch, tiny_engine: Engine
) -> None:
    auto = pytest.importorskip("cvat_sdk.auto_annotation")
    function = cvat.CvatFunction(tiny_engine, **SETTINGS)
    shapes = annotate(monkeypatch, function, tiny.CLASSES)
    scores = sorted(s.score for s in shapes)
    some = annotate(monkeypatch, function, tiny.CLASSES, conf_threshold=scores[1])
    assert len(some) == sum(s >= scores[1] for s in scores) < len(scores)
    label = tiny.CLASSES[shapes[0].label_id - 100]
    few = annotate(monkeypatch, function, [label], allow_unmatched_labels=True)
    assert 0 < len(few) < len(shapes) and {s.label_id for s in few} == {100}
    with pytest.raises(auto.BadFunctionError, match="not in dataset"):
        annotate(monkeypatch, function, [label])


def test_cvat_cli_loads_it(tiny_bundle: Bundle) -> None:
    pytest.importorskip("cvat_sdk")
    common = pytest.importorskip("cvat_cli._internal.common")
    parsers = pytest.importorskip("cvat_cli._internal.parsers")
    given = [f"bundle=str:{tiny_bundle.path}", "threshold=float:0.2", "recipe=str:released"]
    parameters = dict(parsers.parse_function_parameter(text) for text in given)
    function = common.FunctionLoader("infercam.engine.labelling.cvat", None, parameters).load()
    assert [(label.name, label.id) for label in function.spec.labels] == [
        (name, n) for n, name in enumerate(tiny.CLASSES)
    ]
    with pytest.raises(InfercamError, match="slow"):
        cvat.create(str(tiny_bundle.path), recipe="slow")


def test_without_cvat_sdk(monkeypatch: pytest.MonkeyPatch, tiny_engine: Engine) -> None:
    monkeypatch.setitem(sys.modules, "cvat_sdk", None)
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", None)
    with pytest.raises(BackendError, match="pip install cvat-cli"):
        cvat.CvatFunction(tiny_engine)
