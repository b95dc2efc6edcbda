"""`refine: affinity`: one product a step with the attention among patches, view by view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from infercam.engine import Engine
from infercam.engine.backends.choice import obstacle
from infercam.engine.bundle import Bundle, file_entry
from infercam.engine.common.errors import BundleError, InputError
from infercam.engine.method import host_ops, reference
from infercam.engine.method.recipe import RECIPES, recipe
from tests.engine import tiny


@given(st.integers(0, 4), st.integers(1, 6), st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_against_the_twin(classes, h, w, steps, seed):
    rng = np.random.default_rng(seed)
    response = rng.standard_normal((classes, h, w)).astype(np.float32)
    affinity = rng.random((h * w, h * w)).astype(np.float32)
    affinity[rng.integers(h * w)] = 0  # a patch that attends to nothing
    found = host_ops.refined(response, affinity, steps)
    np.testing.assert_allclose(found, reference.refined(response, affinity, steps), rtol=1e-4, atol=1e-6)
    assert found.shape == response.shape and (found >= 0).all()


def test_what_it_does_to_two_patches():
    """Rows are means: a map that is the same everywhere stays, a patch that attends to another takes its value."""
    affinity = np.array([[1, 3], [0, 2]], np.float32)
    maps = np.array([[[2.0, 2.0]], [[4.0, 0.0]], [[-1.0, 4.0]]], np.float32)
    want = np.array([[[2.0, 2.0]], [[1.0, 0.0]], [[3.0, 4.0]]])
    np.testing.assert_allclose(reference.refined(maps, affinity, 1), want)
    np.testing.assert_allclose(host_ops.refined(maps, affinity, 1), want)


def build(folder: Path) -> Bundle:
    """The tiny bundle with an affinity made of its response: softmax(RᵀR), symmetrised."""
    bundle = tiny.build(folder)
    model = onnx.load(str(folder / "response.onnx"))
    nodes = [
        helper.make_node("Reshape", ["response", "flat_shape"], ["flat_response"]),
        helper.make_node("Transpose", ["flat_response"], ["columns"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["columns", "flat_response"], ["products"]),
        helper.make_node("Softmax", ["products"], ["attention"], axis=-1),
        helper.make_node("Transpose", ["attention"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Add", ["attention", "turned"], ["both"]),
        helper.make_node("Mul", ["both", "half"], ["affinity"]),
    ]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 5, -1]), "flat_shape"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    model.graph.output.append(helper.make_tensor_value_info("affinity", TensorProto.FLOAT, ["n", "p", "p"]))
    onnx.save(model, str(folder / "response.onnx"))
    files = {"response.onnx": file_entry(folder / "response.onnx")}
    manifest = bundle.manifest.model_copy(update={"affinity": 1, "files": files})
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return Bundle.load(folder)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(tmp_path_factory.mktemp("affinity") / "tiny")


def affinity_of(bundle: Bundle) -> reference.Network:
    session = ort.InferenceSession(str(bundle.graph("fp32")), providers=["CPUExecutionProvider"])
    return lambda x: np.concatenate([session.run(["affinity"], {"image": v[None]})[0] for v in x])


@pytest.mark.parametrize(
    ("name", "mode"), [("released", "baseline"), ("corrected", "both"), ("fast", "both")]
)
@pytest.mark.parametrize("steps", [1, 3])
def test_whole_maps_against_the_twin(bundle, name, mode, steps):
    chosen = recipe(name, refine="affinity", refine_steps=steps)
    pixels, classes = tiny.picture(37, 53), [0, 3]
    with Engine.load(bundle, "cpu") as engine:
        found = engine.maps(pixels, classes, chosen, mode)
        plain = engine.maps(pixels, classes, name, mode)
    network = reference.refining(tiny.network(bundle), affinity_of(bundle), steps)
    as_run = chosen.model_copy(update={"accumulate": "max"}) if mode == "baseline" else chosen
    want = reference.response_maps(pixels, classes, as_run, mode, network, bundle.manifest.input)
    np.testing.assert_allclose(found, want, atol=2e-4)
    assert np.abs(found - plain).max() > 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino_refines_too(bundle, precision):
    """Whichever runtime `auto` takes on the CPU."""
    pytest.importorskip("openvino")
    if (why := obstacle("openvino", None, precision)) is not None:
        pytest.skip(str(why))
    pixels, classes = tiny.picture(37, 53), [0, 3]
    wish = recipe("fast", refine="affinity", refine_steps=2)
    with Engine.load(bundle, "cpu") as engine:
        want, plain = engine.maps(pixels, classes, wish), engine.maps(pixels, classes, "fast")
    with Engine.load(bundle, "openvino", precision=precision) as engine:
        found = engine.maps(pixels, classes, wish)
    assert np.abs(want - plain).max() > 1e-3
    if precision == "fp32":
        np.testing.assert_allclose(found, want, atol=2e-4)
    else:
        assert np.abs(found - want).mean() < 0.02


def test_it_is_off_and_changes_no_settings_of_old_stores():
    for r in RECIPES.values():
        assert r.refine == "none"
        assert r.refine_steps == 1
        assert r.fingerprint("both") != r.model_copy(update={"refine": "affinity"}).fingerprint("both")


def test_what_cannot_refine_is_refused(bundle, tmp_path, monkeypatch):
    wish = recipe("fast", refine="affinity")
    with (
        Engine.load(tiny.build(tmp_path / "plain"), "cpu") as engine,
        pytest.raises(InputError, match="no affinity; export a transformer with --affinity"),
    ):
        engine.maps(tiny.picture(37, 53), [0], wish)
    with Engine.load(bundle, "cpu") as engine:
        monkeypatch.setattr(engine.backend, "name", "tensorrt")
        with pytest.raises(InputError, match="on the CPU only, not on tensorrt: use --backend cpu"):
            engine.maps(tiny.picture(37, 53), [0], wish)


def test_a_manifest_that_promises_an_output_that_is_not_there(tmp_path):
    plain = tiny.build(tmp_path / "b")
    manifest = plain.manifest.model_copy(update={"affinity": 2})
    (tmp_path / "b" / "manifest.json").write_text(manifest.model_dump_json())
    with pytest.raises(BundleError, match="no output 'affinity'"):
        Engine.load(tmp_path / "b", "cpu")
