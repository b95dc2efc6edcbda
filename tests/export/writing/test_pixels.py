"""What the picture becomes before it is fed: uint8, graphs that normalise by themselves, what the user says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infercam.engine.common.errors import ExportError
from infercam.export.writing.onnx_source import export_onnx

MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)
PLAIN = ((0, 0, 0), (1, 1, 1))


def classifier(toys, begin, kind=TensorProto.FLOAT, last=False):
    """A classifier that begins with what `begin` makes of the picture."""
    t = toys.Toy()
    y = begin(t, "image")
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features(y)))
    shape = ["N", "H", "W", 3] if last else ["N", 3, "H", "W"]
    out = t.node("Gemm", y, t.random(toys.C, toys.K), t.random(toys.C), transB=1)
    return t.model(out, inputs=[helper.make_tensor_value_info("image", kind, shape)])


def exported(model, tmp_path, **options):
    """The manifest; every check of it was of the source."""
    onnx.save(model, str(tmp_path / "m.onnx"))
    manifest = export_onnx(tmp_path / "m.onnx", tmp_path / "b", **options).manifest
    assert manifest.verification.max_source_error < 1e-4
    assert not any("not compared" in i for i in manifest.verification.inputs)
    return manifest


def imagenet(t, y):
    """(y / 255 - mean) / std"""
    y = t.node("Div", y, t.const(np.float32(255)), name="by_255")
    return t.node("Div", t.node("Sub", y, t.const(MEAN)), t.const(STD), name="by_std")


def cast(t, y):
    return t.node("Cast", y, to=TensorProto.FLOAT)


# --- uint8 -----------------------------------------------------------------------------------------------------


def test_whole_numbers_are_taken_as_floats(toys, tmp_path):
    model = classifier(toys, lambda t, y: imagenet(t, cast(t, t.node("Identity", y))), TensorProto.UINT8)
    manifest = exported(model, tmp_path)
    assert (manifest.input.mean, manifest.input.std, manifest.input.scale) == (*PLAIN, 1)
    assert any("'image' was uint8" in n for n in manifest.source["notes"])
    graph = onnx.load(str(tmp_path / "b" / "response.onnx")).graph
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert "Cast" not in [n.op_type for n in graph.node]


@pytest.mark.parametrize("first", ["Cast", "Transpose"])
def test_whole_numbers_channels_last(toys, tmp_path, first):
    def begin(t, y):
        if first == "Cast":
            return imagenet(t, t.node("Transpose", cast(t, y), perm=[0, 3, 1, 2]))
        return imagenet(t, cast(t, t.node("Transpose", y, perm=[0, 3, 1, 2])))

    manifest = exported(classifier(toys, begin, TensorProto.UINT8, last=True), tmp_path)
    assert manifest.input.scale == 1


def test_whole_numbers_are_not_normalised(toys, tmp_path):
    model = classifier(toys, cast, TensorProto.UINT8)
    with pytest.raises(ExportError, match=r"'image' is uint8: it takes the pixels 0\.\.255 as they are"):
        exported(model, tmp_path, mean=(0.5, 0.5, 0.5))
    assert exported(model, tmp_path, mean=(0, 0, 0), scale=1).input.scale == 1


# --- graphs that normalise by themselves -----------------------------------------------------------------------


def keras(t, y):
    """Rescaling and Normalization before the transpose: EfficientNet through tf2onnx."""
    y = t.node("Mul", y, t.const(np.float32(1 / 255)))
    y = t.node("Div", t.node("Sub", y, t.const(MEAN.reshape(3))), t.const(STD.reshape(1, 1, 1, 3)))
    return t.node("Transpose", y, perm=[0, 3, 1, 2])


def symmetric(t, y):
    """y / 127.5 - 1"""
    return t.node("Add", t.node("Div", y, t.const(np.float32(127.5))), t.const(np.float32(-1)))


def caffe(t, y):
    return t.node("Sub", y, t.const(255 * MEAN[0]))


def unit(t, y):
    """(y - mean) / std: pixels of 0..1"""
    return t.node("Div", t.node("Sub", t.node("Identity", y), t.const(MEAN)), t.const(STD))


def unit_symmetric(t, y):
    return t.node("Sub", t.node("Mul", t.const(np.float32(2)), y), t.const(np.float32(1)))


def enlarged(t, y):
    """Pixels of 0..1, brought to 0..255 first"""
    return caffe(t, t.node("Mul", y, t.const(np.float32(255))))


def batch_norm(mean, var):
    def begin(t, y):
        values = (np.ones(3), np.zeros(3), mean * np.ones(3), var * np.ones(3))
        return t.node("BatchNormalization", y, *(t.const(v.astype(np.float32)) for v in values))

    return begin


@pytest.mark.parametrize(
    ("begin", "scale"),
    [
        (imagenet, 1),
        (keras, 1),
        (symmetric, 1),
        (caffe, 1),
        (lambda t, y: t.node("Div", y, t.const(np.float32(255))), 1),
        (batch_norm(120.0, 4000.0), 1),
        (unit, 1 / 255),
        (unit_symmetric, 1 / 255),
        (enlarged, 1 / 255),
    ],
    ids=[
        "imagenet",
        "keras",
        "symmetric",
        "caffe",
        "divided",
        "batch_norm",
        "unit",
        "unit_symmetric",
        "enlarged",
    ],
)
def test_a_graph_that_normalises_by_itself(toys, tmp_path, begin, scale):
    manifest = exported(classifier(toys, begin, last=begin is keras), tmp_path)
    assert (manifest.input.mean, manifest.input.std) == PLAIN
    assert manifest.input.scale == pytest.approx(scale)
    notes = [n for n in manifest.source["notes"] if "normalises its input by itself" in n]
    assert len(notes) == 1 and "node '" in notes[0] and ("0..255" in notes[0]) == (scale == 1)


def test_what_the_user_says_counts(toys, tmp_path):
    manifest = exported(classifier(toys, imagenet), tmp_path, scale=1 / 255)
    assert manifest.input.mean == pytest.approx(MEAN.ravel()) and manifest.input.scale == pytest.approx(
        1 / 255
    )
    assert not any("normalises" in n for n in manifest.source["notes"])


@pytest.mark.parametrize(
    "begin", [batch_norm(0.02, 1.1), lambda t, y: t.node("Mul", y, t.const(np.float32(2)))]
)
def test_a_beginning_that_tells_nothing_is_noted(toys, tmp_path, begin):
    """ResNet v2 of MXNet: a BatchNormalization around pictures that were normalised before."""
    manifest = exported(classifier(toys, begin), tmp_path)
    assert manifest.input.mean == pytest.approx(MEAN.ravel())
    assert any("may be its own normalisation" in n and "--scale" in n for n in manifest.source["notes"])


def test_channels_that_are_treated_one_by_one_tell_nothing(toys, tmp_path):
    """torchvision's transform_input turns ImageNet's normalisation into another, channel by channel."""

    def begin(t, y):
        parts = []
        for c in range(3):
            part = t.node("Slice", y, *(t.const(np.array([v])) for v in (c, c + 1, 1)))
            parts.append(t.node("Mul", part, t.const(np.float32(0.45))))
        return t.node("Concat", *parts, axis=1)

    manifest = exported(classifier(toys, begin), tmp_path)
    assert manifest.input.mean == pytest.approx(MEAN.ravel()) and not manifest.source["notes"]
