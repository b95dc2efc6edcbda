"""`infercam export` on files: options, class names, external weights, errors of one line; the real models."""

from __future__ import annotations

import json
import subprocess
import sys

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import ExportError, InfercamError, InputError
from infercam.engine.data.class_names import default_classes, read_classes
from infercam.export import export_onnx
from infercam.export.commands.triples import join_triples
from infercam.export.make_bundle import parse_triple
from infercam.export.writing.onnx_source import load_model
from tests.export.graph.vit_graphs import Vit


@pytest.fixture
def model(toys):
    t = toys.Toy()
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features()))
    y = t.node("Gemm", y, t.random(toys.C, toys.K), t.random(toys.C), transB=1)
    return t.model(t.node("Sigmoid", y))


@pytest.mark.parametrize("attention", [False, True])
def test_a_class_token_head_says_that_its_map_is_customary(toys, infercam, tmp_path, attention):
    file = tmp_path / "vit.onnx"
    onnx.save(Vit(toys).classifier(), file)
    out = infercam(file, "-o", tmp_path / "b", *(["--attention"] if attention else []))
    method = "patch-tokens-attention" if attention else "patch-tokens"
    assert f"{method}: customary" in out and "customary, not exact" in out
    m = Bundle.load(tmp_path / "b").manifest
    assert (m.decomposition, m.method, m.verification.max_score_error) == ("none", method, None)
    assert m.input.multiple == m.input.smallest == m.stride == 8


@pytest.fixture
def file(model, tmp_path):
    path = tmp_path / "toy.onnx"
    onnx.save(model, str(path))
    return path


# --- the command -----------------------------------------------------------------------------------------


def test_export_with_defaults(infercam, file, tmp_path):
    printed = infercam(file, "-o", tmp_path / "b")
    m = Bundle.load(tmp_path / "b").manifest
    assert m.classes == [f"class_{i}" for i in range(5)]
    assert m.multi_label and m.name == "toy" and m.stride == 4
    assert m.input.mean == (0.485, 0.456, 0.406) and m.input.scale == pytest.approx(1 / 255)
    assert m.source["kind"] == "onnx" and m.source["file"] == "toy.onnx"
    for words in (
        "wrote",
        "any size, any batch",
        "4 pixels per response cell",
        "6 against the source",
        "sha256",
    ):
        assert words in " ".join(printed.split())


