"""The CPU backend over OpenVINO: the same maps as over ONNX Runtime, and its refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from infercam.engine.api import Engine
from infercam.engine.backends.choice import obstacle
from infercam.engine.bundle import Bundle, file_entry
from infercam.engine.common.errors import BackendError, BundleError, InputError, MissingExtra
from infercam.engine.method.recipe import MODES, RECIPES
from infercam.engine.runners import openvino as runner
from tests.engine import tiny

pytest.importorskip("openvino", reason="needs the extra openvino")
HAS_BF16 = obstacle("openvino", None, "bf16") is None


@pytest.fixture(scope="module")
def engine(tiny_bundle: Bundle):
    with Engine.load(tiny_bundle, "openvino", threads=2) as it:
        yield it


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("mode", MODES)
def test_the_same_maps_as_over_onnx_runtime(
    engine: Engine, tiny_engine: Engine, recipe: str, mode: str
) -> None:
    for size, classes in (((41, 58), [1]), ((30, 33), [0, 2]), ((9, 70), [0, 1, 2])):
        pixels = tiny.picture(*size)
        got = engine.maps(pixels, classes, recipe, mode)  # type: ignore[arg-type]
        want = tiny_engine.maps(pixels, classes, recipe, mode)  # type: ignore[arg-type]
        assert np.abs(got - want).max() <= 1e-5
    np.testing.assert_allclose(engine.scores(pixels), tiny_engine.scores(pixels), atol=1e-4)


def test_many_images_at_once(engine: Engine, tiny_engine: Engine) -> None:
    items = [(f"p{i}", tiny.picture(30 + i, 44 - i, i), [i % 5]) for i in range(12)]
    for result in engine.stream(items, "released"):
        assert result.error is None
        pixels, classes = next((p, c) for name, p, c in items if name == result.id)
        assert np.abs(result.maps - tiny_engine.maps(pixels, classes, "released")).max() <= 1e-5


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 arithmetic")
def test_bf16_is_near(tiny_bundle: Bundle, tiny_engine: Engine) -> None:
    pixels = tiny.picture(60, 80)
    want = tiny_engine.maps(pixels, [1, 2], "fast", "baseline")
    with Engine.load(tiny_bundle, "openvino", threads=1, precision="bf16") as engine:
        got = engine.maps(pixels, [1, 2], "fast", "baseline")
        assert engine.backend.precision == "bf16" and engine.backend.describe()["backend"] == "openvino"
    assert 0 < np.abs(got - want).max() < 0.1


def test_what_openvino_cannot_do(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match="no fp16; it computes in fp32, bf16, int8"):
        Engine.load(tiny_bundle, "openvino", precision="fp16")
    with pytest.raises(BundleError, match="no int8 graph"):
        Engine.load(tiny_bundle, "openvino", precision="int8")
    broken = tiny.build(tmp_path / "b")
    broken.graph().write_bytes(b"nonsense")
    files = {"response.onnx": file_entry(broken.graph())}
    loaded = Bundle(broken.path, broken.manifest.model_copy(update={"files": files}))
    with pytest.raises(BackendError, match="OpenVINO cannot compile it"):
        Engine.load(loaded, "openvino")
    other = tiny.build(tmp_path / "c")
    manifest = other.manifest.model_copy(update={"response": "other"})
    with pytest.raises(BundleError, match="has no output 'other'"):
        Engine.load(Bundle(other.path, manifest), "openvino")
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"infercam\[openvino\]"):
        Engine.load(tiny_bundle, "openvino")


def test_a_size_that_the_network_refuses_is_the_picture_s_fault(tmp_path: Path) -> None:
    """Two convolutions without padding: 3 pixels are too few."""
    bundle = tiny.build(tmp_path / "b")
    model = onnx.load(str(bundle.graph()))
    for node in model.graph.node:
        if node.op_type == "Conv" and node.output[0] != "response":
            pads = next(a for a in node.attribute if a.name == "pads")
            del pads.ints[:]
            pads.ints.extend([0, 0, 0, 0])
    onnx.save(model, str(bundle.graph()))
    files = {"response.onnx": file_entry(bundle.graph())}
    small = Bundle(bundle.path, bundle.manifest.model_copy(update={"files": files}))
    with (
        Engine.load(small, "openvino", threads=1) as engine,
        pytest.raises(InputError, match="does not run on 3×3"),
    ):
        engine.maps(tiny.picture(3, 3), [1], "released", "baseline")
