"""Parity with the released code on its own outputs, and independence of batching on a real classifier.

Needs ../shared: the plain classifiers there become bundles by graph surgery, as a user's would.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from infercam.engine import Bundle, Engine
from infercam.engine.data.images import read_image
from infercam.engine.method.backend import Limits
from infercam.engine.method.recipe import Recipe, Views

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def golden(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    export = pytest.importorskip("infercam.export")
    out = tmp_path_factory.mktemp("golden") / "bundle"
    return export.export_onnx(shared / "golden" / "tiny_classifier.onnx", out)


@pytest.fixture(scope="module")
def items(shared: Path) -> list[tuple[str, Path, list[int]]]:
    folder = shared / "golden"
    listed = json.loads((folder / "manifest.json").read_text())
    return [(m["id"], folder / "images" / f"{m['id']}.png", m["classes"]) for m in listed]


@pytest.mark.parametrize(
    ("recipe", "mode", "key"),
    [
        ("released", "both", "released"),
        ("corrected", "both", "corrected"),
        ("released", "baseline", "baseline"),
    ],
)
def test_the_released_code_s_own_maps(
    golden: Bundle, items: list, shared: Path, recipe: str, mode: str, key: str
) -> None:
    """All five images batched together, to 1e-4."""
    with np.load(shared / "golden" / "expected.npz") as expected, Engine.load(golden) as engine:
        found = {r.id: r for r in engine.stream(items, recipe, mode)}  # type: ignore[arg-type]
        assert found.keys() == {name for name, _, _ in items}
        for name, result in found.items():
            want = expected[f"{name}/{key}"]
            assert result.error is None and result.maps.shape == want.shape
            assert np.abs(result.maps - want).max() <= 1e-4, name


def test_the_three_expectations_differ(items: list, shared: Path) -> None:
    """Or passing one would pass all."""
    with np.load(shared / "golden" / "expected.npz") as expected:
        for a, b in (("baseline", "released"), ("released", "corrected")):
            off = [np.abs(expected[f"{n}/{a}"] - expected[f"{n}/{b}"]).max() for n, _, _ in items]
            assert max(off) > 0.05, (a, b)


@pytest.fixture(scope="module")
def mobilenet(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    export = pytest.importorskip("infercam.export")
    out = tmp_path_factory.mktemp("mobilenet") / "bundle"
    return export.export_onnx(shared / "models" / "mobilenetv2_voc.onnx", out)


def test_a_real_classifier_s_maps_do_not_depend_on_batching(
    mobilenet: Bundle, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four VOC photographs shrunk to a third, five ways to cut the work, to 1e-5."""
    raw = json.loads((shared / "voc" / "labels.json").read_text())
    photos = sorted((shared / "voc" / "VOC2012" / "JPEGImages").glob("*.jpg"))[:4]
    assert len(photos) == 4
    listed = [(p.stem, np.ascontiguousarray(read_image(p)[::3, ::3]), raw["labels"][p.stem]) for p in photos]
    recipe = Recipe(views=Views(scales=(1.0, 0.5)), iterations=3)
    with Engine.load(mobilenet, threads=1) as engine:
        classes = engine.manifest.classes
        named = [(n, p, [c if isinstance(c, str) else raw["classes"][c] for c in cs]) for n, p, cs in listed]
        assert all(c in classes for _, _, cs in named for c in cs)
        want = {name: engine.maps(p, cs, recipe) for name, p, cs in named}
    assert len(want) == 4 and all(maps.max() > 0.9 for maps in want.values())
    for threads, limits in (
        (1, Limits(batch_pixels=1, batch_views=1)),
        (1, Limits(batch_pixels=1 << 24)),
        (2, Limits(batch_pixels=1 << 24, batch_views=5, images=2)),
        (3, Limits(batch_pixels=50_000, memory=1)),
    ):
        with Engine.load(mobilenet, threads=threads) as engine:
            monkeypatch.setattr(type(engine.backend), "limits", property(lambda self, value=limits: value))
            got = {r.id: r.maps for r in engine.stream(named[::-1], recipe)}
            monkeypatch.undo()
        assert got.keys() == want.keys()
        for name, maps in want.items():
            assert np.abs(got[name] - maps).max() <= 1e-5, (name, threads, limits)