def test_every_option(infercam, file, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(10):
        picture = np.random.default_rng(i).integers(0, 255, (80, 90, 3), np.uint8)
        cv2.imwrite(str(photos / f"{i}.png"), picture)
    (tmp_path / "names.txt").write_text("cat\ndog\ncow\nhorse\nsheep\n\n")
    infercam(
        *(file, "-o", tmp_path / "b", "--classes", tmp_path / "names.txt", "--mean", "-1", "0", "1.5"),
        *(
            "--std",
            "1,2,4",
            "--scale",
            "1/127.5",
            "--colour",
            "bgr",
            "--softmax",
            "--no-slim",
            "--name",
            "mine",
        ),
        *("--images", photos, "--input-name", "image"),
    )
    m = Bundle.load(tmp_path / "b").manifest
    assert m.classes == ["cat", "dog", "cow", "horse", "sheep"]
    assert (m.name, m.multi_label, m.input.colour) == ("mine", False, "BGR")
    assert m.input.mean == (-1, 0, 1.5) and m.input.std == (1, 2, 4)
    assert m.input.scale == pytest.approx(1 / 127.5)
    assert sum(i.startswith("image ") for i in m.verification.inputs) == 8


def test_overwrite(infercam, file, tmp_path):
    infercam(file, "-o", tmp_path / "b")
    with pytest.raises(ExportError, match="--overwrite"):
        infercam(file, "-o", tmp_path / "b")
    infercam(file, "-o", tmp_path / "b", "--overwrite", "--name", "second")
    assert Bundle.load(tmp_path / "b").manifest.name == "second"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["FILE"], "-o BUNDLE"),
        (["-o", "OUT"], "one of MODEL.onnx, --arch"),
        (["FILE", "--arch", "resnet38", "-o", "OUT"], "one of MODEL.onnx, --arch"),
        (["FILE", "--weights", "w.pth", "-o", "OUT"], "--weights goes with --arch"),
        (["--arch", "resnet38", "-o", "OUT"], "--weights FILE"),
        (
            ["--arch", "resnet38", "--weights", "w.pth", "--mean", "0", "-o", "OUT"],
            "--mean goes with an ONNX",
        ),
        (["FILE", "-o", "OUT", "--mean", "1,2"], "--mean takes three numbers"),
        (["FILE", "-o", "OUT", "--std", "0,1,1"], "std must be positive"),
        (["FILE", "-o", "OUT", "--scale", "0"], "scale"),
        (["FILE", "-o", "OUT", "--scale", "big"], "--scale takes a number"),
        (["FILE", "-o", "OUT", "--colour", "CMYK"], "RGB or BGR"),
        (["FILE", "-o", "OUT", "--output", "nope"], "no output 'nope'"),
        (["FILE", "-o", "OUT", "--input-name", "nope"], "no input 'nope'"),
        (["FILE", "-o", "OUT", "--classes", "missing.txt"], "missing.txt"),
        (["FILE", "-o", "OUT", "--images", "missing"], "no such folder"),
        (["missing.onnx", "-o", "OUT"], "no such file"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(infercam, file, tmp_path, args, words):
    known = {"FILE": str(file), "OUT": str(tmp_path / "out")}
    with pytest.raises(InfercamError) as caught:
        infercam(*(known.get(a, a) for a in args))
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_installed_command_ends_with_code_1_and_one_line(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07 not a model")
    code = "import sys; from infercam.engine.cli import main; sys.argv[0] = 'infercam'; main()"
    args = [sys.executable, "-c", code, "export", "bad.onnx", "-o", "b"]
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("error: bad.onnx: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_the_command_is_listed_without_onnx_or_torch(tmp_path):
    """`infercam --help` must work with the engine's packages alone."""
    code = (
        "import sys\n"
        "for name in ('onnx', 'torch', 'onnxslim', 'onnxruntime'): sys.modules[name] = None\n"
        "from infercam.engine.cli import main\n"
        "sys.argv = ['infercam', 'export', '--help']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--classes" in done.stdout, done.stderr


def test_without_onnx_the_extra_is_named(monkeypatch, infercam, file, tmp_path):
    import infercam.export.requirements as package

    monkeypatch.setattr(package, "find_spec", lambda name: None)
    with pytest.raises(InfercamError, match=r"pip install 'infercam\[export\]'"):
        infercam(file, "-o", tmp_path / "b")


def test_values_of_mean_and_std():
    assert join_triples(["m", "--mean", "1", "-2", "3.5", "-o", "b"]) == ["m", "--mean=1,-2,3.5", "-o", "b"]
    assert join_triples(["--mean", "1,2,3", "--std", "1, ", "2,", "3"]) == [
        "--mean=1,2,3",
        "--std=1, ",
        "2,",
        "3",
    ]
    assert join_triples(["--std", "1,", "2,", "3"]) == ["--std=1,2,3"]
    assert join_triples(["--mean"]) == ["--mean"]
    assert parse_triple("0.5", "--mean") == (0.5, 0.5, 0.5)
    assert parse_triple("1/2 1 2", "--mean") == (0.5, 1, 2)
    for bad in ("", "1,2", "a,b,c", "nan,0,0", "1/0,1,1", "1,2,3,4"):
        with pytest.raises(ExportError):
            parse_triple(bad, "--mean")


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3))
def test_triples_survive_both_spellings(values):
    texts = [repr(v) for v in values]
    spaced = join_triples(["--mean", *texts])
    comma = join_triples(["--mean", ",".join(texts)])
    assert spaced == comma
    assert parse_triple(spaced[0].removeprefix("--mean="), "--mean") == tuple(values)


# --- class names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["a\nb\nc\n", "a\r\nb\r\nc\r\n\r\n", '["a", "b", "c"]', '{"classes": ["a", "b", "c"]}', "\ufeffa\nb\nc"],
)
def test_read_classes(tmp_path, text):
    (tmp_path / "f").write_bytes(text.encode())
    assert read_classes(tmp_path / "f") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no class names"),
        (b"a\nb\na", "'a' twice"),
        (b'{"labels": []}', "expected a JSON list"),
        (b"[1, 2]", "expected a JSON list"),
        (b"[1, ", "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_read_classes_refuses(tmp_path, data, words):
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_classes(tmp_path / "f")


def test_names_that_repeat_are_numbered(infercam, file, tmp_path):
    (tmp_path / "names").write_text("crane\nmaillot\ncrane\nmaillot\ncat\n")
    printed = infercam(file, "-o", tmp_path / "b", "--classes", tmp_path / "names")
    names = ["crane", "maillot", "crane (2)", "maillot (2)", "cat"]
    assert Bundle.load(tmp_path / "b").manifest.classes == names
    assert "note: class names repeat" in printed and "class 2 is 'crane (2)'" in printed


def test_default_classes():
    assert default_classes(3)[0] == ["class_0", "class_1", "class_2"]
    voc = default_classes(20)[0]
    assert (voc[0], voc[-1]) == ("aeroplane", "tvmonitor")
    assert default_classes(2, {"names": "{0: 'cat', 1: 'dog'}"})[0] == ["cat", "dog"]
    assert default_classes(2, {"classes": '["cat", "dog"]'})[0] == ["cat", "dog"]
    assert default_classes(2, {"labels": "cat, dog"})[0] == ["cat", "dog"]
    assert default_classes(2, {"labels": "cat\ndog\n"})[0] == ["cat", "dog"]
    # names that do not fit are not used
    for other in ("{0: 'cat', 2: 'dog'}", '["cat"]', "[[[", "__import__('os')"):
        assert default_classes(2, {"names": other})[0] == ["class_0", "class_1"]


def test_names_in_the_models_metadata_are_used(model, tmp_path):
    model.metadata_props.add(key="names", value=json.dumps(list("vwxyz")))
    onnx.save(model, str(tmp_path / "m.onnx"))
    bundle = export_onnx(tmp_path / "m.onnx", tmp_path / "b", slim=False)
    assert bundle.manifest.classes == list("vwxyz")
    assert "names" in bundle.manifest.source["classes_from"]


# --- files -------------------------------------------------------------------------------------------------


def with_external_weights(model, folder, location="weights.bin"):
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    if location != "weights.bin":
        moved = onnx.load(str(path), load_external_data=False)
        for t in moved.graph.initializer:
            for entry in t.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(moved.SerializeToString())
    return path


def test_weights_in_the_models_folder(model, tmp_path):
    bundle = export_onnx(with_external_weights(model, tmp_path / "m"), tmp_path / "b")
    assert set(bundle.manifest.files) == {"response.onnx"}


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "sub/../../weights.bin", "link.bin"])
def test_weights_outside_the_models_folder_are_refused(model, tmp_path, location):
    path = with_external_weights(model, tmp_path / "m", location)
    (tmp_path / "m" / "weights.bin").rename(tmp_path / "weights.bin")
    (tmp_path / "m" / "link.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(ExportError, match="outside the model's folder"):
        load_model(path)


def test_weights_through_links_as_in_hugging_faces_cache(model, tmp_path):
    path = with_external_weights(model, tmp_path / "blobs")
    path.rename(path.with_name("aaa"))
    path.with_name("weights.bin").rename(path.with_name("bbb"))
    folder = tmp_path / "snapshots" / "1"
    folder.mkdir(parents=True)
    (folder / "m.onnx").symlink_to("../../blobs/aaa")
    (folder / "weights.bin").symlink_to("../../blobs/bbb")
    assert export_onnx(folder / "m.onnx", tmp_path / "b").manifest.stride == 4
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to("../../secret")
    (tmp_path / "secret").write_bytes(b"")
    with pytest.raises(ExportError, match="outside the model's folder"):
        load_model(folder / "m.onnx")


@pytest.mark.parametrize("first", [True, False])
def test_an_input_that_the_logits_do_not_need(model, tmp_path, first):
    spare = onnx.helper.make_tensor_value_info("training", onnx.TensorProto.BOOL, [])
    model.graph.input.insert(0 if first else 1, spare)
    onnx.save(model, str(tmp_path / "m.onnx"))
    manifest = export_onnx(tmp_path / "m.onnx", tmp_path / "b").manifest
    assert manifest.input.name == "image" and not any(
        "not compared" in i for i in manifest.verification.inputs
    )


@pytest.mark.parametrize("name", ["scores", "response"])
def test_a_picture_called_as_our_outputs(toys, tmp_path, name):
    t = toys.Toy()
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features(name)))
    y = t.node("Gemm", y, t.random(toys.C, toys.K), t.random(toys.C), transB=1)
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, t.shape)]
    onnx.save(t.model(y, inputs=inputs), str(tmp_path / "m.onnx"))
    manifest = export_onnx(tmp_path / "m.onnx", tmp_path / "b").manifest
    assert manifest.input.name == f"{name}_1"
    assert not any("not compared" in i for i in manifest.verification.inputs)


