"""Graphs as exporters other than PyTorch's write them: tf2onnx, Paddle2ONNX, half precision, preprocessing inside."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infercam.engine.common.errors import ExportError
from infercam.export import export_onnx

FREE = (None, None, True)
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1), "scale": 1.0}


def exported(model, folder, **options):
    onnx.save(model, folder / "m.onnx")
    return export_onnx(folder / "m.onnx", folder / "b", **options)


def sizes(bundle):
    spec = bundle.manifest.input
    compared = [i for i in bundle.manifest.verification.inputs if "not compared" not in i]
    assert compared and bundle.manifest.verification.max_score_error < 1e-5
    return spec.height, spec.width, spec.dynamic_batch


def picture(shape, kind=TensorProto.FLOAT, name="image"):
    return [helper.make_tensor_value_info(name, kind, shape)]


def dense(t, toys, y):
    return t.node("Add", t.node("MatMul", y, t.random(toys.K, toys.C)), t.random(toys.C))


# --- tf2onnx: NHWC outside, NCHW inside ------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("shape", [("unk__1", 64, 64, 3), ("N", "unk__2", "unk__3", 3), (1, 64, 64, 3)])
def test_tf2onnx(toys, tmp_path, opset, shape):
    """A leading Transpose, 'same' padding as a Pad of its own, squeeze and excitation through Squeeze and Reshape,
    means as ReduceMean over 2 and 3 with keepdims=0, MatMul and Add, Softmax."""
    t = toys.Toy(opset=opset)

    def axes(*values):  # an attribute of Squeeze until opset 12, of ReduceMean until 17
        return t.const(np.array(values, np.int64))

    x = t.node("Transpose", "image", perm=[0, 3, 1, 2])
    x = t.node("Pad", x, t.const(np.array([0, 0, 0, 0, 0, 0, 1, 1])), mode="constant")
    f = t.features(x)
    mean = {"inputs": (f,), "axes": [2, 3]} if opset < 18 else {"inputs": (f, axes(2, 3))}
    gate = t.node("ReduceMean", *mean.pop("inputs"), keepdims=0, **mean)
    gate = t.node("Sigmoid", t.node("MatMul", gate, t.random(toys.K, toys.K)))
    gate = t.node("Reshape", gate, t.const(np.array([-1, toys.K, 1, 1])))
    f = t.node("Mul", f, gate)
    if opset < 18:
        y = t.node("ReduceMean", f, axes=[2, 3], keepdims=0)
    else:
        y = t.node("ReduceMean", f, axes(2, 3), keepdims=0)
    out = t.node("Softmax", dense(t, toys, y), axis=-1)
    bundle = exported(t.model(out, inputs=picture(shape)), tmp_path)
    assert sizes(bundle) == FREE and not bundle.manifest.multi_label


def test_tf2onnx_of_all_symbols(toys, tmp_path):
    """N, H, W and even the channels are symbols: which axis they are on, the graph itself tells."""
    t = toys.Toy()
    y = t.node(
        "Flatten", t.node("GlobalAveragePool", t.features(t.node("Transpose", "image", perm=[0, 3, 1, 2])))
    )
    model = t.model(dense(t, toys, y), inputs=picture(["a", "b", "c", "d"]))
    assert sizes(exported(model, tmp_path)) == FREE


# --- Paddle2ONNX ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 16])
def test_paddle(toys, tmp_path, opset):
    """Constants as nodes, flatten as Shape, Slice, Concat and Reshape, hard swish written out, a Gemm as MatMul and
    Add with an Identity behind every weight."""
    t = toys.Toy(shape=(-1, 3, -1, -1), opset=opset)

    def constant(value):
        return t.node("Constant", value=onnx.numpy_helper.from_array(np.asarray(value)))

    f = t.features()
    gate = t.node(
        "Clip", t.node("Add", f, constant(np.float32(3))), constant(np.float32(0)), constant(np.float32(6))
    )
    f = t.node("Div", t.node("Mul", f, gate), constant(np.float32(6)))
    pooled = t.node("GlobalAveragePool", f)
    zero, one = (constant(np.array([v], np.int64)) for v in (0, 1))
    first = t.node("Slice", t.node("Shape", pooled), zero, one, zero)
    y = t.node("Reshape", pooled, t.node("Concat", first, constant(np.array([-1], np.int64)), axis=0))
    y = t.node("MatMul", y, t.node("Identity", t.random(toys.K, toys.C)))
    y = t.node("Add", y, t.node("Identity", t.random(toys.C)))
    out = t.node("Softmax", y, axis=1)
    model = t.model(out, inputs=picture(["p", 3, "p1", "p2"]))
    assert sizes(exported(model, tmp_path)) == FREE


# --- preprocessing inside the graph -----------------------------------------------------------------------------


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("precision", [np.float32, np.float16])
def test_uint8_cast_and_normalised(toys, tmp_path, last, precision):
    t = toys.Toy()
    y = t.node("Cast", "image", to=helper.np_dtype_to_tensor_dtype(np.dtype(precision)))
    y = t.node("Transpose", y, perm=[0, 3, 1, 2]) if last else y
    mean = np.array([123.7, 116.3, 103.5], precision).reshape(1, 3, 1, 1)
    y = t.node("Div", t.node("Sub", y, t.const(mean)), t.const(np.full((1, 3, 1, 1), 58, precision)))
    y = t.node("Cast", y, to=TensorProto.FLOAT)
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features(y)))
    shape = ["N", "H", "W", 3] if last else ["N", 3, "H", "W"]
    bundle = exported(t.model(dense(t, toys, y), inputs=picture(shape, TensorProto.UINT8)), tmp_path)
    assert sizes(bundle) == FREE
    assert (bundle.manifest.input.scale, bundle.manifest.input.mean) == (1.0, (0.0, 0.0, 0.0))


def test_a_crop_of_a_border(toys, tmp_path):
    """A border is cut off: the map still follows the picture."""
    t = toys.Toy()
    ends = [t.const(np.array(v)) for v in ([2, 2], [-2, -2], [2, 3])]
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features(t.node("Slice", "image", *ends))))
    assert sizes(exported(t.model(dense(t, toys, y)), tmp_path)) == FREE


@pytest.mark.parametrize("how", ["crop", "resize"])
def test_a_picture_brought_to_one_size_inside(toys, tmp_path, how):
    """The map then is of that size whatever comes in: it is fixed, or refused in a line that says what to cut off."""
    t = toys.Toy()
    if how == "crop":
        ends = [t.const(np.array(v)) for v in ([0, 0], [64, 64], [2, 3])]
        y = t.node("Slice", "image", *ends, name="cut")
    else:
        size = t.node("Concat", t.node("Slice", t.node("Shape", "image"), *(t.const(np.array([v])) for v in (0, 2))),
                      t.const(np.array([64, 64])), axis=0)  # fmt: skip
        y = t.node("Resize", "image", "", "", size, mode="linear", name="shrink")
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features(y)))
    bundle = exported(t.model(dense(t, toys, y)), tmp_path)
    assert sizes(bundle)[:2] == (64, 64)
    assert any("fixed at 64x64" in n for n in bundle.manifest.source["notes"])


# --- files and outputs --------------------------------------------------------------------------------------------


def test_weights_in_a_file_of_their_own(toys, tmp_path):
    t = toys.Toy(shape=(1, 3, 64, 64))
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features()))
    model = t.model(dense(t, toys, y))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (tmp_path / "w.bin").stat().st_size > 0
    assert sizes(export_onnx(tmp_path / "m.onnx", tmp_path / "b")) == FREE


def test_several_outputs(toys, tmp_path):
    """Logits, their softmax, and the features: what has a head is taken; two different heads are a choice."""
    t = toys.Toy()
    f = t.features()
    y = t.node("Flatten", t.node("GlobalAveragePool", f))
    logits = dense(t, toys, y)
    outputs = [logits, t.node("Softmax", logits), f]
    assert sizes(exported(t.model(*outputs), tmp_path)) == FREE
    other = dense(t, toys, y)
    with pytest.raises(ExportError, match="choose with --output"):
        exported(t.model(logits, other), tmp_path, overwrite=True)
    assert sizes(exported(t.model(logits, other), tmp_path, output=other, overwrite=True)) == FREE


@pytest.mark.parametrize("half", [False, True])
def test_a_long_chain(toys, tmp_path, half):
    """600 nodes one behind the other, with casts to and from half precision in between."""
    t = toys.Toy()
    y = t.features()
    for i in range(300):
        y = t.node(
            "Conv",
            y,
            t.const((np.eye(toys.K) + 0.01 * t.array(toys.K, toys.K))[:, :, None, None].astype("f4")),
        )
        y = t.node("Relu", y)
        if half and i % 50 == 0:
            y = t.node("Cast", t.node("Cast", y, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)
    y = t.node("Flatten", t.node("GlobalAveragePool", y))
    assert sizes(exported(t.model(dense(t, toys, y)), tmp_path)) == FREE