def test_missing_and_short_weights(model, tmp_path):
    path = with_external_weights(model, tmp_path / "m")
    data = (tmp_path / "m" / "weights.bin").read_bytes()
    (tmp_path / "m" / "weights.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(ExportError) as caught:
        export_onnx(path, tmp_path / "b")
    assert "\n" not in str(caught.value)
    (tmp_path / "m" / "weights.bin").unlink()
    with pytest.raises(ExportError, match=r"'weights\.bin', which is missing"):
        load_model(path)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x00" * 100, b"\xff" * 1000])
def test_files_that_are_no_models(tmp_path, data):
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ExportError, match=r"m\.onnx: "):
        export_onnx(tmp_path / "m.onnx", tmp_path / "b")


def test_truncated_models_never_give_a_traceback(model, tmp_path):
    whole = model.SerializeToString()
    path = tmp_path / "m.onnx"
    for cut in np.linspace(1, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:cut])
        with pytest.raises(ExportError) as caught:
            export_onnx(path, tmp_path / "b")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "b").exists()


# --- real models -------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_golden_classifier(shared, tmp_path, toys):
    """The response is the plain classifier's features through its last layer, at every pixel."""
    source = shared / "golden" / "tiny_classifier.onnx"
    bundle = export_onnx(source, tmp_path / "b")
    m = bundle.manifest
    assert (m.stride, m.input.height, m.input.dynamic_batch, len(m.classes)) == (8, None, True, 20)
    model = onnx.load(str(source))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    x = toys.picture(2, 75, 100)
    response = toys.run(onnx.load(str(bundle.graph())), x, "response")[0]
    features = toys.run(model, x, "c4r")[0]
    expected = np.einsum("ck,nkhw->nchw", weights["fc8.weight"], features)
    np.testing.assert_allclose(response, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.shared
def test_mobilenet_on_real_images(shared, tmp_path, infercam, toys):
    source = shared / "models" / "mobilenetv2_voc.onnx"
    printed = infercam(source, "-o", tmp_path / "b", "--images", shared / "golden" / "images")
    bundle = Bundle.load(tmp_path / "b")
    m = bundle.manifest
    assert m.stride == 16 and m.classes[14] == "person" and m.multi_label
    assert (m.input.height, m.input.width, m.input.dynamic_batch) == (None, None, True)
    assert m.verification.max_source_error < 1e-5
    assert sum(i.startswith("image ") for i in m.verification.inputs) == 5
    assert "11 against the source" in " ".join(printed.split())
    assert not any("Gemm" in n or "not simplified" in n for n in m.source["notes"])
    x = toys.picture(3, 97, 150)
    scores = toys.run(onnx.load(str(bundle.graph())), x, "scores")[0]
    np.testing.assert_allclose(scores, toys.run(onnx.load(str(source)), x)[0], rtol=1e-4, atol=1e-4)


def test_unknown_architecture(tmp_path, infercam):
    pytest.importorskip("torch")
    with pytest.raises(ExportError, match="no architecture 'vgg'"):
        infercam("--arch", "vgg", "--weights", tmp_path / "w.pth", "-o", tmp_path / "b")


@pytest.mark.slow
@pytest.mark.shared
def test_arch_option_reaches_pytorch(shared, tmp_path, infercam):
    pytest.importorskip("torch")
    weights = shared / "models" / "mobilenetv2_voc_folded_fp16.safetensors"
    infercam("--arch", "mobilenetv2", "--weights", weights, "-o", tmp_path / "b")
    m = Bundle.load(tmp_path / "b").manifest
    assert m.source["arch"] == "mobilenetv2" and len(m.classes) == 20 and m.stride == 16
